"""What the Redis hold store must know of the ledger: the port, and its reading of our tables.

Redis is derived state. Which epoch of it counts stands in the database (`meta`, key `guard`), and so
does whether an account was brought into Redis during that epoch (`accounts.guard_epoch`): only then
can its absence there be told from never having been there.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import StrEnum
from typing import Final, Protocol
from weakref import WeakValueDictionary

import msgspec
from sqlalchemy import ColumnElement, exists, func, literal_column, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.db.session import Database
from billing.db.tables import (
    accounts,
    corrections,
    ledger_entries,
    meta,
    outbox,
    processes,
    quarantine,
    rerating_holds,
    usage,
)
from billing.events import ChargeEvent, Revision
from billing.holds import Applied
from billing.ledger import FINAL_SUFFIX
from billing.settlement.late_finals import complete_before

GUARD_KEY: Final = "guard"
_IDS_AT_ONCE: Final = 500
# As text of the statement: a parameter would keep SQLite from the index of estimates.
_ESTIMATE: Final[ColumnElement[int]] = literal_column(str(int(Revision.ESTIMATE)))

_log: Final = logging.getLogger(__name__)


class Phase(StrEnum):
    """How far a recovery is."""

    REGISTER = "register"  # every live process writes its holds into Redis
    VERIFY = "verify"  # every live process sees that they are all still there
    OPEN = "open"


class GuardState(msgspec.Struct, frozen=True, kw_only=True):
    """Which epoch of Redis counts, of which server, and how far its recovery is."""

    epoch: int
    phase: Phase
    server: str  # run_id and replication id of the Redis server


def step(epoch: int, phase: Phase) -> int:
    """What a process notes in `processes.guard_step` once it has done its part of a phase."""
    return 2 * epoch + (phase is not Phase.REGISTER)


class RebuiltHold(msgspec.Struct, frozen=True):
    """Credit that an account owes, or may still owe, beside its balance (micro-credits)."""

    hold_id: str
    amount: int
    is_residual: bool
    started_at: int  # milliseconds since the epoch


class AccountSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """An account in one view of the database: its balance at `seq` and what it owes beside."""

    balance: int  # micro-credits
    seq: int
    holds: tuple[RebuiltHold, ...]


class LedgerView(Protocol):
    """The database, as far as the Redis hold store asks it.

    All raise what SQLAlchemy raises, OSError or TimeoutError when the database is away.
    """

    async def guard(self) -> GuardState | None:
        """The state of Redis; None: it was never used with this database."""
        ...

    async def change_guard(self, was: GuardState | None, to: GuardState) -> bool:
        """Compare and set; False: somebody else was quicker."""
        ...

    async def note_step(self, process: str, done: int) -> bool:
        """A process has done its part of a phase; False: the registry does not know it."""
        ...

    async def waiting_for(self, done: int) -> list[str]:
        """Processes that may hold credit, are not declared dead, and have not yet done that much."""
        ...

    async def suspended(self) -> frozenset[str]:
        """The accounts that may not begin a call."""
        ...

    def account_lock(self, account: str) -> AbstractAsyncContextManager[None]:
        """One at a time, over all processes."""
        ...

    async def guard_epoch(self, account: str) -> int | None:
        """In which epoch the account was last brought into Redis; None: it has no row."""
        ...

    async def raise_guard_epoch(self, wanted: Collection[str], epoch: int) -> frozenset[str]:
        """Note that accounts are brought into Redis; never lowers it. For which it was the first time."""
        ...

    async def snapshot(self, account: str, *, residuals_since: int) -> AccountSnapshot | None:
        """An account for Redis.

        `residuals_since`: of calls that began earlier (milliseconds) no estimate leaves anything
        held, even if nobody knows that all finals of that time are recorded.
        """
        ...

    async def balances(self, wanted: Collection[str]) -> dict[str, tuple[int, int]]:
        """Balance and seq of accounts that have a row."""
        ...

    async def recorded(self, ids: Collection[str]) -> frozenset[str]:
        """Which of these calls have a charge or a cancellation recorded, or are corrections."""
        ...

    async def verdicts(
        self, holds: Mapping[str, Collection[str]], *, residuals_since: int
    ) -> list[Applied]:
        """What the ledger knows about these holds of each account, as a settlement would say it."""
        ...


class SqlLedgerView:
    """LedgerView on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_postgres = database.url.startswith("postgresql")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def guard(self) -> GuardState | None:
        async with self._database.read() as connection:
            found = await connection.scalar(select(meta.c.value).where(meta.c.key == GUARD_KEY))
        return None if found is None else _decode_guard(found)

    async def change_guard(self, was: GuardState | None, to: GuardState) -> bool:
        value = msgspec.json.encode(to).decode()
        async with self._database.write() as connection:
            if was is None:
                into = postgresql.insert(meta) if self._is_postgres else sqlite.insert(meta)
                first = into.values(key=GUARD_KEY, value=value).on_conflict_do_nothing()
                return (await connection.execute(first)).rowcount == 1
            present = update(meta).where(
                meta.c.key == GUARD_KEY, meta.c.value == msgspec.json.encode(was).decode()
            )
            return (await connection.execute(present.values(value=value))).rowcount == 1

    async def note_step(self, process: str, done: int) -> bool:
        mine = update(processes).where(processes.c.process == process)
        async with self._database.write() as connection:
            return (await connection.execute(mine.values(guard_step=done))).rowcount == 1

    async def waiting_for(self, done: int) -> list[str]:
        late = select(processes.c.process).where(
            processes.c.ended_at.is_(None),
            processes.c.may_hold,
            processes.c.guard_step < done,
        )
        async with self._database.read() as connection:
            return list((await connection.scalars(late)).all())

    async def suspended(self) -> frozenset[str]:
        async with self._database.read() as connection:
            found = await connection.scalars(select(accounts.c.account).where(accounts.c.suspended))
            return frozenset(found.all())

    @asynccontextmanager
    async def account_lock(self, account: str) -> AsyncIterator[None]:
        # Within the process first: waiters must not use up the connections.
        # It stays as long as anybody has it or waits for it.
        lock = self._locks.setdefault(account, asyncio.Lock())
        async with lock:
            if self._is_postgres:
                async with self._database.session() as connection:
                    await connection.execute(text("SET idle_session_timeout = '6s'"))
                    await connection.execute(select(func.pg_advisory_lock(_lock_number(account))))
                    yield  # the lock ends with the session
            else:
                yield

    async def guard_epoch(self, account: str) -> int | None:
        wanted = select(accounts.c.guard_epoch).where(accounts.c.account == account)
        async with self._database.read() as connection:
            found = await connection.scalar(wanted)
        return None if found is None else int(found)

    async def raise_guard_epoch(self, wanted: Collection[str], epoch: int) -> frozenset[str]:
        raised: set[str] = set()
        for some in _groups(sorted(wanted)):
            lower = (accounts.c.account.in_(some), accounts.c.guard_epoch < epoch)
            async with self._database.write() as connection:
                # In the order of their ids, as every other transaction locks them.
                rows = select(accounts.c.account).where(*lower).order_by(accounts.c.account)
                found = (await connection.scalars(rows.with_for_update())).all()
                await connection.execute(update(accounts).where(*lower).values(guard_epoch=epoch))
            raised.update(found)
        return frozenset(raised)

    async def snapshot(self, account: str, *, residuals_since: int) -> AccountSnapshot | None:
        async with self._database.read() as connection:
            await self._freeze(connection)
            wanted = select(accounts.c.balance, accounts.c.seq).where(accounts.c.account == account)
            row = (await connection.execute(wanted)).first()
            if row is None:
                return None
            unsettled = await _unsettled(connection, account)
            posted = await _posted(connection, {event_id for event_id, _ in unsettled})
            since = max(residuals_since, await complete_before(connection))
            residuals = await _residuals(connection, account, since)
        holds = {hold.hold_id: hold for hold in residuals}
        for (event_id, revision), charge in sorted(unsettled.items()):
            hold = _hold_of_event(event_id, revision, charge, posted)
            known = holds.get(event_id)
            if hold is not None and (known is None or known.amount <= hold.amount):
                holds[event_id] = hold
        return AccountSnapshot(balance=row.balance, seq=row.seq, holds=tuple(holds.values()))

    async def balances(self, wanted: Collection[str]) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        async with self._database.read() as connection:
            for some in _groups(sorted(wanted)):
                rows = select(accounts.c.account, accounts.c.balance, accounts.c.seq).where(
                    accounts.c.account.in_(some)
                )
                for account, balance, seq in await connection.execute(rows):
                    found[account] = (balance, seq)
        return found

    async def recorded(self, ids: Collection[str]) -> frozenset[str]:
        found: set[str] = set()
        async with self._database.read() as connection:
            for some in _groups(sorted(ids)):
                rows = select(usage.c.event_id).where(usage.c.event_id.in_(some))
                found.update((await connection.scalars(rows)).all())
                for debits in (corrections, rerating_holds):
                    promised = select(debits.c.hold_id).where(debits.c.hold_id.in_(some))
                    found.update((await connection.scalars(promised)).all())
        return frozenset(found)

    async def verdicts(
        self, holds: Mapping[str, Collection[str]], *, residuals_since: int
    ) -> list[Applied]:
        said: list[Applied] = []
        for account, ids in holds.items():
            async with self._database.read() as connection:
                await self._freeze(connection)
                wanted = select(accounts.c.balance, accounts.c.seq).where(
                    accounts.c.account == account
                )
                row = (await connection.execute(wanted)).first()
                since = max(residuals_since, await complete_before(connection))
                finals: list[str] = []
                estimates: list[tuple[str, int]] = []
                for some in _groups(sorted(ids)):
                    await _judge(connection, some, since, finals, estimates)
            if finals or estimates:
                said.append(
                    Applied(
                        account=account,
                        balance=row.balance if row else 0,
                        seq=row.seq if row else -1,
                        final_ids=tuple(finals),
                        estimates=tuple(estimates),
                    )
                )
        return said

    async def _freeze(self, connection: AsyncConnection) -> None:
        """One view for all that follows in this transaction."""
        if self._is_postgres:
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))


