"""The rollup's past days are put in order: no value changes, whatever is settled meanwhile."""

import asyncio

import msgspec

from billing.settlement.rollup_order import DAY_MS, order_rollup
from tests.support.books import Books, new_id
from tests.support.money import T0, charge

ALL = "SELECT * FROM usage_quarters ORDER BY account, bucket_at"
PLACES = "SELECT account FROM usage_quarters WHERE bucket_at < :before ORDER BY ctid"


async def call(books: Books, account: str, days_ago: int, minutes: int = 0) -> None:
    finish = charge(new_id(), 7, account=account)
    context = msgspec.structs.replace(
        finish.event.context, started_at=T0 - days_ago * DAY_MS + minutes * 60_000
    )
    event = msgspec.structs.replace(finish.event, context=context)
    await books.hot.record(msgspec.structs.replace(finish, event=event))
    await books.hot.settle_pending(10)


async def test_days_that_are_over_are_ordered_once(books: Books) -> None:
    for days_ago in (9, 5, 1):
        for account in ("c", "a", "b"):
            for minutes in (0, 20):
                await call(books, account, days_ago, minutes)
    before = await books.rows(ALL)
    ordered = 0 if books.on_sqlite else 2
    assert await order_rollup(books.database, T0) == ordered
    assert await order_rollup(books.database, T0) == 0
    assert await books.rows(ALL) == before
    if not books.on_sqlite:
        places = [row[0] for row in await books.rows(PLACES, before=T0 - 2 * DAY_MS)]
        assert places == ["a", "a", "b", "b", "c", "c"] * 2
    assert await books.wrong() == {}


async def test_a_late_charge_adds_to_a_day_that_is_ordered(books: Books) -> None:
    await call(books, "alice", 5)
    await order_rollup(books.database, T0)
    await call(books, "alice", 5)
    assert [row[-3:] for row in await books.rows(ALL)] == [(14, 2, 0)]


async def test_ordering_repairing_and_settling_lose_nothing(books: Books) -> None:
    for minutes in range(0, 300, 15):
        await call(books, "alice", 5, minutes)

    async def late() -> None:
        for minutes in range(0, 300, 15):
            await call(books, "alice", 5, minutes)

    async def again() -> None:
        for _ in range(10):
            await books.change("DELETE FROM meta WHERE key = 'rollup_ordered_to'")
            await order_rollup(books.database, T0)

    await asyncio.gather(late(), again(), books.reconciler.repair())
    rows = await books.rows(ALL)
    assert [row[-3:] for row in rows] == [(14, 2, 0)] * 20
    assert await books.wrong() == {}
