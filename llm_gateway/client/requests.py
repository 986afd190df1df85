"""A request to the gateway as a value, and how its answer is read. Pure: nothing is sent here."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Generic, TypeVar, cast
from urllib.parse import quote

import msgspec

from llm_gateway import clock
from llm_gateway.client.errors import UnreadableAnswerError, UnusableArgumentError, refusal

T = TypeVar("T")

Asked = str | int | bool | datetime | None  # a value of a query; None and "" are not sent
JSON: Final = "application/json"
TOML: Final = "application/toml"
PAGE_SIZE: Final = 20  # of a list, as of the API

_PLACE: Final = re.compile(r"\{[^}]*\}")


class Ask(Generic[T]):
    """What is asked of an address, and what is answered.

    `ids` go into the address in their order. `repeatable`: a GET, or an act that does nothing more
    when it is done twice, so that it can be sent again when no answer came. With `key`, an
    Idempotency-Key makes it so.
    """

    __slots__ = ("answer", "content", "headers", "ids", "query", "repeatable")

    def __init__(
        self,
        answer: type[T],
        *ids: str | int,
        query: Mapping[str, Asked] | None = None,
        body: msgspec.Struct | Mapping[str, object] | str | bytes | None = None,
        repeatable: bool = False,
    ) -> None:
        self.answer = answer
        self.ids = ids
        self.query = query or {}
        self.repeatable = repeatable
        self.headers: dict[str, str] = {}
        self.content: bytes | None = None
        if body is not None:
            text = body.encode() if isinstance(body, str) else body
            self.headers["content-type"] = TOML if isinstance(text, bytes) else JSON
            self.content = text if isinstance(text, bytes) else msgspec.json.encode(text)

    def with_header(self, name: str, value: str) -> "Ask[T]":
        """The same with a header, if there is a value for it."""
        if value:
            self.headers[name] = checked_header(name, value)
        return self

    def once(self, key: str | None) -> "Ask[T]":
        """The same, done once however often it is sent: under a key that is given, or one of ours."""
        made = key or clock.new_event_id(clock.now_ms())
        self.repeatable = True
        return self.with_header("idempotency-key", made)


class Call(msgspec.Struct, Generic[T], frozen=True):
    """An address and what is asked of it."""

    method: str
    path: str
    ask: Ask[T]

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again without knowing what became of it."""
        return self.method == "GET" or self.ask.repeatable

    @property
    def params(self) -> dict[str, str]:
        """The query as text."""
        asked = self.ask.query.items()
        return {name: _text(value) for name, value in asked if value is not None and value != ""}

    def read(self, status: int, headers: Mapping[str, str], body: bytes, url: str) -> T:
        """What was answered; raises RefusedError or UnreadableAnswerError."""
        if not is_fine(status):
            raise refusal(status, headers, body, url)
        try:
            if self.ask.answer is str:
                return cast("T", body.decode())
            return msgspec.json.decode(body, type=self.ask.answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f"{url} answered something that is not understood: {error}"
            raise UnreadableAnswerError(message) from error


def is_fine(status: int) -> bool:
    """Whether an answer is what was asked for."""
    return 200 <= status < 300


def call(method: str, address: str, ask: Ask[T]) -> Call[T]:
    """An address such as /admin/keys/{key_id} with its ids; raises UnusableArgumentError."""
    ids = iter(ask.ids)
    path = _PLACE.sub(lambda _: _segment(next(ids)), address)
    assert next(ids, None) is None, "more ids than places in the address"
    return Call(method, path, ask)


def checked_header(name: str, value: str) -> str:
    """A value fit for a header; raises UnusableArgumentError, which does not repeat it."""
    if not value.isascii() or not value.isprintable():
        raise UnusableArgumentError(f"{name} holds a character that cannot be sent")
    return value


def _segment(name: str | int) -> str:
    """An id as one segment of a path; those that would lead elsewhere cannot be sent."""
    text = str(name)
    if text in ("", ".", ".."):
        raise UnusableArgumentError("an id is empty, or consists of dots alone")
    return quote(text, safe="")


def _text(value: Asked) -> str:
    match value:
        case bool():
            return str(value).lower()
        case datetime():
            return value.isoformat()
        case _:
            return str(value)
