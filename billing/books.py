"""Price books: immutable numbered versions, and the timeline on which they take effect.

An activation says from when on a version holds, and names the version that it takes the place of:
who did not know of another's decision is refused (billing.timeline). Rolling back is activating the
version before. Reading a long book takes seconds, so it is done in a thread: calls go on meanwhile.
"""

import asyncio
import hashlib
from collections.abc import Callable, Collection
from typing import Final

import msgspec
from sqlalchemy import Select, func, insert, literal_column, select
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.audit import Act, Detail, note
from billing.db.session import Database
from billing.db.tables import price_book_activations, price_books, usage_quarters
from billing.kinds import ACTIVATION_LEAD_MS
from billing.lists import Page, PageRequest, make_page
from billing.timeline import Activation, Timeline
from pricing_rules.book import Book, Problem, parse_book
from pricing_rules.diff import Diff, diff
from pricing_rules.lint import Call, Review, review

STALE_SECONDS: Final = 5.0  # DESIGN 4: no refresh for so long, and prices are not known
# A refresh waits so long for books that are new to it, then goes on and looks again.
READING_SECONDS: Final = 1.0
BOOKS_CACHED_MAX: Final = 32
SERVED_DAYS: Final = 7
SERVED_MAX: Final = 10_000  # different calls of these days that are looked at
_DAY_MS: Final = 86_400_000


class BookInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A version of the price book, without its text."""

    version: int
    name: str
    sha256: str  # of the text
    rules: int
    uploaded_by: str
    uploaded_at: int  # milliseconds since the epoch
    effective_from: int | None  # since when it holds, or held last; None: not yet
    scheduled_from: int | None  # from when on it is to hold (again)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What an administrator has decided, and what he took for granted when he did.

    `replaces`: the version that holds at that moment without this decision; None: there is none.
    `followed_by`: the version that takes effect after that; None: none is to.
    """

    replaces: int | None = None
    followed_by: int | None = None
    at: int | None = None  # milliseconds since the epoch; None: as soon as it can be


