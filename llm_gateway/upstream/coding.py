"""Pure: gzip and deflate undone in pieces of bounded size, for upstreams that compress unasked."""

import zlib
from typing import Final

from llm_gateway.upstream import UpstreamBroken

# One step reads and makes no more than this, so that a few bytes never become a gigabyte at once:
# the reader stops between steps while it is paused.
INPUT_BYTES_MAX: Final = 16 * 1024
OUTPUT_BYTES_MAX: Final = 64 * 1024

_GZIP: Final = 16 + zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS


class Inflater:
    """feed() compressed bytes, then pull() until it returns nothing; `ended` at the end."""

    __slots__ = ("_at", "_coding", "_fed", "_input", "_more", "_zlib")

    def __init__(self, coding: bytes) -> None:
        self._coding = coding
        self._zlib: zlib._Decompress | None = None
        self._input = b""
        self._at = 0
        self._fed = b""
        self._more = False

    @property
    def ended(self) -> bool:
        """Whether the answer may end here: nothing came at all, or the last member is whole."""
        unread = self._fed or len(self._input) > self._at
        return not unread and (self._zlib is None or self._zlib.eof)

    def feed(self, data: bytes) -> None:
        """Take in compressed bytes."""
        self._input = self._input[self._at :] + data
        self._at = 0

    def pull(self) -> bytes:
        """The next piece, at most OUTPUT_BYTES_MAX; b"" if more input is needed.

        Raises UpstreamBroken if the bytes are not in the coding that was announced.
        """
        while self._more or self._next_input():
            decoder = self._zlib
            assert decoder is not None
            try:
                piece = decoder.decompress(self._fed, OUTPUT_BYTES_MAX)
            except zlib.error as error:
                raise UpstreamBroken(f"the body is not valid {self._coding.decode()}") from error
            self._more = len(piece) == OUTPUT_BYTES_MAX
            self._fed = decoder.unused_data or decoder.unconsumed_tail
            if piece:
                return piece
        return b""

    def _next_input(self) -> bool:
        if not self._fed:
            if self._at == len(self._input):
                return False
            if self._zlib is None and not self._can_tell():
                return False
            self._fed = self._input[self._at : self._at + INPUT_BYTES_MAX]
            self._at += len(self._fed)
        if self._zlib is None or self._zlib.eof:
            self._start_member()
        return True

    def _can_tell(self) -> bool:
        """The two kinds of deflate differ in their first two bytes."""
        return self._coding != b"deflate" or len(self._input) - self._at >= 2

    def _start_member(self) -> None:
        if self._coding != b"deflate":
            self._zlib = zlib.decompressobj(_GZIP)  # RFC 1952, 2.2: members may follow each other
        elif self._zlib is not None:
            raise UpstreamBroken("bytes after the end of a deflate body")
        else:
            # RFC 9110, 8.4.1.2: "deflate" is zlib's format; some servers send it without wrapper.
            first, second = self._fed[0], self._fed[1]
            wrapped = first & 0x0F == zlib.DEFLATED and (first << 8 | second) % 31 == 0
            self._zlib = zlib.decompressobj(zlib.MAX_WBITS if wrapped else _RAW)
