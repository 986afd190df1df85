"""A call is admitted exactly when its worst case, or the least of it, is covered; never twice by one credit."""

import contextlib
import select

from tests.support.gateway import GatewayProcess, price, until
from tests.support.provider import Gate, ScriptedProvider, json_answer
from tests.support.rawhttp import RawClient, chat, request


def readable(clients: list[RawClient]) -> list[RawClient]:
    return select.select(clients, [], [], 0)[0]


def ceiling(body: bytes, limit: int) -> int:
    """2 per byte of the body, which no tokeniser exceeds, and 8 per token of output."""
    return 2 * len(body) + 8 * limit


def test_of_200_calls_held_open_exactly_k_are_admitted(
    gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    k = 37
    gate = Gate()
    script = provider.script(gate, *json_answer())
    # A limit of at most 64 tokens makes the least that a call needs its ceiling.
    body = chat(max_tokens=50, x_script=script)
    account = gateway.account(k * ceiling(body, 50) + ceiling(body, 50) - 1)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.connect()) for _ in range(200)]
        for client in clients:
            client.send(request(body=body, key=account.key))
        provider.wait_call(script, k)
        with gateway.books() as books:
            assert books.held(account.id) == k
        # The others are refused while nothing of the credit can have been freed yet.
        until(lambda: len(readable(clients)) == 200 - k or None, "163 refusals")
        gate.open()
        replies = [client.read_reply() for client in clients]
    admitted = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status != 200]
    assert len(admitted) == len(provider.calls(script))
    assert len(admitted) == k
    assert {(reply.status, reply.code) for reply in refused} == {(429, "credit_held")}
    assert all("retry-after" in reply.headers for reply in refused)
    gateway.settle(account.id, k)
    with gateway.books() as books:
        spent = k * price(12, 5)
        assert books.balance(account.id) == (k + 1) * ceiling(body, 50) - 1 - spent


def test_the_last_micro_credit_decides(gateway: GatewayProcess) -> None:
    body = chat(max_tokens=10)
    needed = ceiling(body, 10)
    enough = gateway.account(needed)
    assert gateway.call(body, enough.key).status == 200
    short = gateway.account(needed - 1)
    reply = gateway.call(body, short.key)
    assert (reply.status, reply.code) == (402, "insufficient_credit")
    error = reply.json["error"]
    assert isinstance(error, dict)
    assert error["balance_micro_credits"] == needed - 1
    assert error["held_micro_credits"] == 0
    assert error["needed_micro_credits"] == needed


def test_output_is_limited_to_what_the_grant_affords(
    gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    script = provider.script(*json_answer())
    body = chat(x_script=script)  # no limit: the model's own 1,000 tokens
    # 100 tokens of output are affordable, and 7 micro-credits that buy no 101st.
    account = gateway.account(ceiling(body, 100) + 7)
    reply = gateway.call(body, account.key)
    assert reply.status == 200
    assert reply.headers["x-max-tokens-clamped"] == "100"
    assert provider.wait_call(script).json["max_tokens"] == 100


def test_no_limit_is_sent_where_none_is_needed(
    gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    script = provider.script(*json_answer())
    account = gateway.account()
    reply = gateway.call(chat(x_script=script), account.key)
    assert "x-max-tokens-clamped" not in reply.headers
    assert not {"max_tokens", "max_completion_tokens"} & provider.wait_call(script).json.keys()


def test_a_suspended_account_is_told_so(gateway: GatewayProcess) -> None:
    account = gateway.account()
    gateway.suspend(account.id, "by a test")
    reply = gateway.call(chat(), account.key)
    assert (reply.status, reply.code) == (403, "account_suspended")


def test_models_are_listed_without_credit(gateway: GatewayProcess) -> None:
    broke = gateway.account(micro_credits=0)
    assert gateway.get("/v1/models", broke.key).status == 200
    assert gateway.call(chat(), broke.key).status == 402
