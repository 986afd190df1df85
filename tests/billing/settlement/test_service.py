"""The ledger service: chores that fail go on, one of several processes is elected, another follows."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from billing.db.session import Database
from billing.settlement.election import Election
from billing.settlement.service import Chore, ElectedService, LedgerService, end_tasks
from tests.support.services import pg_rows

SECONDS = 10.0


class Settling:
    """Something that settles until it is stopped."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.stopped = asyncio.Event()
        self.notified = 0

    async def run(self) -> None:
        self.running.set()
        await self.stopped.wait()
        self.running.clear()

    def stop(self) -> None:
        self.stopped.set()

    def notify(self) -> None:
        self.notified += 1


async def test_a_chore_that_fails_is_tried_again() -> None:
    times = 0
    enough = asyncio.Event()

    async def act() -> None:
        nonlocal times
        times += 1
        if times == 3:
            enough.set()
        raise RuntimeError

    settling = Settling()
    service = LedgerService(settling, [Chore(name="chore", seconds=0.001, act=act)])
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
        running = group.create_task(service.run())
        await enough.wait()
        service.notify()
        service.stop()
        await running
    assert settling.notified == 1
    seen = times
    await asyncio.sleep(0)
    assert times == seen


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    database = Database(postgres_url)
    yield database
    await database.dispose()


async def test_one_is_elected_and_another_follows_who_resigns(database: Database) -> None:
    one, two = Election(database, "duty"), Election(database, "duty")
    assert await one.stand()
    assert not await two.stand()
    assert await one.stand()
    await one.resign()
    assert not one.won
    assert await two.stand()
    await two.resign()


async def test_duties_do_not_exclude_each_other(database: Database) -> None:
    one, two = Election(database, "duty"), Election(database, "other")
    assert await one.stand()
    assert await two.stand()
    await one.resign()
    await two.resign()


async def test_who_loses_the_connection_loses_the_duty(
    database: Database, postgres_url: str
) -> None:
    one, two = Election(database, "duty"), Election(database, "duty")
    assert await one.stand()
    pg_rows(
        postgres_url,
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'",
    )
    assert not await one.stand()
    assert await two.stand()
    await two.resign()


async def test_the_service_runs_in_one_place_and_moves(database: Database) -> None:
    made: dict[str, Settling] = {}

    def maker(name: str) -> ElectedService:
        def make() -> Settling:
            made[name] = Settling()
            return made[name]

        return ElectedService(Election(database, "duty"), make, look_seconds=0.01)

    one, two = maker("one"), maker("two")
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
        first = group.create_task(one.run())
        while "one" not in made:
            await asyncio.sleep(0.01)
        second = group.create_task(two.run())
        await asyncio.sleep(0.1)
        assert list(made) == ["one"]
        assert (one.elected, two.elected) == (True, False)
        two.notify()
        one.stop()
        await first
        assert made["one"].stopped.is_set()
        while "two" not in made:
            await asyncio.sleep(0.01)
        two.notify()
        assert made["two"].notified == 1
        two.stop()
        await second


async def test_tasks_that_take_a_cancellation_for_a_failure_end_all_the_same() -> None:
    """As a driver does that fails to close the connection whose query was cancelled."""
    swallowed = 0
    sleeping = asyncio.Event()

    async def stubborn() -> None:
        nonlocal swallowed
        sleeping.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await sleeping.wait()
    await asyncio.wait_for(end_tasks([task]), 10)
    assert task.cancelled()
    assert swallowed == 1
