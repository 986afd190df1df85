"""Holds in Redis while all is well: grants, clamps, refusals, extensions, settlement, sweeping."""

from pathlib import Path

import pytest
from sqlalchemy import delete, insert, update

from billing.context import decode_context
from billing.db.tables import accounts, meta
from billing.holds import Applied, Granted, GuardUnavailableError, HoldBeat, Refused
from billing.holds.redis import RedisHoldStore
from billing.holds.scripts import MAX_EXACT, SOURCES, Script, keys_of
from billing.ledger import Entry, Posted
from billing.settlement.late_finals import FINALS_KEY, LOST_SPOOL_MS, MARGIN_MS
from tests.support.money import T0, cancelled, charge, estimate, hold, new_id
from tests.support.redis_guard import Guards, guards, held
from tests.support.redis_server import RedisServer


async def test_a_grant_is_clamped_to_what_is_there(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        whole = await money.reserve(600)
        part = new_id()
        answer = await money.store.reserve(hold(part, minimum=100, wanted=600))
        assert answer == Granted(400)
        assert await held(redis) == {whole: 600, part: 400}


async def test_what_stands_in_the_way_is_said(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(600)
        assert await money.refusal(401) == Refused(
            reason="held", balance=1_000, held=600, needed=401
        )
        assert await money.refusal(1_001) == Refused(
            reason="insufficient", balance=1_000, held=600, needed=1_001
        )
        assert await money.refusal(1, account="nobody") == Refused(
            reason="insufficient", balance=0, held=0, needed=1
        )


async def test_a_free_call_needs_neither_balance_nor_account(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        assert await money.store.reserve(
            hold(new_id(), account="nobody", minimum=0, wanted=0)
        ) == Granted(0)
        assert await redis.ask("DBSIZE") == 0


async def test_every_call_keeps_its_context(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        kept = await money.reserve(300)
        await money.store.heartbeat([HoldBeat(kept, 300, 70)])
        (orphan,) = await money.stores[1].held_by_others({money.stores[1].process}, 10)
        assert (orphan.hold_id, orphan.amount, orphan.progress) == (kept, 300, 70)
        assert decode_context(orphan.context).event_id == kept
        assert orphan.process == money.store.process


@pytest.mark.parametrize("account", ["}", "{}", "a}b{c%25", "用户", "a b", "%7B"])
async def test_an_account_may_be_called_anything(
    redis: RedisServer, tmp_path: Path, account: str
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000, account=account)
        kept = await money.reserve(300, account=account)
        (found,) = await money.store.held_by_others(frozenset(), 10)
        assert (found.account, found.hold_id) == (account, kept)
        await money.finish(charge(kept, 250, account=account))
        await money.settle()
        assert (await money.refusal(751, account=account)).balance == 750


async def test_extending_is_whole_or_not_at_all(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(300)
        assert await money.store.extend(kept, 500) == Granted(500)
        assert await money.store.extend(kept, 400) == Granted(500)  # never lower
        assert await money.store.extend(kept, 1_001) == Refused(
            reason="held", balance=1_000, held=500, needed=501
        )
        assert await money.store.extend(kept, 1_601) == Refused(
            reason="insufficient", balance=1_000, held=500, needed=1_101
        )
        assert await money.store.extend(kept, 1_000) == Granted(1_000)
        assert await held(redis) == {kept: 1_000}
        unknown = await money.store.extend(new_id(), 5)
        assert unknown == Refused(reason="insufficient", balance=0, held=0, needed=5)


async def test_a_settled_hold_cannot_grow(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(300)
        await money.hot.record(charge(kept, 100))
        await money.settle()
        assert isinstance(await money.store.extend(kept, 500), Refused)
        assert await held(redis) == {}


async def test_a_late_heartbeat_does_not_bring_a_hold_back(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept, other = await money.reserve(300), await money.reserve(200)
        await money.hot.record(charge(kept, 100))  # the process has not heard of it yet
        await money.settle()
        await money.store.heartbeat([HoldBeat(kept, 300, 90), HoldBeat(other, 250, 40)])
        assert await held(redis) == {other: 250}


async def test_the_larger_amount_and_progress_win(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(300)
        for amount, progress in ((350, 70), (320, 90), (1, 1)):
            await money.store.heartbeat([HoldBeat(kept, amount, progress)])
        (orphan,) = await money.store.held_by_others(frozenset(), 10)
        assert (orphan.amount, orphan.progress) == (350, 90)
        assert await held(redis) == {kept: 350}


async def test_cancel_records_and_gives_back(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(300)
        for _ in range(2):
            await money.store.cancel(cancelled(kept))
        await money.reserve(1_000)
        assert await money.ledger.recorded([kept]) == {kept}


async def test_apply_takes_only_newer_balances_but_every_id(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        first, second = await money.reserve(300), await money.reserve(200)
        later = Applied(account="alice", balance=750, seq=3, final_ids=(second,), estimates=())
        earlier = Applied(account="alice", balance=900, seq=2, final_ids=(first,), estimates=())
        for word in (later, earlier, later, earlier):
            await money.store.apply([word])
        assert await held(redis) == {}
        answer = await money.store.reserve(hold(new_id(), minimum=1, wanted=5_000))
        assert answer == Granted(750)


async def test_apply_makes_no_account(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.store.apply(
            [Applied(account="ghost", balance=9, seq=9, final_ids=(new_id(),), estimates=())]
        )
        assert await redis.ask("DBSIZE") == 0


async def test_an_estimate_leaves_its_residual_held(redis: RedisServer, tmp_path: Path) -> None:
    """Ceiling 100, estimate 30: 70 stay held until the owner's word, which is 55."""
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        owner, sweeper = money.stores[1], money.store
        kept = await money.reserve(100, store=owner)
        await owner.heartbeat([HoldBeat(kept, 100, 30)])
        (orphan,) = await sweeper.held_by_others({sweeper.process}, 10)
        await money.hot.record(estimate(orphan.hold_id, orphan.progress))
        await money.settle()
        assert await held(redis) == {kept: 70}
        # The owner was only slow. It neither grows nor refreshes what is a sweeper's.
        assert isinstance(await owner.extend(kept, 300), Refused)
        await owner.heartbeat([HoldBeat(kept, 500, 90)])
        assert await held(redis) == {kept: 70}
        await money.finish(charge(kept, 55), owner)
        await money.settle()
        assert await held(redis) == {}
        assert (await money.refusal(946)).balance == 945


async def test_a_claimed_hold_cannot_grow_before_its_estimate_is_settled(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        owner, sweeper = money.stores[1], money.store
        kept = await money.reserve(100, store=owner)
        (first,) = await sweeper.held_by_others({sweeper.process}, 10)
        assert isinstance(await owner.extend(kept, 300), Refused)
        await owner.heartbeat([HoldBeat(kept, 400, 60)])
        (again,) = await sweeper.held_by_others({sweeper.process}, 10)
        assert first == again
        assert await held(redis) == {kept: 100}


async def test_a_sweeper_leaves_the_living_and_the_recorded_alone(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        mine = await money.reserve(100)
        theirs, done = [await money.reserve(100, store=money.stores[1]) for _ in range(2)]
        await money.hot.record(charge(done, 40))
        found = await money.store.held_by_others({money.store.process}, 10)
        assert [orphan.hold_id for orphan in found] == [theirs]
        everybody = {store.process for store in money.stores}
        assert await money.store.held_by_others(everybody, 10) == []
        assert set(await held(redis)) == {mine, theirs, done}


async def test_a_sweeper_takes_no_more_than_it_asked_for(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        for account in ("alice", "bob"):
            await money.buy(1_000, account=account)
            for _ in range(4):
                await money.reserve(10, account=account)
        assert len(await money.store.held_by_others(frozenset(), 6)) == 6


async def resent(money: Guards) -> int:
    money.now = T0 + 10_000
    return await money.store.resend()


async def test_a_lost_apply_is_sent_again(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        settled, dropped, running = [await money.reserve(100) for _ in range(3)]
        await money.finish(charge(settled, 40))
        await money.hot.cancel(cancelled(dropped))
        await money.settle(tell=False)
        assert set(await held(redis)) == {settled, dropped, running}
        assert await resent(money) == 2
        assert await held(redis) == {running: 100}
        assert await money.store.reserve(hold(new_id(), minimum=1, wanted=5_000)) == Granted(860)
        assert await resent(money) == 0


async def test_what_is_not_settled_yet_stays_held(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        waiting, aside = await money.reserve(100), await money.reserve(50)
        await money.finish(charge(waiting, 40))
        await money.hot.quarantine(charge(aside, 40), origin="owner", reason="a test")
        assert await resent(money) == 0
        assert await held(redis) == {waiting: 100, aside: 50}


async def test_young_holds_are_left_to_the_settlement(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        settled = await money.reserve(100)
        await money.finish(charge(settled, 40))
        await money.settle(tell=False)
        money.now = T0 + 5_000
        assert await money.store.resend() == 0
        money.now = T0 + 5_001
        assert await money.store.resend() == 1


async def test_a_residual_goes_when_all_finals_of_its_time_are_recorded(
    redis: RedisServer, tmp_path: Path
) -> None:
    """Its age alone says nothing: the final may lie in the spool of a process that is cut off."""
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(100)
        await money.hot.record(estimate(kept, 30))
        await money.settle(tell=False)
        assert await resent(money) == 0
        assert await held(redis) == {kept: 70}
        money.now = T0 + 3_600_000 + 60_000
        assert await money.store.resend() == 0
        for before, gone in ((T0, 0), (T0 + 1, 1)):
            async with money.database.write() as connection:
                await connection.execute(delete(meta).where(meta.c.key == FINALS_KEY))
                await connection.execute(insert(meta).values(key=FINALS_KEY, value=str(before)))
            assert await money.store.resend() == gone
        assert await held(redis) == {}


async def test_a_residual_whose_spool_is_lost_goes_after_a_day(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(100)
        await money.hot.record(estimate(kept, 30))
        await money.settle()
        day = T0 + 3_600_000 + MARGIN_MS + LOST_SPOOL_MS
        for money.now, gone in ((day, 0), (day + 1, 1)):
            assert await money.store.resend() == gone


async def test_credit_bought_meanwhile_counts_though_nobody_told(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(100)
        await money.reserve(100)
        await money.buy(900)
        await money.reserve(900)


async def test_refresh_tells_of_entries_that_are_no_calls(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(100)
        await money.reserve(100)
        await money.buy(900)
        await money.store.refresh(["alice", "nobody"])
        assert (await money.refusal(2_000)).balance == 1_000


async def test_a_suspended_account_begins_nothing(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(100)
        async with money.database.write() as connection:
            await connection.execute(update(accounts).values(suspended=True))
        money.store._recovery.suspended = await money.ledger.suspended()
        assert await money.refusal(5) == Refused(
            reason="suspended", balance=1_000, held=100, needed=5
        )
        grown = await money.store.extend(kept, 200)
        assert grown == Refused(reason="suspended", balance=1_000, held=100, needed=100)
        assert await held(redis) == {kept: 100}


async def test_beyond_two_to_the_53_the_guard_sees_less(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(5)
        await money.reserve(5)
        said = Applied(account="alice", balance=3 * MAX_EXACT, seq=9, final_ids=(), estimates=())
        await money.store.apply([said])
        most = new_id()
        answer = await money.store.reserve(hold(most, minimum=1, wanted=3 * MAX_EXACT))
        assert answer == Granted(MAX_EXACT - 5)
        assert sum((await held(redis)).values()) == MAX_EXACT
        assert (await money.refusal(1)).reason == "held"
        assert (await money.refusal(MAX_EXACT)).held == MAX_EXACT
        await money.store.cancel(cancelled(most))
        assert sum((await held(redis)).values()) == 5


@pytest.mark.parametrize("way", ["cancel", "apply"])
async def test_a_saturated_sum_comes_back_exactly(
    redis: RedisServer, tmp_path: Path, way: str
) -> None:
    """Holds can add up beyond 2^53, by their owners' word: then only they themselves tell."""
    async with guards(redis, tmp_path) as money:
        await money.buy(MAX_EXACT - 1)
        big, small = await money.reserve(MAX_EXACT - 8), await money.reserve(3)
        await money.store.heartbeat([HoldBeat(small, 50, 0)])  # 42 over
        assert (await money.refusal(1)).held == MAX_EXACT
        if way == "cancel":
            await money.store.cancel(cancelled(big))
        else:
            await money.finish(charge(big, 1, ceiling=MAX_EXACT))
            await money.settle()
        assert await held(redis) == {small: 50}


async def repeat(store: RedisHoldStore, times: int, request: str) -> list[object]:
    return [await store.reserve(hold(request, minimum=100, wanted=600)) for _ in range(times)]


async def test_a_repeated_reserve_is_the_same_hold(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(700)
        again = new_id()
        assert await repeat(money.store, 3, again) == [Granted(600)] * 3
        assert await held(redis) == {again: 600}


async def test_a_load_that_comes_late_changes_nothing(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept, settled = await money.reserve(100), await money.reserve(100)
        await money.finish(charge(settled, 40))
        await money.settle()
        late = (1, "", 5_000, 99, settled, 40, "e", T0)
        source = SOURCES[Script.LOAD]
        assert await redis.ask("EVAL", source, 2, *keys_of("alice"), *late) == 0
        assert await held(redis) == {kept: 100}
        assert (await money.refusal(961)).balance == 960


async def test_a_balance_that_redis_was_not_told_of_is_told_again(
    redis: RedisServer, tmp_path: Path
) -> None:
    """Of an account that holds nothing as well: a debit that is no call takes none of its holds along."""
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.store.cancel(cancelled(await money.reserve(100)))
        await money.store.resend()
        assert await held(redis) == {}
        debit = Entry(
            event_id="by hand",
            account="alice",
            source="adjustment",
            direction="expense",
            amount=-600,
        )
        assert isinstance((await money.hot.post([debit]))[0], Posted)
        money.now += 300_000
        await money.store.resend()
        assert (await money.refusal(401)).balance == 400
        assert await money.store.reserve(hold(new_id(), minimum=1, wanted=1_000)) == Granted(400)


async def test_a_store_of_a_process_that_holds_nothing_refuses(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        worker = await money.add(may_hold=False)
        with pytest.raises(GuardUnavailableError, match="holds nothing"):
            await money.reserve(1, store=worker)
