"""The connection to Redis: addresses, log-in, TLS, what a server must be, lost replies, a server that hangs."""

import asyncio
import socket
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import hiredis
import pytest
import trustme

from billing.holds import Granted, GuardUnavailableError, HoldBeat
from billing.holds.redis_connection import (
    ANSWER_SECONDS,
    RedisAddress,
    RedisAddressError,
    RedisConnection,
    RedisLine,
    RedisRefusedError,
    RedisUnavailableError,
    connect,
    parse_address,
)
from tests.support.money import cancelled, charge, hold, new_id
from tests.support.redis_guard import guards, held, until_open
from tests.support.redis_server import Proxy, RedisServer, redis_server


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", RedisAddress(host="h")),
        ("redis://h:7/3", RedisAddress(host="h", port=7, database=3)),
        ("redis://h/?db=4", RedisAddress(host="h", database=4)),
        ("redis://:p%40s%2F@h/0", RedisAddress(host="h", password="p@s/")),
        (
            "rediss://u:p@[::1]:7",
            RedisAddress(host="::1", port=7, username="u", password="p", tls=True),
        ),
        ("rediss://h?ssl_ca_certs=/ca.pem", RedisAddress(host="h", tls=True, ca_file="/ca.pem")),
        ("unix:///run/redis%20x?db=2", RedisAddress(path="/run/redis x", database=2)),
    ],
)
def test_addresses(url: str, address: RedisAddress) -> None:
    assert parse_address(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://u:secret@h/",
        "redis://",
        "redis:///0",
        "redis://u:secret@h/zero",
        "redis://u:secret@h/-1",
        "redis://u:secret@h:port/0",
        "redis://u:secret@h/0?timeout=1",
        "redis://u:secret@h/0?db",
        "redis://u:secret@[h/0",
        "unix://",
    ],
)
def test_bad_addresses_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(RedisAddressError) as refusal:
        parse_address(url)
    assert "secret" not in str(refusal.value)


def test_an_address_shows_no_secret() -> None:
    address = parse_address("rediss://user:secret@h:7/3")
    assert repr(address) == "RedisAddress('rediss://h:7/3')"


async def connection_to(url: str) -> RedisConnection:
    return await connect(parse_address(url), lambda: None)


async def test_passwords_and_users() -> None:
    user = ("--user", "app", "on", ">word", "~*", "&*", "+@all")
    with redis_server("--requirepass", "p@ss", *user) as server:
        for login in (":p%40ss", "default:p%40ss", "app:word"):
            connection = await connection_to(f"redis://{login}@127.0.0.1:{server.port}/2")
            assert await connection.send("ECHO", login) == login.encode()
            await connection.close()
        for login in (":wrong", "app:p%40ss", "nobody:word"):
            with pytest.raises(RedisRefusedError, match="refuses the log-in \\(WRONGPASS\\)"):
                await connection_to(f"redis://{login}@127.0.0.1:{server.port}/2")
        with pytest.raises(RedisRefusedError, match="NOAUTH"):
            await connection_to(server.url)


async def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    options = (
        "--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file", str(tmp_path / "key.pem"),
        "--tls-ca-cert-file", str(tmp_path / "ca.pem"), "--tls-auth-clients", "no",
    )  # fmt: skip
    try:
        with redis_server(*options, tls=True) as server:
            url = f"rediss://127.0.0.1:{server.port}/0"
            connection = await connection_to(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}")
            assert await connection.send("PING") == b"PONG"
            await connection.close()
            with pytest.raises(RedisUnavailableError, match="SSLCertVerificationError"):
                await connection_to(url)
    except RuntimeError as error:
        if "tls" not in str(error).lower():
            raise
        await tls_by_hand(tmp_path, issued)


