"""Posts what another book makes of charges: a run goes over the calls of a time, page by page.

For each call the difference between what it is charged now and what the run's book makes of it is
an entry of its own, `{event_id}:rerate:{run_id}`; what is charged now is the charge with its final
and earlier runs. So a second run of the same book finds nothing to do, and one back to the first
book posts the opposite. Refunds stay as they are: see billing.rerating.simulate.target.

A run is a row, written first; one at a time, and meanwhile no charge of its time is refunded. A
process that dies is followed by another, at the page that is marked: what of it was posted comes to
the same entries again. A debit holds credit before it is posted, as all do, and then takes it whole.
"""

import hashlib
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal

import msgspec
from sqlalchemy import Select, delete, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import ledger
from billing.audit import Act, Detail, note
from billing.books import PriceBooks
from billing.context import BillingContext, encode_context
from billing.db.hot import HotDatabase
from billing.db.invariants import time_of
from billing.db.pages import read_page
from billing.db.postgres_url import is_postgres
from billing.db.session import Database, insert_into
from billing.db.tables import rerating_holds, rerating_runs
from billing.failpoints import reach
from billing.holds import GuardUnavailableError, HoldRequest, HoldStore
from billing.kinds import LeftOut
from billing.lists import Page, PageRequest
from billing.rerating.calls import RERATE, Call, CallPage, Window, read_calls
from billing.rerating.pricing import Rerater
from billing.rerating.simulate import percent_of, target
from billing.settlement.election import Election
from billing.shop.fields import Fields
from billing.shop.postings import OnPosted
from billing.shop.rows import fields_of

# Calls of a page, and so entries of a transaction: what waits for it on SQLite waits for about 10 ms.
CALLS_AT_ONCE: Final = 200
REASON_MAX: Final = 500
DUTY: Final = "rerating"

State = Literal["posting", "done"]

_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RUN_ID_RULE: Final = "1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit"

_log: Final = logging.getLogger(__name__)


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """Charge the calls of a time by a book. `run_id`: the same one is the same run; None: a new one."""

    book: int
    window: Window
    reason: str
    run_id: str | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it stands. Amounts in micro-credits, never below 0; times milliseconds since the epoch."""

    run_id: str
    book: int
    from_at: int
    to_at: int
    reason: str
    actor: str
    state: State
    cursor: str  # up to this id all is done
    calls: int  # looked at
    entries: int  # posted
    taken: int  # by entries that charge more
    given_back: int  # by entries that charge less
    left_out: dict[LeftOut, int]  # calls that keep what they are charged, by the reason
    created_at: int
    finished_at: int | None

    @property
    def window(self) -> Window:
        """Which calls."""
        return Window(from_at=self.from_at, to_at=self.to_at)

    @property
    def percent(self) -> int:
        """The part of the time that is done."""
        return 100 if self.state == "done" else percent_of(self.window, time_of(self.cursor))


class UnknownRunError(Exception):
    """There is no run by this id."""


class RunConflictError(Exception):
    """The id stands for another run: which field differs, and how."""

    def __init__(self, field: str, existing: object, given: object) -> None:
        super().__init__(f"the run has {field} {existing!r}, given {given!r}")
        self.field = field


class RunInProgressError(Exception):
    """Another run is under way: `run_id`."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"the run {run_id} is under way; ask again when it is done")
        self.run_id = run_id


