"""Puts the rollup's past days in the order of their accounts, so that one account's year is read quickly.

PostgreSQL keeps rows where they were first written: those of one account lie scattered among those
of all others, a page read for each. A day that is over is written anew in order, once, and changes
hardly any more. Not a value changes by it. SQLite keeps this table in the order of its key.
"""

from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.db.invariants import ROLLUP_KEY, ROLLUP_SUMS
from billing.db.session import Database

DAYS_AT_ONCE: Final = 40  # a run; each is a transaction of its own
REST_MS: Final = 2 * 86_400_000  # how long ago a day must have begun
DAY_MS: Final = 86_400_000

_MARK: Final = "rollup_ordered_to"  # in `meta`: all before this time is in order
_COLUMNS: Final = ", ".join((*ROLLUP_KEY, *ROLLUP_SUMS))
# Sorted as a whole: every row is gone before the first is written again.
_ORDER: Final = f"""
    WITH gone AS (
        DELETE FROM usage_quarters WHERE bucket_at >= :from_at AND bucket_at < :to_at RETURNING *
    )
    INSERT INTO usage_quarters ({_COLUMNS})
    SELECT {_COLUMNS} FROM gone ORDER BY {", ".join(ROLLUP_KEY)}
"""  # noqa: S608 - constants


async def order_rollup(database: Database, now: int) -> int:
    """Order up to DAYS_AT_ONCE days (UTC) that are over; how many. Raises what SQLAlchemy raises.

    Settlement may go on: a late charge of such a day waits for its row, and adds to it.
    """
    for days in range(DAYS_AT_ONCE):
        async with database.write() as connection:
            if connection.dialect.name != "postgresql" or not await _next_day(connection, now):
                return days
    return DAYS_AT_ONCE


async def _next_day(connection: AsyncConnection, now: int) -> bool:
    # Nobody else orders or repairs at the same time; writers of rows are not kept out.
    await connection.execute(text("LOCK TABLE usage_quarters IN SHARE UPDATE EXCLUSIVE MODE"))
    marked = await connection.scalar(
        text("SELECT value FROM meta WHERE key = :key"), {"key": _MARK}
    )
    begin = int(marked) if marked else 0
    first = await connection.scalar(
        text("SELECT MIN(bucket_at) FROM usage_quarters WHERE bucket_at >= :begin"),
        {"begin": begin},
    )
    if first is None:
        return False
    from_at = first - first % DAY_MS
    if from_at > now - REST_MS:
        return False
    await connection.execute(text(_ORDER), {"from_at": from_at, "to_at": from_at + DAY_MS})
    await connection.execute(
        text(
            "INSERT INTO meta (key, value) VALUES (:key, :value)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        ),
        {"key": _MARK, "value": str(from_at + DAY_MS)},
    )
    return True
