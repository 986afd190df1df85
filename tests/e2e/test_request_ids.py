"""Money ids are always the gateway's own: a client's X-Request-Id is noted and decides nothing."""

from tests.support.gateway import GatewayProcess, TestAccount, price
from tests.support.rawhttp import chat, request


def test_one_client_id_sent_100_times_is_100_charges(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    wanted = request(
        "/v1/chat/completions", chat(), key=account.key, headers={"X-Request-Id": "again"}
    )
    ids = set()
    with gateway.connect() as client:
        for _ in range(100):
            client.send(wanted)
            reply = client.read_reply()
            assert reply.status == 200
            ids.add(reply.headers["x-request-id"])
    charges = gateway.settle(account.id, 100)
    assert {charge.event_id for charge in charges} == ids
    assert {charge.client_request_id for charge in charges} == {"again"}
    with gateway.books() as books:
        # The default answer reports 12 + 5 tokens: 64 micro-credits.
        assert price(12, 5) == 64
        assert books.balance(account.id) == 1_000_000_000 - 100 * 64


def test_id_that_is_not_fit_to_store_is_ignored(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    for bad in ("x" * 129, "two words", "café"):
        reply = gateway.call(chat(), account.key, {"X-Request-Id": bad})
        assert reply.status == 200
        assert reply.headers["x-request-id"] != bad
    assert {c.client_request_id for c in gateway.settle(account.id, 3)} == {""}


def test_a_past_event_id_sent_as_request_id_repeats_nothing(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    first = gateway.call(chat(), account.key).headers["x-request-id"]
    second = gateway.call(chat(), account.key, {"X-Request-Id": first}).headers["x-request-id"]
    assert first != second
    assert len(gateway.settle(account.id, 2)) == 2
