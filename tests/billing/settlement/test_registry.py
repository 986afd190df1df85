"""The registry on both databases: heartbeats, death, rebirth, a restored backup, an outage."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from billing.db.session import Database
from billing.db.tables import processes
from billing.holds import GuardUnavailableError
from billing.settlement.registry import (
    AWAY,
    KEPT_MS,
    Beat,
    Pace,
    Registration,
    end_others,
    forget_ended,
    living,
)
from tests.support.migrated import migrated
from tests.support.money import T0

PACE = Pace(beat_seconds=2, admit_seconds=10, dead_seconds=15)


class Clock:
    """A monotonic clock that stands still until it is moved (seconds)."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{migrated(tmp_path)}"
    else:
        url = request.getfixturevalue("postgres_url")
    database = Database(url)
    yield database
    await database.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def registration(database: Database, clock: Clock, process: str = "p1") -> Registration:
    lives = count(2)
    return Registration(
        database,
        process=process,
        new_id=lambda: f"{process}-{next(lives)}",
        now_ms=lambda: T0,
        monotonic=clock,
        pace=PACE,
    )


def is_alive(one: Registration) -> bool:
    """Asked anew: the answer changes with the clock."""
    return one.alive


async def declare_dead(database: Database, process: str) -> None:
    async with database.write() as connection:
        await connection.execute(
            update(processes).where(processes.c.process == process).values(ended_at=T0)
        )


async def heartbeats(database: Database, process: str) -> int:
    async with database.read() as connection:
        wanted = select(processes.c.heartbeats).where(processes.c.process == process)
        return int((await connection.execute(wanted)).scalar_one())


async def test_nobody_is_alive_before_the_row_is_there(database: Database, clock: Clock) -> None:
    one = registration(database, clock)
    assert not is_alive(one)
    await one.register()
    assert is_alive(one)
    assert await living(database) == {"p1"}


async def test_every_beat_is_counted(database: Database, clock: Clock) -> None:
    one = registration(database, clock)
    await one.register()
    assert [await one.beat() for _ in range(3)] == [Beat.ALIVE] * 3
    assert await heartbeats(database, "p1") == 3


async def test_admission_ends_ten_seconds_after_the_last_beat(
    database: Database, clock: Clock
) -> None:
    one = registration(database, clock)
    await one.register()
    clock.now += 9.9
    assert is_alive(one)
    clock.now += 0.1
    assert not is_alive(one)
    assert await one.beat() is Beat.ALIVE
    assert is_alive(one)


async def test_a_dead_process_learns_it_and_goes_on_under_another_id(
    database: Database, clock: Clock
) -> None:
    one = registration(database, clock)
    await one.register()
    await declare_dead(database, "p1")
    assert await one.beat() is Beat.DEAD
    assert await one.reborn() == "p1"
    assert one.process == "p1-2"
    assert is_alive(one)
    assert await one.beat() is Beat.ALIVE
    assert await living(database) == {"p1-2"}


async def test_a_beat_never_brings_a_dead_row_back(database: Database, clock: Clock) -> None:
    one = registration(database, clock)
    await one.register()
    await declare_dead(database, "p1")
    await one.beat()
    assert await heartbeats(database, "p1") == 0
    assert await living(database) == frozenset()


async def test_a_row_that_went_back_is_a_restored_backup(database: Database, clock: Clock) -> None:
    one = registration(database, clock)
    await one.register()
    for _ in range(5):
        await one.beat()
    async with database.write() as connection:
        await connection.execute(update(processes).values(heartbeats=2))
    assert await one.beat() is Beat.REWOUND
    await one.resume()
    assert one.process == "p1"
    assert await heartbeats(database, "p1") == 6
    assert await one.beat() is Beat.ALIVE


async def test_what_could_not_be_followed_is_told_again(database: Database, clock: Clock) -> None:
    """Redis was away when the registry went back: its holds are rebuilt once it is there."""
    one = registration(database, clock)
    one.pace = Pace(beat_seconds=0.01, admit_seconds=10, dead_seconds=15)
    await one.register()
    for _ in range(5):
        await one.beat()
    async with database.write() as connection:
        await connection.execute(update(processes).values(heartbeats=2))
    heard: list[Beat] = []
    followed = asyncio.Event()

    async def follow(beat: Beat) -> None:
        heard.append(beat)
        if len(heard) < 3:
            raise GuardUnavailableError("Redis is away")
        followed.set()

    beating = asyncio.create_task(one.run(follow))
    await asyncio.wait_for(followed.wait(), 30)
    at = await heartbeats(database, "p1")
    async with asyncio.timeout(30):
        while await heartbeats(database, "p1") < at + 3:
            await asyncio.sleep(0.01)
    beating.cancel()
    assert heard == [Beat.REWOUND] * 3


async def test_a_row_that_is_gone_is_a_restored_backup(database: Database, clock: Clock) -> None:
    one = registration(database, clock)
    await one.register()
    await one.beat()
    async with database.write() as connection:
        await connection.execute(delete(processes))
    assert await one.beat() is Beat.REWOUND
    await one.resume()
    assert await living(database) == {"p1"}
    assert await one.beat() is Beat.ALIVE


async def test_who_leaves_is_no_longer_alive(database: Database, clock: Clock) -> None:
    one = registration(database, clock)
    await one.register()
    await one.leave()
    assert not is_alive(one)
    assert await living(database) == frozenset()


async def test_who_has_the_lock_ends_all_others(database: Database, clock: Clock) -> None:
    for process in ("old-1", "old-2", "new"):
        await registration(database, clock, process).register()
    await end_others(database, "new", T0)
    assert await living(database) == {"new"}


async def test_a_database_that_is_away_is_no_death(tmp_path: Path, clock: Clock) -> None:
    database = Database(f"sqlite+aiosqlite:///{migrated(tmp_path)}")
    one = registration(database, clock)
    await one.register()
    await database.dispose()
    away = Database("postgresql+asyncpg://postgres@127.0.0.1:9/nowhere")
    one._database = away
    assert await one.beat() is Beat.AWAY
    assert is_alive(one)
    with pytest.raises(AWAY):
        await one.reborn()
    assert not is_alive(one)
    assert one.process == "p1"
    await one.leave()
    await away.dispose()


async def test_one_that_slept_until_it_was_forgotten_goes_on_under_a_new_id(
    database: Database, clock: Clock
) -> None:
    """Its row is gone as after a restored backup, but its calls were estimated long ago."""
    one = registration(database, clock)
    await one.register()
    await declare_dead(database, "p1")
    assert await forget_ended(database, ended_before=T0 + 1, keep=()) == 1
    clock.now += KEPT_MS / 1000 - 1
    assert await one.beat() is Beat.REWOUND
    clock.now += 1
    assert await one.beat() is Beat.DEAD


async def test_only_the_ended_are_forgotten(database: Database, clock: Clock) -> None:
    for name in ("lives", "kept", "young", "old"):
        await registration(database, clock, name).register()
    for name in ("kept", "young", "old"):
        await declare_dead(database, name)
    async with database.write() as connection:
        late = update(processes).where(processes.c.process == "young")
        await connection.execute(late.values(ended_at=T0 + 1))
    assert await forget_ended(database, ended_before=T0 + 1, keep={"kept"}) == 1
    async with database.read() as connection:
        left = set((await connection.scalars(select(processes.c.process))).all())
    assert left == {"lives", "kept", "young"}
