"""The sweeper on a real database: who is dead, when, and what becomes of the calls that they left."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import delete, insert, select, update

from billing.context import encode_context
from billing.db.engine import hot_database as hot_engine
from billing.db.hot import HotDatabase
from billing.db.session import Database
from billing.db.tables import accounts, holds, processes, quarantine, usage
from billing.holds import Granted, HoldBeat
from billing.settlement.late_finals import LOST_SPOOL_MS, MARGIN_MS, directory_id
from billing.settlement.orphans import DatabaseOrphans
from billing.settlement.registry import Beat, Pace, Registration, SpoolReport
from billing.settlement.sweeper import FORGET_SECONDS, Sweeper, Swept
from billing.settlement.worker import LedgerWorker
from tests.support.migrated import migrated
from tests.support.money import T0, cancelled, charge, context, hold, new_id, purchase

PACE = Pace(beat_seconds=2, admit_seconds=10, dead_seconds=15)
CALL_SECONDS_MAX = 60
OVER_MS = CALL_SECONDS_MAX * 1000 + MARGIN_MS  # so long after its start a call has surely ended
DAY_MS = 86_400_000


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
        self.spool_owners: set[str] = set()
        self.sweeper = self.another_sweeper()

    def another_sweeper(self, call_seconds_max: float = CALL_SECONDS_MAX) -> Sweeper:
        return Sweeper(
            self.database,
            self.hot,
            DatabaseOrphans(self.database),
            call_seconds_max=call_seconds_max,
            now_ms=lambda: self.now_ms,
            monotonic=self.clock,
            pace=PACE,
            spool_owners=lambda: self.spool_owners,
        )

    async def process(
        self, name: str, spool: "Spooling | None" = None, *, may_hold: bool = True
    ) -> Registration:
        one = Registration(
            self.database,
            process=name,
            new_id=lambda: f"{name}-2",
            now_ms=lambda: T0,
            monotonic=self.clock,
            pace=PACE,
            spool=spool.report if spool else None,
            may_hold=may_hold,
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


async def test_a_debit_of_a_dead_process_is_no_call(world: World) -> None:
    """A correction's or a re-rating's: whoever carries it on lets go of its hold."""
    await world.process("p1")
    debit = msgspec.structs.replace(context(new_id()), book=0)
    request = msgspec.structs.replace(hold(debit.event_id), context=encode_context(debit))
    assert await world.hot.reserve(request) == Granted(100)
    call = await world.call_of("p1", progress=30)
    swept = await world.look_for(60)
    assert (swept.dead, swept.estimates) == (("p1",), 1)
    assert await world.estimates() == {call: 30}
    assert await world.hot.adopt_orphans("p2", T0) == 0
    await world.settle()
    async with world.database.read() as connection:
        left = (await connection.execute(select(holds.c.hold_id, holds.c.amount))).all()
    assert sorted(tuple(row) for row in left) == sorted([(debit.event_id, 100), (call, 70)])


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


async def residual(world: World, hold_id: str, amount: int, *, age_ms: int) -> None:
    """What settling an estimate leaves held, where a zombie may still come with its final."""
    async with world.database.write() as connection:
        await connection.execute(
            insert(holds).values(
                hold_id=hold_id,
                account="alice",
                amount=amount,
                state="residual",
                process="gone",
                started_at=world.now_ms - age_ms,
                context=b"",
            )
        )
        await connection.execute(update(accounts).values(held=accounts.c.held + amount))


async def test_residuals_are_released_when_no_call_can_last_so_long(world: World) -> None:
    await residual(world, "young", 40, age_ms=OVER_MS)
    await residual(world, "old", 30, age_ms=OVER_MS + 1)
    assert await world.balance() == (1_000, 70)
    assert (await world.sweeper.look()).released == 1
    assert await world.balance() == (1_000, 40)
    world.now_ms += 1
    assert (await world.sweeper.look()).released == 1
    assert await world.balance() == (1_000, 0)


@pytest.mark.parametrize("aside", [False, True])
async def test_a_residual_waits_for_the_final_that_needs_it(world: World, aside: bool) -> None:
    event_id = new_id()
    await residual(world, event_id, 40, age_ms=OVER_MS + 1)
    if aside:
        await world.hot.quarantine(charge(event_id, 60), origin="owner", reason="a test")
    else:
        await world.hot.record(charge(event_id, 60))
    assert (await world.sweeper.look()).released == 0
    await world.settle()
    assert await world.balance() == ((1_000, 40) if aside else (940, 0))


class Spooling:
    """A process's spool, as it reports it."""

    def __init__(self, directory: str = "disk-1") -> None:
        self.has_files = False
        self.report = SpoolReport(directory=directory, pending=lambda: self.has_files)


