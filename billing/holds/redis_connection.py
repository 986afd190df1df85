"""One plain connection to Redis: what is asked during a tick of the loop travels in one write.

hiredis packs and parses. Replies come in the order of the commands, so a deque of futures is all the
bookkeeping there is. A connection that breaks fails everything under way; what then stands on the
server is unknown, and whoever asks again must ask for something idempotent.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
import msgspec
from typing_extensions import override

from billing.holds.scripts import SOURCES

if TYPE_CHECKING:
    from collections.abc import Callable

Word = str | bytes | int
Words = tuple[Word, ...]
Reply = int | bytes | None | list["Reply"] | hiredis.ReplyError

ANSWER_SECONDS: Final = 1.0  # a server that takes longer counts as away
WATCH_SECONDS: Final = 0.25
CONNECT_SECONDS: Final = 2.0
BUFFER_BYTES_MAX: Final = 8 * 1024 * 1024  # written but not taken by the server: it is stuck
DEFAULT_PORT: Final = 6379
PATIENCE_SECONDS: Final = 1.0  # for a connection that broke just now
RETRY_SECONDS: Final = 0.2
IDENTITY_SECONDS: Final = 2.0
_DROP_ALL: Final = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time

_log: Final = logging.getLogger(__name__)


def pack(words: Words) -> bytes:
    """A command as it travels."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub knows no such tuple
    return packed


class RedisAddressError(ValueError):
    """A redis_url cannot be read; the message never repeats it, for it may hold a password."""


class RedisUnavailableError(Exception):
    """Redis did not answer; what was asked may or may not stand."""


class RedisRefusedError(Exception):
    """Redis answers, but cannot keep holds as it is set up; the message says what to change."""


class RedisAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where Redis is and how to log in."""

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""  # of a unix socket, instead of host and port
    database: int = 0
    username: str = ""
    password: str = ""
    tls: bool = False
    ca_file: str = ""  # instead of the system's certificate authorities

    @override
    def __repr__(self) -> str:
        return f"RedisAddress({self.shown!r})"

    @property
    def shown(self) -> str:
        """The address for people, without user and password."""
        if self.path:
            return f"unix://{self.path}?db={self.database}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis{'s' if self.tls else ''}://{host}:{self.port}/{self.database}"


def parse_address(url: str) -> RedisAddress:
    """Read redis://, rediss:// (TLS) or unix://, with [user]:password, as redis-py writes them.

    Parameters: db, ssl_ca_certs. Raises RedisAddressError.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORT
        options = parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        raise RedisAddressError("redis_url cannot be read") from None
    if unknown := set(options) - {"db", "ssl_ca_certs"}:
        raise RedisAddressError(f"redis_url: unknown parameter {min(unknown)!r}")
    wanted = options.get("db", [""])[0] or ("" if parts.scheme == "unix" else parts.path[1:]) or "0"
    if not (wanted.isascii() and wanted.isdigit()):
        raise RedisAddressError("redis_url: the database is not a number")
    address = RedisAddress(
        host=host,
        port=port,
        path=unquote(parts.path) if parts.scheme == "unix" else "",
        database=int(wanted),
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        tls=parts.scheme == "rediss",
        ca_file=options.get("ssl_ca_certs", [""])[0],
    )
    match parts.scheme:
        case "redis" | "rediss" if not host:
            raise RedisAddressError("redis_url names no host")
        case "unix" if not address.path:
            raise RedisAddressError("redis_url names no socket")
        case "redis" | "rediss" | "unix":
            return address
        case _:
            raise RedisAddressError("redis_url must begin with redis://, rediss:// or unix://")


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself."""

    run_id: str
    replication_id: str
    role: str
    eviction: str
    cluster_size: int = 0  # masters that have slots

    @property
    def identity(self) -> str:
        """Changes whenever the data may not be what it was: at a restart and at a promotion."""
        return f"{self.run_id}/{self.replication_id}"


class RedisConnection(asyncio.Protocol):
    """A connection, made by `connect`; `on_lost` is called once when it is gone."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._batch: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._answered = 0  # replies so far
        self._seen = 0  # of them at the last look of the watch
        self._stalled_since = 0.0
        self._gone = asyncio.Event()
        self.info: ServerInfo | None = None

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None

    def send(self, *words: Word) -> asyncio.Future[Reply]:
        """Ask; the future gives the reply, an error of the server included as a value.

        It raises RedisUnavailableError when the connection breaks or the server is too slow.
        """
        return self.send_packed(pack(words))

    def send_packed(self, command: bytes) -> asyncio.Future[Reply]:
        """Ask with a command as hiredis packs it."""
        loop = self._loop
        future: asyncio.Future[Reply] = loop.create_future()
        if self._transport is None:
            _break(future, "Redis is not connected")
            return future
        batch = self._batch
        if not batch:
            loop.call_soon(self._flush)
        batch.append(command)
        self._waiting.append(future)
        return future

    def abort(self, why: str) -> None:
        """Give the connection up now; all that is under way fails."""
        if self._transport is None:
            return
        # Else the kernel goes on sending what was written, for a minute perhaps: too late to be true.
        if (connected := self._transport.get_extra_info("socket")) is not None:
            with suppress(OSError):
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP_ALL)
        self._leave(why)

    async def close(self) -> None:
        """Give it up, and wait until the socket is closed; what was written still goes out."""
        self._leave("the connection was closed")
        await self._gone.wait()

    def _leave(self, why: str) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            self._fail(why)

    # -- asyncio.Protocol --------------------------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports derive from no class of asyncio.
        self._transport = cast("asyncio.Transport", transport)
        self._watch = self._loop.call_later(WATCH_SECONDS, self._look)

    @override
    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                self._answered += 1
                future = waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.abort("Redis does not speak its protocol")

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._gone.set()
        self._fail("the connection to Redis broke")

    # -- within ------------------------------------------------------------------------------

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        transport = self._transport
        if transport is None:
            return
        transport.write(batch[0] if len(batch) == 1 else b"".join(batch))
        if transport.get_write_buffer_size() > BUFFER_BYTES_MAX:
            self.abort("Redis takes no commands")

    def _look(self) -> None:
        """One timer minds all commands: if none was answered for too long, the server is away."""
        now = self._loop.time()
        if not self._waiting or self._answered != self._seen:
            self._seen = self._answered
            self._stalled_since = now
        elif now - self._stalled_since >= ANSWER_SECONDS:
            self.abort("Redis does not answer")
            return
        self._watch = self._loop.call_later(WATCH_SECONDS, self._look)

    def _fail(self, why: str) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
            self._on_lost()
        waiting, self._waiting = self._waiting, deque()
        self._batch.clear()
        for future in waiting:
            if not future.done():
                _break(future, why)


