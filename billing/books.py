"""Price books: immutable numbered versions, and the timeline on which they take effect.

An activation says from when on a version holds; of those whose time has come the latest holds, and
of two for the same moment the one decided later. So rolling back is activating an older version,
and a scheduled activation is replaced by another one for its moment.
"""

import hashlib
from collections.abc import Callable
from typing import Final

import msgspec
from sqlalchemy import Select, func, insert, literal_column, select
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.audit import Act, note
from billing.db.session import Database
from billing.db.tables import price_book_activations, price_books
from billing.lists import Page, PageRequest, make_page
from pricing_rules.book import Book, Problem, parse_book
from pricing_rules.lint import lint

ACTIVATION_LEAD_MS: Final = 5_000  # processes poll every second and stop at STALE_SECONDS
STALE_SECONDS: Final = 5.0  # DESIGN 4: no refresh for so long, and prices are not known
BOOKS_CACHED_MAX: Final = 32


class BookInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A version of the price book, without its text."""

    version: int
    name: str
    sha256: str  # of the text
    rules: int
    uploaded_by: str
    uploaded_at: int  # milliseconds since the epoch
    effective_from: int | None  # its latest activation; None: never activated


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """The decision that a version holds from a moment on (milliseconds since the epoch)."""

    version: int
    effective_from: int


class Uploaded(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an upload: the version, and what the linter had to say that is no error."""

    version: int
    repeated: bool  # the very same text was there already, under this version
    warnings: tuple[Problem, ...]


class BooksStaleError(Exception):
    """The books could not be refreshed for 5 s: another process may price by a newer one."""


class NoBookError(Exception):
    """No price book is in effect."""


class UnknownBookError(Exception):
    """There is no such version."""