async def call_that_is_over(world: World) -> None:
    """All processes registered at T0; then an estimate's residual, of a call that can run no more."""
    await residual(world, "old", 40, age_ms=-1_000)
    world.now_ms += OVER_MS + 60_000


async def test_a_residual_waits_while_a_living_process_has_a_spool(world: World) -> None:
    spool = Spooling()
    spool.has_files = True
    one = await world.process("p1", spool)
    await call_that_is_over(world)
    assert (await world.look_for(30, beating=(one,))).released == 0
    spool.has_files = False
    assert (await world.look_for(4, beating=(one,))).released == 1


async def test_a_residual_waits_until_every_living_process_was_heard(world: World) -> None:
    """Who is silent may be cut off, and have spooled the final; who is dead may be a zombie."""
    one, other = await world.process("p1", Spooling()), await world.process("p2", Spooling("2"))
    await call_that_is_over(world)
    assert (await world.look_for(8, beating=(one,))).released == 0
    found = await world.look_for(20, beating=(one,))
    assert (found.dead, found.released) == (("p2",), 0)
    reborn = await world.process("p2-2", Spooling("2"))
    assert await other.beat() is Beat.DEAD
    assert (await world.look_for(4, beating=(one, reborn))).released == 1


async def test_one_look_proves_nothing(world: World) -> None:
    """A row may be from before an outage: only a heartbeat that comes in tells of now."""
    one = await world.process("p1", Spooling())
    await one.beat()
    await call_that_is_over(world)
    assert (await world.sweeper.look()).released == 0
    assert (await world.sweeper.look()).released == 0
    await one.beat()
    assert (await world.sweeper.look()).released == 1


@pytest.mark.parametrize(("directory", "released"), [("disk-1", 1), ("disk-2", 0), ("", 0)])
async def test_a_dead_process_has_finals_until_somebody_looked_into_its_spool(
    world: World, directory: str, released: int
) -> None:
    await world.process("p1", Spooling("disk-1"))
    await world.look_for(20)
    heir = await world.process("p2", Spooling(directory))
    await call_that_is_over(world)
    assert (await world.look_for(6, beating=(heir,))).released == released


async def test_a_spool_that_nobody_looks_into_is_given_up_after_a_day(world: World) -> None:
    await world.process("p1", Spooling())
    assert (await world.look_for(20)).dead == ("p1",)
    dead_at = world.now_ms
    await call_that_is_over(world)
    world.now_ms = dead_at + LOST_SPOOL_MS
    assert (await world.sweeper.look()).released == 0
    world.now_ms += 1
    assert (await world.sweeper.look()).released == 1


async def test_who_was_heard_long_ago_may_be_cut_off_by_now(world: World) -> None:
    one, other = await world.process("p1", Spooling()), await world.process("p2", Spooling("2"))
    await world.look_for(4, beating=(one, other))
    await world.look_for(12, beating=(one,))
    await call_that_is_over(world)
    found = await world.sweeper.look()
    assert (found.dead, found.released) == ((), 0)


async def test_directories_without_a_name_are_not_one(world: World) -> None:
    await world.process("p1", Spooling(""))
    await world.look_for(20)
    heir = await world.process("p2", Spooling(""))
    await call_that_is_over(world)
    assert (await world.look_for(6, beating=(heir,))).released == 0


async def test_who_never_registered_may_have_finals_of_any_call(world: World) -> None:
    world.now_ms += 3_600_000
    await world.call_of("unheard-of", 40)
    await residual(world, "old", 40, age_ms=3_000_000)
    world.now_ms += 10
    assert (await world.look_for(20)).dead == ("unheard-of",)
    await residual(world, "older", 40, age_ms=3_500_000)
    assert (await world.sweeper.look()).released == 0


async def test_a_spool_that_was_looked_into_is_done_with(world: World) -> None:
    """Also when nobody on that machine lives any more."""
    await world.process("p1", Spooling())
    await world.look_for(20)
    heir = await world.process("p2", Spooling())
    world.now_ms += OVER_MS + 60_000
    await world.look_for(6, beating=(heir,))
    await heir.leave()
    await residual(world, "old", 40, age_ms=0)
    world.now_ms += OVER_MS + 1
    assert (await world.sweeper.look()).released == 1


@pytest.mark.parametrize("has_files", [False, True])
async def test_who_leaves_says_what_is_in_the_spool(world: World, has_files: bool) -> None:
    spool = Spooling()
    one = await world.process("p1", spool)
    await call_that_is_over(world)
    spool.has_files = has_files
    await one.leave()
    assert (await world.sweeper.look()).released == (not has_files)