class Runs:
    """All runs of one database. `holds` and `process` are those of admission."""

    def __init__(  # noqa: PLR0913 - its parts, each by name
        self,
        database: Database,
        hot: HotDatabase,
        books: PriceBooks,
        *,
        holds: HoldStore,
        process: Callable[[], str],
        now_ms: Callable[[], int],
        new_id: Callable[[int], str],
        on_posted: OnPosted | None = None,
        calls_at_once: int = CALLS_AT_ONCE,
    ) -> None:
        self._database = database
        self._hot = hot
        self._books = books
        self._holds = holds
        self._process = process
        self._now_ms = now_ms
        self._new_id = new_id
        self._on_posted = on_posted
        self._calls_at_once = calls_at_once
        self._election = Election(database, DUTY)

    async def start(self, asked: NewRun, *, actor: str) -> tuple[Run, bool]:
        """Promise a run, to be carried out by `carry_on`; and whether it was asked for before.

        Raises InvalidFieldsError, UnknownBookError, RunConflictError, RunInProgressError, and what
        the database raises.
        """
        now_ms = self._now_ms()
        _check(asked, now_ms)
        await self._books.info(asked.book)
        run = Run(
            run_id=asked.run_id or self._new_id(now_ms),
            book=asked.book,
            from_at=asked.window.from_at,
            to_at=asked.window.to_at,
            reason=asked.reason.strip(),
            actor=actor,
            state="posting",
            cursor="",
            calls=0,
            entries=0,
            taken=0,
            given_back=0,
            left_out={},
            created_at=now_ms,
            finished_at=None,
        )
        # Alone: so are refunds, which look for a run before they promise anything.
        async with self._database.write(alone=True) as connection:
            if known := await _find(connection, run.run_id):
                _compare(known, run)
                return known, True
            if other := await connection.scalar(_posting()):
                raise RunInProgressError(other)
            await connection.execute(delete(rerating_holds))  # of runs that are done
            await connection.execute(insert(rerating_runs).values(**_values(run)))
            await note(connection, _act(run), now_ms)
        reach("rerating_promised")
        return run, False

    async def get(self, run_id: str) -> Run:
        """A run; raises UnknownRunError."""
        async with self._database.read() as connection:
            run = await _find(connection, run_id)
        if run is None:
            raise UnknownRunError
        return run

    async def page(self, request: PageRequest) -> Page[Run]:
        """Runs, newest first. By page number only."""
        table = rerating_runs
        ordered = select(table).order_by(table.c.created_at.desc(), table.c.run_id.desc())
        return await read_page(self._database, ordered, request, _run)

    async def carry_on(self) -> Run | None:
        """Carry out what is under way, to its end; None: there was nothing to do here.

        One process at a time does so; that two do is harmless, and for nothing. Raises
        GuardUnavailableError, DatabaseUnavailableError and what SQLAlchemy raises: then again later.
        """
        async with self._database.read() as connection:
            waiting = await connection.scalar(_posting())
        if waiting is None:
            return None
        if not is_postgres(self._database.url):
            return await self.finish(waiting)
        if not await self._election.stand():
            return None
        try:
            return await self.finish(waiting)
        finally:
            await self._election.resign()

    async def finish(self, run_id: str) -> Run:
        """Do page after page of a run, from where it is marked; what it came to."""
        run = await self.get(run_id)
        rerater = Rerater(await self._books.get(run.book), run.book)
        while run.state == "posting":
            run = await self._next_page(run, rerater)
        return run

    # -- a page ------------------------------------------------------------------------------

    async def _next_page(self, run: Run, rerater: Rerater) -> Run:
        """Post a page of differences and mark it; the run as it stands then."""
        page = await read_calls(
            self._database,
            run.window,
            after=run.cursor,
            limit=self._calls_at_once,
            without_run=run.run_id,
        )
        await rerater.learn(page.calls, self._books)
        step = _Step(run, page, rerater)
        await self._post(run, step)
        reach("rerating_posted")
        return await self._mark(run, page.last, step)

    async def _post(self, run: Run, step: "_Step") -> None:
        if not step.entries:
            return
        holds = step.holds(self._process(), self._now_ms())
        await self._announce(run, holds)
        for request in holds:
            await self._holds.reserve(request)  # whatever could be held of it
        reach("rerating_held")
        results = await self._hot.post(step.entries)
        for entry, result in zip(step.entries, results, strict=True):
            if isinstance(result, ledger.EntryRefused | ledger.EventConflict):
                # No number of tries changes it; the call keeps what it is charged.
                _log.error("the re-rating entry %s was not taken", entry.event_id)
                step.refuse(entry)
        if self._on_posted is not None:
            # Best effort: a guard that is away reads the balance when it is back.
            with suppress(GuardUnavailableError, SQLAlchemyError, OSError):
                await self._on_posted(sorted({entry.account for entry in step.entries}))
        for request in holds:
            await self._holds.release(request.account, request.hold_id)

    async def _announce(self, run: Run, holds: list[HoldRequest]) -> None:
        """Note what is to be held: should this process die, nobody takes it for a call's."""
        if not holds:
            return
        rows = [{"hold_id": request.hold_id, "run_id": run.run_id} for request in holds]
        async with self._database.write() as connection:
            noted = insert_into(connection, rerating_holds).on_conflict_do_nothing()
            await connection.execute(noted, rows)

    async def _mark(self, run: Run, last: str, step: "_Step") -> Run:
        """Note how far the run is, unless another process did so: then as it left it."""
        now_ms = self._now_ms()
        done = msgspec.structs.replace(
            run,
            cursor=last or run.cursor,
            calls=run.calls + step.calls,
            entries=run.entries + len(step.entries),
            taken=run.taken + step.taken,
            given_back=run.given_back + step.given_back,
            left_out=step.left_out_with(run.left_out),
            state="posting" if last else "done",
            finished_at=None if last else now_ms,
        )
        table = rerating_runs
        mine = update(table).where(
            table.c.run_id == run.run_id, table.c.state == run.state, table.c.cursor == run.cursor
        )
        async with self._database.write() as connection:
            marked = await connection.execute(mine.values(**_values(done)))
            if marked.rowcount:
                held = rerating_holds.c.run_id == run.run_id, rerating_holds.c.done_at.is_(None)
                await connection.execute(update(rerating_holds).where(*held).values(done_at=now_ms))
        return done if marked.rowcount else await self.get(run.run_id)


