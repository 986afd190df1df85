"""The credit store and the model list: what a key's owner sees, and what stays hidden."""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from billing.accounts import Grant
from billing.context import BillingContext
from billing.events import ChargeEvent, Finish, Revision, UsageNotes, UsageQuality, UsageSource
from billing.keys import NewKey
from billing.kinds import KeyKind
from llm_gateway.api.litestar import ModelOffer
from pricing_rules.usage import Usage
from tests.support.api import Api, serve_api
from tests.support.control import BOOK
from tests.support.estimates import FALLING_BACK

CREDIT = 1_000_000
STORE = (
    "/credit-store/balance",
    "/credit-store/transactions",
    "/credit-store/charges/c1",
    "/credit-store/price-rules",
)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as made:
        yield made


async def _grant(api: Api, account: str = "ada", event_id: str = "g1") -> None:
    grant = Grant(event_id=event_id, account=account, amount=10 * CREDIT)
    await api.plane.accounts.grant(grant, actor="test")


async def _charge(api: Api, event_id: str = "c1", account: str = "ada") -> None:
    """11 input and 2 output tokens at 250 and 1,000 micro-credits: 2,750 + 2,000 = 4,750."""
    started_at = api.plane.clock.ms
    event = ChargeEvent(
        revision=Revision.FINAL,
        context=BillingContext(
            event_id=event_id,
            account=account,
            key_id="key_1",
            app="",
            scene="chat",
            provider="echo",
            model_requested="mini",
            model_sent="mini",
            run_id="run-1",
            client_request_id="mine",
            book=1,
            rule="echo-mini",
            started_at=started_at,
        ),
        usage=Usage(input=11, output=2),
        quality=UsageQuality.EXACT,
        usage_source=UsageSource.PROVIDER,
        amount=4_750,
        ceiling=20_000,
        finished_at=started_at + 900,
    )
    await api.plane.hot.record(Finish(event=event, notes=UsageNotes()))
    await api.plane.hot.settle_pending(10)


@pytest.mark.parametrize("path", [*STORE, "/v1/models", "/v1/models/mini"])
async def test_key_is_required(api: Api, path: str) -> None:
    async with api.client() as client:
        for headers in ({}, {"Authorization": "Bearer lgw_" + "x" * 43}):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", STORE)
async def test_app_key_must_name_the_account(api: Api, path: str) -> None:
    headers = await api.app()
    async with api.client() as client:
        answer = await client.get(path, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "missing_billing_user")


@pytest.mark.parametrize("path", STORE)
async def test_restricted_app_key_reads_its_accounts_only(api: Api, path: str) -> None:
    headers = await api.app("ada")
    async with api.client() as client:
        answer = await client.get(path, headers={**headers, "X-Billing-User": "bob"})
    assert answer.status_code == 403


@pytest.mark.parametrize("path", STORE)
async def test_user_key_may_not_name_an_account(api: Api, path: str) -> None:
    headers = await api.user()
    async with api.client() as client:
        answer = await client.get(path, headers={**headers, "X-Billing-User": "ada"})
    assert answer.status_code == 403


