"""An estimate says what then happens: the same amounts, the same refusals, the same limit of output."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.test_limits import limit
from tests.support.gateway import GatewayProcess, TestAccount, price
from tests.support.provider import Gate, ScriptedProvider, completion, json_answer, usage
from tests.support.rawhttp import Reply, chat, request

PATH = "/v1/estimate"


@pytest.fixture
def untouched(provider: ScriptedProvider) -> Iterator[None]:
    """No estimate reaches the provider."""
    seen = len(provider.seen)
    yield
    assert len(provider.seen) == seen


def ask(gateway: GatewayProcess, key: str, body: bytes) -> dict[str, object]:
    reply = gateway.call(body, key, path=PATH)
    assert reply.status == 200, reply.body
    return reply.json


def admission(told: dict[str, object]) -> dict[str, object]:
    found = told["admission"]
    assert isinstance(found, dict)
    return found


def test_a_call_holds_and_costs_what_was_estimated(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    gate = Gate()
    script = provider.script(gate, *json_answer(completion(used=usage(9, 50))))
    body = chat(max_tokens=100, x_script=script)
    told = ask(gateway, account.key, body)
    # A byte at 2, and 100 tokens of output at 8.
    assert told["worst_micro_credits"] == 2 * len(body) + 800
    assert admission(told)["would_hold_micro_credits"] == told["worst_micro_credits"]
    with gateway.connect() as client:
        client.send(request(body=body, key=account.key))
        gate.wait_reached()
        with gateway.books() as books:
            assert books.held_micro_credits(account.id) == told["worst_micro_credits"]
        meanwhile = admission(ask(gateway, account.key, body))
        assert meanwhile["held_micro_credits"] == told["worst_micro_credits"]
        gate.open()
        assert client.read_reply().status == 200
    [charge] = gateway.settle(account.id, 1)
    assert charge.amount == price(9, 50)
    assert charge.rule == told["rule_id"]
    # Now there is a call to go by: as much output as that had.
    later = ask(gateway, account.key, body)
    tokens = later["input_tokens"]
    assert isinstance(tokens, int)
    assert later["expected_micro_credits"] == price(tokens, 50)


@pytest.mark.usefixtures("untouched")
def test_a_refusal_is_foreseen_with_its_amounts(gateway: GatewayProcess) -> None:
    poor = gateway.account(micro_credits=500)
    told = admission(ask(gateway, poor.key, chat()))
    assert (told["admitted"], told["reason"]) == (False, "insufficient")
    refused = gateway.call(chat(), poor.key)
    assert (refused.status, refused.code) == (402, "insufficient_credit")
    error = refused.json["error"]
    assert isinstance(error, dict)
    for name in ("balance_micro_credits", "held_micro_credits", "needed_micro_credits"):
        assert told[name] == error[name]


def test_a_clamp_is_foreseen(gateway: GatewayProcess, provider: ScriptedProvider) -> None:
    body = chat(x_script=provider.script(*json_answer()))
    thin = gateway.account(micro_credits=2 * len(body) + 70 * 8)
    told = admission(ask(gateway, thin.key, body))
    reply = gateway.call(body, thin.key)
    assert reply.status == 200
    assert reply.headers["x-max-tokens-clamped"] == str(told["max_tokens_clamped"]) == "70"


def test_a_busy_account_is_foreseen_as_held(
    gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    gate = Gate()
    body = chat(max_tokens=100, x_script=provider.script(gate, *json_answer()))
    account = gateway.account(micro_credits=2 * len(body) + 800)
    with gateway.connect() as client:
        client.send(request(body=body, key=account.key))
        gate.wait_reached()
        told = admission(ask(gateway, account.key, body))
        assert (told["admitted"], told["reason"]) == (False, "held")
        assert told["available_micro_credits"] == 0
        assert gateway.call(body, account.key).code == "credit_held"
        gate.open()
        assert client.read_reply().status == 200


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages":[]}',
        b'{"model":"m-small","messages":[],"n":1000}',
        b'{"model":"m-small","messages":[],"n":"1"}',
        b'{"model":"m-small","messages":[],"model":"m-small"}',
        b'{"model":"m-smal","messages":[]}',
        b'{"model":"unpriced","messages":[]}',
        b'{"model":"m-small","messages":[],"web_search_options":{}}',
        b'{"model":"m-small","messages":[{"role":"user","content":[{"type":"file"}]}]}',
        b'{"model":"m-small","messages":[],"service_tier":"flex"}',
        json.dumps({"model": "m-small", "messages": [], "x": "x" * 1_000_000}).encode(),
    ],
)
def test_a_bad_body_is_refused_in_the_words_of_the_call(
    gateway: GatewayProcess, account: TestAccount, body: bytes
) -> None:
    def said(reply: Reply) -> tuple[int, bytes]:
        return reply.status, reply.body

    estimated = gateway.call(body, account.key, path=PATH)
    assert estimated.status >= 400
    assert said(estimated) == said(gateway.call(body, account.key))


def test_it_counts_against_no_limit_of_the_key(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    limited = limit(gateway, account, requests=1, tokens=2_000, calls=1)
    body = chat(max_tokens=100, x_script=provider.script(*json_answer()))
    for _ in range(3):
        ask(gateway, limited.key, body)
    assert gateway.call(body, limited.key).status == 200
    assert gateway.call(body, limited.key).status == 429
    assert admission(ask(gateway, limited.key, body))["admitted"]