class _Charge(msgspec.Struct, frozen=True):
    """A charge event, as far as a hold is made of it."""

    amount: int
    ceiling: int
    started_at: int


class _Posted(msgspec.Struct, frozen=True):
    """What the ledger says of a call: its entry's amount (micro-credits, positive) and revision."""

    amount: int
    revision: int | None
    is_followed: bool = False  # an estimate, and the owner's word came after it


_Unsettled = dict[tuple[str, int], _Charge]


async def _unsettled(connection: AsyncConnection, account: str) -> _Unsettled:
    """What waits in the outbox, or in quarantine for a person."""
    waiting = select(
        outbox.c.event_id, outbox.c.revision, usage.c.amount, usage.c.ceiling, usage.c.started_at
    ).where(
        outbox.c.account == account,
        usage.c.event_id == outbox.c.event_id,
        usage.c.revision == outbox.c.revision,
    )
    found = {
        (event_id, revision): _Charge(amount, ceiling, started_at)
        for event_id, revision, amount, ceiling, started_at in await connection.execute(waiting)
    }
    aside = select(quarantine.c.event_id, quarantine.c.revision, quarantine.c.payload).where(
        quarantine.c.account == account, quarantine.c.resolved_at.is_(None)
    )
    for event_id, revision, payload in (await connection.execute(aside)).all():
        charge = _charge_of(payload)
        if charge is None:
            charge = await _recorded(connection, event_id)
        if charge is None:
            # Its amount is known to nobody: the hold that Redis kept, if it did, stands for it.
            _log.error("event %s is in quarantine and cannot be held: unreadable", event_id)
            continue
        known = found.get((event_id, revision))
        if known is None or known.amount < charge.amount:
            found[event_id, revision] = charge
    return found