async def tls_by_hand(tmp_path: Path, issued: trustme.LeafCert) -> None:
    """This build of the server has no TLS: a TLS listener in front of it stands in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    with redis_server() as server:

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", server.port)

            async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                try:
                    while data := await source.read(65_536):
                        sink.write(data)
                finally:
                    sink.transport.abort()

            await asyncio.gather(
                pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True
            )

        async with await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context) as front:
            port = front.sockets[0].getsockname()[1]
            url = f"rediss://127.0.0.1:{port}/0"
            connection = await connection_to(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}")
            assert await connection.send("PING") == b"PONG"
            await connection.close()
            with pytest.raises(RedisUnavailableError, match="SSLCertVerificationError"):
                await connection_to(url)


async def test_what_a_broken_connection_had_written_is_thrown_away() -> None:
    """The server had taken nothing yet; else the kernel would deliver it all, as late as it likes."""
    taken, go_on, ended = 0, asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await go_on.wait()
        with suppress(ConnectionResetError):
            while data := await reader.read(65_536):
                taken += len(data)
        writer.transport.abort()
        ended.set()

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    async with await asyncio.start_server(slow, sock=listening, limit=1024):
        port = listening.getsockname()[1]
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: RedisConnection(lambda: None), "127.0.0.1", port
        )
        sent = [connection.send("SET", "k", b"x" * 100_000) for _ in range(10)]
        await asyncio.sleep(0)
        connection.abort("a test")
        go_on.set()
        await asyncio.wait_for(ended.wait(), 30)
        assert taken < 100_000
        for future in sent:
            with pytest.raises(RedisUnavailableError, match="a test"):
                await future


async def test_a_server_that_may_drop_holds_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(RedisRefusedError, match="maxmemory-policy to noeviction")
    with redis_server("--maxmemory-policy", "allkeys-lru") as server, refused:
        async with guards(server, tmp_path):
            pytest.fail("it started")


async def test_a_cluster_is_refused_in_words() -> None:
    """Answered MOVED, most accounts could not be held; and each node can be lost by itself."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
    with redis_server(*options) as one, redis_server(*options) as other:
        await one.ask("CLUSTER", "ADDSLOTSRANGE", 0, 8_000)
        await (await connection_to(one.url)).close()  # alone it may be
        await other.ask("CLUSTER", "ADDSLOTSRANGE", 8_001, 16_383)
        await one.ask("CLUSTER", "MEET", "127.0.0.1", other.port)
        async with asyncio.timeout(20):
            while b"cluster_size:2" not in await cluster_info(one):
                await asyncio.sleep(0.05)
        with pytest.raises(RedisRefusedError, match="one of 2 nodes of a Redis Cluster"):
            await connection_to(one.url)


async def cluster_info(server: RedisServer) -> bytes:
    found = await server.ask("CLUSTER", "INFO")
    assert isinstance(found, bytes)
    return found


async def test_a_replica_is_no_place_for_holds(own_redis: RedisServer) -> None:
    refused = pytest.raises(RedisUnavailableError, match="is a replica")
    with redis_server("--replicaof", f"127.0.0.1 {own_redis.port}") as replica, refused:
        await connection_to(replica.url)


async def test_nobody_listens(own_redis: RedisServer) -> None:
    own_redis.kill()
    with pytest.raises(RedisUnavailableError, match="ConnectionRefusedError"):
        await connection_to(own_redis.url)


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_server("--unixsocket", str(path)):
        connection = await connection_to(f"unix://{path}?db=1")
        assert await connection.send("PING") == b"PONG"
        await connection.close()


async def test_what_is_asked_in_a_tick_travels_in_one_write(redis: RedisServer) -> None:
    async with Proxy(redis.port) as proxy:
        connection = await connection_to(proxy.url)
        before = proxy.requests
        replies = await asyncio.gather(*(connection.send("ECHO", n) for n in range(20)))
        assert replies == [str(n).encode() for n in range(20)]
        assert proxy.requests == before + 1
        await connection.close()


async def test_an_error_of_one_command_is_its_own(redis: RedisServer) -> None:
    connection = await connection_to(redis.url)
    good, bad, after = connection.send("PING"), connection.send("NO"), connection.send("PING")
    assert await good == await after == b"PONG"
    assert isinstance(await bad, hiredis.ReplyError)
    await connection.close()


async def test_whoever_leaves_does_not_shift_the_replies(redis: RedisServer) -> None:
    connection = await connection_to(redis.url)
    first, second = connection.send("ECHO", "1"), connection.send("ECHO", "2")
    first.cancel()
    assert await second == b"2"
    await connection.close()


