"""SIGTERM and Ctrl-C: no new calls, streams may end in time, what is cut is paid, exit status 0."""

import json
import signal
from collections.abc import Iterator

import pytest

from tests.support.gateway import GatewayProcess, until
from tests.support.provider import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Gate,
    ScriptedProvider,
    delta,
    event,
    json_answer,
    usage,
    usage_event,
)
from tests.support.rawhttp import chat, request

FIRST = event(delta("one"))
REST = [
    event(delta("two")),
    event(delta(None, finish="stop")),
    usage_event(usage(100, 20)),
    DONE + LAST_CHUNK,
]


@pytest.fixture
def own_gateway(
    provider: ScriptedProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    with GatewayProcess(folder, provider.base_url, shutdown_seconds=1) as gateway:
        gateway.start()
        yield gateway


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stream_that_ends_in_time_is_whole(
    own_gateway: GatewayProcess, provider: ScriptedProvider, number: signal.Signals
) -> None:
    account = own_gateway.account()
    gate = Gate()
    script = provider.script(STREAM_HEAD, FIRST, gate, *REST)
    with own_gateway.connect() as client:
        client.send(request(body=chat(stream=True, x_script=script), key=account.key))
        client.read_until(b'"one"')
        own_gateway.interrupt(number)
        until(lambda: _refuses_connections(own_gateway) or None, "the listener to close")
        gate.open()
        assert b"[DONE]" in client.read_to_end()
    assert own_gateway.wait() == 0, own_gateway.output
    own_gateway.audit()
    with own_gateway.books() as books:
        assert [c.amount for c in books.charges(account.id)] == [360]


def test_stream_that_does_not_end_is_cut_and_paid(
    own_gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    account = own_gateway.account()
    script = provider.script(STREAM_HEAD, FIRST, Gate(), *REST)
    with own_gateway.connect() as client:
        client.send(request(body=chat(stream=True, x_script=script), key=account.key))
        client.read_until(b'"one"')
        own_gateway.interrupt()
        reply = client.read_to_end().decode()
    assert own_gateway.wait() == 0, own_gateway.output
    last = [line[6:] for line in reply.splitlines() if line.startswith("data: {")][-1]
    assert json.loads(last)["choices"][0]["finish_reason"] == "length"
    assert "data: [DONE]" in reply
    own_gateway.audit()
    with own_gateway.books() as books:
        [charge] = books.charges(account.id)
        assert charge.quality == "partial"
        assert charge.amount > 0


def test_call_without_an_answer_is_refused_and_resolved(
    own_gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    account = own_gateway.account()
    gate = Gate()
    script = provider.script(gate, *json_answer())
    with own_gateway.connect() as client:
        client.send(request(body=chat(x_script=script), key=account.key))
        gate.wait_reached()
        own_gateway.interrupt()
        reply = client.read_reply()
    assert reply.status == 503
    assert own_gateway.wait() == 0, own_gateway.output
    own_gateway.audit()


def test_idle_gateway_stops_at_once(own_gateway: GatewayProcess) -> None:
    account = own_gateway.account()
    with own_gateway.connect() as idle:
        idle.send(request(body=chat(), key=account.key))
        assert idle.read_reply().status == 200
        assert own_gateway.stop() == 0, own_gateway.output
        assert idle.read_to_end() == b""
    own_gateway.audit()
    assert "Traceback" not in own_gateway.output


def _refuses_connections(gateway: GatewayProcess) -> bool:
    try:
        gateway.connect().close()
    except OSError:
        return True
    return False


def test_client_that_does_not_read_does_not_keep_it_running(
    own_gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    account = own_gateway.account()
    words = [event(delta("x" * 8000))] * 1500  # 12 MB: more than any socket buffers
    script = provider.script(STREAM_HEAD, *words, *REST)
    with own_gateway.connect() as client:
        client.send(request(body=chat(stream=True, x_script=script), key=account.key))
        client.read_until(b'"xxx')
        own_gateway.interrupt()
        assert own_gateway.wait() == 0, own_gateway.output
    own_gateway.audit()
    with own_gateway.books() as books:
        [charge] = books.charges(account.id)
    assert charge.reason == "cut"