async def test_unknown_key_without_database_is_503(api: Api) -> None:
    headers = await api.user()
    async with api.plane.away(), api.client() as client:
        answer = await client.get("/credit-store/balance", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")


async def test_balance_of_a_new_account_is_zero(api: Api) -> None:
    headers = await api.user()
    async with api.client() as client:
        balance = (await client.get("/credit-store/balance", headers=headers)).json()
    assert balance["balance_micro_credits"] == balance["held_micro_credits"] == 0
    assert (balance["blocked"], balance["suspended"]) == (True, False)
    assert (balance["updated_at"], balance["source"]) == (None, "db")


async def test_balance_names_every_total(api: Api) -> None:
    await _grant(api)
    async with api.client() as client:
        headers = {**await api.app(), "X-Billing-User": "ada"}
        balance = (await client.get("/credit-store/balance", headers=headers)).json()
    assert balance["account"] == "ada"
    assert balance["balance_micro_credits"] == 10 * CREDIT
    assert balance["total_rewarded_micro_credits"] == 10 * CREDIT
    assert balance["total_consumed_micro_credits"] == 0
    assert datetime.fromisoformat(balance["updated_at"]).utcoffset() is not None


async def test_transactions_have_the_promised_fields(api: Api) -> None:
    await _grant(api)
    headers = await api.user()
    async with api.client() as client:
        page = (await client.get("/credit-store/transactions", headers=headers)).json()
    assert (page["page"], page["page_size"], page["total"], page["has_more"]) == (1, 20, 1, False)
    (entry,) = page["items"]
    assert entry == {
        "transaction_id": "g1",
        "event_id": "g1",
        "source": "manual",
        "source_label": "人工补发",
        "direction": "income",
        "amount_micro_credits": 10 * CREDIT,
        "balance_after_micro_credits": 10 * CREDIT,
        "status": "applied",
        "description": "",
        "metadata_json": "{}",
        "created_at": "2026-09-21T14:13:20Z",
        "order_id": None,
        "source_ref_id": None,
    }


async def test_transactions_are_paged_by_cursor_and_filtered(api: Api) -> None:
    for number in range(5):
        await _grant(api, event_id=f"g{number}")
    await _grant(api, account="bob", event_id="other")
    headers = await api.user()
    seen: list[str] = []
    page: dict[str, Any] = {}
    async with api.client() as client:
        query = "page_size=2"
        for _ in range(3):
            path = f"/credit-store/transactions?{query}"
            page = (await client.get(path, headers=headers)).json()
            seen += [entry["event_id"] for entry in page["items"]]
            query = f"page_size=2&after={page['next_after']}"
        assert not page["has_more"]
        path = "/credit-store/transactions?direction=expense"
        assert (await client.get(path, headers=headers)).json()["total"] == 0
        path = "/credit-store/transactions?source=Manual&direction=income"
        assert (await client.get(path, headers=headers)).json()["total"] == 5
    assert seen == ["g4", "g3", "g2", "g1", "g0"]


@pytest.mark.parametrize(
    "query",
    [
        "page=0",
        "page=-1",
        "page=x",
        "page=1.5",
        "page_size=0",
        "page_size=101",
        "after=x",
        "after=-1",
        "after=9999999999999999999",
        "direction=sideways",
    ],
)
async def test_wrong_paging_is_400(api: Api, query: str) -> None:
    headers = await api.user()
    async with api.client() as client:
        answer = await client.get(f"/credit-store/transactions?{query}", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


async def test_charge_is_explained(api: Api) -> None:
    await api.load_book()
    await _grant(api)
    await _charge(api)
    headers = await api.user()
    async with api.client() as client:
        charge = (await client.get("/credit-store/charges/c1", headers=headers)).json()
    assert charge["amount_micro_credits"] == charge["pricing"]["computed_micro_credits"] == 4_750
    assert charge["pricing"]["rounding_micro_credits"] == "0"
    assert (charge["usage"]["input"], charge["usage"]["cached_input"]) == (11, 0)
    assert charge["pricing"]["rule"]["input_price"] == "2.50"
    assert (charge["settlement"], charge["quality"], charge["hold"]) == ("settled", "exact", None)
    assert [entry["amount_micro_credits"] for entry in charge["entries"]] == [-4_750]
    assert charge["client_request_id"] == "mine"


async def test_charge_of_somebody_else_is_404(api: Api) -> None:
    await api.load_book()
    await _grant(api)
    await _charge(api)
    headers = await api.user("bob")
    async with api.client() as client:
        theirs = await client.get("/credit-store/charges/c1", headers=headers)
        nobodys = await client.get("/credit-store/charges/c2", headers=headers)
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.content == nobodys.content


async def test_price_rules_are_those_of_the_keys_scenes(api: Api) -> None:
    await api.load_book()
    new = NewKey(kind=KeyKind.USER, account="ada", default_scene="chat", scenes=("agent",))
    _, token = await api.plane.keys.create(new, actor="test")
    async with api.client() as client:
        chat = await client.get("/credit-store/price-rules", headers=await api.user())
        both = await client.get(
            "/credit-store/price-rules?page_size=2", headers={"Authorization": f"Bearer {token}"}
        )
    assert [rule["rule_id"] for rule in chat.json()["items"]] == ["echo-mini"]
    assert [rule["rule_id"] for rule in both.json()["items"]] == ["echo-mini", "agent-mini"]
    assert (both.json()["total"], both.json()["has_more"], both.json()["book"]) == (3, True, 1)


async def test_models_are_priced_ones_and_need_no_credit(api: Api) -> None:
    await api.load_book()
    headers = await api.user()
    async with api.client() as client:
        models = (await client.get("/v1/models", headers=headers)).json()
        one = (await client.get("/v1/models/mini", headers=headers)).json()
    assert models == {"object": "list", "data": [one]}
    pricing = one.pop("pricing")
    assert one == {"id": "mini", "object": "model", "created": 0, "owned_by": "echo"}
    # 2.50, 1.25 and 10.00 USD per 1M tokens, at 100 credits per USD
    assert pricing == {
        "book": 1,
        "rule_id": "echo-mini",
        "currency": "USD",
        "credits_per_unit": "100",
        "free": False,
        "credits_per_1m_tokens": {
            "input": "250",
            "cached_input": "125",
            "cache_write_5m": "250",
            "cache_write_1h": "250",
            "audio_input": "250",
            "image_input": "250",
            "output": "1000",
            "reasoning": "1000",
            "audio_output": "1000",
        },
        "credits_each": {
            "call": "0",
            "image": "0",
            "second": "0",
            "character": "0",
            "search": "0",
        },
        "minimum_charge_credits": "0",
        "tiers": [],
        "has_hours": False,
        "hours_factor": "1",
        "service_tiers": {},
    }


async def test_prices_of_models_have_tiers_hours_and_fees(api: Api) -> None:
    more = """
[[rule]]
id = "dear-mini"
provider = "echo"
model = "mini"
priority = 1
input = "0.5"
output = "1.5"
reasoning = "2"
per_call = "0.001"
per_image = "0.02"
minimum_charge = "0.003"
tiers = [{ over_input_tokens = 200000, input = "1" }]
hours = [{ tz = "UTC", from = "00:00", to = "24:00", multiply = "2" }]
service_tiers = { flex = "0.5" }
"""
    await api.load_book(BOOK + more)
    headers = await api.user()
    async with api.client() as client:
        pricing = (await client.get("/v1/models/mini", headers=headers)).json()["pricing"]
    base = pricing["credits_per_1m_tokens"]
    assert (base["input"], base["cached_input"], base["output"]) == ("50", "50", "150")
    assert base["reasoning"] == "200"
    assert (pricing["credits_each"]["call"], pricing["credits_each"]["image"]) == ("0.1", "2")
    assert pricing["minimum_charge_credits"] == "0.3"
    [tier] = pricing["tiers"]
    assert tier["from_input_tokens"] == 200_001
    assert (tier["credits_per_1m_tokens"]["input"], tier["credits_per_1m_tokens"]["output"]) == (
        "100",
        "150",
    )
    assert (pricing["has_hours"], pricing["hours_factor"]) == (True, "2")
    assert pricing["service_tiers"] == {"flex": "0.5"}


async def test_models_without_a_rule_have_the_price_of_the_fallback_rule(api: Api) -> None:
    api.settings = FALLING_BACK
    await api.load_book()
    headers = await api.user()
    async with api.client() as client:
        models = (await client.get("/v1/models", headers=headers)).json()["data"]
    rules = {model["id"]: model["pricing"]["rule_id"] for model in models}
    assert rules == dict.fromkeys(
        ("agent-model", "disabled-model", "mini", "unpriced"), "echo-mini"
    )


@pytest.mark.parametrize("own", [(("other", "mini"),), ()])
async def test_an_entry_of_its_own_comes_before_the_pass_through(
    api: Api, own: tuple[tuple[str, str], ...]
) -> None:
    """Also one without a price, or whose providers are off: the call would be refused."""
    passing = ModelOffer(name="*", targets=(("echo", "*"),))
    api.offers = (passing, ModelOffer(name="mini", targets=own))
    await api.load_book()
    headers = await api.user()
    async with api.client() as client:
        assert (await client.get("/v1/models", headers=headers)).json()["data"] == []


async def test_models_follow_scene_and_key(api: Api) -> None:
    await api.load_book()
    new = NewKey(
        kind=KeyKind.APP, app="forum", default_scene="chat", scenes=("agent",), models=("agent-*",)
    )
    _, token = await api.plane.keys.create(new, actor="test")
    headers = {"Authorization": f"Bearer {token}"}
    async with api.client() as client:
        chat = await client.get("/v1/models", headers=headers)
        agent = await client.get("/v1/models", headers={**headers, "X-Scene": "agent"})
        other = await client.get("/v1/models", headers={**headers, "X-Scene": "batch"})
    assert chat.json()["data"] == []
    assert [model["id"] for model in agent.json()["data"]] == ["agent-model"]
    assert (other.status_code, other.json()["error"]["code"]) == (403, "scene_not_allowed")


@pytest.mark.parametrize("model", ["unpriced", "disabled-model", "agent-model", "nope", "a/b/c"])
async def test_model_that_cannot_be_called_is_404(api: Api, model: str) -> None:
    await api.load_book()
    headers = await api.user()
    async with api.client() as client:
        answer = await client.get(f"/v1/models/{model}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_pass_through_lists_what_rules_spell_out(api: Api) -> None:
    api.offers = (ModelOffer(name="*", targets=(("echo", "*"),)),)
    await api.load_book()
    headers = await api.user()
    async with api.client() as client:
        models = (await client.get("/v1/models", headers=headers)).json()["data"]
    assert [model["id"] for model in models] == ["mini"]


async def test_slashes_in_model_names(api: Api) -> None:
    api.offers = (ModelOffer(name="meta/mini", targets=(("echo", "mini"),)),)
    await api.load_book()
    headers = await api.user()
    async with api.client() as client:
        answer = await client.get("/v1/models/meta/mini", headers=headers)
    assert answer.json()["id"] == "meta/mini"


async def test_stale_books_are_503(api: Api) -> None:
    await api.load_book()
    headers = await api.user()
    api.plane.clock.tick(5.1)
    async with api.client() as client:
        for path in ("/v1/models", "/credit-store/price-rules"):
            answer = await client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "books_stale")
        assert (await client.get("/credit-store/balance", headers=headers)).status_code == 200
