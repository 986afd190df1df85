"""Past days are folded, and nothing that is settled late, meanwhile or afterwards is missing from them."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

import msgspec
import pytest
from sqlalchemy import Connection, event, text

from billing import failpoints
from billing.db import migrate
from billing.db.invariants import DAY_MS, QUARTER_MS
from billing.db.postgres import PostgresHotDatabase
from billing.events import Finish
from billing.rollups import foldable_before, late_before
from billing.settlement.day_fold import Fold, fold_days, fold_in
from billing.shop.consumption import Consumption, Question, consumption
from billing.shop.periods import Period
from llm_gateway import clock
from tests.support.books import Books
from tests.support.money import T0, cancelled, charge, estimate
from tests.support.shop import Gone, end

TODAY = T0 - T0 % DAY_MS
MARKS = "SELECT account, day_at, whole FROM folded_days ORDER BY account, day_at"
DAYS = (
    "SELECT account, bucket_at, amount, calls, errors FROM usage_days ORDER BY account, bucket_at"
)


Make = Callable[[str], Finish]
Late = Callable[[Books], Coroutine[None, None, None]]


def ago(days: int, minutes: int, make: Make, event_id: str = "") -> Finish:
    """A call that began so many days ago, so many minutes after midnight."""
    started_at = TODAY - days * DAY_MS + minutes * 60_000
    finish = make(event_id or clock.new_event_id(started_at))
    context = msgspec.structs.replace(finish.event.context, started_at=started_at)
    said = msgspec.structs.replace(finish.event, context=context)
    return msgspec.structs.replace(finish, event=said)


def costs(amount: int, account: str = "alice") -> Make:
    return lambda event_id: charge(event_id, amount, account=account)


def guessed(amount: int) -> Make:
    return lambda event_id: estimate(event_id, amount)


def nothing(account: str = "alice") -> Make:
    return lambda event_id: cancelled(event_id, account=account, reason="upstream_error")


async def call(books: Books, account: str, days: int, minutes: int = 0, amount: int = 7) -> None:
    await books.hot.record(ago(days, minutes, costs(amount, account)))
    await books.hot.settle_pending(10)


async def in_time(books: Books) -> None:
    """As if all calls so far had been settled when they were made."""
    await books.change("DELETE FROM folded_days")


async def fold(books: Books, *, folds: int = 100) -> int:
    return await fold_days(books.database, T0, folds=folds, rows_min=1)


async def told(books: Books, account: str = "alice") -> Consumption:
    question = Question(account=account, period=Period.ALL)
    return await consumption(books.database, question, T0)


async def test_days_that_are_long_over_are_folded_once(books: Books) -> None:
    for days in (90, 40, 3, 2, 1, 0):
        for account in ("alice", "bob"):
            for minutes in (0, 20, 24 * 60 - 1):
                await call(books, account, days, minutes)
    await in_time(books)
    before = await told(books)
    assert await fold(books) == 6
    assert await fold(books) == 0
    begins = [TODAY - days * DAY_MS for days in (90, 40, 3)]
    assert await books.rows(MARKS) == [
        (account, day, True) for account in ("alice", "bob") for day in begins
    ]
    assert await books.rows(DAYS) == [
        (account, day, 21, 3, 0) for account in ("alice", "bob") for day in begins
    ]
    assert await told(books) == before
    assert await books.wrong() == {}


async def test_a_run_is_bounded_and_the_next_goes_on(books: Books) -> None:
    """Two accounts in three windows of 32 days: six folds."""
    for days in (90, 89, 50, 10):
        for account in ("alice", "bob"):
            await call(books, account, days)
    await in_time(books)
    folded = [await fold(books, folds=2) for _ in range(4)]
    assert folded == [4, 2, 2, 0]


async def test_small_days_are_left_alone(books: Books) -> None:
    for quarter in range(31):
        await call(books, "alice", 9, 15 * quarter)
        await call(books, "bob", 9, 15 * quarter)
    await call(books, "bob", 9, 15 * 31)
    await in_time(books)
    assert await fold_days(books.database, T0) == 1
    assert [row[0] for row in await books.rows(MARKS)] == ["bob"]
    # Something late makes no small day large enough, and it is forgotten.
    await call(books, "alice", 9)
    assert ("alice", TODAY - 9 * DAY_MS, False) in await books.rows(MARKS)
    assert await fold_days(books.database, T0) == 0
    assert [row[0] for row in await books.rows(MARKS)] == ["bob"]


async def late_charge(books: Books) -> None:
    await call(books, "alice", 5, 30, amount=11)


async def late_cancellation(books: Books) -> None:
    await books.hot.cancel(ago(5, 30, nothing()))


async def folded_estimate(books: Books) -> str:
    """Of a call of the fifth day before today."""
    finish = ago(5, 30, guessed(20))
    await books.hot.record(finish)
    await books.hot.settle_pending(10)
    await fold(books)
    return finish.event.context.event_id


async def late_final(books: Books) -> None:
    event_id = await folded_estimate(books)
    await books.hot.record(ago(5, 30, costs(6), event_id))
    await books.hot.settle_pending(10)


async def late_taking_back(books: Books) -> None:
    event_id = await folded_estimate(books)
    await books.hot.cancel(ago(5, 30, nothing(), event_id))
    await books.hot.settle_pending(10)


async def late_final_of_another_day(books: Books) -> None:
    """The estimate of a folded day is taken back by a final that counts today."""
    event_id = await folded_estimate(books)
    await books.hot.record(ago(0, 0, costs(6), event_id))
    await books.hot.settle_pending(10)


LATE: list[Late] = [
    late_charge, late_cancellation, late_final, late_taking_back, late_final_of_another_day,
]  # fmt: skip


@pytest.mark.parametrize("late", LATE)
async def test_what_comes_late_counts_at_once_and_is_folded_again(books: Books, late: Late) -> None:
    for minutes in (0, 20):
        await call(books, "alice", 5, minutes)
    await fold(books)
    await late(books)
    assert await books.rows(MARKS) == [("alice", TODAY - 5 * DAY_MS, False)]
    await unfolded_is_the_same(books)
    assert await fold(books) == 1
    assert await books.rows(MARKS) == [("alice", TODAY - 5 * DAY_MS, True)]
    await unfolded_is_the_same(books)


async def unfolded_is_the_same(books: Books) -> None:
    answer = await told(books)
    marks = await books.rows(MARKS)
    await books.change("UPDATE folded_days SET whole = false")
    assert await told(books) == answer
    for account, day, whole in marks:
        await books.change(
            "UPDATE folded_days SET whole = :whole WHERE account = :account AND day_at = :day",
            account=account, day=day, whole=whole,
        )  # fmt: skip
    assert await books.wrong() == {}


async def test_ordinary_calls_write_no_marks(books: Books) -> None:
    for days in (0, 1):
        await call(books, "alice", days)
        await books.hot.cancel(ago(days, 0, nothing("bob")))
    assert await books.rows(MARKS) == []


@pytest.mark.parametrize("hours", [0, 1, 11, 23])
@pytest.mark.parametrize("behind", [-24, -5, 0, 5, 24])
def test_clocks_may_differ_by_a_day(hours: int, behind: int) -> None:
    """No day is foldable for one process and not late for another."""
    now = TODAY + hours * 3_600_000
    assert foldable_before(now) <= late_before(now - behind * 3_600_000)


async def test_a_fold_that_is_killed_leaves_nothing(books: Books) -> None:
    for days in (90, 5):
        await call(books, "alice", days)
    await in_time(books)
    before = await told(books)
    failpoints.hooks["days_folded_uncommitted"] = end
    try:
        with pytest.raises(Gone):
            await fold(books)
    finally:
        failpoints.hooks.clear()
    assert await books.rows(MARKS) == []
    assert await told(books) == before
    assert await fold(books) == 2
    assert await told(books) == before


async def test_folds_at_once_come_to_the_same(books: Books) -> None:
    for days in (70, 50, 5):
        for account in ("alice", "bob"):
            await call(books, account, days)
    await in_time(books)
    await asyncio.gather(*(fold(books) for _ in range(4)))
    assert await books.rows(DAYS) == [
        (account, TODAY - days * DAY_MS, 7, 1, 0)
        for account in ("alice", "bob")
        for days in (70, 50, 5)
    ]
    assert await books.wrong() == {}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE usage_days SET amount = amount + 1",
        "UPDATE usage_days SET model = 'other'",
        "DELETE FROM usage_days",
        "DELETE FROM usage_quarters WHERE bucket_at < :quarter",
    ],
)
async def test_a_folded_day_that_differs_is_found_and_folded_again(
    books: Books, damage: str
) -> None:
    for minutes in (0, 20):
        await call(books, "alice", 5, minutes)
    before = await told(books)
    await fold(books)
    quarter = {"quarter": TODAY - 5 * DAY_MS + QUARTER_MS} if ":quarter" in damage else {}
    await books.change(damage, **quarter)
    assert await books.wrong() == {"R7": ["alice"] * len((await books.wrong())["R7"])}
    assert (await books.reconciler.repair()).rollup_groups == 1
    assert await books.wrong() == {}
    assert await told(books) == before
    await fold(books)
    assert await told(books) == before
    assert await books.wrong() == {}


async def test_a_wrong_quarter_that_was_folded_is_repaired_with_its_day(books: Books) -> None:
    for minutes in (0, 20):
        await call(books, "alice", 5, minutes)
    before = await told(books)
    await books.change("DELETE FROM usage_quarters WHERE bucket_at % :day = 0", day=DAY_MS)
    await fold(books)
    assert (await told(books)).totals.amount == 7
    assert (await books.reconciler.repair()).rollup_groups == 2  # a group, and its day
    assert await told(books) == before
    assert await fold(books) == 1
    assert await told(books) == before


async def test_all_that_is_derived_can_be_wiped(books: Books) -> None:
    for days in (40, 5, 0):
        await call(books, "alice", days)
    before = await told(books)
    await fold(books)
    await books.change(
        "DELETE FROM folded_days", "DELETE FROM usage_days", "DELETE FROM usage_quarters",
    )  # fmt: skip
    assert (await books.reconciler.repair()).rollup_groups == 3
    assert await told(books) == before
    assert await fold(books) == 2
    assert await told(books) == before


# --- at the same time, on PostgreSQL --------------------------------------------------------------

WAITING = (
    "SELECT COUNT(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database OR l.database IS NULL"
    " WHERE NOT l.granted AND d.datname = current_database()"
)
UNFOLD = (
    "INSERT INTO folded_days VALUES ('alice', :day, false)"
    " ON CONFLICT (account, day_at) DO UPDATE SET whole = false"
)


@contextmanager
def only_on_postgresql(books: Books) -> Iterator[None]:
    if books.on_sqlite:
        pytest.skip("SQLite has one writer at a time")
    yield


async def waits(books: Books, task: "asyncio.Task[object]") -> None:
    """Until somebody waits for a lock that the test holds."""
    async with asyncio.timeout(20):
        while (await books.rows(WAITING))[0][0] == 0:
            assert not task.done()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("late", [late_charge, late_cancellation])
@pytest.mark.parametrize("folded_before", [False, True])
async def test_what_comes_late_waits_for_a_fold_in_flight(
    books: Books, late: Late, *, folded_before: bool
) -> None:
    with only_on_postgresql(books):
        await call(books, "alice", 5)
        if folded_before:
            await fold(books)
        async with books.database.write() as connection:
            await fold_in(connection, Fold(account="alice", days=(TODAY - 5 * DAY_MS,)))
            settling = asyncio.create_task(late(books))
            await waits(books, settling)
        await settling
        assert await books.rows(MARKS) == [("alice", TODAY - 5 * DAY_MS, False)]
        assert (await told(books)).totals.calls == 2
        await unfolded_is_the_same(books)


async def fold_beside_a_late_call(books: Books) -> "asyncio.Task[int]":
    """A fold that waits for another process, which has settled a late call; it commits at the end."""
    async with books.database.write() as connection:
        for statement in (
            UNFOLD,
            "UPDATE usage_quarters SET calls = calls + 1 WHERE bucket_at = :day",
        ):
            await connection.execute(text(statement), {"day": TODAY - 5 * DAY_MS})
        folding = asyncio.create_task(fold(books))
        await waits(books, folding)
    return folding


async def test_a_fold_waits_for_what_comes_late(books: Books) -> None:
    with only_on_postgresql(books):
        await call(books, "alice", 5)
        assert await (await fold_beside_a_late_call(books)) == 1
        assert [row[3] for row in await books.rows(DAYS)] == [2]
        assert (await told(books)).totals.calls == 2


async def test_a_fold_waits_for_a_repair(books: Books) -> None:
    """The repair has not committed what the day lacks when the fold begins."""
    with only_on_postgresql(books):
        for minutes in (0, 20):
            await call(books, "alice", 5, minutes)
        before = await told(books)
        await books.change("DELETE FROM usage_quarters WHERE bucket_at % :day = 0", day=DAY_MS)
        async with books.database.write() as connection:
            await fold_in(connection, Fold(account="alice", days=(TODAY - 5 * DAY_MS,)))
            repairing = asyncio.create_task(books.reconciler.repair_rollup())
            await waits(books, repairing)
        assert await repairing == 2
        assert await told(books) == before


async def test_an_answer_is_of_one_moment(books: Books) -> None:
    """While it is asked for, an estimate of a folded day gives way to a final that counts today."""
    await call(books, "alice", 5, amount=20)
    await fold(books)
    moved = (
        UNFOLD,
        "UPDATE usage_quarters SET bucket_at = :today, amount = 6 WHERE bucket_at = :day",
    )

    def move(connection: Connection) -> None:
        with connection.begin():
            for statement in moved:
                values = {"day": TODAY - 5 * DAY_MS, "today": TODAY}
                used = {name: value for name, value in values.items() if f":{name}" in statement}
                connection.execute(text(statement), used)

    asked: list[str] = []

    def meanwhile(*given: object) -> None:
        statement = str(given[2])
        if "usage_days" in statement and not asked:
            asked.append(statement)
            migrate.run_sync(books.database.url, move)

    engine = books.database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", meanwhile)
    totals = (await told(books)).totals
    assert len(asked) == 1
    assert (totals.amount, totals.calls) == (20, 1)
    totals = (await told(books)).totals
    assert (totals.amount, totals.calls) == (6, 1)


async def test_folding_settling_repairing_and_asking_at_once(books: Books) -> None:
    """No answer lacks what was settled before it was asked, or has what was not settled after it."""
    rival = None if books.on_sqlite else PostgresHotDatabase(books.database.url, clock=lambda: T0)
    if rival is not None:
        await rival.start()
    settled = 0
    begun = 0

    async def late(hot: object, days: int) -> None:
        nonlocal settled, begun
        assert hot is not None
        for number in range(20):
            begun += 1
            chosen = rival if rival is not None and number % 2 else books.hot
            if number % 3:
                await chosen.record(ago(days, number, costs(1)))
                while (await chosen.settle_pending(10)).remaining:
                    pass
            else:
                await chosen.cancel(ago(days, number, nothing()))
            settled += 1

    async def folding() -> None:
        for _ in range(25):
            await fold(books)

    async def asking() -> None:
        for _ in range(40):
            least = settled
            calls = (await told(books)).totals.calls
            # A rival may have claimed what this one recorded: it is settled a little later.
            assert least - 4 <= calls <= begun + 4

    try:
        await asyncio.gather(
            late(books.hot, 5), late(books.hot, 5), late(books.hot, 6), folding(), folding(),
            asking(), books.reconciler.repair_rollup(),
        )  # fmt: skip
    finally:
        if rival is not None:
            await rival.close()
    await books.hot.settle_pending(100)
    assert (await told(books)).totals.calls == 60
    assert await books.wrong() == {}
    await unfolded_is_the_same(books)
    await fold(books)
    assert {row[2] for row in await books.rows(MARKS)} == {True}
    await unfolded_is_the_same(books)
