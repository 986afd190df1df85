"""One connection to a provider, and the exchange that uses it at the moment."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from llm_gateway.upstream import (
    Aborted,
    FirstByteTimeout,
    UpstreamBroken,
    UpstreamIdle,
)
from llm_gateway.upstream.answer import AnswerReader

# What is kept of a body before relay() is called; then the socket is left alone.
KEPT_BYTES_MAX: Final = 64 * 1024
# Below this, head and body travel in one write, hence one packet; above, copying costs more.
JOIN_BYTES_MAX: Final = 64 * 1024
# Timers fire with the clock's resolution, maybe a moment early.
TIMER_SLACK_SECONDS: Final = 0.002


class Owner(Protocol):
    """What a connection tells the pool it belongs to."""

    def released(self, connection: "Connection") -> None: ...

    def lost(self, connection: "Connection") -> None: ...


class Limits(Protocol):
    """The provider's timeouts, in seconds."""

    @property
    def first_byte_seconds(self) -> float: ...
    @property
    def idle_seconds(self) -> float: ...
    @property
    def keep_alive_seconds(self) -> float: ...


class StaleConnection(UpstreamBroken):
    """A kept-alive connection ended before the first byte of the answer."""


class HttpExchange:
    """One request and its answer. It lets go of the connection as soon as the answer is read.

    So whatever is called on it later never touches another call's answer.
    """

    __slots__ = ("_connection", "_error", "_loop", "_reader", "_relaying", "_user_paused", "_wake")

    def __init__(self, connection: "Connection", loop: asyncio.AbstractEventLoop) -> None:
        self._connection: Connection | None = connection
        self._loop = loop
        self._reader = AnswerReader()
        self._wake: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._relaying = False
        self._user_paused = False

    @property
    def status(self) -> int:
        """The final status."""
        return self._reader.status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All header lines, names in lower case."""
        return self._reader.headers

    @property
    def open(self) -> bool:
        """Whether the answer is still being read."""
        return self._connection is not None

    async def head(self) -> None:
        """Wait for the final head; cancellation closes the connection."""
        await self._wait()
        if self._error is not None and self.waits_for_head:
            raise self._error

    async def relay(self, on_data: Callable[[bytes], None]) -> None:
        """Hand over the body. See llm_gateway.upstream.Exchange."""
        if self._relaying:
            raise RuntimeError("relay() was called before")
        self._relaying = True
        try:
            self._reader.start(on_data)
        except BaseException:
            self.abort()
            raise
        self._after_progress()
        if self._connection is not None:
            self._connection.restart_idle_time()
        while self._connection is not None:
            await self._wait()
        if self._error is not None:
            raise self._error

    def pause(self) -> None:
        """Stop reading."""
        self._user_paused = True
        self._reader.paused = True
        if self._connection is not None:
            self._connection.pause_reading()

    def resume(self) -> None:
        """Go on reading; what a decoder still holds is handed over in the loop's next turn."""
        if not self._user_paused:
            return
        self._user_paused = False
        self._loop.call_soon(self._resume)

    def abort(self) -> None:
        """Close the connection now."""
        if self._connection is not None:
            self._reader.discard()
            self.fail(Aborted("the exchange was aborted"))

    # What the connection calls.

    def received(self, data: bytes) -> None:
        """Read on; ends the exchange at the end of the answer, or at its first fault."""
        reader = self._reader
        try:
            reader.feed(data)
        except BaseException as error:
            self.fail(error)
            if not isinstance(error, Exception):
                raise
            return
        if reader.complete or not self._relaying:
            self._after_progress()

    def ended(self, error: Exception | None) -> None:
        """The connection is gone. What is left in a paused decoder is still handed over."""
        reader = self._reader
        if error is not None:
            self.fail(_reset(error, reader))
            return
        try:
            reader.eof()
        except UpstreamBroken as broken:
            self.fail(broken)
            return
        self._after_progress()

    def fail(self, error: BaseException) -> None:
        """End with an error; the connection is closed and never used again."""
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        self._error = error
        if self._relaying:
            self._reader.discard()
        self._reader.release()
        connection.close()
        self._notify()

    @property
    def waits_for_head(self) -> bool:
        return not self._reader.has_head

    @property
    def stalled_by_us(self) -> bool:
        """Whether it is us who do not read."""
        return self._user_paused or not self._relaying

    @property
    def untouched(self) -> bool:
        """Whether not one byte of the answer came."""
        return not self._reader.started

    def _after_progress(self) -> None:
        reader, connection = self._reader, self._connection
        if connection is None:
            return
        if reader.complete:
            self._connection = None
            reader.release()
            connection.finished(keep=reader.keep_alive, hint=reader.keep_alive_hint)
        elif reader.has_head and not self._user_paused:
            if self._relaying:
                connection.resume_reading()
            elif reader.kept_bytes > KEPT_BYTES_MAX:
                connection.pause_reading()
        if reader.has_head:
            self._notify()

    def _resume(self) -> None:
        """Called in a turn of its own, so that on_data never runs inside of resume()."""
        if self._user_paused or self._connection is None:
            return
        self._reader.paused = False
        if self._relaying:
            try:
                self._reader.pump()
            except BaseException as error:
                self.fail(error)
                if not isinstance(error, Exception):
                    raise
                return
        self._after_progress()

    def _notify(self) -> None:
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def _wait(self) -> None:
        if self._error is not None or self._connection is None:
            return
        self._wake = self._loop.create_future()
        try:
            await self._wake
        except BaseException:
            self.abort()
            raise
        finally:
            self._wake = None


