"""A provider that ignores its output limit: the stream ends as its scene says, and nobody falls into the red."""

import json

import pytest

from tests.support.gateway import GatewayProcess
from tests.support.provider import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Gate,
    ScriptedProvider,
    delta,
    event,
    stream_answer,
    usage,
)
from tests.support.rawhttp import chat, request


def test_cut_ends_with_a_proper_last_chunk(
    gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    gate = Gate()
    words = [event(delta("some words "))] * 500
    script = provider.script(STREAM_HEAD, *words, gate, *words, DONE + LAST_CHUNK)
    body = chat(model="m-lax", stream=True, max_tokens=20, x_script=script)
    account = gateway.account(2 * len(body) + 8 * 100)
    reply = gateway.call(body, account.key)  # whole, though the provider never ended
    assert reply.status == 200
    assert reply.whole
    assert reply.events[-1] == "[DONE]"
    finishes = [
        choice["finish_reason"]
        for data in reply.events[:-1]
        for choice in json.loads(data)["choices"]
        if choice["finish_reason"]
    ]
    assert finishes == ["length"]
    assert provider.wait_call(script).left.wait(15)
    gate.open()
    [charge] = gateway.settle(account.id, 1)
    assert charge.quality == "partial"
    with gateway.books() as books:
        assert books.balance(account.id) >= 0


@pytest.mark.parametrize("scene", ["finished", "graceful"])
def test_finish_and_grace_let_it_run(
    gateway: GatewayProcess, provider: ScriptedProvider, scene: str
) -> None:
    script = provider.script(*stream_answer(["some words "] * 60, usage(50, 180)))
    body = chat(model="m-lax", stream=True, max_tokens=100, x_script=script)
    account = gateway.account(10_000, scene=scene, scenes=[scene])
    reply = gateway.call(body, account.key)
    assert reply.events[-1] == "[DONE]"
    assert reply.body.count(b"some words") == 60
    [charge] = gateway.settle(account.id, 1)
    # 50 x 2 + 180 x 8, though the limit was 100 tokens.
    assert (charge.amount, charge.quality) == (1540, "exact")


def test_hold_grows_with_the_stream(gateway: GatewayProcess, provider: ScriptedProvider) -> None:
    gate = Gate()
    word = event(delta("some words and more "))
    steps = [STREAM_HEAD, *[word] * 100, gate, *stream_answer([], usage(50, 500))[1:]]
    script = provider.script(*steps)
    body = chat(model="m-lax", stream=True, max_tokens=250, x_script=script)
    account = gateway.account(1_000_000)
    first = 2 * len(body) + 8 * 250
    with gateway.connect() as client:
        client.send(request(body=body, key=account.key))
        gate.wait_reached()
        client.read_until(b"some words and more")
        gateway.wait_held(account.id, first + 1)
        gate.open()
        assert b"[DONE]" in client.read_until(b"[DONE]")
    [charge] = gateway.settle(account.id, 1)
    assert charge.amount == 4100