class BookRefusedError(Exception):
    """The uploaded text has errors; `problems` has all of them, and the warnings."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        errors = sum(problem.level == "error" for problem in problems)
        super().__init__(f"The price book has {errors} error(s).")
        self.problems = problems


class PriceBooks:
    """The books of one gateway, as this process last read them."""

    def __init__(
        self, database: Database, *, now_ms: Callable[[], int], monotonic: Callable[[], float]
    ) -> None:
        self._database = database
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._timeline: tuple[tuple[int, int, Book], ...] = ()  # effective_from, version; ascending
        self._refreshed_at: float | None = None
        self._parsed: dict[int, Book] = {}

    async def start(self) -> None:
        """Load the books in effect; raises what the database raises, and BookError."""
        await self.refresh()

    async def refresh(self) -> None:
        """Read the timeline again (polled every second); raises what the database raises.

        Whatever fails leaves the books as they were, to be used until they are stale.
        """
        started = self._monotonic()
        async with self._database.read() as connection:
            now_ms = await database_now_ms(connection)
            activations = await _activations(connection, now_ms)
            books = [await self._book(connection, each.version) for each in activations]
        self._timeline = tuple(
            (activation.effective_from, activation.version, book)
            for activation, book in zip(activations, books, strict=True)
        )
        self._refreshed_at = started

    def current(self, now_ms: int) -> tuple[int, Book]:
        """The version in effect at a time (milliseconds since the epoch), and the book itself.

        Raises BooksStaleError if the last refresh is over 5 s old, NoBookError if there is none.
        """
        refreshed_at = self._refreshed_at
        if refreshed_at is None or self._monotonic() - refreshed_at > STALE_SECONDS:
            raise BooksStaleError
        for effective_from, version, book in reversed(self._timeline):
            if effective_from <= now_ms:
                return version, book
        raise NoBookError

    async def upload(self, text: str, *, actor: str) -> Uploaded:
        """Store a text as the next version, in effect only once activated.

        The very text of an existing version is that version again. Raises BookRefusedError.
        """
        problems = tuple(lint(text))
        if any(problem.level == "error" for problem in problems):
            raise BookRefusedError(problems)
        book = parse_book(text)
        digest = hash_text(text)
        now_ms = self._now_ms()
        async with self._database.write(alone=True) as connection:
            existing = await _version_of(connection, digest)
            if existing is not None:
                return Uploaded(version=existing, repeated=True, warnings=problems)
            last = await connection.scalar(select(func.max(price_books.c.version)))
            version = (last or 0) + 1
            await connection.execute(
                insert(price_books).values(
                    version=version,
                    name=book.name,
                    sha256=digest,
                    rules=len(book.rules),
                    toml=text,
                    uploaded_by=actor,
                    created_at=now_ms,
                )
            )
            detail: dict[str, str | int | bool | None] = {"name": book.name, "sha256": digest}
            act = Act(actor=actor, action="book.upload", target=str(version), detail=detail)
            await note(connection, act, now_ms)
        return Uploaded(version=version, repeated=False, warnings=problems)

    async def activate(self, version: int, at: int | None = None, *, actor: str) -> Activation:
        """Put a version in effect at `at`, or at the book's own effective_from if that is later.

        In any case at least 5 s ahead, by the database's clock, so that every process has read
        of it by then; the first book of a database need not wait. Times are milliseconds since
        the epoch. Raises UnknownBookError.
        """
        async with self._database.write(alone=True) as connection:
            if await _text_of(connection, version) is None:
                raise UnknownBookError
            book = await self._book(connection, version)
            now_ms = await database_now_ms(connection)
            first = (
                await connection.scalar(select(price_book_activations.c.version).limit(1)) is None
            )
            earliest = now_ms if first else now_ms + ACTIVATION_LEAD_MS
            effective_from = max(earliest, at or 0, book.effective_from or 0)
            await connection.execute(
                insert(price_book_activations).values(
                    version=version,
                    effective_from=effective_from,
                    activated_by=actor,
                    created_at=now_ms,
                )
            )
            act = Act(
                actor=actor,
                action="book.activate",
                target=str(version),
                detail={"effective_from": effective_from},
            )
            await note(connection, act, now_ms)
        await self.refresh()
        return Activation(version=version, effective_from=effective_from)

    async def rollback(self, *, actor: str) -> Activation:
        """Activate the version that was in effect before the current one.

        Raises UnknownBookError if there was none.
        """
        async with self._database.read() as connection:
            now_ms = await database_now_ms(connection)
            past = (
                await connection.execute(
                    _timeline(descending=True).where(
                        price_book_activations.c.effective_from <= now_ms
                    )
                )
            ).all()
        earlier = [row.version for row in past if row.version != past[0].version]
        if not earlier:
            raise UnknownBookError
        return await self.activate(earlier[0], actor=actor)

    async def load_first(self, text: str, *, actor: str) -> int | None:
        """Upload and activate a text if the database holds no book yet; None if it holds one."""
        async with self._database.read() as connection:
            if await connection.scalar(select(price_books.c.version).limit(1)) is not None:
                return None
        uploaded = await self.upload(text, actor=actor)
        await self.activate(uploaded.version, actor=actor)
        return uploaded.version

    async def version_of(self, text: str) -> int | None:
        """The version that has exactly this text; None if it was never uploaded.

        With `current`, tells whether a prices.toml on disk still is what prices the calls.
        """
        async with self._database.read() as connection:
            return await _version_of(connection, hash_text(text))

    async def page(self, request: PageRequest) -> Page[BookInfo]:
        """All versions, newest first."""
        wanted = _infos().order_by(price_books.c.version.desc()).limit(request.page_size + 1)
        if request.after is not None:
            wanted = wanted.where(price_books.c.version < request.after)
        async with self._database.read() as connection:
            rows = (await connection.execute(wanted.offset(request.offset))).all()
            total = await connection.scalar(select(func.count()).select_from(price_books))
        items = [_info(row) for row in rows]
        return make_page(request, items, [item.version for item in items], total or 0)

    async def info(self, version: int) -> BookInfo:
        """One version; raises UnknownBookError."""
        async with self._database.read() as connection:
            row = (
                await connection.execute(_infos().where(price_books.c.version == version))
            ).one_or_none()
        if row is None:
            raise UnknownBookError
        return _info(row)

    async def text(self, version: int) -> str:
        """A version's text as it was uploaded; raises UnknownBookError."""
        async with self._database.read() as connection:
            text = await _text_of(connection, version)
        if text is None:
            raise UnknownBookError
        return text

    async def get(self, version: int) -> Book:
        """A version, parsed; raises UnknownBookError. Never changes, so it is kept."""
        async with self._database.read() as connection:
            return await self._book(connection, version)

    async def _book(self, connection: AsyncConnection, version: int) -> Book:
        book = self._parsed.get(version)
        if book is None:
            text = await _text_of(connection, version)
            if text is None:
                raise UnknownBookError
            book = parse_book(text)
            while len(self._parsed) >= BOOKS_CACHED_MAX:
                del self._parsed[next(iter(self._parsed))]
            self._parsed[version] = book
        return book