def _break(future: asyncio.Future[Reply], why: str) -> None:
    future.set_exception(RedisUnavailableError(why))
    future.exception()  # of several asked together, whoever asked may hear of the first alone


async def connect(address: RedisAddress, on_lost: Callable[[], None]) -> RedisConnection:
    """Connect, log in, check the server and give it the scripts.

    Raises RedisUnavailableError, and RedisRefusedError for a server that must not keep holds.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await _open(loop, address, on_lost)
    except (OSError, TimeoutError, ssl.SSLError) as error:
        why = type(error).__name__
        raise RedisUnavailableError(f"{address.shown} cannot be reached ({why})") from error
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await _introduce(connection, address)
    except BaseException as error:
        await connection.close()
        if isinstance(error, TimeoutError):
            raise RedisUnavailableError(f"{address.shown} does not answer") from error
        raise
    return connection


async def _open(
    loop: asyncio.AbstractEventLoop, address: RedisAddress, on_lost: Callable[[], None]
) -> RedisConnection:
    if address.path:
        _, connection = await loop.create_unix_connection(
            lambda: RedisConnection(on_lost), address.path
        )
        return connection
    context = None
    if address.tls:
        context = ssl.create_default_context(cafile=address.ca_file or None)
    _, connection = await loop.create_connection(
        lambda: RedisConnection(on_lost), address.host, address.port, ssl=context
    )
    return connection


async def _introduce(connection: RedisConnection, address: RedisAddress) -> None:
    if address.password:
        user = (address.username,) if address.username else ()
        _check(address, await connection.send("AUTH", *user, address.password), "the log-in")
    if address.database:
        _check(address, await connection.send("SELECT", address.database), "the database")
    connection.info = await ask_info(connection, address)
    if connection.info.cluster_size > 1:
        # This node would answer MOVED for the accounts of others, each of which can be lost by itself.
        raise RedisRefusedError(
            f"{address.shown} is one of {connection.info.cluster_size} nodes of a Redis Cluster, and "
            "holds are kept on one server: use a Redis that is not sharded, with replicas if you want"
        )
    if connection.info.role != "master":
        raise RedisUnavailableError(f"{address.shown} is a replica")
    if connection.info.eviction != "noeviction":
        raise RedisRefusedError(
            f"{address.shown} would drop holds when memory is short: set maxmemory-policy to "
            f"noeviction (it is {connection.info.eviction})"
        )
    for source in SOURCES.values():
        _check(address, await connection.send("SCRIPT", "LOAD", source), "the scripts")


async def ask_info(connection: RedisConnection, address: RedisAddress) -> ServerInfo:
    """What the server says of itself now; raises RedisUnavailableError, RedisRefusedError."""
    found: dict[str, str] = {}
    # One by one: servers before version 7 take one section at a time.
    asked = [connection.send("INFO", section) for section in ("server", "replication", "memory")]
    cluster = connection.send("CLUSTER", "INFO")  # an error where there is none
    for future in (*asked, cluster):
        reply = await future
        if not isinstance(reply, bytes):
            if future is not cluster:
                _check(address, reply, "INFO")
            continue
        for line in reply.decode("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            found[name] = value
    return ServerInfo(
        run_id=found.get("run_id", ""),
        replication_id=found.get("master_replid", ""),
        role=found.get("role", ""),
        eviction=found.get("maxmemory_policy", "unknown"),
        cluster_size=int(found.get("cluster_size", "0")),
    )


def _check(address: RedisAddress, reply: Reply, what: str) -> None:
    if not isinstance(reply, hiredis.ReplyError):
        return
    # The code alone: what follows may repeat a user's name.
    code = str(reply).partition(" ")[0]
    if code in ("LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"):
        raise RedisUnavailableError(f"{address.shown} is not ready ({code})")
    raise RedisRefusedError(f"{address.shown} refuses {what} ({code})")


class RedisLine:
    """Keeps one checked connection open; `on_change` is called when there is a new one, or none."""

    def __init__(self, address: RedisAddress, on_change: Callable[[], None]) -> None:
        self.address = address
        self.connection: RedisConnection | None = None
        self.problem = "not connected yet"  # why there is none
        self._on_change = on_change
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._connected = asyncio.Event()
        self._down_since: float | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def identity(self) -> str | None:
        """The server that is connected; None: none is."""
        connection = self.connection
        return None if connection is None or connection.info is None else connection.info.identity

    async def start(self) -> None:
        """Connect, and keep connected; a server that is only away is waited for.

        Raises RedisRefusedError for one that must not keep holds.
        """
        try:
            await self._connect()
        except RedisUnavailableError as error:
            self._note_down(str(error))
        self._keeping = asyncio.create_task(self._keep(), name="redis")

    async def close(self) -> None:
        """Close the connection."""
        if self._keeping is not None:
            self._keeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeping
        if self.connection is not None:
            await self.connection.close()

    def reconnect(self) -> None:
        """Connect anew, wherever the address leads by now."""
        if self.connection is not None:
            self.connection.abort("connecting anew")

    async def ready(self) -> RedisConnection:
        """The connection, waited for unless Redis has been away for long; RedisUnavailableError."""
        while (connection := self.connection) is None:
            now = asyncio.get_running_loop().time()
            if self._down_since is not None and now - self._down_since > PATIENCE_SECONDS:
                raise RedisUnavailableError(self.problem)
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._connected.wait()
            except TimeoutError:
                raise RedisUnavailableError(self.problem) from None
        return connection

    async def _connect(self) -> None:
        connection = await connect(self.address, self._lost)
        self.connection = connection
        self._wanted.clear()
        self._connected.set()
        self._down_since = None
        self._on_change()

    def _lost(self) -> None:
        if self.connection is None or self.connection.is_open:
            return  # it was not yet, or is no longer, the one
        self.connection = None
        self._note_down("the connection broke")
        self._on_change()

    def _note_down(self, why: str) -> None:
        self.problem = why
        self._connected.clear()
        self._wanted.set()
        if self._down_since is None:
            self._down_since = asyncio.get_running_loop().time()

    async def _keep(self) -> None:
        said = ""
        while True:
            try:
                async with asyncio.timeout(IDENTITY_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                await self._check_identity()
                continue
            try:
                await self._connect()
                if said:
                    _log.warning("Redis is back")
                said = ""
            except (RedisUnavailableError, RedisRefusedError) as error:
                self.problem = str(error)
                if self.problem != said:
                    _log.error("Redis is away: %s", self.problem)
                said = self.problem
                await asyncio.sleep(RETRY_SECONDS)

    async def _check_identity(self) -> None:
        """A server can change its role, and so its data, without closing a connection."""
        connection = self.connection
        if connection is None:
            return
        with suppress(RedisUnavailableError, RedisRefusedError):
            info = await ask_info(connection, self.address)
            if info != connection.info:
                connection.abort("the server is not what it was")