async def test_nobody_waits_for_the_spool_of_who_holds_nothing(world: World) -> None:
    await world.process("worker", Spooling(), may_hold=False)
    await call_that_is_over(world)
    assert (await world.sweeper.look()).released == 1
    assert (await world.look_for(20)).dead == ("worker",)
    world.now_ms += 3_600_000
    await residual(world, "later", 40, age_ms=OVER_MS + 1)
    assert (await world.sweeper.look()).released == 1


async def test_who_began_after_the_call_has_no_final_of_it(world: World) -> None:
    await residual(world, "old", 40, age_ms=1_000)
    spool = Spooling()
    spool.has_files = True
    one = await world.process("p1", spool)
    world.now_ms += OVER_MS + 60_000
    assert (await world.look_for(6, beating=(one,))).released == 1


async def test_what_is_complete_stays_complete(world: World) -> None:
    """Another sweeper has heard nobody yet, but knows what the first one found."""
    one = await world.process("p1", Spooling())
    world.now_ms += OVER_MS + 60_000
    await world.look_for(4, beating=(one,))
    await residual(world, "late to come", 40, age_ms=OVER_MS + 30_000)
    assert (await world.another_sweeper().look()).released == 1


def test_a_directory_has_one_name(tmp_path: Path) -> None:
    first = directory_id(tmp_path / "data")
    assert len(first) == 32
    assert directory_id(tmp_path / "data") == first
    assert directory_id(tmp_path / "other") != first
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["spool-id"]
    (tmp_path / "file").write_text("")
    assert directory_id(tmp_path / "file") == ""


async def test_ended_rows_stay_ended(world: World) -> None:
    await world.process("p1")
    await world.look_for(20)
    async with world.database.read() as connection:
        ended = (await connection.execute(select(processes.c.ended_at))).scalar_one()
    assert ended == T0


async def names(world: World) -> set[str]:
    async with world.database.read() as connection:
        return set((await connection.scalars(select(processes.c.process))).all())


async def test_processes_that_ended_long_ago_are_forgotten(world: World) -> None:
    lives, fresh, old = [await world.process(name) for name in ("lives", "fresh", "old")]
    await fresh.leave()
    await old.leave()
    async with world.database.write() as connection:
        just = T0 - DAY_MS
        for name, ended_at in (("fresh", just), ("old", just - 1)):
            row = update(processes).where(processes.c.process == name)
            await connection.execute(row.values(ended_at=ended_at))
        # One that lives is never forgotten, whatever a clock says of its heartbeat.
        await connection.execute(
            update(processes).where(processes.c.process == "lives").values(heartbeat_at=0)
        )
    await world.sweeper.look()
    assert await names(world) == {"lives", "fresh"}
    assert await lives.beat() is Beat.ALIVE
    # Not at every look: it costs more than it is worth.
    world.now_ms += 1
    await world.sweeper.look()
    assert await names(world) == {"lives", "fresh"}
    await world.look_for(FORGET_SECONDS, beating=(lives,))
    assert await names(world) == {"lives"}


async def test_processes_that_something_still_names_are_kept(world: World) -> None:
    for name in ("holds", "spooled", "gone", "nothing"):
        await (await world.process(name)).leave()
    call = new_id()
    await residual(world, call, 40, age_ms=1_000)
    async with world.database.write() as connection:
        await connection.execute(update(holds).values(process="holds"))
    world.spool_owners = {"spooled"}
    world.now_ms += DAY_MS + 1
    # The residual is not old by the time that its call began; its owner may still come.
    async with world.database.write() as connection:
        await connection.execute(update(holds).values(started_at=world.now_ms))
    await world.sweeper.look()
    assert await names(world) == {"holds", "spooled"}
    async with world.database.write() as connection:
        await connection.execute(delete(holds))
    world.spool_owners = set()
    await world.look_for(FORGET_SECONDS)
    assert await names(world) == set()


async def test_calls_longer_than_a_day_keep_their_processes_as_long(world: World) -> None:
    sweeper = world.another_sweeper(call_seconds_max=2 * 86_400)
    await (await world.process("p1")).leave()
    world.now_ms += 4 * DAY_MS
    await sweeper.look()
    assert await names(world) == {"p1"}
    world.now_ms += 1
    world.clock.now += FORGET_SECONDS
    await sweeper.look()
    assert await names(world) == set()


def _away() -> Database:
    return Database("postgresql+asyncpg://postgres@127.0.0.1:9/nowhere")
