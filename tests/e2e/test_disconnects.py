"""The client leaves at each stage: the hold is resolved, the call is paid once, as the scene's policy says."""

from collections.abc import Callable

import pytest

from tests.support.gateway import Charge, GatewayProcess, TestAccount, price, until
from tests.support.provider import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Gate,
    ScriptedProvider,
    Step,
    completion,
    delta,
    event,
    head,
    json_answer,
    json_bytes,
    usage,
    usage_event,
)
from tests.support.rawhttp import RawClient, chat, request

USED = usage(100, 20)  # 100 x 2 + 20 x 8 = 360 micro-credits
WORDS = [event(delta(word)) for word in ("one", "two", "three")]
END = [event(delta(None, finish="stop")), usage_event(USED), DONE + LAST_CHUNK]
JSON = json_bytes(completion("three words here", USED))
CUT = JSON.index(b"choices")

# Where the provider waits while the client leaves; what the client has read by then.
STAGES: dict[str, tuple[bool, Callable[[Gate], list[Step]], bytes]] = {
    "json_before_head": (False, lambda gate: [gate, JSON], b""),
    "json_in_body": (False, lambda gate: [JSON[:CUT], gate, JSON[CUT:]], b""),
    "stream_before_head": (True, lambda gate: [gate, STREAM_HEAD, *WORDS, *END], b""),
    "stream_after_head": (True, lambda gate: [STREAM_HEAD, gate, *WORDS, *END], b"\r\n\r\n"),
    "stream_between_chunks": (
        True,
        lambda gate: [STREAM_HEAD, WORDS[0], gate, *WORDS[1:], *END],
        b'"one"',
    ),
    "stream_before_usage": (
        True,
        lambda gate: [STREAM_HEAD, *WORDS, END[0], gate, *END[1:]],
        b'"three"',
    ),
    "stream_before_done": (
        True,
        lambda gate: [STREAM_HEAD, *WORDS, *END[:2], gate, END[2]],
        b'"three"',
    ),
}


def close(client: RawClient) -> None:
    client.close()


def reset(client: RawClient) -> None:
    client.reset()


def half_close(client: RawClient) -> None:
    client.half_close()


LEAVE = [close, reset, half_close]


def leave_at(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    account: TestAccount,
    stage: str,
    leave: Callable[[RawClient], None],
) -> tuple[Gate, str]:
    """Start a call, wait for the stage, leave; the provider still waits at the gate."""
    stream, steps, read_first = STAGES[stage]
    gate = Gate()
    script = provider.script(*steps(gate))
    with gateway.connect() as client:
        client.send(request(body=chat(stream=stream, x_script=script), key=account.key))
        gate.wait_reached()
        if read_first:
            client.read_until(read_first)
        leave(client)
        if leave is half_close:
            client.read_to_end()  # the gateway closes its side too
    return gate, script


def resolved(gateway: GatewayProcess, account: TestAccount) -> Charge:
    """The one final word on the account's only call, with nothing held any more."""

    def found() -> Charge | None:
        with gateway.books() as books:
            rows = books.charges(account.id) + books.cancelled(account.id)
            return rows[0] if len(rows) == 1 and not books.held(account.id) else None

    return until(found, "the hold to be resolved")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("leave", LEAVE)
def test_drain_reads_on_and_charges_what_is_reported(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    stage: str,
    leave: Callable[[RawClient], None],
) -> None:
    account = gateway.account(scene="drained")
    gate, script = leave_at(gateway, provider, account, stage, leave)
    gate.open()
    charge = resolved(gateway, account)
    assert (charge.amount, charge.quality) == (360, "exact")
    assert price(100, 20) == 360
    assert not provider.wait_call(script).left.is_set()
    assert len(provider.calls(script)) == 1


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("leave", LEAVE)
def test_stop_closes_the_upstream_and_charges_what_was_delivered(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    stage: str,
    leave: Callable[[RawClient], None],
) -> None:
    account = gateway.account(scene="stopped")
    gate, script = leave_at(gateway, provider, account, stage, leave)
    seen = provider.wait_call(script)
    assert seen.left.wait(15), "the upstream connection is still open"
    charge = resolved(gateway, account)
    assert not charge.cancelled
    assert (charge.quality, charge.reason) == ("partial", "client_gone")
    if stage == "stream_before_done":
        assert charge.amount == 360  # the usage was reported before the client left
    else:
        # The input was sent: at least that is paid, and never more than it and three words.
        most = 2 * len(seen.body) + 8 * 20
        assert 0 < charge.amount <= most
        assert charge.output <= 20
    gate.open()
    # What was cut off in the middle must never carry another call.
    other = provider.script(*json_answer())
    assert gateway.call(chat(x_script=other), account.key).status == 200
    assert provider.wait_call(other).connection != seen.connection
    assert len(gateway.settle(account.id, 2)) == 2


@pytest.mark.parametrize("leave", LEAVE)
def test_leaving_while_the_body_is_sent_costs_nothing(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    account: TestAccount,
    leave: Callable[[RawClient], None],
) -> None:
    script = provider.script(*json_answer())
    wanted = request(body=chat(x_script=script), key=account.key)
    with gateway.connect() as client:
        client.send(wanted[:-10])
        leave(client)
        if leave is half_close:
            client.read_to_end()
    # A later call through the same process shows that the first is over.
    assert gateway.call(chat(), account.key).status == 200
    assert len(gateway.settle(account.id, 1)) == 1
    assert provider.calls(script) == []


def test_many_leave_at_once_and_each_is_resolved(
    gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    account = gateway.account(scene="drained", scenes=["stopped"])
    gate = Gate()
    script = provider.script(STREAM_HEAD, WORDS[0], gate, *WORDS[1:], *END)
    clients = [gateway.connect() for _ in range(40)]
    for number, client in enumerate(clients):
        scene = "drained" if number % 2 else "stopped"
        client.send(
            request(
                body=chat(stream=True, x_script=script),
                key=account.key,
                headers={"X-Scene": scene},
            )
        )
    for client in clients:
        client.read_until(b'"one"')
    for client in clients:
        client.close()
    gate.open()
    charges = gateway.settle(account.id, 40)
    assert sorted({charge.quality for charge in charges}) == ["exact", "partial"]
    assert [c.amount for c in charges if c.scene == "drained"] == [360] * 20


def test_a_slow_reader_gets_all_and_others_do_not_wait(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    # 8 MB against socket buffers of a few hundred kB: both directions must be paused.
    words = [event(delta("x" * 8000))] * 1000
    script = provider.script(STREAM_HEAD, *words, *END)
    with gateway.connect() as slow:
        slow.send(request(body=chat(stream=True, x_script=script), key=account.key))
        slow.read_head()
        assert gateway.call(chat(), account.key).status == 200
        body = slow.read_until(b"[DONE]")
    assert body.count(b'"content"') == 1000
    assert {c.amount for c in gateway.settle(account.id, 2)} == {64, 360}


def test_head_without_content_length_and_close_is_a_whole_answer(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    from tests.support.provider import Close

    data = JSON.partition(b"\r\n\r\n")[2]
    script = provider.script(head(200, "Connection: close") + data, Close())
    reply = gateway.call(chat(x_script=script), account.key)
    assert (reply.status, reply.body) == (200, data)
    assert gateway.settle(account.id, 1)[0].amount == 360
