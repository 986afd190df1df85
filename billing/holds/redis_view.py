"""An operator's look at the holds in Redis: lists them, shows one, and compares them with the ledger (R6)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, Protocol

import msgspec
from hiredis import ReplyError
from sqlalchemy import select

from billing.backlog import HeldCredit
from billing.db.session import Database
from billing.db.tables import accounts, ledger_entries, outbox, processes, quarantine, usage
from billing.holds import GuardUnavailableError
from billing.holds.ledger_view import SqlLedgerView
from billing.holds.redis_connection import (
    RedisAddress,
    RedisConnection,
    RedisRefusedError,
    RedisUnavailableError,
    Reply,
    Word,
    connect,
)
from billing.holds.scripts import (
    DIGESTS,
    EITHER_PATTERN,
    HOLDS_PATTERN,
    Script,
    account_of,
    keys_of,
)
from billing.lists import Page, PageRequest, make_page
from billing.settlement.desk import StoredHold
from billing.settlement.late_finals import LOST_SPOOL_MS, oldest_late_final
from billing.settlement.reconcile import GuardAudit, Violation

SCAN_KEYS: Final = 1_000
LEDGER_IDS: Final = 500  # asked of the database at once
ALL: Final = 2**53 - 1  # every hold began before this
SETTLED_MS: Final = 60_000  # so long after its charge a hold may still be told of it
SWEPT_MS: Final = 60_000  # so long after a process's end its calls may still have no estimate
MARGIN_MS: Final = 300_000
EXAMPLES_MAX: Final = 10

_STATES: Final = {"l": "live", "s": "claimed", "r": "residual", "e": "charged"}
_LIST: Final = (b"EVALSHA", DIGESTS[Script.LIST], b"2")


class Asked(Protocol):
    """A hold store on Redis, as far as an operator needs it; RedisHoldStore is one."""

    async def ask(self, *words: Word) -> Reply:
        """The reply to one command; raises RedisUnavailableError."""
        ...

    async def rebuild(self, reason: str) -> None:
        """Bring all holds back as after a loss."""
        ...


class RedisReader:
    """Asked, for somebody who takes no part: it is in no registry, and changes nothing."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._connection: RedisConnection | None = None

    async def ask(self, *words: Word) -> Reply:
        """The reply to one command; raises RedisUnavailableError."""
        if self._connection is None or not self._connection.is_open:
            try:
                self._connection = await connect(self._address, lambda: None)
            except RedisRefusedError as error:
                raise RedisUnavailableError(str(error)) from error
        reply = await self._connection.send(*words)
        if isinstance(reply, ReplyError):
            raise RedisUnavailableError(f"Redis says {str(reply).partition(' ')[0]}")
        return reply

    async def rebuild(self, reason: str) -> None:
        """Not from here; raises RedisUnavailableError."""
        raise RedisUnavailableError("only a process that admits calls can bring holds back")

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()


class _Account(msgspec.Struct, frozen=True, kw_only=True):
    """An account as Redis has it, at one moment."""

    account: str
    epoch: int | None  # None: it is not there
    seq: int
    balance: int
    held: int
    holds: tuple[HeldCredit, ...]