async def test_a_server_that_hangs_counts_as_away(own_redis: RedisServer) -> None:
    connection = await connection_to(own_redis.url)
    own_redis.pause()
    started = asyncio.get_running_loop().time()
    asked = [connection.send("PING") for _ in range(3)]
    for future in asked:
        with pytest.raises(RedisUnavailableError, match="does not answer"):
            await future
    assert asyncio.get_running_loop().time() - started < ANSWER_SECONDS * 2
    assert not connection.is_open
    with pytest.raises(RedisUnavailableError):
        await connection.send("PING")
    own_redis.resume()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n+OK\r\n+OK\r\n"])
async def test_somebody_who_does_not_speak_redis(answer: bytes) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        left.set()

    left = asyncio.Event()
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((RedisUnavailableError, RedisRefusedError)):
            await connection_to(f"redis://127.0.0.1:{port}")
        await left.wait()


async def test_a_line_comes_back_by_itself(own_redis: RedisServer) -> None:
    changed = asyncio.Event()
    line = RedisLine(parse_address(own_redis.url), changed.set)
    await line.start()
    identity = line.identity
    own_redis.kill()
    changed.clear()
    await asyncio.wait_for(changed.wait(), 5)
    assert line.connection is None
    changed.clear()
    await asyncio.to_thread(own_redis.start)
    await asyncio.wait_for(changed.wait(), 5)
    assert line.identity not in (None, identity)
    await line.close()


# -- each script, its reply lost: it is asked again, and has one effect -------------------------------


async def test_a_lost_reply_to_reserve(redis: RedisServer, tmp_path: Path) -> None:
    async with Proxy(redis.port) as proxy, guards(proxy.url, tmp_path) as money:
        await money.buy(1_000)
        first = await money.reserve(100)
        proxy.drop_replies = 1
        second = await money.reserve(600)
        assert await held(redis) == {first: 100, second: 600}


