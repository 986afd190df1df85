"""The sweeper: declares silent processes dead and charges what their calls were last known to cost.

It compares no clocks. A process is dead when its count of heartbeats has stood still for
`dead_seconds` of this sweeper's own time, all of which it saw the database up: an outage, or a pause
of the sweeper itself, starts the waiting anew. Several sweepers at once are safe.
"""

import asyncio
import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec
from sqlalchemy import insert, literal, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.context import decode_context
from billing.db.hot import DatabaseUnavailableError, EventConflictError, HotDatabase
from billing.db.session import Database
from billing.db.tables import processes, quarantine
from billing.events import (
    ChargeEvent,
    Finish,
    Revision,
    UsageNotes,
    UsageQuality,
    UsageSource,
)
from billing.holds import GuardUnavailableError
from billing.settlement.late_finals import LateFinals
from billing.settlement.orphans import HeldCall, OrphanHolds
from billing.settlement.registry import AWAY, KEPT_MS, Pace, forget_ended
from pricing_rules.usage import Usage

ORPHANS_AT_ONCE: Final = 500
FORGET_SECONDS: Final = 600.0  # between two times that rows of ended processes are deleted
MISSED_LOOKS_MAX: Final = 3  # a longer pause between two looks starts the waiting anew

_UNKNOWN: Final = -1  # heartbeats of a process that holds something and has no row

_log: Final = logging.getLogger(__name__)


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """What one look led to."""

    dead: tuple[str, ...] = ()  # processes that this look declared dead
    estimates: int = 0
    released: int = 0  # residuals of old estimates that are held no more


class _Seen(msgspec.Struct, frozen=True):
    """How many heartbeats a process had, and since when (monotonic seconds) it has no more."""

    heartbeats: int
    since: float
    moved: bool = False  # this sweeper saw the count rise