def _charge_of(payload: bytes) -> _Charge | None:
    try:
        event = _event_decoder.decode(payload)
    except msgspec.MsgspecError:
        return None
    return _Charge(max(event.amount, 0), event.ceiling, event.context.started_at)


async def _recorded(connection: AsyncConnection, event_id: str) -> _Charge | None:
    wanted = (
        select(usage.c.amount, usage.c.ceiling, usage.c.started_at)
        .where(usage.c.event_id == event_id)
        .order_by(usage.c.revision.desc())
    )
    row = (await connection.execute(wanted)).first()
    return None if row is None else _Charge(max(row.amount, row.ceiling), row.ceiling, row[2])


async def _posted(connection: AsyncConnection, event_ids: Collection[str]) -> dict[str, _Posted]:
    """The entries of calls."""
    found: dict[str, _Posted] = {}
    for some in _groups(sorted(event_ids)):
        names = some + [event_id + FINAL_SUFFIX for event_id in some]
        rows = select(
            ledger_entries.c.event_id, ledger_entries.c.amount, ledger_entries.c.usage_revision
        ).where(ledger_entries.c.event_id.in_(names))
        entries = {row[0]: (row[1], row[2]) for row in await connection.execute(rows)}
        for event_id in some:
            if event_id in entries:
                amount, revision = entries[event_id]
                followed = event_id + FINAL_SUFFIX in entries
                found[event_id] = _Posted(-amount, revision, followed)
    return found


