"""HttpUpstream over real sockets, on both event loops: reuse, timeouts, faults, cancellation."""

import asyncio
import gc
import gzip
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trustme

from llm_gateway.config import ProviderConfig
from llm_gateway.secret import Secret
from llm_gateway.upstream import (
    Aborted,
    ConnectFailed,
    FirstByteTimeout,
    PoolExhausted,
    UpstreamBroken,
    UpstreamError,
    UpstreamIdle,
    UpstreamRequest,
)
from llm_gateway.upstream.connection import HttpExchange
from llm_gateway.upstream.http import HttpUpstream
from tests.support.upstream_server import Received, Script, ScriptedUpstream, Step

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def a_request(body: bytes = b"{}", *headers: tuple[bytes, bytes]) -> UpstreamRequest:
    return UpstreamRequest(path=b"/chat/completions", headers=headers, body=body)


@asynccontextmanager
async def a_client(
    server: ScriptedUpstream, *, tls: ssl.SSLContext | None = None, **settings: float
) -> AsyncIterator[HttpUpstream]:
    given = {"connect_seconds": 5, "first_byte_seconds": 5, "idle_seconds": 5, **settings}
    if "connections_max" in given:
        given["connections_max"] = int(given["connections_max"])
    provider = ProviderConfig(name="p", base_url=server.base_url, **given)  # type: ignore[arg-type]
    client = HttpUpstream(provider, tls=tls)
    try:
        yield client
    finally:
        await client.close()
        assert client.stats().open == 0


async def ask(client: HttpUpstream, request: UpstreamRequest | None = None) -> bytes:
    exchange = await client.send(request or a_request())
    return await read(exchange)


async def read(exchange: HttpExchange) -> bytes:
    body: list[bytes] = []
    await exchange.relay(body.append)
    return b"".join(body)


async def test_request_on_the_wire() -> None:
    async with ScriptedUpstream([[OK]]) as server, a_client(server) as client:
        assert await ask(client, a_request(b'{"a":1}', (b"x-a", b"b c"))) == b"hello"
        port = server.port
    (request,) = server.requests
    assert request.line == b"POST /v1/chat/completions HTTP/1.1"
    assert request.headers == [
        (b"host", b"127.0.0.1:%d" % port),
        (b"accept-encoding", b"identity"),
        (b"x-a", b"b c"),
        (b"content-length", b"7"),
    ]
    assert request.body == b'{"a":1}'


async def test_own_key_is_sent_unless_the_caller_brings_one() -> None:
    async with ScriptedUpstream([[OK]]) as server:
        provider = ProviderConfig(name="p", base_url=server.base_url, api_key=Secret("sk-own"))
        client = HttpUpstream(provider)
        await ask(client)
        await ask(client, a_request(b"{}", (b"Authorization", b"Bearer other")))
        await client.close()
    keys = [request.header(b"authorization") for request in server.requests]
    assert keys == [b"Bearer sk-own", b"Bearer other"]


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"a\r\nb: c"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x\r\ny", b"a"),
        (b"x y", b"a"),
        (b"x:", b"a"),
        (b"", b"a"),
        (b"Content-Length", b"0"),
        (b"transfer-encoding", b"chunked"),
        (b"host", b"example.org"),
        (b"connection", b"close"),
        (b"accept-encoding", b"br"),
    ],
)
async def test_no_header_breaks_out(field: tuple[bytes, bytes]) -> None:
    async with ScriptedUpstream([[OK]]) as server, a_client(server) as client:
        with pytest.raises(ValueError, match=r"line break|name of a header|written by the client"):
            await client.send(a_request(b"{}", field))
        assert (server.connections, client.stats().open) == (0, 0)


@pytest.mark.parametrize("path", [b"chat", b"/a b", b"/a\r\n", b"/\xff", b"", b"/a\0"])
async def test_no_path_breaks_out(path: bytes) -> None:
    async with ScriptedUpstream([[OK]]) as server, a_client(server) as client:
        with pytest.raises(ValueError, match="path"):
            await client.send(UpstreamRequest(path=path, headers=(), body=b""))


@pytest.mark.parametrize(
    "url", ["", "ftp://a", "http://", "http://u:p@a/v1", "http://a/?q", "http://a/#f", "a/v1"]
)
def test_unusable_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        HttpUpstream(ProviderConfig(name="p", base_url=url))