class Sweeper:
    """`look` every `pace.beat_seconds`; `on_estimate` wakes whoever settles.

    `spool_owners`: the processes whose charges lie in files here and wait to be adopted.
    """

    def __init__(  # noqa: PLR0913 - its parts, each by name
        self,
        database: Database,
        hot: HotDatabase,
        orphans: OrphanHolds,
        *,
        call_seconds_max: float,
        now_ms: Callable[[], int],
        monotonic: Callable[[], float],
        on_estimate: Callable[[], None] = lambda: None,
        pace: Pace | None = None,
        spool_owners: Callable[[], AbstractSet[str]] = frozenset,
    ) -> None:
        self._database = database
        self._hot = hot
        self._orphans = orphans
        self._late_finals = LateFinals(database, call_seconds_max=call_seconds_max)
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._kept_ms = max(KEPT_MS, 2 * round(call_seconds_max * 1000))
        self._forgot_at: float | None = None
        self._on_estimate = on_estimate
        self._spool_owners = spool_owners
        self.pace = pace or Pace()
        self._seen: dict[str, _Seen] = {}
        self._looked_at: float | None = None

    async def look(self) -> Swept:
        """Look once. While database or hold store is away nothing happens, and nobody is dead."""
        try:
            return await self._look()
        except (*AWAY, DatabaseUnavailableError, GuardUnavailableError) as error:
            self._looked_at = None
            _log.warning("the sweeper waits: %s", type(error).__name__)
            return Swept()

    async def _look(self) -> Swept:
        now = self._monotonic()
        if self._looked_at is None or now - self._looked_at > self._patience:
            self._seen.clear()
        alive = await self._living()
        held = await self._orphans.held_by_others(alive.keys(), ORPHANS_AT_ONCE)
        holders = {call.process for call in held}
        ended = await self._ended(holders)
        # A process may have registered between the two questions; it is then neither.
        unknown = dict.fromkeys(holders - ended.keys(), _UNKNOWN)
        dead = await self._bury(self._silent(alive | unknown, now))
        gone = dead | {process for process, is_over in ended.items() if is_over}
        estimates = await self._estimate([call for call in held if call.process in gone])
        fresh = self._fresh(alive.keys() - dead, now)
        before = await self._late_finals.advance(
            fresh, self._now_ms(), strangers=bool(unknown.keys() - dead)
        )
        released = await self._orphans.release_residuals(before)
        if len(held) < ORPHANS_AT_ONCE:
            await self._forget(holders, now)
        self._looked_at = now
        return Swept(dead=tuple(sorted(dead)), estimates=estimates, released=released)

    @property
    def _patience(self) -> float:
        return self.pace.beat_seconds * MISSED_LOOKS_MAX

    # -- who is dead -------------------------------------------------------------------------

    async def _living(self) -> dict[str, int]:
        """The processes that nobody declared dead, and their counts."""
        rows = select(processes.c.process, processes.c.heartbeats).where(
            processes.c.ended_at.is_(None)
        )
        async with self._database.read() as connection:
            found = (await connection.execute(rows)).all()
        return {process: count for process, count in found}  # noqa: C416 - rows are no pairs to mypy

    async def _ended(self, holders: set[str]) -> dict[str, bool]:
        """Of those that are registered: whether they are over."""
        if not holders:
            return {}
        rows = select(processes.c.process, processes.c.ended_at).where(
            processes.c.process.in_(holders)
        )
        async with self._database.read() as connection:
            found = (await connection.execute(rows)).all()
        return {process: ended_at is not None for process, ended_at in found}

    def _silent(self, counts: dict[str, int], now: float) -> dict[str, int]:
        """Those whose count has stood still for too long."""
        for process in self._seen.keys() - counts.keys():
            del self._seen[process]
        silent = {}
        for process, count in counts.items():
            seen = self._seen.get(process)
            if seen is None or seen.heartbeats != count:
                self._seen[process] = _Seen(count, now, moved=seen is not None)
            elif now - seen.since >= self.pace.dead_seconds:
                silent[process] = count
        return silent

    def _fresh(self, alive: AbstractSet[str], now: float) -> set[str]:
        """Those whose heartbeat this sweeper saw come in, not long ago."""
        return {
            process
            for process, seen in self._seen.items()
            if process in alive and seen.moved and now - seen.since < self.pace.admit_seconds
        }

    async def _bury(self, silent: dict[str, int]) -> set[str]:
        """Declare them dead, unless they stirred meanwhile; the row decides, once for all."""
        if not silent:
            return set()
        dead = set()
        async with self._database.write() as connection:
            for process, count in sorted(silent.items()):
                if await self._end(connection, process, count):
                    dead.add(process)
        for process in dead:
            _log.warning("process %s is dead: no heartbeat, its calls are estimated", process)
        return dead

    async def _end(self, connection: AsyncConnection, process: str, count: int) -> bool:
        now = self._now_ms()
        if count == _UNKNOWN:
            # It never registered, or a restored backup lacks it: from now on it cannot.
            row = select(literal(process), literal(now), literal(now), literal(now), true()).where(
                ~select(processes.c.process).where(processes.c.process == process).exists()
            )
            into = insert(processes).from_select(
                ["process", "started_at", "heartbeat_at", "ended_at", "spool_pending"], row
            )
            return (await connection.execute(into)).rowcount == 1
        ended = (
            update(processes)
            .where(
                processes.c.process == process,
                processes.c.heartbeats == count,
                processes.c.ended_at.is_(None),
            )
            .values(ended_at=now, spool_pending=True)  # until somebody looks into its spool
        )
        return (await connection.execute(ended)).rowcount == 1

    async def _forget(self, holders: set[str], now: float) -> None:
        """Delete what nobody will ask for any more; `holders` are all that hold anything."""
        if self._forgot_at is not None and now - self._forgot_at < FORGET_SECONDS:
            return
        self._forgot_at = now
        forgotten = await forget_ended(
            self._database,
            ended_before=self._now_ms() - self._kept_ms,
            keep=holders | self._spool_owners(),
        )
        if forgotten:
            _log.info("%d processes that ended long ago are forgotten", forgotten)

    # -- what they leave ---------------------------------------------------------------------

    async def _estimate(self, calls: list[HeldCall]) -> int:
        """Charge each at its last progress; should its owner say something now, that stands.

        What is no call's is left alone: whoever carries on that debit lets go of it.
        """
        finishes = []
        for call in calls:
            if finish := estimate_of(call, self._now_ms()):
                if finish.event.context.is_call:
                    finishes.append(finish)
            else:
                await self._set_aside(call)
        answers = await asyncio.gather(*map(self._record, finishes))
        written = sum(answers)
        if written:
            self._on_estimate()
            _log.warning("%d calls of dead processes were estimated", written)
        return written

    async def _record(self, finish: Finish) -> bool:
        try:
            await self._hot.record(finish)
        except EventConflictError:
            return False  # another sweeper knew of another progress, and was first
        return True

    async def _set_aside(self, call: HeldCall) -> None:
        """What cannot be read is for a person; its hold stays."""
        known = select(quarantine.c.id).where(
            quarantine.c.event_id == call.hold_id, quarantine.c.origin == "hold"
        )
        async with self._database.write() as connection:
            if (await connection.execute(known)).first() is not None:
                return
            await connection.execute(
                insert(quarantine).values(
                    event_id=call.hold_id,
                    revision=Revision.ESTIMATE,
                    account=call.account,
                    origin="hold",
                    reason="the hold's context cannot be read",
                    payload=call.context,
                    created_at=self._now_ms(),
                )
            )
        _log.error("hold %s is set aside: its context cannot be read", call.hold_id)


def estimate_of(call: HeldCall, now_ms: int) -> Finish | None:
    """The charge of a call whose process is gone; None if the hold's context cannot be read."""
    try:
        context = decode_context(call.context)
    except msgspec.MsgspecError:
        return None
    event = ChargeEvent(
        revision=Revision.ESTIMATE,
        context=context,
        usage=Usage(),
        quality=UsageQuality.PARTIAL,
        usage_source=UsageSource.HOLD,
        amount=call.progress,
        ceiling=call.amount,
        finished_at=now_ms,
    )
    return Finish(event=event, notes=UsageNotes(reason="orphaned"))