async def _residuals(connection: AsyncConnection, account: str, since: int) -> list[RebuiltHold]:
    """What posted estimates leave open, as long as their calls may still run."""
    final = usage.alias("final")
    wanted = select(usage.c.event_id, usage.c.ceiling, usage.c.amount, usage.c.started_at).where(
        usage.c.account == account,
        usage.c.revision == _ESTIMATE,
        usage.c.started_at >= since,
        ~exists().where(final.c.event_id == usage.c.event_id, final.c.revision == Revision.FINAL),
    )
    return [
        RebuiltHold(event_id, ceiling - amount, is_residual=True, started_at=started_at)
        for event_id, ceiling, amount, started_at in await connection.execute(wanted)
        if ceiling > amount
    ]


def _hold_of_event(
    event_id: str, revision: int, charge: _Charge, posted: Mapping[str, _Posted]
) -> RebuiltHold | None:
    """What an unsettled event stands for: what settling it will take, and for an estimate the rest."""
    entry = posted.get(event_id)
    if revision == Revision.ESTIMATE:
        if entry is not None:
            return None  # posted by another copy; its residual is a row of its own
        amount = max(charge.amount, charge.ceiling)
    else:
        amount = charge.amount - (entry.amount if entry is not None else 0)
    if amount <= 0:
        return None
    return RebuiltHold(event_id, amount, is_residual=False, started_at=charge.started_at)


async def _judge(
    connection: AsyncConnection,
    ids: list[str],
    residuals_since: int,
    finals: list[str],
    estimates: list[tuple[str, int]],
) -> None:
    """Sort holds by what the ledger says of their calls; what it does not know is left out."""
    rows = await connection.execute(
        select(
            usage.c.event_id,
            usage.c.revision,
            usage.c.cancelled,
            usage.c.amount,
            usage.c.ceiling,
            usage.c.started_at,
        ).where(usage.c.event_id.in_(ids))
    )
    said: dict[str, dict[int, tuple[bool, int, int, int]]] = {}
    for event_id, revision, cancelled, amount, ceiling, started_at in rows:
        said.setdefault(event_id, {})[revision] = (cancelled, amount, ceiling, started_at)
    done = select(corrections.c.hold_id).where(
        corrections.c.hold_id.in_(ids), corrections.c.posted_at.is_not(None)
    )
    finals.extend((await connection.scalars(done)).all())
    rerated = select(rerating_holds.c.hold_id).where(
        rerating_holds.c.hold_id.in_(ids), rerating_holds.c.done_at.is_not(None)
    )
    finals.extend((await connection.scalars(rerated)).all())
    posted = await _posted(connection, said)
    stuck = await _stuck(connection, list(said))
    for event_id, words in said.items():
        if event_id in stuck:
            continue
        entry, final = posted.get(event_id), words.get(Revision.FINAL)
        if entry is None:
            if final is not None and final[0]:
                finals.append(event_id)  # cancelled
        elif entry.revision == Revision.FINAL or entry.is_followed:
            finals.append(event_id)
        elif final is None and (estimate := words.get(Revision.ESTIMATE)) is not None:
            _, amount, ceiling, started_at = estimate
            if started_at < residuals_since:
                finals.append(event_id)
            else:
                estimates.append((event_id, max(0, ceiling - amount)))


async def _stuck(connection: AsyncConnection, ids: list[str]) -> set[str]:
    """Of these calls, those with an event that is not settled."""
    waiting = await connection.scalars(select(outbox.c.event_id).where(outbox.c.event_id.in_(ids)))
    aside = await connection.scalars(
        select(quarantine.c.event_id).where(
            quarantine.c.event_id.in_(ids), quarantine.c.resolved_at.is_(None)
        )
    )
    return {*waiting.all(), *aside.all()}


def _groups(items: list[str]) -> Iterable[list[str]]:
    for first in range(0, len(items), _IDS_AT_ONCE):
        yield items[first : first + _IDS_AT_ONCE]


def _lock_number(account: str) -> int:
    digest = hashlib.sha256(f"llm-gateway:guard:{account}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _decode_guard(value: str) -> GuardState:
    return msgspec.json.decode(value, type=GuardState)


_event_decoder: Final = msgspec.json.Decoder(ChargeEvent)