class Connection(asyncio.Protocol):
    """A socket, its flow control, and one timer that is re-armed only when it fires.

    Every read moves `_deadline`; the timer looks at it when it fires and sleeps on if it moved.
    """

    def __init__(self, owner: Owner, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.reused = False
        self.closed = False
        self._owner = owner
        self._limits = limits
        self._idle_seconds = limits.idle_seconds
        self._keep_alive_seconds = limits.keep_alive_seconds
        self._loop = loop
        self._time = loop.time
        self._transport: asyncio.Transport | None = None
        self._exchange: HttpExchange | None = None
        self._reading = True
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._unsent = 0  # bytes in the transport's buffer when the timer last looked

    @property
    def usable(self) -> bool:
        """Whether a request may be written to it."""
        return not self.closed and self._transport is not None and not self._transport.is_closing()

    @property
    def expired(self) -> bool:
        """Whether it has been idle for longer than it is kept."""
        return self._time() >= self._deadline

    async def exchange(self, head: bytes, body: bytes) -> HttpExchange:
        """Write a request and wait for the head of its answer."""
        assert self._exchange is None
        assert self._transport is not None
        exchange = self._exchange = HttpExchange(self, self._loop)
        self._set_deadline(self._limits.first_byte_seconds)
        if len(body) <= JOIN_BYTES_MAX:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
            self._unsent = self._transport.get_write_buffer_size()
        await exchange.head()
        return exchange

    def pause_reading(self) -> None:
        """Leave what comes in the socket."""
        if self._reading and not self.closed and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on; the idle time starts anew."""
        if not self._reading and not self.closed and self._transport is not None:
            self._reading = True
            self.restart_idle_time()
            self._transport.resume_reading()

    def restart_idle_time(self) -> None:
        """From now on the provider has `idle_seconds` for its next byte."""
        self._set_deadline(self._idle_seconds)

    def finished(self, *, keep: bool, hint: bytes) -> None:
        """The answer was read whole. Goes back to the pool if it is fit for another request."""
        self._exchange = None
        transport = self._transport
        # With bytes left to write the answer came early, and the rest of the request would be
        # taken for the next one.
        if not keep or not self.usable or transport is None or transport.get_write_buffer_size():
            self.close()
            return
        self.reused = True
        seconds = self._keep_alive_seconds
        self._set_deadline(_kept_for(hint, seconds) if hint else seconds)
        if not self._reading:
            self._reading = True
            transport.resume_reading()
        self._owner.released(self)

    def close(self) -> None:
        """Close hard. An orderly close would wait for the peer's part of a TLS goodbye."""
        self._exchange = None
        if not self.closed and self._transport is not None:
            self._transport.abort()

    def abandon(self, reason: str) -> None:
        """Close, and end the exchange on it."""
        if self._exchange is not None:
            self._exchange.fail(Aborted(reason))
        self.close()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            # Nothing was asked, so whatever this is, it must not become the next call's answer.
            self.close()
            return
        exchange.received(data)
        if self._exchange is exchange and not exchange.waits_for_head:
            self._set_deadline(self._idle_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        exchange, self._exchange = self._exchange, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if exchange is not None:
            if exchange.untouched and self.reused:
                exchange.fail(StaleConnection("a kept-alive connection was closed"))
            else:
                exchange.ended(exc)
        self._owner.lost(self)

    def _set_deadline(self, seconds: float) -> None:
        self._deadline = deadline = self._time() + seconds
        timer = self._timer
        if timer is None:
            self._arm(deadline)
        elif deadline < self._timer_at:
            timer.cancel()
            self._arm(deadline)

    def _arm(self, at: float) -> None:
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        if self.closed:
            return
        now = self._time()
        if now + TIMER_SLACK_SECONDS < self._deadline:
            self._arm(self._deadline)
            return
        exchange = self._exchange
        if exchange is None:
            self.close()
        elif exchange.waits_for_head:
            self._head_is_late(exchange, now)
        elif exchange.stalled_by_us:
            self.restart_idle_time()
        else:
            exchange.fail(UpstreamIdle(f"no byte for {self._idle_seconds:g} s"))

    def _head_is_late(self, exchange: HttpExchange, now: float) -> None:
        """While the request is still going out, the wait for its answer has not begun."""
        seconds = self._limits.first_byte_seconds
        assert self._transport is not None
        unsent = self._transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._unsent = unsent
            self._deadline = now + seconds
            self._arm(self._deadline)
        else:
            exchange.fail(FirstByteTimeout(f"no head of an answer within {seconds:g} s"))


def _reset(error: Exception, reader: AnswerReader) -> UpstreamBroken:
    where = "within the body" if reader.has_head else "before the head of the answer"
    broken = UpstreamBroken(f"the connection broke {where} ({type(error).__name__})")
    broken.__cause__ = error
    return broken


def _kept_for(hint: bytes, seconds: float) -> float:
    """How long to keep it, a second less than a server that says `Keep-Alive: timeout=N` does."""
    for part in hint.split(b","):
        name, _, value = part.strip().partition(b"=")
        if name.lower() == b"timeout" and value.isdigit() and len(value) < 7:
            return min(seconds, max(int(value) - 1, 0))
    return seconds
