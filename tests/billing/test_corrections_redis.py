"""Debits while holds live in Redis: no process admits on a balance from before the debit."""

import asyncio
from pathlib import Path

import pytest

from billing.corrections import Adjustment, Corrections, CreditSpentError, OrderRefund
from billing.failpoints import hooks
from billing.holds import Refused
from billing.holds.redis import RedisHoldStore
from billing.holds.redis_view import RedisView
from billing.shop.orders import NewOrder, Orders
from billing.shop.postings import OnPosted
from billing.shop.products import NewProduct, Products
from llm_gateway import clock
from tests.support.money import hold, new_id
from tests.support.redis_guard import Guards, guards, held, until_open
from tests.support.redis_server import RedisServer
from tests.support.shop import Gone, end


def corrections(money: Guards, on_posted: OnPosted | None = None) -> Corrections:
    return Corrections(
        money.database,
        money.hot,
        holds=money.store,
        process=lambda: money.store.process,
        now_ms=lambda: money.now,
        new_id=clock.new_event_id,
        on_posted=on_posted,
    )


async def take(desk: Corrections, amount: int) -> None:
    asked = Adjustment(account="alice", amount=-amount, reason="r", idempotency_key="k")
    await desk.adjust(asked, actor="ops")


async def available(money: Guards, store: RedisHoldStore | None = None) -> int:
    """What the next call could hold, by Redis."""
    answer = await (store or money.store).reserve(hold(new_id(), minimum=10**9, wanted=10**9))
    assert isinstance(answer, Refused), "nobody has that much"
    return answer.balance - answer.held


async def check(money: Guards) -> None:
    """Redis says what the ledger says (R6)."""
    view = RedisView(money.store, money.database, now_ms=lambda: money.now, call_seconds_max=3600)
    audit = await view.audit()
    assert audit.count == 0, audit


async def test_an_adjustment_is_seen_by_all_and_leaves_no_hold(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        running = await money.reserve(800)
        await take(corrections(money, money.store.refresh), 300)
        assert await held(redis) == {running: 800}
        for store in money.stores:
            assert await available(money, store) == -100
        await check(money)


async def test_nobody_admits_on_the_balance_from_before(redis: RedisServer, tmp_path: Path) -> None:
    """1,000, of which 300 are taken by a process that dies before Redis hears of it: 700 are left."""
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        assert await available(money) == 1_000
        for point in ("correction_held", "correction_posted"):
            hooks[point] = end
            try:
                with pytest.raises(Gone):
                    await take(corrections(money), 300)
            finally:
                hooks.clear()
            assert await available(money, money.stores[1]) == 700
        assert await corrections(money).resume() == 1
        assert await held(redis) == {}
        assert await available(money, money.stores[1]) == 700
        await check(money)


async def test_an_order_refund_takes_what_no_call_holds(redis: RedisServer, tmp_path: Path) -> None:
    """1,000 bought, 800 held by another process: 200, and then nothing."""
    async with guards(redis, tmp_path, stores=2) as money:

        def now() -> int:
            return money.now

        products = Products(money.database, now_ms=now, new_id=clock.new_event_id)
        product = await products.create(
            NewProduct(sku="s", name="n", credit_amount=1_000, price_cent=1, currency="USD"),
            actor="ops",
        )
        orders = Orders(
            money.database,
            money.hot,
            now_ms=now,
            new_id=clock.new_event_id,
            on_posted=money.store.refresh,
        )
        new = NewOrder(account="alice", product_id=product.product_id)
        order_id = (await orders.create(new)).order.order_id
        await orders.pay(order_id, paid_by="ops")
        running = await money.reserve(800, store=money.stores[1])
        desk = corrections(money, money.store.refresh)
        done = await desk.refund_order(OrderRefund(order_id=order_id, reason="r"), actor="ops")
        assert done.entry.amount == -200
        with pytest.raises(CreditSpentError):
            await desk.refund_order(OrderRefund(order_id=order_id, reason="r"), actor="ops")
        assert await held(redis) == {running: 800}
        assert await available(money) == 0


async def test_a_hold_waits_for_redis_to_hear_of_its_debit(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    """Redis dies between debit and release: the debit stands; back and empty, it holds the truth."""
    async with guards(own_redis, tmp_path) as money:
        await money.buy(1_000)
        hooks["correction_posted"] = own_redis.kill
        try:
            await take(corrections(money, money.store.refresh), 300)
        finally:
            hooks.clear()
        own_redis.start()
        await until_open(money.store)
        async with asyncio.timeout(20):
            while await held_or_none(own_redis) or await available(money) != 700:
                await asyncio.sleep(0.05)
        await check(money)


@pytest.mark.parametrize("point", ["correction_held", "correction_posted"])
async def test_what_holds_for_a_correction_is_taken_for_no_call(
    redis: RedisServer, tmp_path: Path, point: str
) -> None:
    """Its process dies; a sweeper comes by; once it is posted, Redis lets go of its hold by itself."""
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        hooks[point] = end
        try:
            with pytest.raises(Gone):
                await take(corrections(money, money.store.refresh), 300)
        finally:
            hooks.clear()
        (correction_hold,) = await held(redis)
        other = money.stores[1]
        assert await other.held_by_others(frozenset(), 10) == []
        money.now += 6_000
        assert await other.resend() == 0
        assert await held(redis) == {correction_hold: 300}
        await money.execute("UPDATE corrections SET posted_at = 1")
        assert await other.resend() == 1
        assert await held(redis) == {}


async def test_a_suspended_account_pays_what_is_taken_back(
    redis: RedisServer, tmp_path: Path
) -> None:
    """And holds it meanwhile, like any other."""
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.execute("UPDATE accounts SET suspended = TRUE")
        money.store._recovery.suspended = await money.ledger.suspended()
        refused = await money.store.reserve(hold(new_id(), minimum=1, wanted=1))
        assert isinstance(refused, Refused)
        hooks["correction_held"] = end
        try:
            with pytest.raises(Gone):
                await take(corrections(money, money.store.refresh), 300)
        finally:
            hooks.clear()
        assert list((await held(redis)).values()) == [300]
        assert await corrections(money, money.store.refresh).resume() == 1
        assert await held(redis) == {}
        await check(money)


async def held_or_none(server: RedisServer) -> dict[str, int]:
    return await held(server) if await server.ask("DBSIZE") else {}
