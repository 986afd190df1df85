"""Connections for all that is not hot: SQLAlchemy, one transaction per `read` or `write`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Table, event, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from billing.db.postgres_url import connect, is_postgres

BUSY_SECONDS: Final = 5  # how long a statement waits for another writer's lock

# Of a session on PostgreSQL; whoever needs longer says SET LOCAL.
_SETTINGS: Final = {
    "lock_timeout": f"{BUSY_SECONDS}s",
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "60s",
}
_ALONE_LOCK: Final = 0x6C6C6D68  # beside the migrations' number
_READ: Final = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


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


def async_engine(url: str, **options: Any) -> AsyncEngine:  # noqa: ANN401 - create_engine's own
    """An engine for a SQLite file or a PostgreSQL, with the settings that all our sessions have."""
    if is_postgres(url):
        # Our own connect: the dialect's does not know the TLS options of an address.
        options["connect_args"] = {"async_creator_fn": lambda: connect(url, _SETTINGS)}
        return create_async_engine("postgresql+asyncpg://", **options)
    engine = create_async_engine(url, **options)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", on_connect)
        event.listen(engine.sync_engine, "begin", on_begin)
    return engine


def insert_into(connection: AsyncConnection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT of the connection's engine, which unlike the general one knows ON CONFLICT."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


class Database:
    """The database for reads and for an admin's acts."""

    def __init__(self, url: str) -> None:
        self.url = url
        if is_postgres(url):
            # A pooled connection may have died with the server it led to.
            self._engine = async_engine(url, pool_pre_ping=True, pool_timeout=BUSY_SECONDS)
        else:
            self._engine = async_engine(url)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """One consistent view of the database; nothing that is written in it stays."""
        async with self._engine.connect() as connection:
            if self._engine.dialect.name == "postgresql":
                connection = await connection.execution_options(**_READ)  # noqa: PLW2901
            yield connection

    @asynccontextmanager
    async def write(self, *, alone: bool = False) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end of the block, rolled back if it raises.

        `alone`: what it reads no other such transaction changes meanwhile. (On SQLite all are
        alone.) For rare acts that look before they write.
        """
        async with self._engine.connect() as plain:
            connection = await plain.execution_options(write_transaction=True)
            async with connection.begin():
                if alone and self._engine.dialect.name == "postgresql":
                    await connection.execute(select(func.pg_advisory_xact_lock(_ALONE_LOCK)))
                yield connection

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncConnection]:
        """A connection to keep, outside of any transaction: for what lasts as long as it does.

        It is closed at the end, never given to somebody else.
        """
        async with self._engine.connect() as plain:
            connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
            try:
                yield connection
            finally:
                await connection.invalidate()

    async def dispose(self) -> None:
        """Close every connection."""
        await self._engine.dispose()
