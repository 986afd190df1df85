"""Connections for all that is not hot: SQLAlchemy on aiosqlite, one transaction per `read` or `write`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

BUSY_SECONDS: Final = 5  # how long a statement waits for another writer's lock


def sqlite_path(url: str) -> Path | None:
    """The file behind a SQLite address; None for any other database, or one in memory."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - SQLAlchemy's adapter
    # We say BEGIN ourselves (below): the driver's own begins late, and never IMMEDIATE.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_SECONDS * 1000}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "recursive_triggers = ON",  # or INSERT OR REPLACE would delete past the triggers
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def on_begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("write_transaction", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


class Database:
    """The database for reads and for an admin's acts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = create_async_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", on_connect)
            event.listen(self._engine.sync_engine, "begin", on_begin)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """One consistent view of the database; nothing that is written in it stays."""
        async with self._engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end of the block, rolled back if it raises."""
        async with self._engine.connect() as plain:
            connection = await plain.execution_options(write_transaction=True)
            async with connection.begin():
                yield connection

    async def dispose(self) -> None:
        """Close every connection."""
        await self._engine.dispose()