class Activated(msgspec.Struct, frozen=True, kw_only=True):
    """From when on a version holds, and whose place it takes."""

    version: int
    effective_from: int
    replaced: int | None
    followed_by: int | None
    repeated: bool  # it was to hold then already: nothing was done


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What a version changes against another."""

    version: int
    against: int
    diff: Diff


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


class NothingBeforeError(Exception):
    """There is no version to go back to."""


class OtherBookError(Exception):
    """Another version is, or is to be, in effect than an administrator took for granted."""

    def __init__(
        self, moment: int, *, replaces: int | None, followed_by: Activation | None
    ) -> None:
        super().__init__("another price book is in effect then")
        self.moment = moment  # milliseconds since the epoch
        self.replaces = replaces
        self.followed_by = followed_by


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
        # Ascending; a book that is still being read is None.
        self._timeline: tuple[tuple[int, int, Book | None], ...] = ()
        self._refreshed_at: float | None = None
        self._parsed: dict[int, Book] = {}
        self._reading: dict[int, asyncio.Future[Book]] = {}
        self._one_at_a_time = asyncio.Semaphore(1)  # a review may take hundreds of megabytes

    async def start(self) -> None:
        """Load the books in effect; raises what the database raises, and BookError."""
        await self.refresh()
        while self._reading:
            await self.refresh()

    async def refresh(self) -> None:
        """Read the timeline again (polled every second); raises what the database raises.

        Whatever fails leaves the books as they were, to be used until they are stale.
        """
        started = self._monotonic()
        async with self._database.read() as connection:
            now_ms = await database_now_ms(connection)
            activations = (await _timeline(connection)).of_late(now_ms)
            known = {version for _, version, book in self._timeline if book is not None}
            for version in {each.version for each in activations} - known:
                if version not in self._parsed and version not in self._reading:
                    self._begin_reading(version, await _text_of(connection, version) or "")
        self._place(activations)
        self._refreshed_at = started
        if self._reading:
            await asyncio.wait(self._reading.values(), timeout=READING_SECONDS)
            self._collect()
            self._place(activations)

    def _begin_reading(self, version: int, text: str) -> None:
        loop = asyncio.get_running_loop()
        self._reading[version] = loop.run_in_executor(None, parse_book, text)

    def _collect(self) -> None:
        """Take what was read; raises BookError for what is no book."""
        for version, reading in list(self._reading.items()):
            if reading.done():
                del self._reading[version]
                self._keep(version, reading.result())

    def _place(self, activations: Collection[Activation]) -> None:
        known = {version: book for _, version, book in self._timeline if book is not None}
        self._timeline = tuple(
            (
                each.effective_from,
                each.version,
                self._parsed.get(each.version) or known.get(each.version),
            )
            for each in activations
        )

    def current(self, now_ms: int) -> tuple[int, Book]:
        """The version in effect at a time (milliseconds since the epoch), and the book itself.

        Raises BooksStaleError if the last refresh is over 5 s old or the book is still being read,
        NoBookError if there is none.
        """
        refreshed_at = self._refreshed_at
        if refreshed_at is None or self._monotonic() - refreshed_at > STALE_SECONDS:
            raise BooksStaleError
        for effective_from, version, book in reversed(self._timeline):
            if effective_from <= now_ms:
                if book is None:
                    raise BooksStaleError
                return version, book
        raise NoBookError

    async def review(self, text: str | bytes, *, against_active: bool = True) -> Review:
        """Read and lint a text, by itself or also against the book in effect and the calls of late."""
        active, served = None, frozenset[Call]()
        if against_active:
            async with self._database.read() as connection:
                now_ms = await database_now_ms(connection)
                activation = (await _timeline(connection)).at(now_ms)
                served = await _served(connection, now_ms - SERVED_DAYS * _DAY_MS)
            active = None if activation is None else await self.get(activation.version)
        async with self._one_at_a_time:
            return await asyncio.to_thread(
                review, text, active=active, served=served, now=self._now_ms()
            )

    async def upload(self, text: str | bytes, *, actor: str) -> Uploaded:
        """Store a text as the next version, in effect only once activated.

        The very text of an existing version is that version again. Raises BookRefusedError.
        """
        reviewed = await self.review(text)
        if reviewed.book is None:
            raise BookRefusedError(reviewed.problems)
        if isinstance(text, bytes):
            text = text.decode()
        digest = hash_text(text)
        now_ms = self._now_ms()
        async with self._database.write(alone=True) as connection:
            version = await _version_of(connection, digest)
            if version is not None:
                return Uploaded(version=version, repeated=True, warnings=reviewed.problems)
            last = await connection.scalar(select(func.max(price_books.c.version)))
            version = (last or 0) + 1
            await connection.execute(
                insert(price_books).values(
                    version=version,
                    name=reviewed.book.name,
                    sha256=digest,
                    rules=len(reviewed.book.rules),
                    toml=text,
                    uploaded_by=actor,
                    created_at=now_ms,
                )
            )
            detail: Detail = {"name": reviewed.book.name, "sha256": digest}
            act = Act(actor=actor, action="book.upload", target=str(version), detail=detail)
            await note(connection, act, now_ms)
        self._keep(version, reviewed.book)
        return Uploaded(version=version, repeated=False, warnings=reviewed.problems)

    async def activate(self, version: int, wanted: Wanted, *, actor: str) -> Activated:
        """Put a version in effect when it is wanted, or at the book's own effective_from if later.

        In any case at least 5 s ahead, by the database's clock, so that every process has read
        of it by then; the first book of a database need not wait. What holds then already is not
        activated again. Raises UnknownBookError, and OtherBookError if another version would be
        replaced, or follow, than `wanted` says.
        """
        book = await self.get(version)
        async with self._database.write(alone=True) as connection:
            now_ms = await database_now_ms(connection)
            timeline = await _timeline(connection)
            earliest = now_ms + ACTIVATION_LEAD_MS if timeline.activations else now_ms
            moment = max(earliest, wanted.at or 0, book.effective_from or 0)
            done = _decide(timeline, version, moment, wanted)
            if not done.repeated:
                await _write(connection, done, actor, now_ms, action="book.activate")
        await self.refresh()
        return done

    async def rollback(self, wanted: Wanted, *, actor: str) -> Activated:
        """Put the version in effect again that was before the one which `wanted` replaces.

        What is decided but not in effect yet counts as if it were; `at` and the book's own
        effective_from do not. Rolling back again goes one step further back. Raises
        NothingBeforeError if there is none, and OtherBookError as `activate` does.
        """
        async with self._database.write(alone=True) as connection:
            now_ms = await database_now_ms(connection)
            timeline = await _timeline(connection)
            moment = now_ms + ACTIVATION_LEAD_MS
            done = _decide(timeline, timeline.before(moment), moment, wanted)
            await _write(connection, done, actor, now_ms, action="book.rollback")
        await self.refresh()
        return done

    async def schedule(self) -> tuple[Activation | None, tuple[Activation, ...]]:
        """What is in effect by the database's clock, and what is to take effect."""
        async with self._database.read() as connection:
            now_ms = await database_now_ms(connection)
            timeline = await _timeline(connection)
        return timeline.at(now_ms), timeline.after(now_ms)

    async def compare(self, version: int, against: int | None = None) -> Compared:
        """What a version changes against another; None: the one in effect.

        Raises UnknownBookError, and NoBookError if none is in effect.
        """
        after = await self.get(version)
        if against is None:
            activation, _ = await self.schedule()
            if activation is None:
                raise NoBookError
            against = activation.version
        before = await self.get(against)
        async with self._one_at_a_time:
            found = await asyncio.to_thread(diff, before, after)
        return Compared(version=version, against=against, diff=found)

    async def load_first(self, text: str, *, actor: str) -> int | None:
        """Upload and activate a text if the database holds no book yet; None if it holds one."""
        async with self._database.read() as connection:
            if await connection.scalar(select(price_books.c.version).limit(1)) is not None:
                return None
        uploaded = await self.upload(text, actor=actor)
        await self.activate(uploaded.version, Wanted(), actor=actor)
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
            now_ms = await database_now_ms(connection)
            timeline = await _timeline(connection)
        items = [_info(row, timeline, now_ms) for row in rows]
        return make_page(request, items, [item.version for item in items], total or 0)

    async def info(self, version: int) -> BookInfo:
        """One version; raises UnknownBookError."""
        async with self._database.read() as connection:
            row = (
                await connection.execute(_infos().where(price_books.c.version == version))
            ).one_or_none()
            now_ms = await database_now_ms(connection)
            timeline = await _timeline(connection)
        if row is None:
            raise UnknownBookError
        return _info(row, timeline, now_ms)

    async def text(self, version: int) -> str:
        """A version's text as it was uploaded; raises UnknownBookError."""
        async with self._database.read() as connection:
            text = await _text_of(connection, version)
        if text is None:
            raise UnknownBookError
        return text

    async def get(self, version: int) -> Book:
        """A version, parsed; raises UnknownBookError. Never changes, so it is kept."""
        book = self._parsed.get(version)
        if book is None:
            text = await self.text(version)
            async with self._one_at_a_time:
                book = self._parsed.get(version)
                if book is None:
                    book = await asyncio.to_thread(parse_book, text)
                    self._keep(version, book)
        return book

    def _keep(self, version: int, book: Book) -> None:
        # The object that is there stays: calls in progress compare by it.
        if version not in self._parsed:
            while len(self._parsed) >= BOOKS_CACHED_MAX:
                del self._parsed[next(iter(self._parsed))]
            self._parsed[version] = book


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


