"""The months of `usage` on PostgreSQL: event ids sort by time, so a month is a range of ids."""

import datetime as dt
import re
from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

MONTHS_AHEAD: Final = 3

_PARTITION: Final = re.compile(r"usage_(default|y\d{4}m\d{2})")


class Month:
    """A calendar month, UTC."""

    __slots__ = ("month", "year")

    def __init__(self, year: int, month: int) -> None:
        self.year = year
        self.month = month

    @classmethod
    def at(cls, now_ms: int) -> "Month":
        """The month of a time in milliseconds since the epoch."""
        moment = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
        return cls(moment.year, moment.month)

    @property
    def name(self) -> str:
        """The partition's table."""
        return f"usage_y{self.year:04d}m{self.month:02d}"

    def next(self) -> "Month":
        """The month after this one."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    def first_id(self) -> str:
        """What no event id of this month sorts before: UUIDv7 begin with their milliseconds.

        https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7
        """
        start = dt.datetime(self.year, self.month, 1, tzinfo=dt.UTC)
        digits = f"{round(start.timestamp() * 1000):012x}"
        return f"{digits[:8]}-{digits[8:]}"


def is_partition(table: str) -> bool:
    """Whether a table of this name holds a part of another one."""
    return _PARTITION.fullmatch(table) is not None


def months_from(now_ms: int, ahead: int = MONTHS_AHEAD) -> Iterator[Month]:
    """The month of `now_ms` and those `ahead`."""
    month = Month.at(now_ms)
    for _ in range(ahead + 1):
        yield month
        month = month.next()


def add_partitions(connection: Connection, now_ms: int | None = None) -> list[str]:
    """Make the partitions that are missing (None: as of the database's clock); their names.

    A month whose rows have already gone to the default partition stays there, and is left out.
    """
    if now_ms is None:
        clock = text("SELECT CAST(extract(epoch FROM now()) * 1000 AS bigint)")
        now_ms = int(connection.execute(clock).scalar_one())
    return [month.name for month in months_from(now_ms) if _add(connection, month)]


async def keep_partitions(connection: AsyncConnection, now_ms: int | None = None) -> list[str]:
    """`add_partitions` where it is called for, on PostgreSQL; inside a transaction."""
    if connection.dialect.name != "postgresql":
        return []
    return await connection.run_sync(add_partitions, now_ms)


def _add(connection: Connection, month: Month) -> bool:
    known = connection.execute(text("SELECT to_regclass(:name)"), {"name": month.name}).scalar()
    if known is not None:
        return False
    bounds = f"FROM ('{month.first_id()}') TO ('{month.next().first_id()}')"
    try:
        with connection.begin_nested():
            connection.execute(
                text(f"CREATE TABLE {month.name} PARTITION OF usage FOR VALUES {bounds}")
            )
            for statement in no_truncate(month.name):
                connection.execute(text(statement))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "23514":  # the default partition has such rows
            raise
        return False
    return True


def no_truncate(table: str) -> list[str]:
    """A trigger that guards the parent does not see TRUNCATE of a partition."""
    what = f"{table}_no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT"
    return [f"CREATE TRIGGER {what} EXECUTE FUNCTION refuse_change()"]
