"""What the ledger tells the Redis hold store, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from billing.db.engine import Engine, hot_database
from billing.db.session import Database
from billing.db.tables import accounts, processes, quarantine
from billing.events import Finish
from billing.holds import Applied
from billing.holds.ledger_view import (
    GuardState,
    Phase,
    RebuiltHold,
    SqlLedgerView,
    step,
)
from tests.support.migrated import migrated
from tests.support.money import T0, cancelled, charge, estimate, new_id, purchase


class Place:
    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.hot: Engine = hot_database(url, clock=lambda: T0, holds_here=False)
        self.view = SqlLedgerView(self.database)

    async def record(self, *finishes: Finish) -> None:
        for finish in finishes:
            await (self.hot.cancel if finish.cancelled else self.hot.record)(finish)

    async def settled(self, *finishes: Finish) -> None:
        await self.record(*finishes)
        await self.hot.settle_pending(500)


@pytest.fixture(params=["sqlite", "postgres"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{migrated(tmp_path)}"
    else:
        url = request.getfixturevalue("postgres_url")
    made = Place(url)
    await made.hot.start()
    await made.hot.post([purchase(1_000)])
    yield made
    await made.hot.close()
    await made.database.dispose()


def state(epoch: int, phase: Phase = Phase.REGISTER) -> GuardState:
    return GuardState(epoch=epoch, phase=phase, server="s")


async def test_the_guard_changes_by_compare_and_set(place: Place) -> None:
    view = place.view
    assert await view.guard() is None
    assert not await view.change_guard(state(1), state(2))
    assert await view.change_guard(None, state(1))
    assert not await view.change_guard(None, state(5))
    assert await view.guard() == state(1)
    won = await asyncio.gather(*(view.change_guard(state(1), state(n)) for n in range(2, 8)))
    assert sum(won) == 1
    assert not await view.change_guard(state(1), state(9))


async def test_who_is_waited_for(place: Place) -> None:
    view = place.view
    async with place.database.write() as connection:
        for name, ended_at in (("a", None), ("b", None), ("dead", T0)):
            row = {"process": name, "started_at": T0, "heartbeat_at": T0, "ended_at": ended_at}
            await connection.execute(insert(processes).values(**row))
    assert sorted(await view.waiting_for(step(1, Phase.REGISTER))) == ["a", "b"]
    assert await view.note_step("a", step(1, Phase.REGISTER))
    assert not await view.note_step("nobody", step(1, Phase.REGISTER))
    assert await view.waiting_for(step(1, Phase.REGISTER)) == ["b"]
    assert sorted(await view.waiting_for(step(1, Phase.VERIFY))) == ["a", "b"]
    assert await view.note_step("b", step(2, Phase.VERIFY))
    assert await view.waiting_for(step(1, Phase.VERIFY)) == ["a"]


def test_steps_rise() -> None:
    steps = [step(epoch, phase) for epoch in (1, 2) for phase in (Phase.REGISTER, Phase.VERIFY)]
    assert steps == sorted(set(steps))
    assert step(3, Phase.OPEN) == step(3, Phase.VERIFY)


async def test_epochs_of_accounts_only_rise(place: Place) -> None:
    view = place.view
    assert await view.raise_guard_epoch(["alice", "nobody"], 3) == {"alice"}
    assert await view.raise_guard_epoch(["alice"], 3) == frozenset()
    assert await view.raise_guard_epoch(["alice"], 2) == frozenset()
    assert await view.guard_epoch("alice") == 3
    assert await view.guard_epoch("nobody") is None


async def test_suspended_accounts(place: Place) -> None:
    assert await place.view.suspended() == frozenset()
    async with place.database.write() as connection:
        await connection.execute(update(accounts).values(suspended=True))
    assert await place.view.suspended() == {"alice"}


async def test_one_at_a_time_for_each_account(place: Place) -> None:
    inside = {"alice": 0, "bob": 0}
    both = asyncio.Event()

    async def enter(account: str) -> None:
        async with place.view.account_lock(account):
            inside[account] += 1
            assert inside[account] == 1
            if all(inside.values()):
                both.set()
            await asyncio.wait_for(both.wait(), 10)  # the other account is not in the way
            inside[account] -= 1

    await asyncio.gather(*(enter(account) for account in ("alice", "bob", "alice", "alice")))


async def test_a_latecomer_waits_as_well(place: Place) -> None:
    """Whoever leaves and comes back stands in line behind who waited."""
    inside = 0

    async def enter() -> None:
        nonlocal inside
        for _ in range(3):
            async with place.view.account_lock("alice"):
                inside += 1
                await asyncio.sleep(0)
                assert inside == 1
                inside -= 1

    await asyncio.gather(*(enter() for _ in range(4)))


async def test_processes_wait_for_each_other(postgres_url: str) -> None:
    views = [SqlLedgerView(Database(postgres_url)) for _ in range(2)]
    order: list[str] = []

    async def second() -> None:
        async with views[1].account_lock("alice"):
            order.append("second")

    async with views[0].account_lock("alice"):
        waiting = asyncio.create_task(second())
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        order.append("first")
    await waiting
    assert order == ["first", "second"]
    for view in views:
        await view._database.dispose()


async def snapshot(place: Place, *, since: int = 0) -> dict[str, tuple[int, bool]]:
    found = await place.view.snapshot("alice", residuals_since=since)
    assert found is not None
    return {hold.hold_id: (hold.amount, hold.is_residual) for hold in found.holds}


async def test_an_account_with_all_that_it_owes(place: Place) -> None:
    """Ceilings are 100: an estimate of 30 leaves 70, a final of 90 after it takes 60 more."""
    ids = [new_id() for _ in range(8)]
    done, waits, guessed, half, late, aside, gone, other = ids
    await place.settled(charge(done, 40), estimate(half, 30), estimate(late, 30))
    await place.record(
        charge(waits, 55), estimate(guessed, 10), charge(late, 90), cancelled(gone),
        charge(other, 5, account="bob"),
    )  # fmt: skip
    await place.hot.quarantine(charge(aside, 25), origin="owner", reason="a test")
    assert await snapshot(place) == {
        waits: (55, False),
        guessed: (100, False),
        half: (70, True),
        late: (60, False),
        aside: (25, False),
    }
    found = await place.view.snapshot("alice", residuals_since=0)
    assert found is not None
    assert (found.balance, found.seq) == (1_000 - 40 - 30 - 30, 4)
    assert RebuiltHold(waits, 55, is_residual=False, started_at=T0) in found.holds
    assert await place.view.snapshot("nobody", residuals_since=0) is None


async def test_residuals_end_when_the_call_cannot_run_any_more(place: Place) -> None:
    half = new_id()
    await place.settled(estimate(half, 30))
    assert await snapshot(place, since=T0) == {half: (70, True)}
    assert await snapshot(place, since=T0 + 1) == {}


async def test_a_resolved_quarantine_owes_nothing(place: Place) -> None:
    await place.hot.quarantine(charge(new_id(), 25), origin="owner", reason="a test")
    async with place.database.write() as connection:
        await connection.execute(update(quarantine).values(resolved_at=T0))
    assert await snapshot(place) == {}


async def test_an_unreadable_event_is_held_as_recorded(place: Place) -> None:
    """Nobody can read its amount: what its usage row says it may cost at most stands for it."""
    known, unknown = new_id(), new_id()
    await place.record(charge(known, 25))
    async with place.database.write() as connection:
        for event_id in (known, unknown):
            row = {
                "event_id": event_id, "revision": 2, "account": "alice", "origin": "outbox",
                "reason": "a test", "payload": b"?", "created_at": T0,
            }  # fmt: skip
            await connection.execute(insert(quarantine).values(**row))
    assert await snapshot(place) == {known: (100, False)}


async def said(place: Place, *ids: str, since: int = 0) -> list[Applied]:
    return await place.view.verdicts({"alice": ids}, residuals_since=since)


async def test_verdicts(place: Place) -> None:
    ids = [new_id() for _ in range(7)]
    done, waits, half, followed, gone, aside, running = ids
    await place.settled(charge(done, 40), estimate(half, 30), estimate(followed, 30))
    await place.settled(charge(followed, 90), cancelled(gone))
    await place.record(charge(waits, 55))
    await place.hot.quarantine(charge(aside, 25), origin="owner", reason="a test")
    assert await place.view.recorded(ids) == {done, waits, half, followed, gone}
    (word,) = await said(place, *ids)
    assert word.account == "alice"
    assert (word.balance, word.seq) == (1_000 - 40 - 30 - 90, 5)
    assert sorted(word.final_ids) == sorted([done, followed, gone])
    assert word.estimates == ((half, 70),)
    (late,) = await said(place, half, since=T0 + 1)
    assert late.final_ids == (half,)
    assert await said(place, waits, aside, running) == []


async def test_an_estimate_whose_final_waits_keeps_its_residual(place: Place) -> None:
    half = new_id()
    await place.settled(estimate(half, 30))
    await place.record(charge(half, 90))
    assert await said(place, half) == []
    await place.hot.settle_pending(10)
    assert (await said(place, half))[0].final_ids == (half,)


async def test_an_estimate_taken_back(place: Place) -> None:
    """Cancelled after its estimate was settled: final once the estimate is paid back."""
    half = new_id()
    await place.settled(estimate(half, 30))
    await place.record(cancelled(half))
    assert await said(place, half) == []
    await place.hot.settle_pending(10)
    (word,) = await said(place, half)
    assert (word.final_ids, word.balance) == ((half,), 1_000)


async def test_balances(place: Place) -> None:
    assert await place.view.balances(["alice", "nobody"]) == {"alice": (1_000, 1)}
    assert await place.view.balances([]) == {}
