"""Two thin ways of sending what is asked: one waits, one is awaited."""

import asyncio
import copy
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import httpx2
import msgspec

from llm_gateway.client.errors import (
    GatewayClientError,
    UnusableArgumentError,
    refusal,
    told_as_ours,
)
from llm_gateway.client.requests import Call, checked_header, is_fine
from llm_gateway.client.retries import Retries
from llm_gateway.config import is_loopback
from llm_gateway.secret import Secret

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 60.0
DEFAULT_RETRIES: Final = Retries()

T = TypeVar("T")
R = TypeVar("R")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask, and in whose name."""

    url: str
    token: Secret
    account: str = ""  # X-Billing-User

    def request(self, asked: Call[Any]) -> dict[str, Any]:
        """The arguments of httpx2's `build_request`."""
        headers = {"authorization": f"Bearer {self.token.reveal()}", **asked.ask.headers}
        if self.account:
            headers["x-billing-user"] = self.account
        return {
            "method": asked.method,
            "url": asked.path,
            "params": asked.params,
            "content": asked.ask.content,
            "headers": headers,
        }


def target(url: str, token: str, account: str = "") -> Target:
    """Checked; raises UnusableArgumentError."""
    if not token:
        raise UnusableArgumentError("the key or token is empty")
    return Target(
        url=checked_url(url),
        token=Secret(checked_header("the token", token)),
        account=checked_header("the account", account),
    )


def checked_url(url: str) -> str:
    """An address without its last slash; raises UnusableArgumentError if it is none."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UnusableArgumentError(f'"{url}" is no address: expected "http://host:port"')
    return url.rstrip("/")


def trust_env(url: str) -> bool:
    """Whether HTTP_PROXY and the like apply: no proxy leads to this machine itself."""
    return not is_loopback(urlsplit(url).hostname or "")


def _timeout(answer_seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(answer_seconds, connect=min(CONNECT_SECONDS, answer_seconds))


class _Transport:
    """What both have: whom they ask, and that a copy for another account owns no connections."""

    _goal: Target
    _lent = False

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self._goal.url

    def lent(self, account: str) -> Self:
        """A copy for an account, on the same connections."""
        other = copy.copy(self)
        account = checked_header("the account", account)
        other._goal = msgspec.structs.replace(self._goal, account=account)  # noqa: SLF001 - its own
        other._lent = True  # noqa: SLF001 - its own
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


class SyncTransport(_Transport):
    """Sends and waits. Threads may share one."""

    def __init__(
        self,
        goal: Target,
        *,
        answer_seconds: float,
        retries: Retries,
        transport: httpx2.BaseTransport | None,
    ) -> None:
        self._goal = goal
        self._retries = retries
        self._http = httpx2.Client(
            base_url=goal.url,
            timeout=_timeout(answer_seconds),
            transport=transport,
            trust_env=trust_env(goal.url),
        )

    def send(self, asked: Call[T]) -> T:
        """The answer; raises GatewayClientError."""
        return self._persist(asked, self._send)

    @contextmanager
    def download(self, asked: Call[bytes]) -> Iterator[Iterator[bytes]]:
        """The answer's body in pieces, which end without an error only if it came whole."""
        response = self._persist(asked, self._open)
        try:
            yield self._pieces(response)
        finally:
            response.close()

    def close(self) -> None:
        """Close the connections."""
        if not self._lent:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _persist(self, asked: Call[T], send: Callable[[Call[T]], R]) -> R:
        for attempt in itertools.count(1):
            try:
                return send(asked)
            except GatewayClientError as error:
                wait = self._retries.wait_seconds(asked, error, attempt)
                if wait is None:
                    raise
            time.sleep(wait)
        raise AssertionError  # counting does not end

    def _send(self, asked: Call[T]) -> T:
        with told_as_ours(self.url):
            response = self._http.send(self._http.build_request(**self._goal.request(asked)))
        return asked.read(
            response.status_code, response.headers, response.content, str(response.url)
        )

    def _open(self, asked: Call[bytes]) -> httpx2.Response:
        with told_as_ours(self.url):
            request = self._http.build_request(**self._goal.request(asked))
            response = self._http.send(request, stream=True)
            if is_fine(response.status_code):
                return response
            body = response.read()
        raise refusal(response.status_code, response.headers, body, str(response.url))

    def _pieces(self, response: httpx2.Response) -> Iterator[bytes]:
        with told_as_ours(self.url):
            yield from response.iter_bytes()


class AsyncTransport(_Transport):
    """Sends and is awaited, in one event loop."""

    def __init__(
        self,
        goal: Target,
        *,
        answer_seconds: float,
        retries: Retries,
        transport: httpx2.AsyncBaseTransport | None,
    ) -> None:
        self._goal = goal
        self._retries = retries
        self._http = httpx2.AsyncClient(
            base_url=goal.url,
            timeout=_timeout(answer_seconds),
            transport=transport,
            trust_env=trust_env(goal.url),
        )

    async def send(self, asked: Call[T]) -> T:
        """The answer; raises GatewayClientError."""
        return await self._persist(asked, self._send)

    @asynccontextmanager
    async def download(self, asked: Call[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The answer's body in pieces, which end without an error only if it came whole."""
        response = await self._persist(asked, self._open)
        try:
            yield self._pieces(response)
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if not self._lent:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _persist(self, asked: Call[T], send: Callable[[Call[T]], Awaitable[R]]) -> R:
        for attempt in itertools.count(1):
            try:
                return await send(asked)
            except GatewayClientError as error:
                wait = self._retries.wait_seconds(asked, error, attempt)
                if wait is None:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError  # counting does not end

    async def _send(self, asked: Call[T]) -> T:
        with told_as_ours(self.url):
            response = await self._http.send(self._http.build_request(**self._goal.request(asked)))
        return asked.read(
            response.status_code, response.headers, response.content, str(response.url)
        )

    async def _open(self, asked: Call[bytes]) -> httpx2.Response:
        with told_as_ours(self.url):
            request = self._http.build_request(**self._goal.request(asked))
            response = await self._http.send(request, stream=True)
            if is_fine(response.status_code):
                return response
            body = await response.aread()
        raise refusal(response.status_code, response.headers, body, str(response.url))

    async def _pieces(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        with told_as_ours(self.url):
            async for piece in response.aiter_bytes():
                yield piece
