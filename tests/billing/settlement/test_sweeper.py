"""The sweeper on a real database: who is dead, when, and what becomes of the calls that they left."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select, update

from billing.db.engine import hot_database as hot_engine
from billing.db.hot import HotDatabase
from billing.db.session import Database
from billing.db.tables import accounts, holds, processes, quarantine, usage
from billing.holds import Granted, HoldBeat
from billing.settlement.orphans import DatabaseOrphans
from billing.settlement.registry import Pace, Registration
from billing.settlement.sweeper import Sweeper, Swept
from billing.settlement.worker import LedgerWorker
from tests.support.money import T0, cancelled, charge, hold, migrated, new_id, purchase

PACE = Pace(beat_seconds=2, admit_seconds=10, dead_seconds=15)
CALL_SECONDS_MAX = 60


class Clock:
    """A monotonic clock that stands still until it is moved (seconds)."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """A database, a sweeper that looks at it, and the processes that it looks after."""

    def __init__(self, database: Database, hot: HotDatabase) -> None:
        self.database = database
        self.hot = hot
        self.clock = Clock()
        self.now_ms = T0
        self.sweeper = self.another_sweeper()

    def another_sweeper(self) -> Sweeper:
        return Sweeper(
            self.database,
            self.hot,
            DatabaseOrphans(self.database),
            call_seconds_max=CALL_SECONDS_MAX,
            now_ms=lambda: self.now_ms,
            monotonic=self.clock,
            pace=PACE,
        )

    async def process(self, name: str) -> Registration:
        one = Registration(
            self.database,
            process=name,
            new_id=lambda: f"{name}-2",
            now_ms=lambda: T0,
            monotonic=self.clock,
            pace=PACE,
        )
        await one.register()
        return one

    async def look_for(self, seconds: float, *, beating: tuple[Registration, ...] = ()) -> Swept:
        """Look every two seconds for so long; all that was found."""
        dead: tuple[str, ...] = ()
        estimates = released = 0
        until = self.clock.now + seconds
        while True:
            for one in beating:
                await one.beat()
            swept = await self.sweeper.look()
            dead += swept.dead
            estimates += swept.estimates
            released += swept.released
            if self.clock.now >= until:
                return Swept(dead=dead, estimates=estimates, released=released)
            self.clock.now += 2

    async def call_of(self, process: str, progress: int = 0) -> str:
        """A running call of a process, which holds 100 and has cost so much."""
        event_id = new_id()
        assert await self.hot.reserve(hold(event_id, process=process)) == Granted(100)
        if progress:
            await self.hot.heartbeat([HoldBeat(event_id, 100, progress)])
        return event_id

    async def settle(self) -> None:
        await LedgerWorker(self.hot, clock=lambda: T0).drain()

    async def estimates(self) -> dict[str, int]:
        wanted = select(usage.c.event_id, usage.c.amount).where(usage.c.revision == 1)
        async with self.database.read() as connection:
            found = (await connection.execute(wanted)).all()
        return {row[0]: row[1] for row in found}

    async def balance(self) -> tuple[int, int]:
        async with self.database.read() as connection:
            row = (await connection.execute(select(accounts.c.balance, accounts.c.held))).one()
        return (row[0], row[1])


@pytest.fixture(params=["sqlite", "postgresql"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{migrated(tmp_path)}"
    else:
        url = request.getfixturevalue("postgres_url")
    database, hot = Database(url), hot_engine(url, clock=lambda: T0)
    await hot.start()
    await hot.post([purchase(1_000)])
    yield World(database, hot)
    await hot.close()
    await database.dispose()


async def test_who_beats_is_never_dead(world: World) -> None:
    one = await world.process("p1")
    await world.call_of("p1", 30)
    assert await world.look_for(60, beating=(one,)) == Swept()


async def test_who_is_silent_for_fifteen_seconds_is_dead_and_no_sooner(world: World) -> None:
    await world.process("p1")
    assert await world.look_for(14) == Swept()
    assert (await world.look_for(2)).dead == ("p1",)


async def test_only_the_silent_one_is_dead(world: World) -> None:
    one, _ = await world.process("p1"), await world.process("p2")
    assert (await world.look_for(20, beating=(one,))).dead == ("p2",)


async def test_calls_of_the_dead_are_charged_at_their_last_progress(world: World) -> None:
    one = await world.process("p1")
    await world.process("p2")
    await world.call_of("p1", 10)
    left, untold = await world.call_of("p2", 30), await world.call_of("p2")
    assert (await world.look_for(20, beating=(one,))).estimates == 2
    assert await world.estimates() == {left: 30, untold: 0}
    await world.settle()
    assert (await world.balance())[0] == 970


async def test_an_estimate_is_made_once(world: World) -> None:
    await world.process("p1")
    await world.call_of("p1", 30)
    other = world.another_sweeper()
    await world.look_for(20)
    assert (await other.look()).estimates == 0
    assert (await world.look_for(20)).estimates == 0
    await world.settle()
    assert (await world.look_for(20)).estimates == 0


async def test_what_the_owner_said_stands(world: World) -> None:
    await world.process("p1")
    charged, given_back = await world.call_of("p1", 30), await world.call_of("p1", 30)
    await world.hot.record(charge(charged, 70))
    await world.hot.record(cancelled(given_back))
    assert (await world.look_for(20)).estimates == 0
    await world.settle()
    assert await world.balance() == (930, 0)


async def test_a_final_after_the_estimate_corrects_it(world: World) -> None:
    await world.process("p1")
    call = await world.call_of("p1", 30)
    await world.look_for(20)
    await world.settle()
    await world.hot.record(charge(call, 70))
    await world.settle()
    assert await world.balance() == (930, 0)


async def test_an_outage_starts_the_waiting_anew(world: World) -> None:
    """Nobody could beat while the database was away: silence then proves nothing."""
    one = await world.process("p1")
    await world.look_for(14)
    there, world.sweeper._database = world.sweeper._database, _away()
    world.clock.now += 2
    assert await world.sweeper.look() == Swept()
    await world.sweeper._database.dispose()
    world.sweeper._database = there
    world.clock.now += 2
    assert await world.look_for(14) == Swept()
    await one.beat()
    assert await world.look_for(14) == Swept()


async def test_a_sweeper_that_was_stopped_starts_anew(world: World) -> None:
    await world.process("p1")
    await world.look_for(4)
    world.clock.now += 60
    assert await world.look_for(14) == Swept()
    assert (await world.look_for(2)).dead == ("p1",)


async def test_who_stirs_at_the_last_moment_lives(world: World) -> None:
    await world.process("p1")
    assert await world.sweeper._bury({"p1": 0}) == {"p1"}
    two = await world.process("p2")
    await two.beat()
    assert await world.sweeper._bury({"p2": 0}) == set()


async def test_holds_of_a_process_without_a_row_wait_as_long(world: World) -> None:
    """A restored backup may lack the row of a process that lives; it has time to enter it again."""
    left = await world.call_of("unheard-of", 40)
    assert await world.look_for(14) == Swept()
    found = await world.look_for(2)
    assert found.dead == ("unheard-of",)
    assert found.estimates == 1
    assert await world.estimates() == {left: 40}


async def test_a_process_without_a_row_that_enters_it_again_lives(world: World) -> None:
    await world.call_of("p1", 40)
    await world.look_for(10)
    one = await world.process("p1")
    assert await world.look_for(30, beating=(one,)) == Swept()


async def test_calls_of_a_process_that_left_are_charged_at_once(world: World) -> None:
    """It may not have been able to write what became of them."""
    one = await world.process("p1")
    await world.call_of("p1", 40)
    await one.leave()
    assert (await world.sweeper.look()).estimates == 1


async def test_a_hold_that_cannot_be_read_is_set_aside_once(world: World) -> None:
    await world.process("p1")
    call = await world.call_of("p1", 40)
    async with world.database.write() as connection:
        await connection.execute(update(holds).values(context=b"not json"))
    assert (await world.look_for(30)).estimates == 0
    async with world.database.read() as connection:
        rows = (await connection.execute(select(quarantine))).mappings().all()
    assert [(row["event_id"], row["origin"]) for row in rows] == [(call, "hold")]
    assert await world.balance() == (1_000, 100)  # its hold stays


async def residual(world: World, hold_id: str, amount: int, *, age_seconds: int) -> None:
    """What settling an estimate leaves held, where a zombie may still come with its final."""
    async with world.database.write() as connection:
        await connection.execute(
            insert(holds).values(
                hold_id=hold_id,
                account="alice",
                amount=amount,
                state="residual",
                process="gone",
                started_at=world.now_ms - age_seconds * 1000,
                context=b"",
            )
        )
        await connection.execute(update(accounts).values(held=accounts.c.held + amount))


async def test_residuals_are_released_when_no_call_can_last_so_long(world: World) -> None:
    await residual(world, "young", 40, age_seconds=CALL_SECONDS_MAX)
    await residual(world, "old", 30, age_seconds=CALL_SECONDS_MAX + 1)
    assert await world.balance() == (1_000, 70)
    assert (await world.sweeper.look()).released == 1
    assert await world.balance() == (1_000, 40)
    world.now_ms += 1
    assert (await world.sweeper.look()).released == 1
    assert await world.balance() == (1_000, 0)


async def test_a_residual_waits_for_the_final_that_needs_it(world: World) -> None:
    event_id = new_id()
    await residual(world, event_id, 40, age_seconds=CALL_SECONDS_MAX + 1)
    await world.hot.record(charge(event_id, 60))
    assert (await world.sweeper.look()).released == 0
    await world.settle()
    assert await world.balance() == (940, 0)


async def test_ended_rows_stay_ended(world: World) -> None:
    await world.process("p1")
    await world.look_for(20)
    async with world.database.read() as connection:
        ended = (await connection.execute(select(processes.c.ended_at))).scalar_one()
    assert ended == T0


def _away() -> Database:
    return Database("postgresql+asyncpg://postgres@127.0.0.1:9/nowhere")
