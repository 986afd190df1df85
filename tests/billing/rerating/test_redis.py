"""Re-rating while holds live in Redis: no process admits on a balance from before a debit."""

from pathlib import Path

import msgspec
import pytest

from billing.books import PriceBooks
from billing.failpoints import hooks
from billing.holds import Refused
from billing.holds.redis import RedisHoldStore
from billing.holds.redis_view import RedisView
from billing.rerating.runs import Runs
from llm_gateway import clock
from tests.support.money import T0, charge, hold, new_id
from tests.support.redis_guard import Guards, guards, held
from tests.support.redis_server import RedisServer
from tests.support.rerating import CHEAPER, DEARER, DEARER_BOOK, OLD, OLD_BOOK, WINDOW, run_asked
from tests.support.shop import Gone, end

CALLS = 4


async def ready(money: Guards) -> None:
    """1,000, of which four calls of 35 were charged by OLD: 860 are left."""
    books = PriceBooks(money.database, now_ms=lambda: money.now, monotonic=lambda: 0.0)
    for text in (OLD, DEARER, CHEAPER):
        await books.upload(text, actor="test")
    await money.buy(1_000)
    for _ in range(CALLS):
        finish = charge(clock.new_event_id(T0), 35)
        context = msgspec.structs.replace(finish.event.context, started_at=T0)
        event = msgspec.structs.replace(finish.event, context=context)
        await money.hot.record(msgspec.structs.replace(finish, event=event))
    report = await money.hot.settle_pending(10)
    await money.store.apply(report.applied)
    money.now = WINDOW.to_at


def runs(money: Guards) -> Runs:
    return Runs(
        money.database,
        money.hot,
        PriceBooks(money.database, now_ms=lambda: money.now, monotonic=lambda: 0.0),
        holds=money.store,
        process=lambda: money.store.process,
        now_ms=lambda: money.now,
        new_id=clock.new_event_id,
        on_posted=money.store.refresh,
        calls_at_once=3,
    )


async def available(money: Guards, store: RedisHoldStore) -> int:
    """What the next call could hold, by Redis."""
    answer = await store.reserve(hold(new_id(), minimum=10**9, wanted=10**9))
    assert isinstance(answer, Refused), "nobody has that much"
    return answer.balance - answer.held


async def check(money: Guards) -> None:
    """Redis says what the ledger says (R6)."""
    view = RedisView(money.store, money.database, now_ms=lambda: money.now, call_seconds_max=3600)
    audit = await view.audit()
    assert audit.count == 0, audit


async def test_a_run_is_seen_by_all_and_leaves_no_hold(redis: RedisServer, tmp_path: Path) -> None:
    """Ten more of each call, then all of it back."""
    async with guards(redis, tmp_path, stores=2) as money:
        await ready(money)
        for version, left in ((DEARER_BOOK, 820), (OLD_BOOK, 860)):
            await runs(money).start(run_asked(version), actor="ops")
            await runs(money).carry_on()
            assert await held(redis) == {}
            for store in money.stores:
                assert await available(money, store) == left
            await check(money)


@pytest.mark.parametrize("point", ["rerating_held", "rerating_posted"])
async def test_nobody_admits_on_the_balance_from_before(
    redis: RedisServer, tmp_path: Path, point: str
) -> None:
    """A page of three debits of 10 is held, and its process dies: 830 are left for others."""
    async with guards(redis, tmp_path, stores=2) as money:
        await ready(money)
        await runs(money).start(run_asked(DEARER_BOOK), actor="ops")
        hooks[point] = end
        try:
            with pytest.raises(Gone):
                await runs(money).carry_on()
        finally:
            hooks.clear()
        assert await available(money, money.stores[1]) == 830
        await runs(money).carry_on()
        assert await held(redis) == {}
        assert await available(money, money.stores[1]) == 820
        await check(money)
