"""Late finals: until when the owner of an estimated call may still say what it cost.

An estimate leaves the rest of the ceiling held, for its owner may be alive and end the call with a
final. Age alone never ends that: the final of a call that is over may lie in the spool of a process
that cannot reach the database, or that is dead and whose spool nobody has replayed. Sweepers
therefore keep a time in the database (`meta`) of which they know: every final of a call that began
before it is recorded. It moves on only while every process that may have one is known to have none.
"""

import os
import secrets
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.db.session import Database
from billing.db.tables import meta, processes

FINALS_KEY: Final = "finals_complete_before"
# Beyond the longest call: to end it, to write down its end, and for the word that it is written.
MARGIN_MS: Final = 20_000
# A dead process's spool that nobody has looked into by then is given up: its machine is gone.
LOST_SPOOL_MS: Final = 86_400_000
STEP_MS: Final = 5_000  # what is known is written down no finer
_ID_FILE: Final = "spool-id"


class ProcessSight(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the registry, as far as late finals go."""

    process: str
    started_at: int  # milliseconds since the epoch
    ended_at: int | None
    may_hold: bool
    spool: str  # its spool's directory; "": unknown
    spool_pending: bool


def directory_id(data_dir: Path) -> str:
    """The name of a data directory, the same for all who have it, on whatever host; "": it takes none."""
    path = data_dir / _ID_FILE
    own = data_dir / f"{_ID_FILE}.{secrets.token_hex(16)}"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            own.write_text(secrets.token_hex(16))
            with suppress(FileExistsError):
                os.link(own, path)  # whole or not at all, and the first one's
            own.unlink()
        return path.read_text().strip()
    except OSError:
        return ""


def oldest_late_final(now_ms: int, call_ms_max: int) -> int:
    """Of calls that began before this nothing is expected any more, whatever became of a spool."""
    return now_ms - call_ms_max - MARGIN_MS - LOST_SPOOL_MS


async def complete_before(connection: AsyncConnection) -> int:
    """Every final of a call that began before this (milliseconds) is recorded; 0: nothing is known."""
    found = await connection.scalar(select(meta.c.value).where(meta.c.key == FINALS_KEY))
    return 0 if found is None else int(found)


class LateFinals:
    """For a sweeper; several of them at once are safe."""

    def __init__(self, database: Database, *, call_seconds_max: float) -> None:
        self._database = database
        self._call_ms_max = round(call_seconds_max * 1000)

    async def advance(self, fresh: Collection[str], now_ms: int, *, strangers: bool) -> int:
        """Before when calls must have begun for nothing to be expected of them (milliseconds).

        `fresh`: the living processes that were heard of just now. `strangers`: some hold credit and
        are in no registry, so that nobody knows what their spools may keep.
        """
        async with self._database.read() as connection:
            before = await complete_before(connection)
            sights = await _sights(connection, now_ms - LOST_SPOOL_MS)
        reached = now_ms - self._call_ms_max - MARGIN_MS
        doubts = [0] if strangers else _doubts(sights, frozenset(fresh), before)
        wanted = min([reached, *doubts])
        if wanted >= before + STEP_MS:
            await self._note(before, wanted)
        return max(before, wanted, oldest_late_final(now_ms, self._call_ms_max))

    async def _note(self, before: int, wanted: int) -> None:
        """Never lowered: what was recorded stays recorded. Another sweeper may be quicker."""
        async with self._database.write() as connection:
            if not before:
                is_postgres = connection.dialect.name == "postgresql"
                into = postgresql.insert(meta) if is_postgres else sqlite.insert(meta)
                row = into.values(key=FINALS_KEY, value=str(wanted)).on_conflict_do_nothing()
                await connection.execute(row)
                return
            known = update(meta).where(meta.c.key == FINALS_KEY, meta.c.value == str(before))
            await connection.execute(known.values(value=str(wanted)))


async def _sights(connection: AsyncConnection, ended_since: int) -> list[ProcessSight]:
    """The processes that may have a final that nobody knows of, and all who live."""
    columns = [processes.c[name] for name in ProcessSight.__struct_fields__]
    living = select(*columns).where(processes.c.ended_at.is_(None))
    dead = select(*columns).where(
        processes.c.ended_at >= ended_since, processes.c.spool_pending, processes.c.may_hold
    )
    return [
        ProcessSight(**row)
        for query in (living, dead)
        for row in (await connection.execute(query)).mappings()
    ]


def _doubts(
    sights: Sequence[ProcessSight], fresh: frozenset[str], known_before: int
) -> Iterable[int]:
    """Since when calls may have a final that is not recorded, for each process that may have one."""
    clear = _clear_spools([each for each in sights if each.ended_at is None], fresh)
    for each in sights:
        if each.ended_at is None:
            if each.may_hold and (each.process not in fresh or each.spool_pending):
                yield each.started_at
        elif each.spool not in clear and each.ended_at >= known_before:
            # Without a directory it is a process of which even the beginning is unknown.
            yield each.started_at if each.spool else 0


def _clear_spools(living: Sequence[ProcessSight], fresh: frozenset[str]) -> frozenset[str]:
    """The directories in which somebody who lives looked just now, and nobody knows of anything."""
    looked_into = {each.spool for each in living if each.process in fresh}
    return frozenset(looked_into - {each.spool for each in living if each.spool_pending} - {""})
