"""The control plane on a real database of either engine, with clocks that only the test moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from billing.accounts import Accounts
from billing.admins import Admins
from billing.audit import AuditTrail
from billing.books import PriceBooks
from billing.db.engine import hot_database
from billing.db.session import Database, sqlite_path
from billing.holds.database import DatabaseHoldStore
from billing.keys import Keys
from billing.rerating.simulator import Simulator
from billing.settlement.desk import Desk
from billing.settlement.reconcile import Reconciler
from llm_gateway.clock import new_event_id
from llm_gateway.shop import Shop, open_shop
from tests.support.migrated import migrated
from tests.support.services import pg_rows

PROCESS = "process-of-the-test"
NOON = 1_790_000_000_000  # an arbitrary moment, milliseconds since the epoch

BOOK = """
[book]
name = "test prices"
currency = "USD"
credits_per_unit = "100"

[[rule]]
id = "echo-mini"
provider = "echo"
model = "mini"
input = "2.50"
cached_input = "1.25"
output = "10.00"

[[rule]]
id = "agent-mini"
scene = "agent"
provider = "echo"
model = "mini"
input = "5.00"
output = "20.00"

[[rule]]
id = "agent-only"
scene = "agent"
provider = "echo"
model = "agent-model"
input = "1.00"
output = "2.00"

[[rule]]
id = "off"
provider = "echo"
model = "disabled-model"
status = "disabled"
input = "1.00"
output = "2.00"
"""

OTHER_BOOK = BOOK.replace('"test prices"', '"other prices"').replace('"2.50"', '"3.00"')


class Clock:
    """Both clocks of a process, moved together."""

    def __init__(self) -> None:
        self.ms = NOON

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000

    def tick(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)


class Control:
    """Everything that admins and owners of accounts work on."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.url = url
        self.clock = clock
        self.database = Database(url)
        self.hot = hot_database(url, clock=clock.now_ms)
        self.keys = Keys(self.database, now_ms=clock.now_ms, monotonic=clock.monotonic)
        self.books = PriceBooks(self.database, now_ms=clock.now_ms, monotonic=clock.monotonic)
        self.simulator = Simulator(self.database, self.books, monotonic=clock.monotonic)
        self.accounts = Accounts(self.database, self.hot, now_ms=clock.now_ms)
        self.admins = Admins(self.database, now_ms=clock.now_ms)
        self.audit = AuditTrail(self.database)
        self.desk = Desk(
            self.database,
            DatabaseHoldStore(self.hot),
            now_ms=clock.now_ms,
            is_own=lambda process: process == PROCESS,
        )
        self.reconciler = Reconciler(self.database, now_ms=clock.now_ms)
        self._others: list[Control] = []

    def shop(self, *, mock_payments: bool = False) -> Shop:
        """The credit store on this database."""
        return open_shop(
            self.database,
            self.hot,
            self.books,
            holds=DatabaseHoldStore(self.hot),
            process=lambda: PROCESS,
            now_ms=self.clock.now_ms,
            new_id=new_event_id,
            mock_payments=mock_payments,
        )

    def other_process(self) -> "Control":
        """The same database as another process sees it; its hot side is not started."""
        other = Control(self.url, self.clock)
        self._others.append(other)
        return other

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """The database is gone for everybody: no connection of before lives, and none can be made."""
        if (path := sqlite_path(self.url)) is None:
            await asyncio.to_thread(_let_in, self.url, allow=False)
            try:
                yield
            finally:
                await asyncio.to_thread(_let_in, self.url, allow=True)
            return
        for each in (self, *self._others):
            await each.database.dispose()
        elsewhere = path.parent.with_name("elsewhere")
        path.parent.rename(elsewhere)
        try:
            yield
        finally:
            elsewhere.rename(path.parent)

    async def close(self) -> None:
        """Close what was opened here and in other processes."""
        for other in self._others:
            await other.close()
        await self.hot.close()
        await self.database.dispose()


def _let_in(url: str, *, allow: bool) -> None:
    """Let nobody into a PostgreSQL database any more, and end who is in; or let them in again."""
    server, _, name = url.rpartition("/")
    pg_rows(f"{server}/postgres", f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allow}")
    if not allow:
        # With a timeout it returns when they have ended.
        end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1"
        pg_rows(f"{server}/postgres", end, name)


@asynccontextmanager
async def control(place: Path | str) -> AsyncIterator[Control]:
    """A control plane on a fresh SQLite file in a directory, or on a migrated database by its address."""
    if isinstance(place, Path):
        place = f"sqlite+aiosqlite:///{migrated(place)}"
    plane = Control(place, Clock())
    await plane.hot.start()
    try:
        yield plane
    finally:
        await plane.close()