async def test_a_lost_reply_to_extend(redis: RedisServer, tmp_path: Path) -> None:
    async with Proxy(redis.port) as proxy, guards(proxy.url, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(100)
        proxy.drop_replies = 1
        assert await money.store.extend(kept, 600) == Granted(600)
        assert await held(redis) == {kept: 600}


async def test_a_lost_reply_to_load(redis: RedisServer, tmp_path: Path) -> None:
    async with Proxy(redis.port) as proxy, guards(proxy.url, tmp_path) as money:
        await money.buy(1_000)
        load = money.ledger.snapshot

        async def then_lose(account: str, *, residuals_since: int) -> object:
            proxy.drop_replies = 1
            return await load(account, residuals_since=residuals_since)

        money.store._ledger.snapshot = then_lose  # type: ignore[method-assign,assignment]
        kept = await money.reserve(100)
        assert await held(redis) == {kept: 100}
        state = await money.ledger.guard()
        assert state is not None
        assert state.epoch == 1


async def test_lost_replies_to_heartbeat_apply_and_cancel(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with Proxy(redis.port) as proxy, guards(proxy.url, tmp_path) as money:
        await money.buy(1_000)
        beating, settled, dropped = [await money.reserve(100) for _ in range(3)]
        await money.finish(charge(settled, 40))
        report = await money.hot.settle_pending(10)
        beat = [HoldBeat(beating, 150, 20)]
        for _ in range(2):
            proxy.drop_replies = 1
            with pytest.raises(GuardUnavailableError):
                await money.store.heartbeat(beat)
            await until_open(money.store)
            proxy.drop_replies = 1
            with pytest.raises(GuardUnavailableError):
                await money.store.apply(report.applied)
            await until_open(money.store)
        await money.store.heartbeat(beat)
        await money.store.apply(report.applied)
        proxy.drop_replies = 1
        await money.store.cancel(cancelled(dropped))
        await until_open(money.store)
        await money.store.cancel(cancelled(dropped))
        await money.reserve(1_000 - 40 - 150)
        assert (await money.refusal(1)).reason == "held"


async def test_requests_that_never_arrive(redis: RedisServer, tmp_path: Path) -> None:
    async with Proxy(redis.port) as proxy, guards(proxy.url, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(100)
        proxy.hold.clear()
        asked = asyncio.create_task(money.reserve(200))
        await asyncio.sleep(0.05)
        proxy.cut()
        proxy.hold.set()
        kept = await asked
        assert (await held(redis))[kept] == 200


async def test_scripts_that_the_server_forgot(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await redis.ask("SCRIPT", "FLUSH")
        kept = await money.reserve(100)
        await redis.ask("SCRIPT", "FLUSH")
        with pytest.raises(GuardUnavailableError):
            await money.store.heartbeat([HoldBeat(kept, 100, 1)])
        await money.store.heartbeat([HoldBeat(kept, 120, 1)])
        assert await held(redis) == {kept: 120}


async def test_a_server_without_memory_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    with redis_server() as server:
        async with guards(server, tmp_path) as money:
            await money.buy(1_000)
            kept = await money.reserve(100)
            await server.ask("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(GuardUnavailableError, match="OOM"):
                await money.reserve(100)
            await server.ask("CONFIG", "SET", "maxmemory", "0")
            assert await held(server) == {kept: 100}
            await money.reserve(900)


async def test_a_caller_who_left_holds_nothing(redis: RedisServer, tmp_path: Path) -> None:
    async with Proxy(redis.port) as proxy, guards(proxy.url, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(100)
        proxy.hold.clear()
        leaving = asyncio.create_task(money.store.reserve(hold(new_id(), minimum=1, wanted=900)))
        await asyncio.sleep(0.02)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        proxy.hold.set()
        after = await money.reserve(900)
        assert await held(redis) == {kept: 100, after: 900}


# -- Redis away -----------------------------------------------------------------------------------


async def test_away_and_reject(own_redis: RedisServer, tmp_path: Path) -> None:
    async with guards(own_redis, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(100)
        own_redis.kill()
        for _ in range(3):
            with pytest.raises(GuardUnavailableError):
                await money.reserve(1)
        assert money.store.problem


async def test_away_and_allow(own_redis: RedisServer, tmp_path: Path) -> None:
    """Up to 500 for each account while Redis is away; all of it is held once Redis is back."""
    async with guards(own_redis, tmp_path, stores=0) as money:
        store = await money.add(allow=500)
        for account in ("alice", "bob"):
            await money.buy(1_000, account=account)
        await money.reserve(700)
        own_redis.kill()
        first = await money.reserve(200)
        assert await money.store.reserve(hold(first, minimum=200, wanted=200)) == Granted(200)
        clamped = new_id()
        assert await store.reserve(hold(clamped, minimum=1, wanted=900)) == Granted(300)
        with pytest.raises(GuardUnavailableError):
            await money.reserve(1)
        with pytest.raises(GuardUnavailableError):
            await store.extend(first, 201)
        await money.reserve(500, account="bob")
        await money.hot.cancel(cancelled(clamped))
        store.recorded(cancelled(clamped))
        assert await store.extend(first, 250) == Granted(250)
        await money.finish(charge(first, 240, ceiling=250))
        await asyncio.to_thread(own_redis.start)
        await until_open(store)
        async with asyncio.timeout(10):
            while store._unheld:
                await asyncio.sleep(0.02)
        assert (await money.refusal(51)).held == 700 + 250
        await money.settle()
        assert (await money.refusal(61)).balance == 760


async def test_allow_is_told_to_a_redis_that_lost_nothing(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with Proxy(redis.port) as proxy, guards(proxy.url, tmp_path, stores=0) as money:
        store = await money.add(allow=500)
        await money.buy(1_000)
        known = await money.reserve(700)
        right, proxy.target = proxy.target, 1
        proxy.cut()
        beyond = await money.reserve(400)
        proxy.target = right
        async with asyncio.timeout(10):
            while store._unheld:
                await asyncio.sleep(0.02)
        assert await held(redis) == {known: 700, beyond: 400}
        assert not store._allowed
        state = await money.ledger.guard()
        assert state is not None
        assert state.epoch == 1


def test_no_server_outlives_its_block() -> None:
    with redis_server() as server:
        process = server._process
        assert isinstance(process, subprocess.Popen)
    assert process.poll() is not None
