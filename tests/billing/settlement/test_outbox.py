"""Outbox and ledger worker over a real database that goes away and comes back."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from billing import failpoints
from billing.db.engine import Engine
from billing.db.hot import DatabaseUnavailableError, EventConflictError
from billing.holds import HoldBeat
from billing.settlement.outbox import NotDurableError, Outbox
from billing.settlement.recovery import Recovered, recover
from billing.settlement.spool import Spool, everybody
from billing.settlement.worker import GATHER_SECONDS, LedgerWorker
from tests.support.migrated import migrated
from tests.support.money import (
    T0,
    cancelled,
    charge,
    hold,
    hot_database,
    new_id,
    purchase,
    rows,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return migrated(tmp_path)


@pytest.fixture
async def hot(path: Path) -> AsyncIterator[Engine]:
    async with hot_database(path) as started:
        yield started


@asynccontextmanager
async def outbox_of(
    hot: Engine, directory: Path, on_written: Callable[[], None] = lambda: None
) -> AsyncIterator[Outbox]:
    outbox = Outbox(hot, Spool(directory, "p1"), on_written=on_written)
    await outbox.start()
    try:
        yield outbox
    finally:
        await outbox.close()


@asynccontextmanager
async def database_away() -> AsyncIterator[None]:
    """Every transaction fails as on a broken disk, until the block ends."""

    def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    failpoints.hooks["turn_uncommitted"] = fail
    try:
        yield
    finally:
        failpoints.hooks.clear()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def amounts(path: Path) -> list[object]:
    return [a for (a,) in rows(path, "SELECT amount FROM ledger_entries ORDER BY event_id")]


async def test_durable_in_the_database_when_write_returns(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    woken: list[bool] = []
    async with outbox_of(hot, tmp_path / "spool", lambda: woken.append(True)) as outbox:
        await outbox.write(charge(new_id(), 5))
        assert rows(path, "SELECT count(*) FROM outbox") == [(1,)]
        assert woken == [True]
        assert outbox.durable
        assert outbox.spool_bytes() == 0
    await hot.settle_pending(10)


async def test_writes_a_cancellation_as_such(hot: Engine, path: Path, tmp_path: Path) -> None:
    await hot.post([purchase(1000)])
    one = new_id()
    await hot.reserve(hold(one))
    async with outbox_of(hot, tmp_path / "spool") as outbox:
        await outbox.write(cancelled(one))
    assert rows(path, "SELECT held FROM accounts") == [(0,)]


async def test_spools_while_the_database_is_away_and_replays_by_itself(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    async with outbox_of(hot, tmp_path / "spool") as outbox:
        async with database_away():
            await asyncio.gather(*(outbox.write(charge(new_id(), n)) for n in (1, 2, 3)))
            await outbox.write(cancelled(new_id()))
            assert outbox.database_away
            assert outbox.durable
            assert outbox.spool_bytes() > 0
            assert rows(path, "SELECT count(*) FROM usage") == [(0,)]
        await until(lambda: not outbox.database_away and outbox.spool_bytes() == 0)
        await outbox.write(charge(new_id(), 4))
    await hot.settle_pending(10)
    assert amounts(path) == [-1, -2, -3, -4]


async def test_a_database_that_never_answers_is_away_after_two_seconds(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    async with outbox_of(hot, tmp_path / "spool") as outbox:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with asyncio.timeout(4):
                await outbox.write(charge(new_id(), 1))
            assert outbox.spool_bytes() > 0
            other.execute("ROLLBACK")
        await until(lambda: outbox.spool_bytes() == 0)
    await hot.settle_pending(10)
    assert amounts(path) == [-1]


async def test_neither_database_nor_spool_is_not_durable_until_it_is(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "spool").write_text("a file where a directory should be")
    async with outbox_of(hot, tmp_path / "spool") as outbox:
        async with database_away():
            with pytest.raises(NotDurableError):
                await outbox.write(charge(new_id(), 1))
            assert not outbox.durable
            (tmp_path / "spool").unlink()
            await until(lambda: outbox.durable)
            await outbox.write(charge(new_id(), 2))
        await until(lambda: not outbox.database_away and outbox.spool_bytes() == 0)
    await hot.settle_pending(10)
    assert amounts(path) == [-1, -2]


async def test_what_neither_took_is_written_once_one_of_them_is_back(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    await hot.post([purchase(1000)])
    paid, given_back = new_id(), new_id()
    await asyncio.gather(hot.reserve(hold(paid)), hot.reserve(hold(given_back)))
    blocked = tmp_path / "spool"
    blocked.write_text("a file where the directory should be")
    async with outbox_of(hot, blocked) as outbox:
        async with database_away():
            for finish in (charge(paid, 7), cancelled(given_back)):
                with pytest.raises(NotDurableError):
                    await outbox.write(finish)
        await until(lambda: outbox.durable and not outbox.database_away)
        await until(lambda: rows(path, "SELECT count(*) FROM usage") == [(2,)])
    await hot.settle_pending(10)
    assert rows(path, "SELECT balance, held FROM accounts") == [(993, 0)]


async def test_what_neither_took_goes_to_the_spool_if_that_is_back_first(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "spool"
    blocked.write_text("a file where the directory should be")
    async with outbox_of(hot, blocked) as outbox, database_away():
        with pytest.raises(NotDurableError):
            await outbox.write(charge(new_id(), 7))
        blocked.unlink()
        await until(lambda: outbox.durable and outbox.spool_bytes() > 0)
        assert outbox.database_away
    async with outbox_of(hot, blocked) as outbox:
        assert await outbox.replay() == 1
    await hot.settle_pending(10)
    assert amounts(path) == [-7]


async def test_what_neither_took_is_tried_once_more_at_the_end(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "spool"
    blocked.write_text("a file where the directory should be")
    async with outbox_of(hot, blocked) as outbox:
        async with database_away():
            with pytest.raises(NotDurableError):
                await outbox.write(charge(new_id(), 7))
        blocked.unlink()
    async with outbox_of(hot, blocked) as outbox:
        await outbox.replay()
    await hot.settle_pending(10)
    assert amounts(path) == [-7]


async def test_a_conflict_is_raised_and_quarantined(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    one = new_id()
    async with outbox_of(hot, tmp_path / "spool") as outbox:
        await outbox.write(charge(one, 1))
        await outbox.write(charge(one, 1))
        with pytest.raises(EventConflictError, match="amount"):
            await outbox.write(charge(one, 2))
    assert rows(path, "SELECT event_id, origin FROM quarantine") == [(one, "owner")]
    await hot.settle_pending(10)


async def test_what_the_database_refuses_is_quarantined_not_lost(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    one, two = new_id(), new_id()
    async with outbox_of(hot, tmp_path / "spool") as outbox:
        await asyncio.gather(outbox.write(charge(one, -1)), outbox.write(charge(two, 2)))
    assert rows(path, "SELECT event_id, reason FROM quarantine") == [
        (one, "IntegrityError: cannot be recorded")
    ]
    await hot.settle_pending(10)
    assert amounts(path) == [-2]


async def test_a_cancelled_writer_still_gets_its_event_written(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    async with outbox_of(hot, tmp_path / "spool") as outbox:
        async with database_away():
            writing = asyncio.create_task(outbox.write(charge(new_id(), 7)))
            await asyncio.sleep(0)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            await until(lambda: outbox.spool_bytes() > 0)
        await until(lambda: outbox.spool_bytes() == 0)
    await hot.settle_pending(10)
    assert amounts(path) == [-7]


async def test_replay_repeats_harmlessly_and_sets_conflicts_aside(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    one, two, three = new_id(), new_id(), new_id()
    dead = Spool(tmp_path / "spool", "dead")
    for finish in (charge(one, 1), charge(two, 2), charge(three, -3)):
        await dead.append(finish)
    dead.close()
    await hot.record(charge(one, 1))
    await hot.record(charge(two, 22))
    await hot.settle_pending(10)
    async with outbox_of(hot, tmp_path / "spool") as outbox:
        assert await outbox.replay() == 0
        assert await outbox.replay(everybody) == 3
        assert await outbox.replay(everybody) == 0
    await hot.settle_pending(10)
    assert amounts(path) == [-1, -22]
    assert rows(path, "SELECT event_id, origin FROM quarantine ORDER BY 1") == [
        (two, "spool"),
        (three, "spool"),
    ]


async def test_replay_without_database_keeps_the_file(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    dead = Spool(tmp_path / "spool", "dead")
    await dead.append(charge(new_id(), 1))
    dead.close()
    async with outbox_of(hot, tmp_path / "spool") as outbox:
        async with database_away():
            with pytest.raises(DatabaseUnavailableError):
                await outbox.replay(everybody)
        assert outbox.spool_bytes() > 0
        assert await outbox.replay(everybody) == 1
    await hot.settle_pending(10)
    assert amounts(path) == [-1]


async def test_recovery_lets_a_spooled_final_win_over_the_holds_progress(
    hot: Engine, path: Path, tmp_path: Path
) -> None:
    await hot.post([purchase(1000, event_id="a")])
    spooled, lost = new_id(), new_id()
    for event_id in (spooled, lost):
        await hot.reserve(hold(event_id, process="dead"))
        await hot.heartbeat([HoldBeat(event_id, 100, 20)])
    dead = Spool(tmp_path / "spool", "dead")
    await dead.append(charge(spooled, 90))
    dead.close()
    async with outbox_of(hot, tmp_path / "spool") as outbox:
        found = await recover(hot, outbox, process="p1", clock=lambda: T0)
        assert found == Recovered(spooled=1, orphans=1)
    await hot.settle_pending(10)
    # 1000 - 90 as the owner said - 20 as the hold last knew
    assert rows(path, "SELECT balance, held FROM accounts") == [(890, 0)]


class TestWorker:
    async def test_settles_when_woken_and_stops_with_nothing_left(
        self, hot: Engine, path: Path, tmp_path: Path
    ) -> None:
        worker = LedgerWorker(hot, clock=lambda: T0, batch_max=3, gather_seconds=0)
        async with outbox_of(hot, tmp_path / "spool", worker.notify) as outbox:
            running = asyncio.create_task(worker.run())
            await asyncio.gather(*(outbox.write(charge(new_id(), 1)) for _ in range(10)))
            await until(lambda: worker.settled == 10)
            assert worker.unsettled_age_ms() == 0
            await asyncio.gather(*(outbox.write(charge(new_id(), 1)) for _ in range(10)))
            worker.stop()
            await running
        assert worker.settled == 20
        assert rows(path, "SELECT count(*) FROM outbox") == [(0,)]

    @pytest.mark.parametrize(
        ("events", "batch_max", "waited", "settled"),
        [(1, 100, 1, 1), (4, 100, 4, 4), (4, 3, 2, 3), (1_000, 10_000, 5, 6)],
        ids=["one", "until no more come", "until a batch is full", "no longer than a while"],
    )
    async def test_gathers_while_more_keep_coming(
        self, hot: Engine, events: int, batch_max: int, waited: int, settled: int
    ) -> None:
        """One event is there, others come while it waits, each before a pause has ended."""
        pauses = 0

        async def pause(seconds: float) -> None:
            nonlocal pauses
            pauses += 1
            assert seconds == GATHER_SECONDS
            if pauses < events:
                await add()

        async def add() -> None:
            await hot.record(charge(new_id(), 1))
            worker.notify()

        worker = LedgerWorker(hot, clock=lambda: T0, batch_max=batch_max, pause=pause)
        await add()
        running = asyncio.create_task(worker.run())
        await until(lambda: worker.settled > 0)
        assert (pauses, worker.settled) == (waited, settled)
        worker.stop()
        await running

    async def test_age_counts_from_the_first_event_that_waits(self, hot: Engine) -> None:
        now = [T0]
        worker = LedgerWorker(hot, clock=lambda: now[0], batch_max=3)
        assert worker.unsettled_age_ms() == 0
        await hot.record(charge(new_id(), 1))
        worker.notify()
        now[0] += 1500
        worker.notify()
        assert worker.unsettled_age_ms() == 1500
        await worker.drain()
        assert worker.unsettled_age_ms() == 0

    async def test_survives_an_outage(self, hot: Engine, path: Path) -> None:
        worker = LedgerWorker(hot, clock=lambda: T0, gather_seconds=0)
        await hot.record(charge(new_id(), 1))
        running = asyncio.create_task(worker.run())
        async with database_away():
            worker.notify()
            await until(lambda: worker.failures > 0)
        await until(lambda: worker.settled == 1)
        worker.stop()
        await running
        assert amounts(path) == [-1]

    async def test_counts_what_it_sets_aside(self, hot: Engine) -> None:
        worker = LedgerWorker(hot, clock=lambda: T0)
        one = new_id()
        await hot.post([purchase(5, event_id=one)])
        await hot.record(charge(one, 1))
        await worker.drain()
        assert (worker.settled, worker.quarantined) == (0, 1)
