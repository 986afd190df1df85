"""Pure: the bytes of one HTTP/1.1 answer in, its head and its de-framed body out.

httptools (llhttp) reads the wire format, and refuses by itself: both framing headers, a repeated
or invalid content-length, bare line feeds, folded headers, bad chunk sizes. Added here is what
it lets pass: 101, other transfer codings, line breaks after the end, heads without limit.
"""

from collections.abc import Callable
from typing import Final

import httptools

from llm_gateway.upstream import UpstreamBroken
from llm_gateway.upstream.coding import Inflater

# As nginx's and Go's default order of magnitude; also holds for trailers and chunk extensions.
HEAD_BYTES_MAX: Final = 64 * 1024

_BLANK_LINE: Final = b"\r\n\r\n"
_BODILESS: Final = frozenset({204, 304})


class AnswerReader:
    """feed() what arrives, eof() when the connection ends; `has_head`, then `complete`.

    The body goes to `on_data` once start() named it; until then it is kept, and `kept_bytes` says
    how much. A body that had to be decompressed stops between pieces while `paused` is set: call
    pump() afterwards.
    """

    __slots__ = (
        "__weakref__",
        "_barren",
        "_body_now",
        "_chunked",
        "_close_delimited",
        "_deliver",
        "_ended",
        "_fields",
        "_inflater",
        "_kept",
        "_on_data",
        "_parser",
        "_tail",
        "complete",
        "has_head",
        "headers",
        "keep_alive",
        "keep_alive_hint",
        "kept_bytes",
        "paused",
        "started",
        "status",
    )

    def __init__(self) -> None:
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._fields: list[tuple[bytes, bytes]] = []
        self.started = False  # whether any byte came
        self.has_head = False
        self.complete = False
        self.keep_alive = False
        self.keep_alive_hint = b""  # the Keep-Alive header's value
        self.kept_bytes = 0
        self.paused = False
        self._kept: list[bytes] = []
        self._deliver: Callable[[bytes], None] = self._keep
        self._on_data: Callable[[bytes], None] | None = None
        self._inflater: Inflater | None = None
        self._barren = 0  # bytes since the last byte of a body
        self._body_now = 0  # bytes of body in this read
        self._tail = b""
        self._chunked = False
        self._close_delimited = False
        self._ended = False  # the framing's end was seen; the decoder may still have bytes

    def feed(self, data: bytes) -> None:
        """Read on. Raises UpstreamBroken, or what the consumer raised."""
        parser = self._parser
        if parser is None:
            return
        self.started = True
        self._barren += len(data)
        self._body_now = 0
        head_before = self.has_head
        try:
            parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            # What one of the methods below raised; the parser wraps it.
            raise (error.__context__ or error) from None
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise UpstreamBroken(_complaint(error, has_head=self.has_head)) from None
        if self._barren > HEAD_BYTES_MAX:
            raise UpstreamBroken(f"more than {HEAD_BYTES_MAX} bytes of head, trailers or framing")
        if self._ended:
            self._refuse_rest(data, head_before=head_before)
        elif self._chunked or not self.has_head:
            self._tail = data[-5:] if len(data) > 4 else (self._tail + data)[-5:]

    def eof(self) -> None:
        """The connection ended in order. Raises UpstreamBroken if the answer had not."""
        if self._ended:
            return
        if not (self.has_head and self._close_delimited):
            raise UpstreamBroken(
                "the connection ended within the body"
                if self.has_head
                else "the connection ended before the head of the answer was complete"
            )
        self._end()

    def start(self, on_data: Callable[[bytes], None]) -> None:
        """From now on the body goes to `on_data`, what was kept first. Raises what that raises."""
        self._on_data = on_data
        if self._inflater is None:
            self._deliver = on_data
            kept, self._kept = self._kept, []
            for piece in kept:
                if self._deliver is not on_data:
                    break  # it ended the exchange
                on_data(piece)
        else:
            self._deliver = self._inflate
            for piece in self._kept:
                self._inflater.feed(piece)
            self._kept.clear()
            self.pump()
        self.kept_bytes = 0
        if self._parser is None:
            self.release()

    def pump(self) -> None:
        """Decompress what is waiting, until `paused`."""
        inflater = self._inflater
        if inflater is None or self._on_data is None:
            return
        while not self.paused and (piece := inflater.pull()):
            self._on_data(piece)
            if self._deliver != self._inflate:
                return
        if self._ended and not self.paused:
            self._finish_coding(inflater)

    def release(self) -> None:
        """Nothing more will be fed. Parser and reader refer to each other: this frees both."""
        self._parser = None
        self._deliver = _drop
        self._on_data = None

    def discard(self) -> None:
        """Hand over nothing more, even while feed() is still running."""
        self._deliver = _drop
        self._on_data = None
        self._kept.clear()
        self.kept_bytes = 0

    # What httptools calls.

    def on_message_begin(self) -> None:
        if self._ended:
            raise UpstreamBroken("bytes after the end of the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        self.status = status = parser.get_status_code()
        if status < 200:
            if status == 101:
                raise UpstreamBroken("status 101: nothing asked for another protocol")
            self._fields.clear()
            return
        if status > 599:
            raise UpstreamBroken(f"status {status} does not exist")
        # What is appended to the new list are trailers, which nobody reads.
        self.headers, self._fields = self._fields, []
        self._read_framing(parser)
        self.has_head = True

    def on_body(self, data: bytes) -> None:
        self._barren = 0
        self._body_now += len(data)
        self._deliver(data)

    def on_message_complete(self) -> None:
        if self.has_head:
            self._end()

    def _read_framing(self, parser: httptools.HttpResponseParser) -> None:
        headers = self.headers
        # Looked at in detail only if so much came at all, body included.
        if self._barren > HEAD_BYTES_MAX and _size(headers) > HEAD_BYTES_MAX:
            raise UpstreamBroken(f"a head of more than {HEAD_BYTES_MAX} bytes")
        fields = dict(headers)
        if b"transfer-encoding" in fields:
            codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
            if codings != [b"chunked"]:
                raise UpstreamBroken("a transfer coding other than chunked")
            self._chunked = True
        elif b"content-length" not in fields:
            self._close_delimited = self.status not in _BODILESS
        self.keep_alive = parser.should_keep_alive()
        if not self.keep_alive and parser.get_http_version() not in {"1.1", "1.0"}:
            raise UpstreamBroken("an answer that is not HTTP/1.1 or HTTP/1.0")
        self.keep_alive_hint = fields.get(b"keep-alive", b"")
        if b"content-encoding" in fields:
            self._choose_decoder([v for name, v in headers if name == b"content-encoding"])

    def _choose_decoder(self, values: list[bytes]) -> None:
        codings = [
            coding
            for value in values
            for part in value.split(b",")
            if (coding := part.strip().lower()) not in {b"", b"identity"}
        ]
        if not codings:
            return
        if len(codings) > 1 or codings[0] not in {b"gzip", b"x-gzip", b"deflate"}:
            raise UpstreamBroken("a content coding other than identity, gzip and deflate")
        self._inflater = Inflater(codings[0].removeprefix(b"x-"))
        if self._on_data is not None:
            self._deliver = self._inflate
        # The consumer gets decoded bytes, which these two do not describe.
        gone = {b"content-encoding", b"content-length"}
        self.headers = [field for field in self.headers if field[0] not in gone]

    def _keep(self, data: bytes) -> None:
        self._kept.append(data)
        self.kept_bytes += len(data)

    def _inflate(self, data: bytes) -> None:
        assert self._inflater is not None
        self._inflater.feed(data)
        self.pump()

    def _end(self) -> None:
        self._ended = True
        inflater = self._inflater
        if inflater is None:
            self.complete = True
        elif self._deliver == self._inflate and not self.paused:
            self._finish_coding(inflater)
        # Else start() or pump() finds the end.

    def _finish_coding(self, inflater: Inflater) -> None:
        if not inflater.ended:
            raise UpstreamBroken("the compressed body was cut short")
        self.complete = True

    def _refuse_rest(self, data: bytes, *, head_before: bool) -> None:
        """The parser skips line breaks after the end without a word.

        Where the answer ends with the read, what stands before the body's part of the read is
        nothing, or the end of the head; without a body (or in chunks) it ends in one blank line.
        """
        if self._close_delimited:
            return
        body = 0 if self._chunked else self._body_now
        if body and head_before:
            exact = body == len(data)
        else:
            before = len(data) - body
            tail = (self._tail + data[max(0, before - 5) : before])[-5:]
            exact = tail.endswith(_BLANK_LINE) and tail[:1] not in b"\r\n"
        if not exact:
            raise UpstreamBroken("bytes after the end of the answer")


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)


def _drop(data: bytes) -> None:
    """Nobody listens any more."""


def _complaint(error: Exception, *, has_head: bool) -> str:
    """The parser's own words, which are constants and quote nothing of the answer."""
    if isinstance(error, httptools.HttpParserUpgrade):
        return "the answer wants another protocol"
    where = "body" if has_head else "head"
    return f"the {where} of the answer is not valid HTTP ({error})"
