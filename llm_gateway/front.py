"""The server's side of a connection: hot paths become calls here, every other request goes on to Litestar.

One keep-alive connection mixes both kinds, so the choice is made per request, at its head. Bytes are
cut into messages before the parser sees them: a request that arrives while another is being answered
waits unparsed, and answers never overtake each other.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import httptools
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from llm_gateway import errors

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from uvicorn.config import Config
    from uvicorn.server import ServerState

HEAD_BYTES_MAX: Final = 64 * 1024  # httptools itself took 20 MB of head without a word
PIPELINED_BYTES_MAX: Final = (
    64 * 1024
)  # beyond it reading pauses, and with it the view of a disconnect
HEAD_SECONDS_MAX: Final = 30.0
BODY_IDLE_SECONDS_MAX: Final = 30.0
DISCARD_SECONDS_MAX: Final = 2.0  # how long an early refusal waits for the client to stop sending

# Said twice, these would let two readers of one connection disagree about where a request ends.
_SINGLE_HEADERS: Final = frozenset((b"content-length", b"host", b"transfer-encoding"))

Headers = list[tuple[bytes, bytes]]

_log = logging.getLogger(__name__)


class HotCall(Protocol):
    """What a connection tells the call it carries."""

    def client_gone(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class HotPaths(Protocol):
    """Which requests are calls, and who answers them."""

    body_bytes_max: int
    stopping: bool  # no further request will be read from any connection

    def is_hot(self, path: bytes) -> bool: ...
    def start(self, client: Front, headers: Headers) -> HotCall: ...


class Front(HttpToolsProtocol):
    """One client connection; hands the requests of hot paths to `hot`."""

    hot: HotPaths  # set by the subclass that `front_class` makes

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.call: HotCall | None = None
        self.body: asyncio.Future[bytes] | None = None
        self.gone = False
        self.reading_since: float | None = None  # of the message now being read
        self._last_byte_at = 0.0
        self._waiting = bytearray()  # bytes of requests that have to wait their turn
        self._head_bytes = 0
        self._body_left = 0  # of a body with a Content-Length; the parser sees no byte beyond it
        self._in_head = True
        self._is_hot = False
        self._refused = False  # an early answer went out: what still comes in is thrown away
        self._feeding = False
        self._chunks: list[bytes] = []
        self._body_size = 0
        self._chunked_answer = False
        self._head_tail = b""  # its end may be split over two reads
        self._may_keep_alive = False
        self._speaks_11 = True

    # -- bytes in ----------------------------------------------------------------------------

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.reading_since = self._last_byte_at = self.loop.time()

    @override
    def data_received(self, data: bytes) -> None:
        self._last_byte_at = self.loop.time()
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._refused:
            return
        if self._answering() or self._feeding or self._is_behind():
            self._keep_waiting(data)
            return
        self._feed(data)

    def _answering(self) -> bool:
        """Whether a whole request was read and its answer is still under way."""
        if not self._in_head:
            return False  # the body of the current request
        if self.call is not None:
            return True
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _is_behind(self) -> bool:
        """Whether the client has not read its last answer yet: it gets no other on top of that.

        Only between two requests: of a body the rest is read all the same.
        """
        return self.flow.write_paused and self._in_head

    def _keep_waiting(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) > PIPELINED_BYTES_MAX:
            self.flow.pause_reading()

    def _feed(self, data: bytes) -> None:
        """Hand the parser one message at a time, head and body apart."""
        self._feeding = True
        try:
            while data and not (self._refused or self.transport.is_closing()):
                if self._answering():
                    self._keep_waiting(data)
                    return
                part, data = self._next_part(data)
                if part:
                    self.parser.feed_data(part)
        except httptools.HttpParserUpgrade:
            if not self._refused:
                self._refuse(_malformed("This server does not change protocols."))
        except httptools.HttpParserCallbackError as error:
            if not self._refused:
                _log.error("a connection failed", exc_info=error.__context__ or error)
                self._refuse(errors.InternalError())
        except httptools.HttpParserError:
            if not self._refused:
                self._refuse(_malformed("This is not a well-formed HTTP request."))
        finally:
            self._feeding = False

    def _next_part(self, data: bytes) -> tuple[bytes, bytes]:
        if self._in_head:
            if self.reading_since is None:
                self.reading_since = self._last_byte_at
            seen = self._head_tail + data
            end = seen.find(b"\r\n\r\n")
            part = data if end < 0 else data[: end + 4 - len(self._head_tail)]
            self._head_tail = seen[-3:] if end < 0 else b""
            self._head_bytes += len(part)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse(errors.HeadersTooLargeError(HEAD_BYTES_MAX))
                return b"", b""
            return part, data[len(part) :]
        if self._body_left:
            part = data[: self._body_left]
            self._body_left -= len(part)
            return part, data[len(part) :]
        return data, b""  # a chunked body: the parser alone knows where it ends

    # -- parser callbacks --------------------------------------------------------------------

    @override
    def on_message_begin(self) -> None:
        if self._answering():
            # Only behind a chunked body can a second request reach the parser unseen. Closing
            # after the answer is what HTTP allows a server that will not take it (RFC 9112, 9.3.2).
            self._refused = True
            self._may_keep_alive = False
            if self.call is None:
                self.cycle.keep_alive = False
            raise httptools.HttpParserError("a request behind a chunked body")
        # The parent makes its picture of every request here; of a call nobody would look at it.
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def _begin_cold(self) -> None:
        """What the parent does at the beginning of a message, at the end of its head."""
        kept = self.url, self.expect_100_continue, self.headers
        super().on_message_begin()
        self.url, self.expect_100_continue, self.headers = kept
        self.scope["headers"] = self.headers

    @override
    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._head_tail = b""
        self._speaks_11 = self.parser.get_http_version() == "1.1"
        self._may_keep_alive = self._speaks_11 and self.parser.should_keep_alive()
        self._is_hot = self.hot.is_hot(self.url.partition(b"?")[0])
        self._check_framing()
        if self._refused:
            return
        if not self._is_hot:
            self._begin_cold()
            super().on_headers_complete()
            return
        if self.parser.get_method() != b"POST":
            self._refuse(errors.MethodNotAllowedError("POST"))
            return
        if self._body_left > self.hot.body_bytes_max:
            self._refuse(errors.RequestTooLargeError(self.hot.body_bytes_max))
            return
        self._chunks = []
        self._body_size = 0
        self.body = self.loop.create_future()
        self.call = self.hot.start(self, self.headers)

    def _check_framing(self) -> None:
        """Refuse a head that two readers could understand differently (RFC 9112, 6.3)."""
        framing: dict[bytes, bytes] = {}
        upgrade = False
        for name, value in self.headers:
            if name in _SINGLE_HEADERS:
                if name in framing:
                    said = name.decode("ascii")
                    self._refuse(_malformed(f"The header {said} is sent twice."))
                    return
                framing[name] = value
            elif name == b"upgrade":
                upgrade = True
        length = framing.get(b"content-length")
        coding = framing.get(b"transfer-encoding")
        if not self._speaks_11 and self.parser.get_http_version() != "1.0":
            self._refuse(_malformed("This server speaks HTTP/1.1 and HTTP/1.0."))
        elif coding is not None and length is not None:
            self._refuse(_malformed("Content-Length and Transfer-Encoding exclude each other."))
        elif coding is not None and coding.lower() != b"chunked":
            self._refuse(_malformed("The only Transfer-Encoding here is chunked."))
        elif length is not None and not length.isdigit():
            self._refuse(_malformed("Content-Length is not a number."))
        elif upgrade and self._is_hot:
            # The parser would take the body of such a request for another protocol's bytes.
            self._refuse(_malformed("This endpoint takes no Upgrade."))
        else:
            self._body_left = int(length or 0)

    @override
    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        if not self._is_hot:
            super().on_body(body)
            return
        self._body_size += len(body)
        if self._body_size > self.hot.body_bytes_max:
            self._refuse(errors.RequestTooLargeError(self.hot.body_bytes_max))
            return
        self._chunks.append(body)

    @override
    def on_message_complete(self) -> None:
        self._in_head = True
        self.reading_since = None
        if self._refused:
            return
        if not self._is_hot:
            super().on_message_complete()
        elif self.body is not None and not self.body.done():
            chunks = self._chunks
            self.body.set_result(chunks[0] if len(chunks) == 1 else b"".join(chunks))
            self._chunks = []

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.loop.call_soon(self._next_request)

    def _next_request(self) -> None:
        busy = self.gone or self._answering() or self._feeding or self._is_behind()
        if self._waiting and not busy:
            data = bytes(self._waiting)
            self._waiting.clear()
            self._unset_keepalive_if_required()
            self.flow.resume_reading()
            self._feed(data)

    # -- the client leaves -------------------------------------------------------------------

    @override
    def eof_received(self) -> None:
        # A client that closes its sending half has nothing more to ask and mostly is gone: reading
        # its answer alone would be legal, and no OpenAI client does it.
        self._lost()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()
        super().connection_lost(exc)

    def _lost(self) -> None:
        self.gone = True
        if self.body is not None and not self.body.done():
            self.body.set_exception(ClientGoneError())
            self.body.exception()  # nobody may be waiting for it yet
        if self.call is not None:
            self.call.client_gone()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        if self.call is not None:
            self.call.pause()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self.call is not None:
            self.call.resume()
        elif self._waiting:
            self.loop.call_soon(self._next_request)

    @override
    def shutdown(self) -> None:
        if self.call is None:
            super().shutdown()

    def is_too_slow(self, now: float) -> bool:
        """Whether the client takes longer over its request than anybody honest would (seconds)."""
        if self.reading_since is None or self.transport.is_closing():
            return False
        if self._in_head:
            return now - self.reading_since > HEAD_SECONDS_MAX
        return now - self._last_byte_at > BODY_IDLE_SECONDS_MAX

    def time_out(self) -> None:
        """Give up on a client that is too slow."""
        self._refuse(errors.RequestTimeoutError())

    # -- the answer --------------------------------------------------------------------------

    def send_continue(self) -> None:
        """Ask for the body if the client waits to be asked (RFC 9110, 10.1.1)."""
        if self.expect_100_continue and self.body is not None and not self.body.done():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def send_answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """A whole answer at once; the end of the call on this connection."""
        if self.gone:
            self._close_call()
            return
        head = self._head(status, headers)
        head.append(b"content-length: %d\r\n\r\n" % len(body))
        head.append(body)
        self.transport.write(b"".join(head))
        self._close_call()

    def start_stream(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """The head of a streamed answer."""
        if self.gone:
            return
        self._chunked_answer = self._speaks_11
        head = self._head(status, headers)
        head.append(b"transfer-encoding: chunked\r\n\r\n" if self._chunked_answer else b"\r\n")
        self.transport.write(b"".join(head))

    def send_chunk(self, data: bytes) -> None:
        """A piece of a streamed answer, never empty."""
        if self.gone:
            return
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked_answer else data)

    def end_stream(self, data: bytes) -> None:
        """The last bytes of a streamed answer; the end of the call on this connection."""
        if not self.gone:
            if self._chunked_answer:
                end = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
                self.transport.write(end)
            else:
                self.transport.write(data)
        self._close_call()

    def drop(self) -> None:
        """End the call by closing the connection, so that the client knows its answer is not whole."""
        self.call = self.body = None
        self.transport.close()

    def _head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
        head = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            head += (name, b": ", value, b"\r\n")
        for name, value in headers:
            head += (name, b": ", value, b"\r\n")
        if not self._keeps_alive():
            head.append(b"connection: close\r\n")
        return head

    def _keeps_alive(self) -> bool:
        body_read = self.body is None or self.body.done()
        return body_read and self._may_keep_alive and not self.hot.stopping

    def _close_call(self) -> None:
        keeps_alive = self._keeps_alive()
        body_read = self.body is None or self.body.done()
        self.call = self.body = None
        self.server_state.total_requests += 1
        if self.gone:
            return
        if not body_read:
            self._discard_rest()
        elif not keeps_alive:
            self.transport.close()
        elif self._waiting:
            self.loop.call_soon(self._next_request)
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _refuse(self, error: errors.GatewayError) -> None:
        """Answer before the request was read whole, or could be; the connection ends with it."""
        self._refused = True
        if self.call is not None:
            # The call learns it as a client that left: nothing was sent anywhere yet.
            call, self.call = self.call, None
            if self.body is not None and not self.body.done():
                self.body.set_exception(ClientGoneError())
                self.body.exception()
            call.client_gone()
        self.body = None
        body = error.envelope()
        head = [STATUS_LINE[error.status]]
        for name, value in self.server_state.default_headers:
            head += (name, b": ", value, b"\r\n")
        for said, text in error.headers.items():
            head.append(f"{said}: {text}\r\n".encode())
        head.append(b"content-type: application/json\r\nconnection: close\r\n")
        head.append(b"content-length: %d\r\n\r\n" % len(body))
        self.transport.write(b"".join(head) + body)
        self._discard_rest()

    def _discard_rest(self) -> None:
        # Closing on unread bytes makes the kernel reset the connection, and the client may never
        # see the answer; so what it still sends is read and thrown away for a moment.
        self._refused = True
        self.loop.call_later(DISCARD_SECONDS_MAX, self.transport.close)


class ClientGoneError(Exception):
    """The client closed its connection before its request was whole."""


def _malformed(message: str) -> errors.GatewayError:
    return errors.InvalidRequestError(message)


def front_class(hot_paths: HotPaths) -> type[Front]:
    """The protocol class to give to uvicorn, tied to the calls it starts."""
    return type("GatewayFront", (Front,), {"hot": hot_paths})
