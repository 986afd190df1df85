"""An operator's look at Redis: what is held there, whether it fits the ledger, and acts upon it."""

from pathlib import Path

import pytest

from billing.holds import GuardUnavailableError
from billing.holds.redis_connection import RedisUnavailableError, parse_address
from billing.holds.redis_view import RedisReader, RedisView
from billing.holds.scripts import keys_of
from billing.lists import PageRequest
from billing.settlement.desk import ActRefusedError, Desk
from billing.settlement.late_finals import LOST_SPOOL_MS
from billing.settlement.reconcile import Reconciler
from tests.support.money import T0, charge, estimate, new_id
from tests.support.redis_guard import Guards, guards, held
from tests.support.redis_server import RedisServer


def view_of(money: Guards) -> RedisView:
    return RedisView(money.store, money.database, now_ms=lambda: money.now, call_seconds_max=3600)


async def test_holds_are_listed_and_shown(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.buy(1_000, account="bob")
        first = await money.reserve(300)
        other = await money.reserve(5, account="bob")
        view = view_of(money)
        page = await view.page(PageRequest(page_size=1))
        assert (page.total, len(page.items), page.has_more) == (2, 1, True)
        mine = await view.page(PageRequest(), account="alice")
        assert [(hold.hold_id, hold.amount, hold.state) for hold in mine.items] == [
            (first, 300, "live")
        ]
        assert (await view.page(PageRequest(), account="nobody")).total == 0
        stored = await view.get(other)
        assert stored is not None
        assert (stored.hold.account, stored.hold.process) == ("bob", money.store.process)
        assert other.encode() in stored.context
        assert await view.get(new_id()) is None


async def test_what_fits_the_ledger_is_no_violation(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(300)
        ended = await money.reserve(200)
        await money.finish(charge(ended, 50))
        for step in (money.settle, None):
            assert (await view_of(money).audit()).count == 0
            if step:
                await step()


async def test_what_does_not_fit_is_named(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        running = await money.reserve(300)
        name, _ = keys_of("alice")
        await redis.ask("HINCRBY", name, "held", 1)
        await redis.ask("HINCRBY", name, "balance", 7)
        found = await view_of(money).audit()
        assert [violation.what for violation in found.examples] == [
            "held 301 in Redis, holds 300",
            "1007 at 1 in Redis, 1000 at 1 in the ledger",
        ]
        money.now = T0 + 3_900_001
        assert running in {violation.id for violation in (await view_of(money).audit()).examples}


async def test_credit_that_is_held_for_no_call_is_named(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        name, _ = keys_of("alice")
        ended = await money.reserve(300)
        await money.finish(charge(ended, 50))
        await money.settle()
        await redis.ask("HINCRBY", name, "held", 500)
        found = await view_of(money).audit()
        assert [(violation.id, violation.what) for violation in found.examples] == [
            ("alice", "held 500 in Redis, holds 0")
        ]


async def test_a_hold_that_nobody_was_told_of_is_named(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        ended = await money.reserve(200)
        await money.hot.record(charge(ended, 50))
        await money.settle(tell=False)
        assert (await view_of(money).audit()).count == 0
        money.now = T0 + 80_000
        reconciler = Reconciler(money.database, now_ms=lambda: money.now, guard=view_of(money))
        report = await reconciler.run()
        assert {
            finding.check: [example.id for example in finding.examples]
            for finding in report.findings
            if not finding.ok
        } == {"R6": [ended]}


async def test_credit_is_what_a_call_would_be_judged_by(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        view = view_of(money)
        assert await view.credit("nobody") == (0, 0)
        await money.buy(1_000)
        # Not in Redis yet: as it would be brought in, with what is charged and not yet posted.
        await money.hot.record(charge(new_id(), 70))
        assert await view.credit("alice") == (1_000, 70)
        await money.reserve(300)
        assert await view.credit("alice") == (1_000, 370)
        await money.settle()
        assert await view.credit("alice") == (930, 300)
        refused = await money.refusal(701)
        assert (refused.balance, refused.held) == (930, 300)


async def test_credit_of_before_a_loss_is_not_believed(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(300)
        name, _ = keys_of("alice")
        await redis.ask("HSET", name, "epoch", 999, "balance", 5_000)
        balance, _ = await view_of(money).credit("alice")
        assert balance == 1_000


async def test_redis_that_is_away_is_said(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.store.close()
        with pytest.raises(GuardUnavailableError):
            await view_of(money).audit()
        with pytest.raises(GuardUnavailableError):
            await view_of(money).credit("alice")


async def test_a_hold_in_redis_is_released_once_its_process_is_dead(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        other = money.stores[1]
        hold_id = await money.reserve(300, store=other)
        desk = Desk(
            money.database,
            money.store,
            now_ms=lambda: money.now,
            is_own=lambda process: process == money.store.process,
            shelf=view_of(money),
            guard=view_of(money),
        )
        with pytest.raises(ActRefusedError, match="lives"):
            await desk.release_hold(hold_id, "stuck", actor="eve")
        await money.declare_dead(other)
        await money.kill(other)
        released = await desk.release_hold(hold_id, "stuck", actor="eve")
        assert (released.cancelled, released.repeated) == (True, False)
        assert await held(redis) == {}
        assert (await desk.release_hold(hold_id, "stuck", actor="eve")).repeated


async def test_all_that_is_held_is_summed(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        for account, amount in (("alice", 300), ("bob", 5)):
            await money.buy(1_000, account=account)
            await money.reserve(amount, account=account)
        await money.reserve(20)
        assert await view_of(money).held() == 325


async def test_a_hold_that_a_dead_process_left_uncharged_is_named(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        left = await money.reserve(300, store=money.stores[1])
        estimated = await money.reserve(100, store=money.stores[1])
        await money.declare_dead(money.stores[1])
        await money.hot.record(estimate(estimated, 30))
        await money.settle()
        assert (await view_of(money).audit()).count == 0
        money.now += 60_001
        found = await view_of(money).audit()
        assert [(violation.id, violation.what) for violation in found.examples] == [
            (left, "held for a process that is gone, and not charged")
        ]


async def test_a_residual_may_wait_for_a_lost_spool(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(100)
        await money.hot.record(estimate(kept, 30))
        await money.settle()
        for age, count in ((3_900_001, 0), (3_900_001 + LOST_SPOOL_MS, 1)):
            money.now = T0 + age
            assert (await view_of(money).audit()).count == count


async def test_somebody_who_takes_no_part_sees_the_same(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(300)
        await redis.ask("HINCRBY", keys_of("alice")[0], "held", 1)
        reader = RedisReader(parse_address(redis.url))
        view = RedisView(reader, money.database, now_ms=lambda: money.now, call_seconds_max=3600)
        assert await view.audit() == await view_of(money).audit()
        assert (await view.audit()).count == 1
        with pytest.raises(RedisUnavailableError):
            await view.rebuild("not from here")
        await reader.close()


async def test_a_reader_of_a_redis_that_is_away_says_so(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(own_redis, tmp_path) as money:
        reader = RedisReader(parse_address(own_redis.url))
        own_redis.kill()
        view = RedisView(reader, money.database, now_ms=lambda: money.now, call_seconds_max=3600)
        with pytest.raises(GuardUnavailableError):
            await view.audit()
