"""The connections of one provider: reused last in, first out, and bounded in number."""

import asyncio
import ssl
from collections import deque
from typing import Final, Protocol

import msgspec

from llm_gateway.upstream import Aborted, ConnectFailed, PoolExhausted
from llm_gateway.upstream.connection import Connection, Limits

# Each holds a request body in memory while it waits.
WAITERS_MAX: Final = 1024

_CLOSING: Final = "the upstream was closed"


class PoolLimits(Limits, Protocol):
    """The provider's limits: seconds, and connections."""

    @property
    def connect_seconds(self) -> float: ...
    @property
    def connections_max(self) -> int: ...


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a provider answers; `tls` is None for plain http."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class Pool:
    """A place is taken from the moment a connection is tried until it is lost.

    Whoever frees a connection or a place hands it to the call that has waited longest; nobody
    who comes later can take it in between.
    """

    def __init__(self, address: Address, limits: PoolLimits) -> None:
        self._address = address
        self._limits = limits
        self._idle: list[Connection] = []
        self._connections: set[Connection] = set()
        self._places_taken = 0
        # A waiter is woken with a connection, or with None: a place to open one.
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._closed = False
        self._empty = asyncio.Event()
        self.opened_total = 0
        self.reused_total = 0

    @property
    def open(self) -> int:
        return len(self._connections)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def take_idle(self) -> Connection | None:
        """The connection that was used last, if one is fit for a request."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and not connection.expired:
                self.reused_total += 1
                return connection
            connection.close()
        return None

    async def acquire(self, *, fresh: bool = False) -> Connection:
        """A connection for one request; `fresh` = one that never carried any.

        Raises ConnectFailed, PoolExhausted or Aborted.
        """
        self._refuse_if_closed()
        if not fresh and (idle := self.take_idle()) is not None:
            return idle
        if self._places_taken < self._limits.connections_max:
            self._places_taken += 1
            return await self._open()
        return await self._wait_for_one(fresh=fresh)

    def released(self, connection: Connection) -> None:
        """A connection is fit for another request."""
        if self._closed:
            connection.close()
            return
        waiter = self._next_waiter()
        if waiter is None:
            self._idle.append(connection)
        else:
            waiter.set_result(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is gone; its place is free."""
        if connection not in self._connections:
            return  # never got as far as being ours: _open() frees the place
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._free_place()

    async def close(self) -> None:
        """Close all connections and wait until they are gone."""
        self._closed = True
        while (waiter := self._next_waiter()) is not None:
            waiter.set_exception(Aborted(_CLOSING, sent=False))
        for connection in list(self._connections):
            connection.abandon(_CLOSING)
        self._idle.clear()
        if self._places_taken:
            await self._empty.wait()

    def _next_waiter(self) -> "asyncio.Future[Connection | None] | None":
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    def _free_place(self) -> None:
        waiter = None if self._closed else self._next_waiter()
        if waiter is None:
            self._places_taken -= 1
            if self._closed and not self._places_taken:
                self._empty.set()
        else:
            waiter.set_result(None)  # the place changes hands

    async def _wait_for_one(self, *, fresh: bool) -> Connection:
        if len(self._waiters) >= WAITERS_MAX:
            raise PoolExhausted(f"{WAITERS_MAX} calls wait for a connection already")
        loop = asyncio.get_running_loop()
        seconds = self._limits.connect_seconds
        until = loop.time() + seconds
        while True:
            if fresh and self._idle:
                # An idle connection is given up for the new one; its place comes back when lost.
                self._idle.pop(0).close()
            waiter: asyncio.Future[Connection | None] = loop.create_future()
            self._waiters.append(waiter)
            try:
                async with asyncio.timeout_at(until):
                    connection = await waiter
            except TimeoutError:
                self._give_back(waiter)
                raise PoolExhausted(
                    f"all {self._limits.connections_max} connections stayed busy for {seconds:g} s"
                ) from None
            except asyncio.CancelledError:
                self._give_back(waiter)
                raise
            if connection is None:
                return await self._open()
            if connection.usable and not fresh:
                self.reused_total += 1
                return connection
            connection.close()  # it ended on its way here, or is not what was asked for

    def _give_back(self, waiter: "asyncio.Future[Connection | None]") -> None:
        """What a waiter got at the very moment it gave up goes to the next one."""
        if not waiter.done() or waiter.cancelled():
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        elif waiter.exception() is None:
            connection = waiter.result()
            if connection is None:
                self._free_place()
            elif connection.usable:
                self.released(connection)

    async def _open(self) -> Connection:
        """Open a connection in a place that was taken already."""
        try:
            self._refuse_if_closed()
            connection = await self._connect()
        except BaseException:
            self._free_place()
            raise
        self.opened_total += 1
        self._connections.add(connection)
        try:
            self._refuse_if_closed()
        except Aborted:
            connection.close()
            raise
        return connection

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Aborted(_CLOSING, sent=False)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        address, seconds = self._address, self._limits.connect_seconds
        try:
            async with asyncio.timeout(seconds):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, self._limits, loop),
                    address.host,
                    address.port,
                    ssl=address.tls,
                    server_hostname=address.host if address.tls else None,
                )
        except TimeoutError as error:
            raise ConnectFailed(f"no connection within {seconds:g} s") from error
        except UnicodeError as error:
            raise ConnectFailed("no connection: the host name is not valid") from error
        except OSError as error:  # ssl.SSLError and socket.gaierror are among them
            raise ConnectFailed(f"no connection: {_why(error)}") from error
        if not connection.usable:
            connection.close()
            raise ConnectFailed("the connection was closed at once")
        return connection


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason})"
    return error.strerror or str(error) or type(error).__name__