def test_base_url_may_be_an_ipv6_address_and_bring_a_prefix() -> None:
    client = HttpUpstream(ProviderConfig(name="p", base_url="http://[::1]:8000/a/v1/"))
    head = client._writer.head(a_request())
    assert head.startswith(b"POST /a/v1/chat/completions HTTP/1.1\r\nhost: [::1]:8000\r\n")


async def test_ipv6() -> None:
    try:
        server = ScriptedUpstream([[OK]], host="::1")
        await server.__aenter__()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    async with a_client(server) as client:
        assert await ask(client) == b"hello"
    await server.__aexit__(None, None, None)


# What is reused, and what is not.

REUSED: list[bytes] = [
    OK,
    HEAD + chunk(b"hello") + END,
    HEAD + chunk(b"hello") + b"0\r\nx-trailer: 1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello",
]
NOT_REUSED: list[bytes] = [
    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=1\r\ncontent-length: 5\r\n\r\nhello",
]


@pytest.mark.parametrize("wire", REUSED)
@pytest.mark.parametrize("size", [1, 7, 10**6])
async def test_clean_end_is_reused(wire: bytes, size: int) -> None:
    script: Script = [wire[i : i + size] for i in range(0, len(wire), size)]
    async with ScriptedUpstream([script]) as server, a_client(server) as client:
        for _ in range(3):
            assert await ask(client) == b"hello"
        assert (server.connections, client.stats().reused_total) == (1, 2)


@pytest.mark.parametrize("wire", NOT_REUSED)
async def test_end_that_forbids_it_is_not_reused(wire: bytes) -> None:
    async with ScriptedUpstream([[wire]]) as server, a_client(server) as client:
        for _ in range(2):
            assert await ask(client) == b"hello"
        assert server.connections == 2


async def test_close_ends_an_answer_without_length() -> None:
    script: Script = [b"HTTP/1.1 200 OK\r\n\r\n", b"hel", b"lo", Step.CLOSE]
    async with ScriptedUpstream([script]) as server, a_client(server) as client:
        for _ in range(2):
            assert await ask(client) == b"hello"
        assert server.connections == 2