def _decide(timeline: Timeline, version: int | None, moment: int, wanted: Wanted) -> Activated:
    """What becomes of a decision for a moment; raises OtherBookError, NothingBeforeError."""
    held, later = timeline.at(moment), timeline.after(moment)
    replaced = None if held is None else held.version
    following = later[0] if later else None
    followed_by = None if following is None else following.version
    if held is not None and held.version == version:
        return Activated(
            version=version,
            effective_from=held.effective_from,
            replaced=replaced,
            followed_by=followed_by,
            repeated=True,
        )
    if (replaced, followed_by) != (wanted.replaces, wanted.followed_by):
        raise OtherBookError(moment, replaces=replaced, followed_by=following)
    if version is None:
        raise NothingBeforeError
    return Activated(
        version=version,
        effective_from=moment,
        replaced=replaced,
        followed_by=followed_by,
        repeated=False,
    )


async def _write(
    connection: AsyncConnection, done: Activated, actor: str, now_ms: int, *, action: str
) -> None:
    await connection.execute(
        insert(price_book_activations).values(
            version=done.version,
            effective_from=done.effective_from,
            activated_by=actor,
            created_at=now_ms,
        )
    )
    detail: Detail = {"effective_from": done.effective_from, "replaces": done.replaced}
    act = Act(actor=actor, action=action, target=str(done.version), detail=detail)
    await note(connection, act, now_ms)


async def _timeline(connection: AsyncConnection) -> Timeline:
    table = price_book_activations
    wanted = select(table.c.version, table.c.effective_from, table.c.activated_by)
    rows = (await connection.execute(wanted.order_by(table.c.id))).all()
    return Timeline(
        Activation(version=version, effective_from=effective_from, activated_by=activated_by)
        for version, effective_from, activated_by in rows
    )


async def _served(connection: AsyncConnection, since: int) -> frozenset[Call]:
    """The different calls that began since a moment."""
    table = usage_quarters
    wanted = select(table.c.scene, table.c.provider, table.c.model).distinct()
    rows = (
        await connection.execute(wanted.where(table.c.bucket_at >= since).limit(SERVED_MAX))
    ).all()
    return frozenset((scene, provider, model) for scene, provider, model in rows)


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


def _infos() -> Select[int, str, str, int, str, int]:
    return select(
        price_books.c.version,
        price_books.c.name,
        price_books.c.sha256,
        price_books.c.rules,
        price_books.c.uploaded_by,
        price_books.c.created_at,
    )


def _info(row: Row[int, str, str, int, str, int], timeline: Timeline, now_ms: int) -> BookInfo:
    version, name, sha256, rules, uploaded_by, created_at = row
    moments = [each.effective_from for each in timeline.activations if each.version == version]
    past = [at for at in moments if at <= now_ms]
    return BookInfo(
        version=version,
        name=name,
        sha256=sha256,
        rules=rules,
        uploaded_by=uploaded_by,
        uploaded_at=created_at,
        effective_from=past[-1] if past else None,
        scheduled_from=moments[len(past)] if len(moments) > len(past) else None,
    )