class _Step:
    """What a page of calls comes to: decided at once, then done."""

    def __init__(self, run: Run, page: CallPage, rerater: Rerater) -> None:
        self.calls = len(page.calls)
        self.entries: list[ledger.Entry] = []
        self._run = run
        self._left_out: dict[LeftOut, int] = {}
        for call in page.calls:
            charged = page.charged[call.event_id]
            found = target(call, charged, rerater.price(call))
            if isinstance(found, LeftOut):
                self._left_out[found] = self._left_out.get(found, 0) + 1
            elif found != charged.total:
                self.entries.append(_entry(run, call, charged.total - found))

    @property
    def taken(self) -> int:
        """What is charged more, in all."""
        return -sum(entry.amount for entry in self.entries if entry.amount < 0)

    @property
    def given_back(self) -> int:
        """What is charged less, in all."""
        return sum(entry.amount for entry in self.entries if entry.amount > 0)

    def left_out_with(self, earlier: dict[LeftOut, int]) -> dict[LeftOut, int]:
        """By reason, with those of earlier pages."""
        total = dict(earlier)
        for reason, calls in self._left_out.items():
            total[reason] = total.get(reason, 0) + calls
        return total

    def refuse(self, entry: ledger.Entry) -> None:
        """An entry that was not taken."""
        self.entries.remove(entry)
        self._left_out[LeftOut.REFUSED] = self._left_out.get(LeftOut.REFUSED, 0) + 1

    def holds(self, process: str, now_ms: int) -> list[HoldRequest]:
        """A hold for what each account is charged more. Their ids follow from run and page.

        So whoever does the page again after a crash has the same holds, and lets go of them.
        """
        wanted: dict[str, int] = {}
        for entry in self.entries:
            if entry.amount < 0:
                wanted[entry.account] = wanted.get(entry.account, 0) - entry.amount
        return [
            _hold(self._run, account, wanted[account], process, now_ms)
            for account in sorted(wanted)
        ]


def _hold(run: Run, account: str, wanted: int, process: str, now_ms: int) -> HoldRequest:
    hold_id = _id_of(run, account)
    context = BillingContext(
        event_id=hold_id,
        account=account,
        key_id="",
        app="",
        scene="correction",
        provider="ledger",
        model_requested=RERATE,
        model_sent=RERATE,
        run_id="",
        client_request_id="",
        book=0,
        rule="",
        started_at=run.created_at,
    )
    return HoldRequest(
        hold_id=hold_id,
        account=account,
        minimum=0,
        wanted=wanted,
        context=encode_context(context),
        process=process,
        started_at=now_ms,
        while_suspended=True,
    )


def _id_of(run: Run, account: str) -> str:
    """A UUIDv7 of the run's time that is this page's and account's own."""
    told = f"{run.run_id}\n{run.cursor}\n{account}"
    digest = int.from_bytes(hashlib.sha256(told.encode()).digest()[:10], "big")
    low = 0b10 << 62 | digest & 0x3FFF_FFFF_FFFF_FFFF
    text = f"{run.created_at & 0xFFFF_FFFF_FFFF:012x}7{digest >> 68:03x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _entry(run: Run, call: Call, amount: int) -> ledger.Entry:
    metadata = {"run_id": run.run_id, "book": run.book, "book_before": call.book}
    return ledger.Entry(
        event_id=f"{call.event_id}:{RERATE}:{run.run_id}",
        account=call.account,
        source="charge",
        source_label=ledger.CHARGE_RERATE_LABEL,
        direction=ledger.INCOME if amount > 0 else ledger.EXPENSE,
        amount=amount,
        source_ref_id=call.event_id,
        description=run.reason,
        metadata_json=msgspec.json.encode(metadata).decode(),
    )


def _check(asked: NewRun, now_ms: int) -> None:
    fields = Fields()
    window = asked.window
    fields.check("to", "must be later than from", ok=window.from_at < window.to_at)
    fields.check("to", "must not be in the future", ok=window.to_at <= now_ms)
    fields.text("reason", asked.reason, least=1, most=REASON_MAX)
    if asked.run_id is not None:
        fields.check(
            "run_id", f"must be {RUN_ID_RULE}", ok=_RUN_ID.fullmatch(asked.run_id) is not None
        )
    fields.done()


def _compare(known: Run, asked: Run) -> None:
    for field in ("book", "from_at", "to_at"):
        was, given = getattr(known, field), getattr(asked, field)
        if was != given:
            raise RunConflictError(field.removesuffix("_at"), was, given)


def _act(run: Run) -> Act:
    detail: Detail = {
        "book": run.book,
        "from_at": run.from_at,
        "to_at": run.to_at,
        "reason": run.reason,
    }
    return Act(actor=run.actor, action="charge.rerate", target=run.run_id, detail=detail)


def _posting() -> Select[str]:
    return select(rerating_runs.c.run_id).where(rerating_runs.c.state == "posting")


async def _find(connection: AsyncConnection, run_id: str) -> Run | None:
    wanted = select(rerating_runs).where(rerating_runs.c.run_id == run_id)
    row = (await connection.execute(wanted)).one_or_none()
    return None if row is None else _run(row)


def _run(row: Row[*tuple[object, ...]]) -> Run:
    fields = fields_of(row, Run)
    left_out = msgspec.json.decode(str(fields["left_out"]))
    return msgspec.convert({**fields, "left_out": left_out}, Run)


def _values(run: Run) -> dict[str, object]:
    return msgspec.structs.asdict(run) | {"left_out": msgspec.json.encode(run.left_out).decode()}