BROKEN_BODIES: dict[str, Script] = {
    "cut chunked": [HEAD + chunk(b"hello"), Step.CLOSE],
    "cut in a chunk": [HEAD + b"5\r\nhel", Step.CLOSE],
    "cut before the last line": [HEAD + chunk(b"hello") + b"0\r\n", Step.CLOSE],
    "short": [OK[:-1], Step.CLOSE],
    "reset in chunks": [HEAD + chunk(b"hello"), Step.RESET],
    "reset without length": [b"HTTP/1.1 200 OK\r\n\r\nhello", Step.RESET],
    "bad chunk": [HEAD + b"zz\r\n", Step.WAIT_GONE],
    "bytes after the end": [OK + b"\r\n", Step.WAIT_GONE],
    "another answer": [OK + OK, Step.WAIT_GONE],
    "cut gzip": [
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + gzip.compress(b"hello")[:-4],
        Step.CLOSE,
    ],
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
async def test_broken_body(name: str) -> None:
    """What came before the fault may be handed over; the end is never clean."""
    async with ScriptedUpstream([BROKEN_BODIES[name], [OK]]) as server, a_client(server) as client:
        with pytest.raises(UpstreamBroken) as caught:
            await ask(client)
        assert caught.value.sent
        assert await ask(client) == b"hello"
        assert server.connections == 2


BROKEN_HEADS: dict[str, Script] = {
    "closed at once": [Step.CLOSE],
    "cut": [b"HTTP/1.1 200 OK\r\ncontent-le", Step.CLOSE],
    "only an interim one": [b"HTTP/1.1 100 Continue\r\n\r\n", Step.CLOSE],
    "reset": [b"HTTP/1.1 200 OK\r\n", Step.RESET],
    "both framings": [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello",
        Step.WAIT_GONE,
    ],
    "unknown coding": [
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 5\r\n\r\nhello",
        Step.WAIT_GONE,
    ],
    "switching": [b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", Step.WAIT_GONE],
    "too long": [b"HTTP/1.1 200 OK\r\na: " + b"x" * 70_000, Step.WAIT_GONE],
}


@pytest.mark.parametrize("name", BROKEN_HEADS)
async def test_broken_head(name: str) -> None:
    async with ScriptedUpstream([BROKEN_HEADS[name], [OK]]) as server, a_client(server) as client:
        with pytest.raises(UpstreamBroken) as caught:
            await client.send(a_request())
        assert caught.value.sent
        assert await ask(client) == b"hello"
        assert server.connections == 2


async def test_bytes_nobody_asked_for_end_an_idle_connection() -> None:
    more = asyncio.Event()
    script: Script = [OK, more, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", Step.WAIT_GONE]
    async with ScriptedUpstream([script, [OK]]) as server, a_client(server) as client:
        assert await ask(client) == b"hello"
        more.set()
        await server.wait_for(lambda: server.closed == 1)
        assert await ask(client) == b"hello"
        assert server.connections == 2


# Stale connections.


async def test_stale_connection_is_retried_once_on_a_fresh_one() -> None:
    """The server ends the kept connection when the second request arrives on it."""
    scripts: list[Script] = [[OK], [Step.RESET], [OK]]
    async with ScriptedUpstream(scripts) as server, a_client(server) as client:
        assert await ask(client) == b"hello"
        assert await ask(client) == b"hello"
        assert [request.connection for request in server.requests] == [0, 0, 1]
        assert client.stats().retried_total == 1


async def test_retry_is_not_repeated() -> None:
    scripts: list[Script] = [[OK], [Step.CLOSE], [Step.CLOSE], [OK]]
    async with ScriptedUpstream(scripts) as server, a_client(server) as client:
        await ask(client)
        with pytest.raises(UpstreamBroken) as caught:
            await ask(client)
        assert (caught.value.sent, len(server.requests)) == (True, 3)


async def test_answer_that_began_is_not_retried() -> None:
    scripts: list[Script] = [[OK], [b"H", Step.CLOSE], [OK]]
    async with ScriptedUpstream(scripts) as server, a_client(server) as client:
        await ask(client)
        with pytest.raises(UpstreamBroken):
            await ask(client)
        assert len(server.requests) == 2


async def test_retry_takes_no_other_kept_connection() -> None:
    gate = asyncio.Event()
    scripts: list[Script] = [[gate, OK], [gate, OK], [Step.RESET], [OK]]
    async with (
        ScriptedUpstream(scripts) as server,
        a_client(server, connections_max=2) as client,
    ):
        pair = [asyncio.create_task(ask(client)) for _ in range(2)]
        await server.wait_for(lambda: len(server.requests) == 2)
        gate.set()
        await asyncio.gather(*pair)
        assert await ask(client) == b"hello"
        assert server.requests[-1].connection == 2


async def test_idle_connection_makes_room_for_a_fresh_one() -> None:
    async with ScriptedUpstream([[OK]]) as server, a_client(server, connections_max=1) as client:
        await ask(client)
        fresh = await client._pool.acquire(fresh=True)
        assert not fresh.reused
        assert (server.connections, client.stats().open) == (2, 1)


async def test_failed_retry_counts_as_sent() -> None:
    server = ScriptedUpstream([[OK], [Step.RESET]])
    await server.__aenter__()
    async with a_client(server) as client:
        await ask(client)
        assert server._server is not None
        server._server.close()
        with pytest.raises(ConnectFailed) as caught:
            await ask(client)
        assert caught.value.sent
    await server.__aexit__(None, None, None)


async def test_expired_connection_is_closed() -> None:
    async with ScriptedUpstream([[OK]]) as server, a_client(server, keep_alive_seconds=0.05) as c:
        await ask(c)
        await server.wait_for(lambda: server.closed == 1)
        await ask(c)
        assert (server.connections, c.stats().retried_total) == (2, 0)


async def test_last_used_is_used_first() -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    scripts: list[Script] = [[gates[0], OK], [gates[1], OK], [OK]]
    async with ScriptedUpstream(scripts) as server, a_client(server) as client:
        tasks = []
        for count in (1, 2):
            tasks.append(asyncio.create_task(ask(client)))
            await server.wait_for(lambda count=count: len(server.requests) == count)  # type: ignore[misc]
        gates[1].set()
        await tasks[1]
        gates[0].set()
        await tasks[0]
        await ask(client)
        assert server.requests[2].connection == 0


# Timeouts.


async def test_refused_connection_was_not_sent() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        client = HttpUpstream(ProviderConfig(name="p", base_url=url))
        with pytest.raises(ConnectFailed) as caught:
            await client.send(a_request())
    assert not caught.value.sent
    assert client.stats().open == 0
    await client.close()


async def test_connect_timeout() -> None:
    """A TLS handshake that is never answered."""
    async with ScriptedUpstream([[OK]]) as server:
        url = server.base_url.replace("http", "https")
        client = HttpUpstream(ProviderConfig(name="p", base_url=url, connect_seconds=0.1))
        with pytest.raises(ConnectFailed, match=r"within 0\.1 s") as caught:
            await client.send(a_request())
        assert not caught.value.sent
        await client.close()


@pytest.mark.parametrize(
    "start", [[], [b"HTTP/1.1 100 Continue\r\n\r\n"], [b"HTTP/1.1 200 OK\r\n"]]
)
async def test_first_byte_timeout(start: list[bytes]) -> None:
    async with (
        ScriptedUpstream([[*start, Step.WAIT_GONE], [OK]]) as server,
        a_client(server, first_byte_seconds=0.1) as client,
    ):
        with pytest.raises(FirstByteTimeout) as caught:
            await client.send(a_request())
        assert caught.value.sent
        await server.wait_for(lambda: server.closed == 1)
        assert await ask(client) == b"hello"


@pytest.mark.parametrize("first_byte_seconds", [0.05, 30])
async def test_idle_timeout_whatever_the_timer_was_set_to(first_byte_seconds: float) -> None:
    async with (
        ScriptedUpstream([[HEAD + chunk(b"x"), Step.WAIT_GONE]]) as server,
        a_client(server, first_byte_seconds=first_byte_seconds, idle_seconds=0.1) as client,
    ):
        exchange = await client.send(a_request())
        got: list[bytes] = []
        with pytest.raises(UpstreamIdle):
            await exchange.relay(got.append)
        assert got == [b"x"]
        await server.wait_for(lambda: server.closed == 1)


async def test_slow_stream_is_not_idle() -> None:
    async def drip(server: ScriptedUpstream, gates: list[asyncio.Event]) -> None:
        for gate in gates:
            await asyncio.sleep(0.3)
            gate.set()

    gates = [asyncio.Event() for _ in range(5)]
    script: list[bytes | asyncio.Event] = [HEAD]
    for gate in gates:
        script += [gate, chunk(b"x")]
    async with (
        ScriptedUpstream([[*script, END]]) as server,
        a_client(server, idle_seconds=1.2, first_byte_seconds=10) as client,
    ):
        feeding = asyncio.create_task(drip(server, gates))
        assert await ask(client) == b"xxxxx"
        await feeding


async def test_our_own_pause_is_not_the_upstreams_idleness() -> None:
    gate = asyncio.Event()
    async with (
        ScriptedUpstream([[HEAD, gate, chunk(b"x"), END]]) as server,
        a_client(server, idle_seconds=1) as client,
    ):
        exchange = await client.send(a_request())
        exchange.pause()
        relay = asyncio.create_task(read(exchange))
        await asyncio.sleep(1.3)
        gate.set()
        exchange.resume()
        assert await relay == b"x"


# Flow control.


async def test_pause_stops_the_server() -> None:
    """Far more than the sockets' buffers hold: the server can only finish once we read."""
    size, count = 256 * 1024, 100
    script = [HEAD, *[chunk(b"x" * size)] * count, END]
    async with ScriptedUpstream([script]) as server, a_client(server) as client:
        exchange = await client.send(a_request())
        got = 0
        pausing = True

        def on_data(data: bytes) -> None:
            nonlocal got
            got += len(data)
            if pausing:
                exchange.pause()

        relay = asyncio.create_task(exchange.relay(on_data))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await server.sent.wait()
        assert got < 4 * size
        pausing = False
        exchange.resume()
        await relay
        assert got == size * count
        assert client.stats().idle == 1


async def test_nothing_is_read_far_ahead_of_relay() -> None:
    script = [HEAD, *[chunk(b"x" * 256 * 1024)] * 100, END]
    async with ScriptedUpstream([script]) as server, a_client(server) as client:
        exchange = await client.send(a_request())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await server.sent.wait()
        assert exchange._reader.kept_bytes < 1024 * 1024
        assert len(await read(exchange)) == 25_600 * 1024


async def test_paused_gzip_goes_on_where_it_stopped() -> None:
    packed = gzip.compress(b"\0" * 10_000_000)
    wire = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed)
    async with ScriptedUpstream([[wire + packed]]) as server, a_client(server) as client:
        exchange = await client.send(a_request())
        sizes: list[int] = []

        def on_data(data: bytes) -> None:
            sizes.append(len(data))
            exchange.pause()
            asyncio.get_running_loop().call_soon(exchange.resume)

        await exchange.relay(on_data)
        assert (sum(sizes), max(sizes)) == (10_000_000, 65536)
        assert client.stats().idle == 1


async def test_large_request_body_arrives_whole() -> None:
    body = bytes(range(256)) * 40_000
    async with ScriptedUpstream([[OK]]) as server, a_client(server) as client:
        for _ in range(2):
            assert await ask(client, a_request(body)) == b"hello"
        assert all(request.body == body for request in server.requests)
        assert server.connections == 1


async def test_early_answer_while_the_body_is_still_sent() -> None:
    """The head comes through, and the rest of the body never meets the next request."""
    scripts: list[Script] = [[Step.EARLY, OK, Step.WAIT_GONE], [OK]]
    async with ScriptedUpstream(scripts) as server, a_client(server) as client:
        exchange = await client.send(a_request(b"x" * 20_000_000))
        assert (exchange.status, await read(exchange)) == (200, b"hello")
        assert await ask(client) == b"hello"
        assert server.connections == 2


async def test_slow_upload_is_not_a_late_head() -> None:
    """The wait for the head starts anew as long as the body gets on."""
    gate, answer = asyncio.Event(), asyncio.Event()
    scripts: list[Script] = [[Step.EARLY, gate, Step.READ_BODY, answer, OK]]
    async with (
        ScriptedUpstream(scripts) as server,
        a_client(server, first_byte_seconds=1.2) as client,
    ):
        asking = asyncio.create_task(ask(client, a_request(b"x" * 20_000_000)))
        await server.wait_for(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.75)
        gate.set()
        await asyncio.sleep(0.75)
        answer.set()
        assert await asking == b"hello"


# The consumer, cancellation, abort.


class OwnError(Exception):
    """The consumer's."""


@pytest.mark.parametrize("late", [False, True])
async def test_what_on_data_raises_comes_out_of_relay(late: bool) -> None:
    def refuse(data: bytes) -> None:
        raise OwnError

    gate = asyncio.Event()
    head = [HEAD, gate] if late else [HEAD + chunk(b"x")]
    async with (
        ScriptedUpstream([[*head, chunk(b"y"), Step.WAIT_GONE], [OK]]) as server,
        a_client(server) as client,
    ):
        exchange = await client.send(a_request())
        gate.set()
        with pytest.raises(OwnError):
            await exchange.relay(refuse)
        await server.wait_for(lambda: server.closed == 1)
        assert await ask(client) == b"hello"


async def test_abort_ends_relay_and_connection() -> None:
    async with (
        ScriptedUpstream([[HEAD + chunk(b"x"), Step.WAIT_GONE], [OK]]) as server,
        a_client(server) as client,
    ):
        exchange = await client.send(a_request())
        relay = asyncio.create_task(read(exchange))
        await asyncio.sleep(0)
        exchange.abort()
        exchange.abort()
        with pytest.raises(Aborted):
            await relay
        await server.wait_for(lambda: server.closed == 1)


async def test_abort_within_on_data() -> None:
    got: list[bytes] = []
    async with (
        ScriptedUpstream([[HEAD + chunk(b"x") + chunk(b"y") + END]]) as server,
        a_client(server) as client,
    ):
        exchange = await client.send(a_request())

        def on_data(data: bytes) -> None:
            got.append(data)
            exchange.abort()

        await exchange.relay(on_data)  # it was complete before: nothing left to abort
        assert got == [b"x", b"y"]
        assert client.stats().idle == 1


async def test_late_calls_touch_no_other_exchange() -> None:
    gate = asyncio.Event()
    async with (
        ScriptedUpstream([[OK], [HEAD, gate, chunk(b"hello") + END]]) as server,
        a_client(server) as client,
    ):
        first = await client.send(a_request())
        assert await read(first) == b"hello"
        second = await client.send(a_request())
        first.abort()
        first.pause()
        first.resume()
        gate.set()
        assert await read(second) == b"hello"
        assert server.connections == 1


async def test_relay_twice_is_refused() -> None:
    async with ScriptedUpstream([[OK]]) as server, a_client(server) as client:
        exchange = await client.send(a_request())
        await read(exchange)
        with pytest.raises(RuntimeError):
            await read(exchange)


CANCELLED: dict[str, Script] = {
    "before the head": [Step.WAIT_GONE],
    "within the head": [b"HTTP/1.1 200 OK\r\n", Step.WAIT_GONE],
    "after the head": [HEAD, Step.WAIT_GONE],
    "within the body": [HEAD + chunk(b"x") + b"5\r\nhe", Step.WAIT_GONE],
    "while the body is sent": [Step.EARLY],  # and then nothing, ever
}


@pytest.mark.parametrize("name", CANCELLED)
async def test_cancelled_exchange_is_closed_and_not_reused(name: str) -> None:
    body = b"x" * (20_000_000 if "sent" in name else 2)
    script: Script = [*CANCELLED[name], asyncio.Event()]
    async with (
        ScriptedUpstream([script, [OK]]) as server,
        a_client(server, connections_max=1) as client,
    ):
        task = asyncio.create_task(ask(client, a_request(body)))
        await server.wait_for(lambda: len(server.requests) == 1)
        for _ in range(5):
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await ask(client) == b"hello"
        assert server.connections == 2


async def test_cancelled_connect_leaks_nothing() -> None:
    async with ScriptedUpstream([[OK]]) as server:
        url = server.base_url.replace("http", "https")
        client = HttpUpstream(ProviderConfig(name="p", base_url=url, connections_max=1))
        for _ in range(3):
            task = asyncio.create_task(client.send(a_request()))
            await server.wait_for(lambda: server.connections > server.closed)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert client._pool._places_taken == 0
            await server.wait_for(lambda: server.connections == server.closed)
        await client.close()
    gc.collect()  # a leaked socket warns here, and warnings are errors


@pytest.mark.parametrize("script", [[OK], [HEAD, chunk(b"x"), END]])
async def test_ended_exchange_is_freed_without_the_garbage_collector(script: Script) -> None:
    async with ScriptedUpstream([[*script, Step.WAIT_GONE]]) as server, a_client(server) as client:
        exchange = await client.send(a_request())
        gc.collect()
        gc.disable()
        try:
            reader = weakref.ref(exchange._reader)
            await read(exchange)
            del exchange
            assert reader() is None
        finally:
            gc.enable()


# The bounded pool.


async def test_wait_for_a_connection_is_first_come_first_served() -> None:
    async with ScriptedUpstream([[OK]]) as server, a_client(server, connections_max=1) as client:
        order: list[int] = []

        async def one(number: int) -> None:
            await ask(client, a_request(b"%d" % number))
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(one(number))
        assert order == list(range(20))
        assert server.connections == 1


async def test_late_comer_does_not_overtake() -> None:
    gate = asyncio.Event()
    async with (
        ScriptedUpstream([[gate, OK], [OK]]) as server,
        a_client(server, connections_max=1) as client,
    ):
        first = asyncio.create_task(ask(client, a_request(b"1")))
        await server.wait_for(lambda: len(server.requests) == 1)
        second = asyncio.create_task(ask(client, a_request(b"2")))
        await asyncio.sleep(0)
        gate.set()
        await first
        await ask(client, a_request(b"3"))
        await second
        assert [request.body for request in server.requests] == [b"1", b"2", b"3"]


async def test_wait_is_bounded_and_given_up_places_go_on() -> None:
    async with (
        ScriptedUpstream([[Step.WAIT_GONE], [OK]]) as server,
        a_client(server, connections_max=1, connect_seconds=0.1) as client,
    ):
        busy = asyncio.create_task(ask(client))
        await server.wait_for(lambda: len(server.requests) == 1)
        with pytest.raises(PoolExhausted) as caught:
            await ask(client)
        assert (caught.value.sent, client.stats().waiting) == (False, 0)
        cancelled = asyncio.create_task(ask(client))
        waiting = asyncio.create_task(ask(client))
        await asyncio.sleep(0)
        cancelled.cancel()
        busy.cancel()
        assert await waiting == b"hello"
        await asyncio.gather(busy, cancelled, return_exceptions=True)


async def test_cancellation_at_the_handover_passes_the_connection_on() -> None:
    gate = asyncio.Event()
    async with (
        ScriptedUpstream([[gate, OK], [OK]]) as server,
        a_client(server, connections_max=1) as client,
    ):
        pool = client._pool
        first = await pool.acquire()
        taken = asyncio.create_task(pool.acquire())
        after = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        pool.released(first)  # `taken` has it, but has not run yet
        taken.cancel()
        assert await after is first
        pool.released(first)
        gate.set()
        assert await ask(client) == b"hello"


async def test_close_ends_everything() -> None:
    async with ScriptedUpstream([[OK], [HEAD, Step.WAIT_GONE]]) as server:
        provider = ProviderConfig(name="p", base_url=server.base_url, connections_max=1)
        client = HttpUpstream(provider)
        await ask(client)
        relaying = asyncio.create_task(ask(client))
        await server.wait_for(lambda: len(server.requests) == 2)
        waiting = asyncio.create_task(ask(client))
        await asyncio.sleep(0)
        await asyncio.gather(client.close(), client.close())
        results = await asyncio.gather(relaying, waiting, return_exceptions=True)
        assert [type(result) for result in results] == [Aborted, Aborted]
        with pytest.raises(Aborted) as caught:
            await ask(client)
        assert not caught.value.sent
        assert client.stats().open == 0


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_side(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_tls(authority: trustme.CA) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    body = b"x" * 1_000_000
    script = [HEAD, chunk(body), END]
    async with (
        ScriptedUpstream([script], tls=server_side(authority, "127.0.0.1")) as server,
        a_client(server, tls=trusting) as client,
    ):
        for _ in range(3):
            assert await ask(client, a_request(body)) == body
        assert server.connections == 1


@pytest.mark.parametrize("trusted", [False, True])
async def test_tls_refuses_a_stranger_and_a_wrong_name(
    authority: trustme.CA, trusted: bool
) -> None:
    context = ssl.create_default_context()
    if trusted:
        authority.configure_trust(context)
    async with (
        ScriptedUpstream([[OK]], tls=server_side(authority, "other.example")) as server,
        a_client(server, tls=context) as client,
    ):
        with pytest.raises(ConnectFailed, match="certificate is not trusted") as caught:
            await ask(client)
        assert not caught.value.sent
        assert server.requests == []


async def test_tls_cut_in_the_middle(authority: trustme.CA) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with (
        ScriptedUpstream(
            [[HEAD + chunk(b"x"), Step.RESET]], tls=server_side(authority, "127.0.0.1")
        ) as server,
        a_client(server, tls=trusting) as client,
    ):
        with pytest.raises(UpstreamBroken):
            await ask(client)


async def test_no_error_quotes_the_call() -> None:
    canary = b"CANARY-4711"

    async def error_of(work: Callable[[], Awaitable[object]]) -> UpstreamError:
        with pytest.raises(UpstreamError) as caught:
            await work()
        return caught.value

    scripts: list[Script] = [
        [b"HTTP/1.1 200 " + canary + b"\r\nbad" + canary + b"\r\n\r\n", Step.WAIT_GONE],
        [HEAD + canary, Step.WAIT_GONE],
    ]
    async with ScriptedUpstream(scripts) as server, a_client(server) as client:
        for _ in scripts:
            error = await error_of(lambda: ask(client, a_request(canary, (b"x", canary))))
            assert "CANARY" not in f"{error!r}{error}"


async def test_function_of_the_request_chooses_the_script() -> None:
    def script(received: Received) -> Script:
        return [OK.replace(b"hello", received.body)]

    async with ScriptedUpstream(script) as server, a_client(server) as client:
        assert await ask(client, a_request(b"world")) == b"world"