def hash_text(text: str) -> str:
    """SHA-256 of a book's text, in hexadecimal: what makes an upload the same."""
    return hashlib.sha256(text.encode()).hexdigest()


async def database_now_ms(connection: AsyncConnection) -> int:
    """The database's clock in milliseconds since the epoch: the one clock that processes share."""
    expression = _CLOCKS[connection.dialect.name]
    return int(await connection.scalar(select(literal_column(expression))) or 0)


# SQLite's 'now' is one moment throughout a statement; %f is seconds with milliseconds ("07.123").
_CLOCKS: Final = {
    "sqlite": (
        "CAST(strftime('%s', 'now') AS INTEGER) * 1000"
        " + CAST(substr(strftime('%f', 'now'), 4, 3) AS INTEGER)"
    ),
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
}


# The one in effect by the database's clock, and the one before: a process whose clock is a little
# behind the database's has not switched yet.
PAST_KEPT: Final = 2


async def _activations(connection: AsyncConnection, now_ms: int) -> list[Activation]:
    """The activations in effect or to come, in the order in which they take effect."""
    rows = (await connection.execute(_timeline(descending=False))).all()
    all_of_them = [Activation(version=row[0], effective_from=row[1]) for row in rows]
    past = sum(activation.effective_from <= now_ms for activation in all_of_them)
    return all_of_them[max(0, past - PAST_KEPT) :]


def _timeline(*, descending: bool) -> Select[int, int]:
    table = price_book_activations
    keys = (table.c.effective_from, table.c.id)
    order = [key.desc() for key in keys] if descending else list(keys)
    return select(table.c.version, table.c.effective_from).order_by(*order)


async def _version_of(connection: AsyncConnection, digest: str) -> int | None:
    found: int | None = await connection.scalar(
        select(price_books.c.version).where(price_books.c.sha256 == digest)
    )
    return found


async def _text_of(connection: AsyncConnection, version: int) -> str | None:
    text: str | None = await connection.scalar(
        select(price_books.c.toml).where(price_books.c.version == version)
    )
    return text


def _infos() -> Select[int, str, str, int, str, int, int | None]:
    latest = (
        select(func.max(price_book_activations.c.effective_from))
        .where(price_book_activations.c.version == price_books.c.version)
        .scalar_subquery()
    )
    return select(
        price_books.c.version,
        price_books.c.name,
        price_books.c.sha256,
        price_books.c.rules,
        price_books.c.uploaded_by,
        price_books.c.created_at,
        latest,
    )


def _info(row: Row[int, str, str, int, str, int, int | None]) -> BookInfo:
    version, name, sha256, rules, uploaded_by, created_at, effective_from = row
    return BookInfo(
        version=version,
        name=name,
        sha256=sha256,
        rules=rules,
        uploaded_by=uploaded_by,
        uploaded_at=created_at,
        effective_from=effective_from,
    )
