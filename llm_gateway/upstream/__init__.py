"""The client side of the relay: what a call may ask of a provider, whoever answers it.

UpstreamError                  a provider gave no answer, or not all of one
├── ConnectFailed              no connection could be had; nothing was sent
│   └── PoolExhausted          every connection stayed busy for as long as a call may wait
├── FirstByteTimeout           no head within `first_byte_seconds`
├── UpstreamIdle               no byte of the body for `idle_seconds`
├── UpstreamBroken             reset, cut short, badly framed, or in a coding we cannot read
└── Aborted                    we closed it ourselves: abort(), or close() of the upstream
"""

from collections.abc import Callable
from typing import Protocol

import msgspec


class UpstreamError(Exception):
    """A provider gave no answer, or not all of one. The message never holds text of a call.

    `sent` is False only if not one byte of the request can have reached the provider, so that it
    cannot bill: the connection failed, or its write never started. A request that was written to
    a kept-alive connection which turned out to be closed, and was written again to a fresh one,
    counts as sent; so does one whose answer was being waited for.
    """

    def __init__(self, reason: str, *, sent: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class ConnectFailed(UpstreamError):  # noqa: N818 - the name says what happened
    """No connection could be had: refused, unknown host, bad certificate, `connect_seconds`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, sent=False)


class PoolExhausted(ConnectFailed):
    """All `connections_max` connections stayed busy for `connect_seconds`."""


class FirstByteTimeout(UpstreamError):  # noqa: N818
    """The head of the answer did not come within `first_byte_seconds`."""


class UpstreamIdle(UpstreamError):  # noqa: N818
    """No byte of the body came for `idle_seconds` while we were reading."""


class UpstreamBroken(UpstreamError):  # noqa: N818
    """The answer was reset, cut short, badly framed, or in a coding we cannot read."""


class Aborted(UpstreamError):  # noqa: N818
    """The exchange was closed from our side."""


Headers = tuple[tuple[bytes, bytes], ...]


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One POST. `path` is appended to the provider's base_url.

    `headers` leaves out what the client writes by itself: host, content-length, accept-encoding,
    and all that concerns the connection. Without an `authorization` among them the provider's
    own key is sent.
    """

    path: bytes
    headers: Headers
    body: bytes


class UpstreamStats(msgspec.Struct, frozen=True, kw_only=True):
    """Connections now, and events since the start."""

    open: int = 0
    idle: int = 0
    waiting: int = 0  # calls that wait for a connection
    opened_total: int = 0
    reused_total: int = 0
    retried_total: int = 0  # kept-alive connections that were found closed


class Exchange(Protocol):
    """One answer, from its head on. Its owner calls relay() or abort(), or the connection leaks."""

    @property
    def status(self) -> int:
        """The final status; never 1xx."""
        ...

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All header lines of the head; names in lower case. Trailers are dropped."""
        ...

    async def relay(self, on_data: Callable[[bytes], None]) -> None:
        """Hand over the body, decoded and without its framing, and return at its clean end.

        `on_data` is called synchronously, first with what came in already. What it raises closes
        the connection and comes out here. May be called once. Raises UpstreamBroken, UpstreamIdle,
        or Aborted once abort() was called.
        """
        ...

    def pause(self) -> None:
        """Stop reading. Up to one read (256 KiB) may still be handed over."""
        ...

    def resume(self) -> None:
        """Go on reading."""
        ...

    def abort(self) -> None:
        """Close the connection at once; a waiting relay() raises Aborted. Harmless at the end."""
        ...


class Upstream(Protocol):
    """One provider."""

    async def send(self, request: UpstreamRequest) -> Exchange:
        """Send the request and return once the final head is there.

        Raises ConnectFailed, FirstByteTimeout, UpstreamBroken or Aborted; ValueError if a header
        or the path may not go on the wire (nothing was sent).
        """
        ...

    async def close(self) -> None:
        """Close every connection; what is under way raises Aborted."""
        ...

    def stats(self) -> UpstreamStats: ...