class RedisView:
    """The ports HoldShelf and AuditedGuard on a Redis; `now_ms`: milliseconds since the epoch.

    Every method raises GuardUnavailableError.
    """

    def __init__(
        self,
        store: Asked,
        database: Database,
        *,
        now_ms: Callable[[], int],
        call_seconds_max: float,
    ) -> None:
        self._store = store
        self._database = database
        self._now_ms = now_ms
        self._call_ms_max = round(call_seconds_max * 1000)

    async def rebuild(self, reason: str) -> None:
        """Bring all holds back as after a loss."""
        await self._store.rebuild(reason)

    async def page(self, request: PageRequest, *, account: str = "") -> Page[HeldCredit]:
        """The holds, newest first; of all accounts this looks through the whole of Redis."""
        found: list[HeldCredit] = []
        if account:
            found += (await self._look(account)).holds
        else:
            async for entry in self._scan():
                found += entry.holds
        found.sort(key=lambda hold: (hold.started_at, hold.hold_id), reverse=True)
        some = found[request.offset : request.offset + request.page_size]
        return make_page(request, some, [None] * len(some), len(found))

    async def get(self, hold_id: str) -> StoredHold | None:
        """One hold, looked for in all accounts."""
        async for entry in self._scan():
            for hold in entry.holds:
                if hold.hold_id == hold_id:
                    value = await self._ask("HGET", keys_of(entry.account)[1], hold_id)
                    context = value.split(b" ", 5)[5] if isinstance(value, bytes) else b""
                    return StoredHold(hold=hold, context=context)
        return None

    async def held(self) -> int:
        """Micro-credits that all accounts hold together, as Redis sums them up."""
        total = 0
        async for names in self._names():
            asked = [self._ask("HGET", keys_of(name)[0], "held") for name in names]
            for held in await asyncio.gather(*asked):
                total += int(held) if isinstance(held, bytes) else 0
        return total

    async def credit(self, account: str) -> tuple[int, int]:
        """Balance and held micro-credits of an account, by which Redis would decide on a call.

        One that is not there now is read as it would be brought in.
        """
        ledger = SqlLedgerView(self._database)
        guard, found = await ledger.guard(), await self._look(account)
        if guard is not None and found.epoch == guard.epoch:
            return found.balance, found.held
        since = oldest_late_final(self._now_ms(), self._call_ms_max)
        snapshot = await ledger.snapshot(account, residuals_since=since)
        if snapshot is None:
            return 0, 0
        return snapshot.balance, sum(hold.amount for hold in snapshot.holds)

    async def audit(self) -> GuardAudit:
        """R6: sums of holds, balances at the ledger's seq, and holds that nobody waits for.

        Looks at every account that Redis knows, also at those that hold nothing: credit may be
        held for no call at all.
        """
        found: dict[tuple[str, str], Violation] = {}  # a scan may name an account twice
        async for names in self._names(EITHER_PATTERN):
            for some in _groups(sorted(set(names))):
                entries = await asyncio.gather(*(self._look(name) for name in some))
                for violation in await self._compare(entries):
                    found[violation.id, violation.what] = violation
        violations = sorted(found.values(), key=lambda violation: violation.id)
        return GuardAudit(count=len(violations), examples=tuple(violations[:EXAMPLES_MAX]))

    async def _compare(self, entries: list[_Account]) -> list[Violation]:
        stands = await self._ledger([entry.account for entry in entries])
        found = []
        for entry in entries:
            holding = sum(hold.amount for hold in entry.holds)
            if holding != entry.held:
                what = f"held {entry.held} in Redis, holds {holding}"
                found.append(Violation(id=entry.account, what=what))
            balance, seq = stands.get(entry.account, (0, 0))
            # Behind the ledger is no fault: an account is told when it next matters.
            if entry.seq > seq or (entry.seq == seq and entry.balance != balance):
                what = f"{entry.balance} at {entry.seq} in Redis, {balance} at {seq} in the ledger"
                found.append(Violation(id=entry.account, what=what))
        return found + await self._compare_holds([hold for each in entries for hold in each.holds])

    async def _compare_holds(self, holds: list[HeldCredit]) -> list[Violation]:
        too_old = self._now_ms() - self._call_ms_max - MARGIN_MS
        found = []
        waiting, settled, recorded = await self._said([hold.hold_id for hold in holds])
        over = await self._over({hold.process for hold in holds})
        for hold in holds:
            if hold.hold_id in waiting:
                continue
            if hold.hold_id in settled and hold.state != "residual":
                found.append(Violation(id=hold.hold_id, what="held, but settled or cancelled"))
            elif hold.hold_id not in recorded and hold.process in over:
                what = "held for a process that is gone, and not charged"
                found.append(Violation(id=hold.hold_id, what=what))
            elif hold.started_at < too_old - (LOST_SPOOL_MS if hold.state == "residual" else 0):
                what = "held for longer than a call can last"
                found.append(Violation(id=hold.hold_id, what=what))
        return found

    async def _ledger(self, names: list[str]) -> dict[str, tuple[int, int]]:
        wanted = select(accounts.c.account, accounts.c.balance, accounts.c.seq).where(
            accounts.c.account.in_(names)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(wanted)).all()
        return {account: (balance, seq) for account, balance, seq in rows}

    async def _over(self, names: set[str]) -> set[str]:
        """Of these processes, those that ended so long ago that a sweeper should have seen it."""
        over: set[str] = set()
        before = self._now_ms() - SWEPT_MS
        for some in _groups(sorted(names)):
            ended = select(processes.c.process).where(
                processes.c.process.in_(some), processes.c.ended_at < before
            )
            async with self._database.read() as connection:
                over.update(await connection.scalars(ended))
        return over

    async def _said(self, hold_ids: list[str]) -> tuple[set[str], set[str], set[str]]:
        """Of these calls: whose charge waits or is in quarantine, who was told long ago, who is known."""
        waiting: set[str] = set()
        settled: set[str] = set()
        recorded: set[str] = set()
        before = self._now_ms() - SETTLED_MS
        for some in _groups(hold_ids):
            queries = (
                (recorded, select(usage.c.event_id).where(usage.c.event_id.in_(some))),
                (waiting, select(outbox.c.event_id).where(outbox.c.event_id.in_(some))),
                (
                    waiting,
                    select(quarantine.c.event_id).where(
                        quarantine.c.event_id.in_(some), quarantine.c.resolved_at.is_(None)
                    ),
                ),
                (
                    settled,
                    select(ledger_entries.c.usage_event_id).where(
                        ledger_entries.c.event_id.in_(some), ledger_entries.c.posted_at < before
                    ),
                ),
                (
                    settled,
                    select(usage.c.event_id).where(
                        usage.c.event_id.in_(some), usage.c.cancelled, usage.c.finished_at < before
                    ),
                ),
            )
            async with self._database.read() as connection:
                for into, query in queries:
                    into.update(name for name in await connection.scalars(query) if name)
        return waiting, settled, recorded

    async def _scan(self) -> AsyncIterator[_Account]:
        async for names in self._names():
            for name in names:
                yield await self._look(name)

    async def _names(self, pattern: bytes = HOLDS_PATTERN) -> AsyncIterator[list[str]]:
        """The accounts of all keys of a pattern: of those that hold something, unless told otherwise."""
        cursor: Word = 0
        while True:
            reply = await self._ask("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_KEYS)
            assert isinstance(reply, list)
            next_cursor, keys = reply
            assert isinstance(next_cursor, bytes)
            assert isinstance(keys, list)
            cursor = next_cursor
            yield [account_of(key) for key in keys if isinstance(key, bytes)]
            if cursor == b"0":
                return

    async def _ask(self, *words: Word) -> Reply:
        try:
            return await self._store.ask(*words)
        except RedisUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error

    async def _look(self, account: str) -> _Account:
        reply = await self._ask(*_LIST, *keys_of(account), ALL)
        assert isinstance(reply, list)
        words = [word.decode() for word in reply if isinstance(word, bytes)]
        seq, balance, held = (int(word) if word else 0 for word in words[1:4])
        holds = tuple(
            _hold(account, hold_id, head)
            for hold_id, head in zip(words[4::2], words[5::2], strict=True)
        )
        epoch = int(words[0]) if words[0] and words[2] else None
        return _Account(
            account=account, epoch=epoch, seq=seq, balance=balance, held=held, holds=holds
        )


def _hold(account: str, hold_id: str, head: str) -> HeldCredit:
    amount, progress, state, process, started_at = head.split(" ")
    return HeldCredit(
        hold_id=hold_id,
        account=account,
        amount=int(amount),
        progress=int(progress),
        state=_STATES.get(state, state),
        process=process,
        started_at=int(started_at),
    )


def _groups(ids: list[str]) -> Iterable[list[str]]:
    for first in range(0, len(ids), LEDGER_IDS):
        yield ids[first : first + LEDGER_IDS]
