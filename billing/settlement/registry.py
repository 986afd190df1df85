"""The registry of gateway processes: who is alive, told by heartbeats in the database.

A process that cannot renew its row stops admitting well before anybody declares it dead. One that
was declared dead all the same (it was stopped, or cut off) lets its calls end with their finals and
goes on under a new id; what it held under the old one is no longer its own to extend.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from enum import Enum
from typing import Final

import asyncpg
import msgspec
from sqlalchemy import delete, exists, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from billing.db.session import Database
from billing.db.tables import holds, processes
from billing.holds import GuardUnavailableError

_log: Final = logging.getLogger(__name__)

# What a database that is away raises; asyncpg's own come out where a connection is made.
AWAY: Final = (
    SQLAlchemyError, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError,
)  # fmt: skip

KEPT_MS: Final = 86_400_000  # the row of a process that is over stays at least so long
FORGOTTEN_AT_ONCE: Final = 1_000


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The time constants of liveness, in seconds; all processes of one database share them."""

    beat_seconds: float = 2.0  # between two heartbeats, and between two looks of a sweeper
    admit_seconds: float = (
        10.0  # admission stops so long after the last heartbeat that went through
    )
    dead_seconds: float = 15.0  # a process is dead after so long without one


class Beat(Enum):
    """What became of a heartbeat."""

    ALIVE = "alive"
    AWAY = "away"  # the database did not take it
    DEAD = "dead"  # somebody declared this process dead
    REWOUND = "rewound"  # the row is older than what was written: a backup was restored


class SpoolReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a process says of its spool with every heartbeat; see billing.settlement.late_finals."""

    directory: str = ""  # late_finals.directory_id
    pending: Callable[[], bool] = bool  # whether a charge may lie there, or in memory alone


class Registration:
    """One process's row, under the id that its holds carry; `new_id` makes one for another life.

    `monotonic` gives seconds, `now_ms` milliseconds since the epoch. `may_hold`: False for a process
    that never reserves credit; the row says so before the process could.
    """

    def __init__(  # noqa: PLR0913 - its parts, each by name
        self,
        database: Database,
        *,
        process: str,
        new_id: Callable[[], str],
        now_ms: Callable[[], int],
        monotonic: Callable[[], float],
        pace: Pace | None = None,
        spool: SpoolReport | None = None,
        may_hold: bool = True,
    ) -> None:
        self._database = database
        self._new_id = new_id
        self._may_hold = may_hold
        self.spool = spool or SpoolReport()
        self._now_ms = now_ms
        self._monotonic = monotonic
        self.pace = pace or Pace()
        self.process = process
        self._count = 0  # heartbeats that this row has seen
        self._renewed_at: float | None = None

    @property
    def alive(self) -> bool:
        """Whether nobody can have declared this process dead yet; else nothing may be admitted."""
        renewed_at = self._renewed_at
        if renewed_at is None:
            return False
        return self._monotonic() - renewed_at < self.pace.admit_seconds

    async def register(self) -> None:
        """Enter the present id; raises what SQLAlchemy raises."""
        asked_at, now = self._monotonic(), self._now_ms()
        async with asyncio.timeout(self.pace.admit_seconds), self._database.write() as connection:
            await connection.execute(insert(processes).values(self._row(now)))
        self._count = 0
        self._renewed_at = asked_at

    async def beat(self) -> Beat:
        """Renew the row once."""
        asked_at = self._monotonic()
        try:
            async with asyncio.timeout(self.pace.beat_seconds * 2):
                count = await self._renew()
        except AWAY:
            return Beat.AWAY
        if count is None:
            return await self._why_gone()
        if count <= self._count:
            return Beat.REWOUND
        self._count = count
        # The row was alive at some moment after `asked_at`: counting from there errs to our cost.
        self._renewed_at = asked_at
        return Beat.ALIVE

    async def reborn(self) -> str:
        """Go on under a new id; the former one, whose holds are a sweeper's now.

        Raises what SQLAlchemy raises; then nobody is admitted, and it can be tried again.
        """
        former, self.process = self.process, self._new_id()
        self._renewed_at = None
        try:
            await self.register()
        except BaseException:
            self.process = former
            raise
        return former

    async def leave(self) -> None:
        """The process ends in order and holds nothing any more; best effort."""
        self._renewed_at = None
        with suppress(*AWAY):
            async with (
                asyncio.timeout(self.pace.beat_seconds),
                self._database.write() as connection,
            ):
                await connection.execute(
                    update(processes)
                    .where(processes.c.process == self.process, processes.c.ended_at.is_(None))
                    .values(ended_at=self._now_ms(), spool_pending=self.spool.pending())
                )

    async def resume(self) -> None:
        """After a restored backup: enter the present id once more, beyond all that was written.

        The id stays, for nobody declared this process dead. Raises what SQLAlchemy raises.
        """
        asked_at, now = self._monotonic(), self._now_ms()
        values = {"heartbeat_at": now, "heartbeats": self._count + 1}
        present = update(processes).where(processes.c.process == self.process)
        async with asyncio.timeout(self.pace.admit_seconds), self._database.write() as connection:
            renewed = await connection.execute(present.values(values))
            if renewed.rowcount == 0:
                await connection.execute(insert(processes).values(self._row(now) | values))
        self._count += 1
        self._renewed_at = asked_at

    async def run(self, on_change: Callable[[Beat], Awaitable[None]]) -> None:
        """Beat until cancelled; `on_change` hears of DEAD and REWOUND, after this has gone on.

        After DEAD, `process` is a new id. What `on_change` cannot follow it hears again.
        """
        untold: list[Beat] = []
        while True:
            await asyncio.sleep(self.pace.beat_seconds)
            try:
                match await self.beat():
                    case Beat.ALIVE:
                        pass
                    case Beat.AWAY:
                        _log.warning("the registry could not be told that this process lives")
                    case Beat.DEAD:
                        _log.error("this process was declared dead; it goes on under a new id")
                        await self.reborn()
                        untold.append(Beat.DEAD)
                    case Beat.REWOUND:
                        _log.critical("the registry went back: was the database restored?")
                        await self.resume()
                        untold.append(Beat.REWOUND)
                while untold:
                    await on_change(untold[0])
                    del untold[0]
            except GuardUnavailableError as error:
                _log.warning("holds cannot be brought back yet: %s", error)
            except AWAY as error:
                _log.warning("the registry takes no entry: %s", type(error).__name__)
            except Exception:  # noqa: BLE001 - a process that stops beating would be taken for dead
                _log.exception("what the registry said could not be followed")

    async def _renew(self) -> int | None:
        renewed = (
            update(processes)
            .where(processes.c.process == self.process, processes.c.ended_at.is_(None))
            .values(
                heartbeat_at=self._now_ms(),
                heartbeats=processes.c.heartbeats + 1,
                spool_pending=self.spool.pending(),
            )
            .returning(processes.c.heartbeats)
        )
        async with self._database.write() as connection:
            count = await connection.scalar(renewed)
        return None if count is None else int(count)

    async def _why_gone(self) -> Beat:
        ended = select(processes.c.ended_at).where(processes.c.process == self.process)
        try:
            async with (
                asyncio.timeout(self.pace.beat_seconds),
                self._database.read() as connection,
            ):
                row = (await connection.execute(ended)).first()
        except AWAY:
            return Beat.AWAY
        return Beat.REWOUND if row is None and not self._may_be_forgotten() else Beat.DEAD

    def _may_be_forgotten(self) -> bool:
        """Whether it has been silent for so long that even the row of its death may be gone."""
        renewed_at = self._renewed_at
        return renewed_at is None or (self._monotonic() - renewed_at) * 1000 >= KEPT_MS

    def _row(self, now: int) -> dict[str, object]:
        return {
            "process": self.process,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": now,
            "heartbeat_at": now,
            "heartbeats": 0,
            "may_hold": self._may_hold,
            "spool": self.spool.directory,
            "spool_pending": self.spool.pending(),
        }


class Beating(msgspec.Struct, frozen=True):
    """A registration that is kept up, and who hears what it is told."""

    registration: Registration
    on_change: Callable[[Beat], Awaitable[None]]

    async def run(self) -> None:
        """Beat until cancelled."""
        await self.registration.run(self.on_change)


async def living(database: Database) -> frozenset[str]:
    """The processes that are registered and that nobody declared dead."""
    rows = select(processes.c.process).where(processes.c.ended_at.is_(None))
    async with database.read() as connection:
        return frozenset((await connection.scalars(rows)).all())


async def end_others(database: Database, process: str, now_ms: int) -> None:
    """Whoever calls this has proof that every other process is gone: a lock, not silence."""
    over = update(processes).where(processes.c.process != process, processes.c.ended_at.is_(None))
    async with database.write() as connection:
        await connection.execute(over.values(ended_at=now_ms, spool_pending=True))


async def forget_ended(database: Database, *, ended_before: int, keep: Collection[str]) -> int:
    """Delete the rows of processes that ended before (milliseconds); how many.

    Those of `keep` stay, and those that a hold still names. Whoever has no row counts as gone, so
    what a forgotten process may have left elsewhere is taken up as before.
    """
    old = (
        select(processes.c.process)
        .where(
            processes.c.ended_at < ended_before,
            processes.c.process.not_in(keep),
            ~exists().where(holds.c.process == processes.c.process),
        )
        .limit(FORGOTTEN_AT_ONCE)
    )
    async with database.write() as connection:
        found = (await connection.scalars(old)).all()
        if not found:
            return 0
        # Again by the end: a backup may be restored at any moment.
        gone = delete(processes).where(
            processes.c.process.in_(found), processes.c.ended_at < ended_before
        )
        return (await connection.execute(gone)).rowcount
