"""A client's method is described once, as a request; here it becomes one that waits or is awaited.

    @get("/admin/accounts/{account}")
    def account(self, account: str) -> Ask[AccountView]:
        '''Get one account.'''
        return Ask(AccountView, account)

`AdminClient.account` returns an AccountView, `AsyncAdminClient.account` is awaited for one; type
checkers see the arguments in both. A list (`pages`) returns one page when it is called, and every
item of all pages with `.iterate()`, which takes the same arguments. A `download` is entered by
`with` and gives pieces of bytes.
"""

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from llm_gateway.client.errors import UnreadableAnswerError
from llm_gateway.client.requests import Ask, Asked, Call, call
from llm_gateway.client.transport import AsyncTransport, SyncTransport

P = ParamSpec("P")
T = TypeVar("T")
L = TypeVar("L", bound="PageOfList")
Item = TypeVar("Item")


class PageOfList(Protocol):
    """What every list answers with."""

    @property
    def items(self) -> Sequence[Any]: ...
    @property
    def has_more(self) -> bool: ...
    @property
    def next_after(self) -> str | None: ...


class AskList(Ask[L], Generic[L, Item]):
    """What is asked of a list: answered with a page, which has items.

    What is asked for stands in the query under the arguments' names (`from_`: from).
    """

    def __init__(self, answer: type[L], *ids: str | int, **query: Asked) -> None:
        asked = {name.rstrip("_"): value for name, value in query.items()}
        super().__init__(answer, *ids, query=asked)

    def following(self, page: L) -> "AskList[L, Item] | None":
        """What to ask for the page after one; None after the last."""
        if not page.has_more:
            return None
        if page.next_after is None:
            number = self.query.get("page")
            turned: dict[str, Asked] = {"page": (number if isinstance(number, int) else 1) + 1}
        elif page.next_after == self.query.get("after"):
            raise UnreadableAnswerError("the list does not move on")
        else:
            turned = {"after": page.next_after, "page": None}
        return AskList(self.answer, *self.ids, **{**self.query, **turned})


class _Method(Generic[P, T]):
    """An address with the function that says what is asked of it."""

    def __init__(self, verb: str, address: str, build: Callable[Concatenate[Any, P], T]) -> None:
        self.verb: Final = verb
        self.address: Final = address
        self._build: Final = build
        self.__doc__ = build.__doc__
        self.__wrapped__ = build  # where inspect finds the arguments

    def ask(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """What is asked with these arguments."""
        return self._build(None, *args, **kwargs)


class Method(_Method[P, Ask[T]], Generic[P, T]):
    """A request that is answered with a T."""

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        """The whole request."""
        return call(self.verb, self.address, self.ask(*args, **kwargs))

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: SyncTransport, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(
        self, client: AsyncTransport, owner: type
    ) -> Callable[P, Coroutine[None, None, T]]: ...
    def __get__(self, client: SyncTransport | AsyncTransport | None, owner: type) -> object:
        if client is None:
            return self

        @functools.wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> object:
            return client.send(self.call(*args, **kwargs))

        return method


class Listing(_Method[P, AskList[L, Item]], Generic[P, L, Item]):
    """A list: a page when it is called, all items by `iterate`."""

    def page(self, ask: AskList[L, Item]) -> Call[L]:
        """The whole request for a page."""
        return call(self.verb, self.address, ask)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: SyncTransport, owner: type) -> "Pages[P, L, Item]": ...
    @overload
    def __get__(self, client: AsyncTransport, owner: type) -> "AsyncPages[P, L, Item]": ...
    def __get__(self, client: SyncTransport | AsyncTransport | None, owner: type) -> object:
        if client is None:
            return self
        return (
            Pages(client, self) if isinstance(client, SyncTransport) else AsyncPages(client, self)
        )


class Pages(Generic[P, L, Item]):
    """A list of a client that waits."""

    def __init__(self, client: SyncTransport, listing: Listing[P, L, Item]) -> None:
        self._client = client
        self._listing = listing
        self.__doc__ = listing.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> L:
        """One page."""
        ask = self._listing.ask(*args, **kwargs)
        return self._client.send(self._listing.page(ask))

    def iterate(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[Item]:
        """Every item from the page asked for on, fetched page by page.

        Where a list has no cursor, an item may come twice if others are made meanwhile.
        """
        ask: AskList[L, Item] | None = self._listing.ask(*args, **kwargs)
        while ask is not None:
            page = self._client.send(self._listing.page(ask))
            yield from page.items
            ask = ask.following(page)


class AsyncPages(Generic[P, L, Item]):
    """A list of a client that is awaited."""

    def __init__(self, client: AsyncTransport, listing: Listing[P, L, Item]) -> None:
        self._client = client
        self._listing = listing
        self.__doc__ = listing.__doc__

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> L:
        """One page."""
        ask = self._listing.ask(*args, **kwargs)
        return await self._client.send(self._listing.page(ask))

    async def iterate(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Item]:
        """Every item from the page asked for on, fetched page by page.

        Where a list has no cursor, an item may come twice if others are made meanwhile.
        """
        ask: AskList[L, Item] | None = self._listing.ask(*args, **kwargs)
        while ask is not None:
            page = await self._client.send(self._listing.page(ask))
            for item in page.items:
                yield item
            ask = ask.following(page)


class Download(_Method[P, Ask[bytes]], Generic[P]):
    """A body that is read in pieces, as large as it may be; to be entered by `with`."""

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[bytes]:
        """The whole request."""
        return call(self.verb, self.address, self.ask(*args, **kwargs))

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self, client: SyncTransport, owner: type
    ) -> Callable[P, AbstractContextManager[Iterator[bytes]]]: ...
    @overload
    def __get__(
        self, client: AsyncTransport, owner: type
    ) -> Callable[P, AbstractAsyncContextManager[AsyncIterator[bytes]]]: ...
    def __get__(self, client: SyncTransport | AsyncTransport | None, owner: type) -> object:
        if client is None:
            return self

        @functools.wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> object:
            return client.download(self.call(*args, **kwargs))

        return method


def get(address: str) -> Callable[[Callable[Concatenate[Any, P], Ask[T]]], Method[P, T]]:
    """A GET of an address."""
    return lambda build: Method("GET", address, build)


def post(address: str) -> Callable[[Callable[Concatenate[Any, P], Ask[T]]], Method[P, T]]:
    """A POST to an address."""
    return lambda build: Method("POST", address, build)


def patch(address: str) -> Callable[[Callable[Concatenate[Any, P], Ask[T]]], Method[P, T]]:
    """A PATCH of an address."""
    return lambda build: Method("PATCH", address, build)


def pages(
    address: str,
) -> Callable[[Callable[Concatenate[Any, P], AskList[L, Item]]], Listing[P, L, Item]]:
    """A GET of a list."""
    return lambda build: Listing("GET", address, build)


def download(
    address: str, *, verb: str = "GET"
) -> Callable[[Callable[Concatenate[Any, P], Ask[bytes]]], Download[P]]:
    """A request whose answer is read in pieces."""
    return lambda build: Download(verb, address, build)
