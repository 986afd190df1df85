"""A ledger with its database on either engine, for tests of what stands beside the hot path."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import text

from billing.audit import AuditTrail
from billing.db.hot import HotDatabase
from billing.db.postgres import PostgresHotDatabase
from billing.db.session import Database
from billing.db.sqlite import SqliteHotDatabase
from billing.events import Finish
from billing.holds.database import DatabaseHoldStore
from billing.settlement.desk import Desk
from billing.settlement.reconcile import Reconciler
from llm_gateway import clock
from tests.support.migrated import migrated
from tests.support.money import T0, charge, hold, purchase

PROCESS = "process-of-the-test"


def new_id() -> str:
    """An event id as it is made at T0, when all calls of these tests begin."""
    return clock.new_event_id(T0)


class Books:
    """Database, hot database, reconciler and desk; the clock stands where the test puts it."""

    def __init__(self, database: Database, hot: HotDatabase) -> None:
        self.database = database
        self.hot = hot
        self.now = T0 + 1_000
        self.reconciler = Reconciler(database, now_ms=lambda: self.now)
        self.audit = AuditTrail(database)
        self.woken = 0
        self.desk = Desk(
            database,
            DatabaseHoldStore(hot),
            now_ms=lambda: self.now,
            is_own=lambda process: process == PROCESS,
            on_waiting=self._wake,
        )

    def _wake(self) -> None:
        self.woken += 1

    @property
    def on_sqlite(self) -> bool:
        return self.database.url.startswith("sqlite")

    async def call(
        self, amount: int, *, account: str = "alice", event_id: str = "", settle: bool = True
    ) -> str:
        """A call that was held, charged and (unless told otherwise) settled; its id."""
        event_id = event_id or new_id()
        await self.hot.reserve(hold(event_id, account=account))
        await self.hot.record(charge(event_id, amount, account=account))
        if settle:
            await self.hot.settle_pending(500)
        return event_id

    async def open_account(self, account: str = "alice", amount: int = 10_000) -> None:
        await self.hot.post([purchase(amount, account=account)])

    async def quarantine(self, finish: Finish, reason: str = "for the test") -> int:
        """Set an event aside; its number."""
        await self.hot.quarantine(finish, origin="owner", reason=reason)
        (row,) = await self.rows("SELECT MAX(id) FROM quarantine")
        assert isinstance(row[0], int)
        return row[0]

    async def change(self, *statements: str, **values: object) -> None:
        """Change the database behind the product's back, append-only tables included."""
        async with self.database.write() as connection:
            if self.on_sqlite:
                found = await connection.scalars(
                    text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
                )
                for name in found.all():
                    await connection.execute(text(f"DROP TRIGGER {name}"))
            else:
                await connection.execute(text("SET LOCAL session_replication_role = 'replica'"))
            for statement in statements:
                await connection.execute(text(statement), values)

    async def rows(self, query: str, **values: object) -> list[tuple[object, ...]]:
        async with self.database.read() as connection:
            found = (await connection.execute(text(query), values)).all()
        return [tuple(row) for row in found]

    async def wrong(self, *, full: bool = True) -> dict[str, list[str]]:
        """The checks that found something, with the ids."""
        report = await self.reconciler.run(full=full)
        assert not any(finding.error for finding in report.findings), report
        return {
            finding.check: [example.id for example in finding.examples]
            for finding in report.findings
            if finding.count
        }


@asynccontextmanager
async def sqlite_books(directory: Path) -> AsyncIterator[Books]:
    """On a fresh SQLite file."""
    path = migrated(directory)
    hot = SqliteHotDatabase(path, clock=lambda: T0)
    async with _started(Database(f"sqlite+aiosqlite:///{path}"), hot) as books:
        yield books


@asynccontextmanager
async def postgres_books(url: str) -> AsyncIterator[Books]:
    """On a fresh PostgreSQL database."""
    async with _started(Database(url), PostgresHotDatabase(url, clock=lambda: T0)) as books:
        yield books


@asynccontextmanager
async def _started(database: Database, hot: HotDatabase) -> AsyncIterator[Books]:
    await hot.start()
    try:
        yield Books(database, hot)
    finally:
        await hot.close()
        await database.dispose()
