"""Who pays: an app's key names the account, a fallback pays the price of the target that answered."""

from tests.support.gateway import GatewayProcess, price
from tests.support.provider import ScriptedProvider, completion, json_answer, usage
from tests.support.rawhttp import chat


def test_app_key_bills_the_account_that_it_names(gateway: GatewayProcess) -> None:
    payer, other = gateway.account(), gateway.account()
    key = gateway.app_key()
    assert gateway.call(chat(), key, {"X-Billing-User": payer.id}).status == 200
    assert [charge.amount for charge in gateway.settle(payer.id, 1)] == [64]
    assert price(12, 5) == 64
    with gateway.books() as books:
        assert books.charges(other.id) == []


def test_app_key_must_name_somebody(gateway: GatewayProcess) -> None:
    reply = gateway.call(chat(), gateway.app_key())
    assert (reply.status, reply.code) == (400, "missing_billing_user")


def test_app_key_is_kept_to_its_accounts(gateway: GatewayProcess) -> None:
    mine, theirs = gateway.account(), gateway.account()
    key = gateway.app_key(mine.id)
    assert gateway.call(chat(), key, {"X-Billing-User": mine.id}).status == 200
    assert gateway.call(chat(), key, {"X-Billing-User": theirs.id}).status == 403
    gateway.settle(mine.id, 1)


def test_unknown_payer_has_no_credit(gateway: GatewayProcess) -> None:
    reply = gateway.call(chat(), gateway.app_key(), {"X-Billing-User": "never-seen"})
    assert (reply.status, reply.code) == (402, "insufficient_credit")


def test_revoked_key_is_refused(gateway: GatewayProcess) -> None:
    account = gateway.account()
    assert gateway.call(chat(), account.key).status == 200
    gateway.admin(f"keys/{account.key_id}/revoke", {})
    gateway.wait_refused(account.key)
    assert gateway.call(chat(), account.key).code == "invalid_api_key"
    gateway.settle(account.id, 1)


def test_fallback_answers_and_its_target_is_charged(
    gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    account = gateway.account()
    script = provider.script(*json_answer(completion("hi", usage(100, 20))))
    reply = gateway.call(chat(model="m-fallback", x_script=script), account.key)
    assert reply.status == 200
    assert provider.wait_call(script).json["model"] == "m-second"
    assert [charge.amount for charge in gateway.settle(account.id, 1)] == [360]


def test_store_shows_the_account_its_own_books(gateway: GatewayProcess) -> None:
    account = gateway.account()
    event_id = gateway.call(chat(), account.key).headers["x-request-id"]
    gateway.settle(account.id, 1)
    balance = gateway.get("/credit-store/balance", account.key).json
    assert balance["balance_micro_credits"] == 1_000_000_000 - 64
    transactions = gateway.get("/credit-store/transactions", account.key).json["items"]
    assert isinstance(transactions, list)
    assert [item["amount_micro_credits"] for item in transactions] == [-64, 1_000_000_000]
    charge = gateway.get(f"/credit-store/charges/{event_id}", account.key)
    assert charge.status == 200
    stranger = gateway.account()
    assert gateway.get(f"/credit-store/charges/{event_id}", stranger.key).status == 404
