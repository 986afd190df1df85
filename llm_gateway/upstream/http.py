"""HttpUpstream: a provider that is reached over HTTP/1.1."""

import ipaddress
import re
import ssl
from typing import Final
from urllib.parse import urlsplit

from llm_gateway.config import ProviderConfig
from llm_gateway.upstream import Headers, UpstreamError, UpstreamRequest, UpstreamStats
from llm_gateway.upstream.connection import HttpExchange, StaleConnection
from llm_gateway.upstream.pool import Address, Pool

# RFC 9110, 5.1: a field name is a token.
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH: Final = re.compile(rb"/[!-~]*")
_KNOWN_MAX: Final = 64  # paths with their headers that are remembered

# Written by us, or a matter of the connection, which is not the caller's (RFC 9110, 7.6.1).
_OURS: Final = frozenset(
    {
        b"accept-encoding",
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


class RequestWriter:
    """Pure: makes the bytes of a request's head, and refuses what could break out of a line.

    A path with its headers is checked and written once, for calls send the same few again and again.
    """

    def __init__(self, *, host: bytes, prefix: bytes, authorization: bytes | None) -> None:
        self._prefix = prefix
        self._fixed = b" HTTP/1.1\r\nhost: %b\r\naccept-encoding: identity\r\n" % host
        self._authorization = (
            b"" if authorization is None else b"authorization: %b\r\n" % authorization
        )
        self._known: dict[tuple[bytes, Headers], bytes] = {}
        _refuse_breaks(host + (authorization or b""))

    def head(self, request: UpstreamRequest) -> bytes:
        """Everything before the body; raises ValueError if it may not go on the wire."""
        which = request.path, request.headers
        start = self._known.get(which)
        if start is None:
            start = self._write(*which)
            if len(self._known) < _KNOWN_MAX:
                self._known[which] = start
        return b"%bcontent-length: %d\r\n\r\n" % (start, len(request.body))

    def _write(self, path: bytes, headers: Headers) -> bytes:
        if _PATH.fullmatch(path) is None:
            raise ValueError("the path of a request must start with / and be printable ASCII")
        names = [name.lower() for name, _ in headers]
        for name in names:
            if _TOKEN.fullmatch(name) is None:
                raise ValueError(f"{name!r} is not the name of a header field")
            if name in _OURS:
                raise ValueError(f"the field {name.decode()} is written by the client itself")
        _refuse_breaks(b"".join([value for _, value in headers]))
        start = b"POST %b%b%b" % (self._prefix, path, self._fixed)
        key = b"" if b"authorization" in names else self._authorization
        return start + b"".join([b"%b: %b\r\n" % field for field in headers]) + key


class HttpUpstream:
    """One provider: its address, its key, its connections."""

    def __init__(self, provider: ProviderConfig, *, tls: ssl.SSLContext | None = None) -> None:
        """`tls` replaces the default context (system trust store) for https addresses.

        Raises ValueError if the base_url is no address that can be used.
        """
        address, host, prefix = _read_base_url(provider.base_url, tls)
        key = provider.api_key
        self._writer = RequestWriter(
            host=host,
            prefix=prefix,
            authorization=None if key is None else b"Bearer " + key.reveal().encode(),
        )
        self._pool = Pool(address, provider)
        self._retried_total = 0

    async def send(self, request: UpstreamRequest) -> HttpExchange:
        """Send the request, wait for the head. See llm_gateway.upstream.Upstream."""
        head = self._writer.head(request)
        connection = self._pool.take_idle() or await self._pool.acquire()
        try:
            return await connection.exchange(head, request.body)
        except StaleConnection:
            # The server closed it while it was idle and our request was on its way: a server
            # that began to work on it would have answered. Only once, and never on another
            # kept-alive connection, which the same restart will have closed.
            self._retried_total += 1
        try:
            connection = await self._pool.acquire(fresh=True)
        except UpstreamError as error:
            error.sent = True  # the first attempt was written
            raise
        return await connection.exchange(head, request.body)

    async def close(self) -> None:
        """Close every connection and wait until they are gone."""
        await self._pool.close()

    def stats(self) -> UpstreamStats:
        """Connections now, and events since the start."""
        pool = self._pool
        return UpstreamStats(
            open=pool.open,
            idle=pool.idle,
            waiting=pool.waiting,
            opened_total=pool.opened_total,
            reused_total=pool.reused_total,
            retried_total=self._retried_total,
        )


def _refuse_breaks(values: bytes) -> None:
    """Names and paths are checked against what they may be; values for what ends a line."""
    if b"\n" in values or b"\r" in values or b"\0" in values:
        raise ValueError("a line break or NUL in a header field")


def _read_base_url(base_url: str, tls: ssl.SSLContext | None) -> tuple[Address, bytes, bytes]:
    """Address, value of the Host field, and path prefix of a base_url."""
    parts = urlsplit(base_url)
    name = parts.hostname
    if parts.scheme not in {"http", "https"} or not name:
        raise ValueError(f"base_url {base_url!r} is not an http or https address")
    if parts.query or parts.fragment or parts.username is not None or "@" in parts.netloc:
        raise ValueError("a base_url may hold no user, query or fragment")
    prefix = parts.path.rstrip("/").encode("ascii", "strict")
    if prefix and _PATH.fullmatch(prefix) is None:
        raise ValueError("the path of a base_url must be printable ASCII")
    host = _ascii_host(name)
    default = 443 if parts.scheme == "https" else 80
    port = default if parts.port is None else parts.port
    field = f"[{host}]" if ":" in host else host
    if port != default:
        field = f"{field}:{port}"
    context = (tls or _default_tls()) if parts.scheme == "https" else None
    return Address(host=host, port=port, tls=context), field.encode(), prefix


def _ascii_host(name: str) -> str:
    if ":" in name:
        return str(ipaddress.IPv6Address(name))
    return name if name.isascii() else name.encode("idna").decode()


def _default_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
