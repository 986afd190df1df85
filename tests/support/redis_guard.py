"""Some processes' hold stores on one Redis and one database, and the settlement beside them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from sqlalchemy import insert, text, update

from billing.db.engine import hot_database
from billing.db.hot import HotDatabase
from billing.db.session import Database
from billing.db.tables import processes
from billing.events import Finish
from billing.holds import Granted, Refused
from billing.holds.ledger_view import SqlLedgerView
from billing.holds.redis import RedisHoldStore
from billing.holds.redis_connection import parse_address
from billing.holds.scripts import SOURCES, Script, keys_of
from billing.ledger import Posted
from tests.support.migrated import migrated
from tests.support.money import T0, hold, new_id, purchase
from tests.support.redis_server import RedisServer

_names = count(1)


class Guards:
    """`store` is the first process's; `now` is what the clock of all says."""

    def __init__(self, database: Database, hot: HotDatabase, url: str) -> None:
        self.database = database
        self.hot = hot
        self.url = url
        self.ledger = SqlLedgerView(database)
        self.now = T0 + 10_000
        self.stores: list[RedisHoldStore] = []

    @property
    def store(self) -> RedisHoldStore:
        return self.stores[0]

    async def add(
        self, *, url: str = "", allow: int = 0, process: str = "", may_hold: bool = True
    ) -> RedisHoldStore:
        """One more process, registered and started."""
        name = process or f"process-{next(_names)}"
        row = {"process": name, "started_at": T0, "heartbeat_at": T0, "may_hold": may_hold}
        async with self.database.write() as connection:
            await connection.execute(insert(processes).values(**row))
        store = RedisHoldStore(
            parse_address(url or self.url),
            self.ledger,
            self.hot,
            process=name,
            now_ms=lambda: self.now,
            call_seconds_max=3600,
            allow=allow,
            may_hold=may_hold,
        )
        self.stores.append(store)
        await store.start()
        return store

    async def declare_dead(self, store: RedisHoldStore) -> None:
        """What a sweeper says of a silent process."""
        dead = update(processes).where(processes.c.process == store.process)
        async with self.database.write() as connection:
            await connection.execute(dead.values(ended_at=self.now))

    async def kill(self, store: RedisHoldStore) -> None:
        """The process is gone, and what it knew with it."""
        await store.close()
        self.stores.remove(store)

    async def execute(self, statement: str) -> None:
        """Change the database."""
        async with self.database.write() as connection:
            await connection.execute(text(statement))

    async def buy(self, amount: int, *, account: str = "alice") -> None:
        results = await self.hot.post([purchase(amount, account=account)])
        assert isinstance(results[0], Posted)

    async def reserve(
        self,
        amount: int,
        *,
        minimum: int | None = None,
        account: str = "alice",
        store: RedisHoldStore | None = None,
        hold_id: str = "",
    ) -> str:
        """A hold that is granted; its id."""
        store = store or self.store
        hold_id = hold_id or new_id()
        least = amount if minimum is None else minimum
        request = hold(
            hold_id, account=account, minimum=least, wanted=amount, process=store.process
        )
        answer = await store.reserve(request)
        assert isinstance(answer, Granted), answer
        return hold_id

    async def refusal(self, amount: int, *, account: str = "alice") -> Refused:
        answer = await self.store.reserve(
            hold(new_id(), account=account, minimum=amount, wanted=amount)
        )
        assert isinstance(answer, Refused), answer
        return answer

    async def finish(self, finish: Finish, store: RedisHoldStore | None = None) -> None:
        """What the outbox does at the end of a call."""
        await self.hot.record(finish)
        (store or self.store).recorded(finish)

    async def settle(self, *, tell: bool = True) -> None:
        """What the ledger worker does; `tell`: Redis hears of it."""
        report = await self.hot.settle_pending(500)
        if tell:
            await self.store.apply(report.applied)


@asynccontextmanager
async def guards(
    server: RedisServer | str, directory: Path, *, url: str = "", stores: int = 1
) -> AsyncIterator[Guards]:
    """Guards on a fresh SQLite file, or on the migrated database at `url`."""
    address = url or f"sqlite+aiosqlite:///{migrated(directory)}"
    database = Database(address)
    hot = hot_database(address, clock=lambda: T0 + 10_000, holds_here=False)
    made = Guards(database, hot, server if isinstance(server, str) else server.url)
    await hot.start()
    try:
        for _ in range(stores):
            await made.add()
        yield made
    finally:
        for store in made.stores:
            await store.close()
        await hot.close()
        await database.dispose()


async def held(server: RedisServer, account: str = "alice") -> dict[str, int]:
    """What Redis holds of an account, by hold; checked against its sum."""
    # One moment of both: a script may run between two questions.
    found = await server.ask("EVAL", SOURCES[Script.LIST], 2, *keys_of(account), 2**53 - 1)
    assert isinstance(found, list)
    amounts = {
        hold_id.decode(): int(head.split(b" ")[0])
        for hold_id, head in zip(found[4::2], found[5::2], strict=True)
    }
    assert int(found[3]) == sum(amounts.values())
    return amounts


async def until_open(*stores: RedisHoldStore, seconds: float = 10.0) -> None:
    """Wait for a recovery to end."""
    async with asyncio.timeout(seconds):
        while any(store.problem for store in stores):
            await asyncio.sleep(0.01)
