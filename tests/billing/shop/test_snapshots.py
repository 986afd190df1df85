"""The snapshot of an account: kept with every entry; a guard that cannot be told of one spoils no post."""

import sqlite3
from collections.abc import Awaitable, Callable, Collection

import pytest
from sqlalchemy.exc import OperationalError

from billing.accounts import Accounts, Grant
from billing.corrections import Adjustment, Corrections
from billing.holds import Applied, GuardUnavailableError, HoldStore
from billing.settlement.hold_updates import HoldUpdates
from billing.shop.orders import Orders
from billing.shop.rewards import NewReward, Rewards
from llm_gateway import clock
from tests.support.money import Place
from tests.support.shop import ADMIN, CREDIT, PROCESS, Shop

Tell = Callable[[Collection[str]], Awaitable[None]]

AWAY = (
    GuardUnavailableError("away"),
    OSError("no route"),
    OperationalError("SELECT 1", {}, sqlite3.OperationalError("locked")),
)


def _failing(error: Exception) -> Tell:
    async def tell(accounts: Collection[str]) -> None:
        raise error

    return tell


async def _grant(shop: Shop, tell: Tell) -> None:
    accounts = Accounts(shop.database, shop.hot, now_ms=shop.now_ms, on_posted=tell)
    grant = Grant(event_id="g1", account="ada", amount=CREDIT)
    assert not (await accounts.grant(grant, actor=ADMIN)).repeated
    assert (await accounts.grant(grant, actor=ADMIN)).repeated


async def _buy(shop: Shop, tell: Tell) -> None:
    orders = Orders(
        shop.database, shop.hot, now_ms=shop.now_ms, new_id=clock.new_event_id, on_posted=tell
    )
    order = await shop.order(await shop.product(credit_amount=CREDIT))
    assert (await orders.pay(order.order_id, paid_by=ADMIN)).order.status == "credited"


async def _reward(shop: Shop, tell: Tell) -> None:
    rewards = Rewards(shop.database, shop.hot, now_ms=shop.now_ms, on_posted=tell)
    new = NewReward(source="forum_like", source_ref_id="p1:bob", account="ada", acting_user="bob")
    await rewards.reward(new, actor=ADMIN)


async def _adjust(shop: Shop, tell: Tell) -> None:
    corrections = Corrections(
        shop.database,
        shop.hot,
        holds=shop.holds,
        process=lambda: PROCESS,
        now_ms=shop.now_ms,
        new_id=clock.new_event_id,
        on_posted=tell,
    )
    asked = Adjustment(account="ada", amount=CREDIT, reason="sorry")
    await corrections.adjust(asked, actor=ADMIN)


POSTS = {"grant": _grant, "order": _buy, "reward": _reward, "adjustment": _adjust}


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("post", POSTS.values(), ids=POSTS)
async def test_guard_that_is_away_fails_no_post(
    shop: Shop, post: Callable[[Shop, Tell], Awaitable[None]], error: Exception
) -> None:
    await post(shop, _failing(error))
    assert len(await shop.entries()) == 1
    assert (await shop.account()).balance > 0


@pytest.mark.parametrize("post", POSTS.values(), ids=POSTS)
async def test_guard_is_told_of_every_post(
    shop: Shop, post: Callable[[Shop, Tell], Awaitable[None]]
) -> None:
    told: list[str] = []

    async def tell(accounts: Collection[str]) -> None:
        told.extend(accounts)

    await post(shop, tell)
    # The grant is repeated: what was lost the first time is told again.
    assert told == (["ada", "ada"] if post is _grant else ["ada"])


async def test_fault_of_our_own_is_not_taken_for_a_guard_that_is_away(shop: Shop) -> None:
    with pytest.raises(ZeroDivisionError):
        await _buy(shop, _failing(ZeroDivisionError()))
    # What was posted stands all the same.
    assert (await shop.account()).balance == CREDIT


class _Away:
    async def apply(self, applied: Collection[Applied]) -> None:
        raise GuardUnavailableError("away")


async def test_settlement_is_done_when_the_guard_is_away() -> None:
    store: HoldStore = _Away()  # type: ignore[assignment]  # nothing else is asked of it
    applied = Applied(account="ada", balance=1, seq=1, final_ids=("c1",), estimates=())
    await HoldUpdates(store).tell([applied])  # raises nothing


async def test_account_is_blocked_at_zero_and_below_and_free_above(shop: Shop) -> None:
    seen = []
    for number, amount in enumerate((CREDIT, -CREDIT, -1, 1, 1)):
        asked = Adjustment(account="ada", amount=amount, reason="x", idempotency_key=f"k{number}")
        await shop.corrections.adjust(asked, actor=ADMIN)
        account = await shop.account()
        seen.append((account.balance, account.blocked, account.seq))
        assert not account.suspended  # which is another thing
    assert seen == [
        (CREDIT, False, 1),
        (0, True, 2),
        (-1, True, 3),
        (0, True, 4),
        (1, False, 5),
    ]


async def test_repeat_answers_with_the_account_as_it_is_now(shop: Shop, place: Place) -> None:
    grant = Grant(event_id="g1", account="ada", amount=3)
    await shop.accounts.grant(grant, actor=ADMIN)
    await shop.accounts.grant(Grant(event_id="g2", account="ada", amount=4), actor=ADMIN)
    again = await shop.accounts.grant(grant, actor=ADMIN)
    assert (again.repeated, again.entry.balance_after) == (True, 3)
    assert (again.account.balance, again.account.seq) == (7, 2)
    last = await shop.rows("SELECT last_ledger_event_id FROM accounts")
    assert last == [("g2",)]


async def test_account_that_is_not_there_reads_zeros(shop: Shop) -> None:
    nobody = await shop.account("nobody")
    assert (nobody.balance, nobody.held, nobody.seq, nobody.updated_at) == (0, 0, 0, None)
    assert await shop.rows("SELECT account FROM accounts") == []
