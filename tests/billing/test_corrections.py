"""Corrections: adjustments in full, refunds never beyond what was paid; each once per key, whoever dies when."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from billing.accounts import EntryConflictError, EntryRefusedError
from billing.corrections import (
    Adjustment,
    ChargeNotFinalError,
    ChargeRefund,
    CorrectionConflictError,
    CorrectionDone,
    CreditSpentError,
    OrderNotCreditedError,
    OrderRefund,
    RefundTooLargeError,
    UnknownChargeError,
)
from billing.db.hot import HotDatabase
from billing.db.tables import corrections
from billing.failpoints import hooks
from billing.holds import Granted, GuardUnavailableError, HoldRequest, Refused
from billing.holds.database import DatabaseHoldStore
from billing.ledger import AMOUNT_MAX, label_in
from billing.lists import PageRequest
from billing.shop.fields import InvalidFieldsError
from billing.shop.orders import UnknownOrderError
from tests.support.migrated import migrated
from tests.support.money import T0, Place, charge, estimate, hold, purchase
from tests.support.shop import ADMIN, Gone, Shop, die, end, many_shops, open_shop


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return migrated(tmp_path)
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def shop(place: Place) -> AsyncIterator[Shop]:
    async with open_shop(place) as made:
        yield made


async def adjust(shop: Shop, amount: int, key: str | None = None) -> CorrectionDone:
    asked = Adjustment(account="ada", amount=amount, reason=" a reason ", idempotency_key=key)
    return await shop.corrections.adjust(asked, actor=ADMIN)


async def give_back(
    shop: Shop, charge_id: str, amount: int | None = None, key: str | None = None
) -> CorrectionDone:
    asked = ChargeRefund(charge_id=charge_id, amount=amount, reason="bad", idempotency_key=key)
    return await shop.corrections.refund_charge(asked, actor=ADMIN)


async def take_back(
    shop: Shop, order_id: str, amount: int | None = None, key: str | None = None
) -> CorrectionDone:
    asked = OrderRefund(order_id=order_id, amount=amount, reason="regret", idempotency_key=key)
    return await shop.corrections.refund_order(asked, actor=ADMIN)


ENTRY = (
    "SELECT event_id, source, direction, amount, order_id, source_ref_id, source_label,"
    " description FROM ledger_entries ORDER BY posted_at DESC, account_seq DESC LIMIT 1"
)


# --- adjustments --------------------------------------------------------------------------------


@pytest.mark.parametrize(("amount", "direction"), [(30, "income"), (-30, "expense")])
async def test_an_adjustment_has_a_total_of_its_own(
    shop: Shop, amount: int, direction: str
) -> None:
    await shop.give(100)
    done = await adjust(shop, amount, "k1")
    assert (done.repeated, done.correction.amount, done.entry.amount) == (False, amount, amount)
    assert await shop.rows(ENTRY) == [
        ("adjustment:k1", "adjustment", direction, amount, None, None, "人工调整", "a reason")
    ]
    account = await shop.account()
    assert (account.balance, account.total_adjusted, account.held) == (100 + amount, amount, 0)
    assert (account.total_recharged, account.total_consumed) == (100, 0)
    assert shop.told == ["ada"]
    acts = await shop.rows("SELECT actor, action, target FROM admin_audit")
    assert acts == [(ADMIN, "account.adjust", "ada")]


async def test_an_adjustment_makes_the_account(shop: Shop) -> None:
    await adjust(shop, 30)
    assert (await shop.account()).balance == 30


async def test_an_adjustment_is_taken_in_full_whatever_is_there(shop: Shop) -> None:
    """100, of which a call holds 100; 150 are taken: -50, and the call's hold stays."""
    await shop.give(100)
    await shop.hot.reserve(hold("01900000-0000-7000-8000-00000000aaaa", account="ada"))
    await adjust(shop, -150)
    account = await shop.account()
    assert (account.balance, account.held, account.total_adjusted) == (-50, 100, -150)


async def test_an_adjustment_of_a_suspended_account(shop: Shop) -> None:
    await shop.give(100)
    await shop.accounts.suspend("ada", "fraud", actor=ADMIN)
    await adjust(shop, -70)
    assert (await shop.account()).balance == 30


async def test_one_key_is_one_adjustment(shop: Shop) -> None:
    await shop.give(100)
    first = await adjust(shop, -30, "k1")
    again = await adjust(shop, -30, " k1 ")
    assert again.repeated
    assert again.entry == first.entry
    with pytest.raises(CorrectionConflictError, match="amount"):
        await adjust(shop, -31, "k1")
    other = Adjustment(account="bob", amount=-30, reason="r", idempotency_key="k1")
    with pytest.raises(CorrectionConflictError, match="account"):
        await shop.corrections.adjust(other, actor=ADMIN)
    await adjust(shop, -30)
    await adjust(shop, -30)  # without a key each is another one
    assert (await shop.account()).balance == 10


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("account", ""),
        ("account", "a b"),
        ("amount", 0),
        ("amount", 1.0),
        ("amount", 2**53),
        ("amount", -(2**53)),
        ("reason", ""),
        ("reason", " "),
        ("reason", "x" * 501),
        ("reason", "a\x00"),
        ("idempotency_key", ""),
        ("idempotency_key", "x" * 129),
    ],
)
async def test_a_bad_field_is_named(shop: Shop, field: str, value: object) -> None:
    values: dict[str, object] = {"account": "ada", "amount": 1, "reason": "r", field: value}
    with pytest.raises(InvalidFieldsError) as raised:
        await shop.corrections.adjust(Adjustment(**values), actor=ADMIN)  # type: ignore[arg-type]
    assert [problem.field for problem in raised.value.problems] == [field]
    assert await shop.rows("SELECT * FROM corrections") == []
    assert await shop.rows("SELECT * FROM admin_audit") == []


async def test_an_adjustment_that_the_ledger_refuses_leaves_nothing(shop: Shop) -> None:
    await shop.hot.post([purchase(AMOUNT_MAX, account="ada")])
    with pytest.raises(EntryRefusedError, match="balance would pass"):
        await adjust(shop, 1, "k1")
    assert await shop.rows("SELECT * FROM corrections") == []
    await adjust(shop, -1, "k1")
    assert (await shop.account()).balance == AMOUNT_MAX - 1


async def test_one_adjustment_at_once_by_many(place: Place) -> None:
    async with open_shop(place) as shop:
        await shop.give(100)
        async with many_shops(place, 10) as shops:
            done = await asyncio.gather(*(adjust(each, -30, "k1") for each in shops * 2))
        assert sum(not each.repeated for each in done) == 1
        account = await shop.account()
        assert (account.balance, account.held) == (70, 0)
        assert len(await shop.entries("adjustment:%")) == 1


# --- refunds of a charge ------------------------------------------------------------------------


async def test_a_refund_goes_back_to_consumed(shop: Shop) -> None:
    """Charged 40 of 100, 25 given back: balance 85, consumed 15."""
    await shop.give(100)
    charge_id = await shop.call(40)
    done = await give_back(shop, charge_id, 25, "k1")
    assert (done.repeated, done.entry.amount) == (False, 25)
    assert await shop.rows(ENTRY) == [
        (
            f"refund:{charge_id}:k1", "charge", "income", 25, None, charge_id, "AI 调用退款", "bad",
        )
    ]  # fmt: skip
    account = await shop.account()
    assert (account.balance, account.total_consumed, account.total_refunded) == (85, 15, 0)
    assert account.total_rewarded == 0
    acts = await shop.rows("SELECT action, target FROM admin_audit")
    assert acts == [("charge.refund", charge_id)]


def test_a_refund_has_a_label_in_both_languages() -> None:
    assert label_in("en", "charge", "AI 调用退款") == "AI call refunded"
    assert label_in("zh", "charge", "AI 调用退款") == "AI 调用退款"
    assert label_in("en", "charge", "AI 调用扣费") == "AI call"
    assert label_in("en", "forum_like", "AI 调用退款") == "AI 调用退款"


async def test_refunds_never_pass_the_charge(shop: Shop) -> None:
    await shop.give(100)
    charge_id = await shop.call(40)
    await give_back(shop, charge_id, 25)
    with pytest.raises(RefundTooLargeError) as raised:
        await give_back(shop, charge_id, 16)
    assert raised.value.remaining == 15
    rest = await give_back(shop, charge_id)  # all that is left
    assert rest.entry.amount == 15
    with pytest.raises(RefundTooLargeError) as raised:
        await give_back(shop, charge_id)
    assert raised.value.remaining == 0
    account = await shop.account()
    assert (account.balance, account.total_consumed) == (100, 0)


async def test_one_key_is_one_refund(shop: Shop) -> None:
    await shop.give(100)
    charge_id = await shop.call(40)
    first = await give_back(shop, charge_id, key="k1")
    again = await give_back(shop, charge_id, key="k1")
    assert again.repeated
    assert again.entry == first.entry
    assert (await give_back(shop, charge_id, 40, "k1")).repeated  # 40 were all there was
    with pytest.raises(CorrectionConflictError, match="amount"):
        await give_back(shop, charge_id, 10, "k1")
    other = await shop.call(5)
    assert not (await give_back(shop, other, 5, "k1")).repeated  # a key is a charge's own
    assert (await shop.account()).balance == 100


async def test_refunds_at_once_by_many_never_pass_the_charge(place: Place) -> None:
    """20 refunds of 7 of a charge of 40: five fit, 35 in all."""
    async with open_shop(place) as shop:
        await shop.give(100)
        charge_id = await shop.call(40)
        async with many_shops(place, 10) as shops:
            done = await asyncio.gather(
                *(give_back(each, charge_id, 7) for each in shops * 2), return_exceptions=True
            )
        assert sum(isinstance(each, CorrectionDone) for each in done) == 5
        refused = [each for each in done if not isinstance(each, CorrectionDone)]
        assert {type(each) for each in refused} == {RefundTooLargeError}
        account = await shop.account()
        assert (account.balance, account.total_consumed) == (95, 5)


async def test_a_free_or_unknown_call_has_nothing_to_give_back(shop: Shop) -> None:
    await shop.give(100)
    free = await shop.call(0)
    with pytest.raises(RefundTooLargeError):
        await give_back(shop, free)
    await shop.hot.post([purchase(5, account="ada", event_id="no-call")])
    for unknown in ("nothing", "no-call"):
        with pytest.raises(UnknownChargeError):
            await give_back(shop, unknown)
    with pytest.raises(InvalidFieldsError) as raised:
        await give_back(shop, "x" * 65, 0)
    assert [problem.field for problem in raised.value.problems] == ["charge_id", "amount"]


async def test_a_final_counts_with_its_estimate(shop: Shop) -> None:
    """Estimated 20, in the end 15: 15 can be given back, and no refund while 20 stood alone."""
    await shop.give(100)
    charge_id = shop.new_id()
    await shop.settled(estimate(charge_id, 20, account="ada"))
    with pytest.raises(ChargeNotFinalError):
        await give_back(shop, charge_id)
    await shop.settled(charge(charge_id, 15, account="ada"))
    with pytest.raises(RefundTooLargeError):
        await give_back(shop, charge_id, 16)
    assert (await give_back(shop, charge_id)).entry.amount == 15
    account = await shop.account()
    assert (account.balance, account.total_consumed) == (100, 0)


async def test_an_estimate_is_the_last_word_once_no_final_can_come(shop: Shop) -> None:
    """SQLite has one process, which is over with its longest call; elsewhere spools may lie about."""
    await shop.give(100)
    charge_id = await shop.settled(estimate(shop.new_id(), 20, account="ada"))
    shop.now += 3_600_000 - 1
    with pytest.raises(ChargeNotFinalError):
        await give_back(shop, charge_id)
    shop.now += 1
    if isinstance(shop.place, str):
        with pytest.raises(ChargeNotFinalError):
            await give_back(shop, charge_id)
        known = "INSERT INTO meta (key, value) VALUES ('finals_complete_before', :before)"
        await shop.change(known, before=str(T0))
        with pytest.raises(ChargeNotFinalError):
            await give_back(shop, charge_id)
        await shop.change("UPDATE meta SET value = :before", before=str(T0 + 1))
    assert (await give_back(shop, charge_id)).entry.amount == 20


async def test_a_spool_is_waited_for_a_day_and_no_longer(place: Place) -> None:
    """Longer than the sweepers wait who have nobody to ask: what lay there is given up."""
    async with open_shop(place) as shop:
        await shop.give(100)
        charge_id = await shop.settled(estimate(shop.new_id(), 20, account="ada"))
        shop.now += 3_600_000 + 20_000 + 86_400_000
        if isinstance(place, str):
            with pytest.raises(ChargeNotFinalError):
                await give_back(shop, charge_id)
        shop.now += 1
        assert (await give_back(shop, charge_id)).entry.amount == 20


async def test_a_final_in_quarantine_may_still_come(shop: Shop) -> None:
    """Refunded before it is replayed, the call would give back more than it took."""
    await shop.give(100)
    charge_id = await shop.settled(estimate(shop.new_id(), 20, account="ada"))
    final = charge(charge_id, 15, account="ada")
    await shop.hot.quarantine(final, origin="spool", reason="a fault of ours")
    shop.now += 2 * 86_400_000
    with pytest.raises(ChargeNotFinalError):
        await give_back(shop, charge_id)
    await shop.change("UPDATE quarantine SET resolved_at = 1, resolution = 'discarded: r'")
    assert (await give_back(shop, charge_id)).entry.amount == 20


# --- refunds of an order ------------------------------------------------------------------------


async def test_an_order_refund_has_a_total_of_its_own(shop: Shop) -> None:
    order = await shop.bought(100)
    done = await take_back(shop, order.order_id, 60, "k1")
    assert (done.entry.amount, done.correction.wanted) == (-60, -60)
    assert await shop.rows(ENTRY) == [
        (
            f"order-refund:{order.order_id}:k1", "refund", "expense", -60, order.order_id,
            order.order_id, "订单退款", "regret",
        )
    ]  # fmt: skip
    account = await shop.account()
    assert (account.balance, account.total_refunded, account.total_recharged) == (40, 60, 100)
    assert (account.total_consumed, account.held) == (0, 0)
    with pytest.raises(RefundTooLargeError) as raised:
        await take_back(shop, order.order_id, 41)
    assert raised.value.remaining == 40
    assert (await take_back(shop, order.order_id)).entry.amount == -40
    assert (await shop.account()).balance == 0


async def test_an_order_refund_takes_only_what_is_free(shop: Shop) -> None:
    """100 bought, 30 spent, 50 held: 20 can be taken back; later, the call over at 10, 40 more."""
    order = await shop.bought(100)
    await shop.call(30)
    running = shop.new_id()
    await shop.hot.reserve(hold(running, account="ada", minimum=50, wanted=50))
    done = await take_back(shop, order.order_id, key="k1")
    assert (done.correction.wanted, done.correction.amount, done.entry.amount) == (-100, -20, -20)
    account = await shop.account()
    assert (account.balance, account.held, account.available) == (50, 50, 0)
    with pytest.raises(CreditSpentError) as raised:
        await take_back(shop, order.order_id, key="k2")
    assert (raised.value.refused.balance, raised.value.refused.held) == (50, 50)
    assert (await take_back(shop, order.order_id, key="k1")).repeated
    await shop.hot.record(charge(running, 10, account="ada"))
    await shop.hot.settle_pending(10)
    assert (await take_back(shop, order.order_id, key="k2")).entry.amount == -40
    account = await shop.account()
    assert (account.balance, account.held, account.total_refunded) == (0, 0, 60)


async def test_an_order_refund_of_a_suspended_account(shop: Shop) -> None:
    """100 bought, 30 held by a call that still runs: 70."""
    order = await shop.bought(100)
    await shop.hot.reserve(hold(shop.new_id(), account="ada", minimum=30, wanted=30))
    await shop.accounts.suspend("ada", "fraud", actor=ADMIN)
    assert (await take_back(shop, order.order_id)).entry.amount == -70
    with pytest.raises(CreditSpentError):
        await take_back(shop, order.order_id)
    account = await shop.account()
    assert (account.balance, account.held) == (30, 30)


async def test_order_refunds_of_a_suspended_account_at_once(place: Place) -> None:
    """100 there, of which a call holds 30; 20 refunds of 9 fight for 70: seven and a part of one."""
    async with open_shop(place) as shop:
        order = await shop.bought(1_000)
        await adjust(shop, -900)
        await shop.hot.reserve(hold(shop.new_id(), account="ada", minimum=30, wanted=30))
        await shop.accounts.suspend("ada", "fraud", actor=ADMIN)
        async with many_shops(place, 10) as shops:
            done = await asyncio.gather(
                *(take_back(each, order.order_id, 9) for each in shops * 2), return_exceptions=True
            )
        assert {type(each) for each in done} == {CorrectionDone, CreditSpentError}
        account = await shop.account()
        assert (account.balance, account.held, account.total_refunded) == (30, 30, 70)


async def test_what_a_suspended_account_owes_is_held_until_it_is_posted(shop: Shop) -> None:
    """Suspended no more meanwhile, it has nothing that a call could hold."""
    order = await shop.bought(100)
    await shop.accounts.suspend("ada", "fraud", actor=ADMIN)
    hooks["correction_held"] = end
    try:
        with pytest.raises(Gone):
            await take_back(shop, order.order_id, key="k1")
    finally:
        hooks.clear()
    await shop.accounts.unsuspend("ada", actor=ADMIN)
    answer = await shop.hot.reserve(hold(shop.new_id(), account="ada", minimum=1, wanted=1))
    assert isinstance(answer, Refused)
    assert await shop.corrections.resume() == 1
    account = await shop.account()
    assert (account.balance, account.held) == (0, 0)


async def test_only_a_credited_order_is_refunded(shop: Shop) -> None:
    order = await shop.order(await shop.product())
    with pytest.raises(OrderNotCreditedError, match="pending"):
        await take_back(shop, order.order_id)
    await shop.orders.cancel(order.order_id, cancelled_by=ADMIN)
    with pytest.raises(OrderNotCreditedError, match="cancelled"):
        await take_back(shop, order.order_id)
    with pytest.raises(UnknownOrderError):
        await take_back(shop, "nothing")
    assert await shop.rows("SELECT * FROM corrections") == []


async def test_order_refunds_and_calls_at_once_overspend_nothing(place: Place) -> None:
    """100 there; 20 refunds of 9 and 20 holds of 9 fight for it: eleven win, whichever."""
    async with open_shop(place) as shop:
        order = await shop.bought(1_000)
        await adjust(shop, -900)
        async with many_shops(place, 10) as shops:
            refunds = [take_back(each, order.order_id, 9) for each in shops * 2]
            calls = [
                each.hot.reserve(hold(shop.new_id(), account="ada", minimum=9, wanted=9))
                for each in shops * 2
            ]
            done = await asyncio.gather(*refunds, *calls, return_exceptions=True)
        taken = sum(-each.entry.amount for each in done if isinstance(each, CorrectionDone))
        held = sum(each.amount for each in done if isinstance(each, Granted))
        assert not [
            each
            for each in done
            if not isinstance(each, CorrectionDone | Granted | Refused | CreditSpentError)
        ]
        account = await shop.account()
        assert (account.balance, account.held) == (100 - taken, held)
        assert 0 <= account.balance - account.held < 9
        assert account.total_refunded == taken


async def test_one_order_refund_at_once_by_many(place: Place) -> None:
    async with open_shop(place) as shop:
        order = await shop.bought(100)
        await shop.call(30)
        async with many_shops(place, 10) as shops:
            done = await asyncio.gather(
                *(take_back(each, order.order_id, key="k1") for each in shops * 2)
            )
        assert {each.entry.amount for each in done} == {-70}
        account = await shop.account()
        assert (account.balance, account.held, account.total_refunded) == (0, 0, 70)


# --- holds --------------------------------------------------------------------------------------


class Watched(DatabaseHoldStore):
    """Notes in which order a debit holds and releases, with the balance at that moment."""

    def __init__(self, shop: Shop) -> None:
        super().__init__(shop.hot)
        self._shop = shop
        self.seen: list[tuple[str, int, int]] = []

    async def reserve(self, request: HoldRequest) -> Granted | Refused:
        answer = await super().reserve(request)
        await self._look("held")
        return answer

    async def release(self, account: str, hold_id: str) -> None:
        await self._look("releasing")
        await super().release(account, hold_id)

    async def _look(self, what: str) -> None:
        account = await self._shop.account()
        self.seen.append((what, account.balance, account.held))


async def test_a_debit_is_held_until_it_is_posted(shop: Shop) -> None:
    await shop.give(100)
    watched = Watched(shop)
    shop.corrections = shop.corrections_with(watched)
    await adjust(shop, -30)
    assert watched.seen == [("held", 100, 30), ("releasing", 70, 30)]
    await adjust(shop, 30)  # an income holds nothing
    assert len(watched.seen) == 2


class Away(DatabaseHoldStore):
    """A hold store that cannot be reached."""

    def __init__(self, hot: HotDatabase) -> None:
        super().__init__(hot)

    async def reserve(self, request: HoldRequest) -> Granted | Refused:
        raise GuardUnavailableError("away")


async def test_nothing_is_taken_while_the_guard_is_away(shop: Shop) -> None:
    order = await shop.bought(100)
    well, shop.corrections = shop.corrections, shop.corrections_with(Away(shop.hot))
    for work in (adjust(shop, -30, "k1"), take_back(shop, order.order_id, 10, "k2")):
        with pytest.raises(GuardUnavailableError):
            await work
    assert (await shop.account()).balance == 100
    shop.corrections = well
    assert (await adjust(shop, -30, "k1")).repeated
    assert await shop.corrections.resume() == 1  # the other one
    assert (await shop.account()).balance == 60


class Slow(DatabaseHoldStore):
    """Before it asks, somebody else does the same thing, to its end; then credit comes or goes."""

    def __init__(self, shop: Shop, order_id: str, then: int) -> None:
        super().__init__(shop.hot)
        self._shop = shop
        self._other = shop.corrections
        self._asked = OrderRefund(order_id=order_id, reason="r", idempotency_key="k1")
        self._then = then

    async def reserve(self, request: HoldRequest) -> Granted | Refused:
        await self._other.refund_order(self._asked, actor=ADMIN)
        if self._then:
            await self._shop.give(self._then)
        return await super().reserve(request)


@pytest.mark.parametrize("then", [0, 50])
async def test_who_decides_first_decides(shop: Shop, then: int) -> None:
    """100 bought and 80 spent: 20 are taken, whatever is there when the slower one looks."""
    order = await shop.bought(100)
    await shop.call(80)
    shop.corrections = shop.corrections_with(Slow(shop, order.order_id, then))
    done = await take_back(shop, order.order_id, key="k1")
    assert done.entry.amount == -20
    account = await shop.account()
    assert (account.balance, account.held, account.total_refunded) == (then, 0, 20)
    assert len(await shop.entries("order-refund:%")) == 1


# --- dying in between ---------------------------------------------------------------------------

POINTS = ["correction_promised", "correction_held", "correction_posted"]


@pytest.mark.parametrize("point", POINTS)
async def test_whoever_asks_again_finishes_what_broke_off(shop: Shop, point: str) -> None:
    order = await shop.bought(100)
    charge_id = await shop.call(20)
    asked: list[tuple[Callable[[], Awaitable[CorrectionDone]], int]] = [
        (lambda: adjust(shop, -10, "k1"), -10),
        (lambda: take_back(shop, order.order_id, 30, "k1"), -30),
        (lambda: give_back(shop, charge_id, 5, "k1"), 5),
    ]
    for ask, change in asked:
        before = (await shop.account()).balance
        hooks[point] = end
        try:
            with pytest.raises(Gone):
                await ask()
        finally:
            hooks.clear()
        done = await ask()
        assert (done.repeated, done.entry.amount) == (True, change)
        account = await shop.account()
        assert (account.balance, account.held) == (before + change, 0)


@pytest.mark.parametrize("point", POINTS)
async def test_a_promised_refund_counts_before_it_is_posted(shop: Shop, point: str) -> None:
    await shop.give(100)
    charge_id = await shop.call(20)
    hooks[point] = end
    try:
        with pytest.raises(Gone):
            await give_back(shop, charge_id, 15)
    finally:
        hooks.clear()
    with pytest.raises(RefundTooLargeError) as raised:
        await give_back(shop, charge_id, 6)
    assert raised.value.remaining == 5
    assert await shop.corrections.resume() == 1
    assert (await shop.account()).balance == 95


@pytest.mark.parametrize("act", ["adjust", "refund"])
@pytest.mark.parametrize("point", POINTS)
async def test_a_killed_process_leaves_a_correction_to_be_resumed(
    place: Place, point: str, act: str
) -> None:
    async with open_shop(place) as shop:
        order = await shop.bought(250)
        await die(place, point, act, "k1" if act == "adjust" else order.order_id)
        shop.now += 60_001
        (wrong,) = await shop.wrong()
        assert wrong.startswith("R8 ")
        assert await shop.corrections.resume() == 1
        assert await shop.corrections.resume() == 0
        account = await shop.account()
        assert (account.balance, account.held) == (150 if act == "adjust" else 0, 0)
        assert await shop.wrong() == []


@pytest.mark.parametrize("point", ["correction_held", "correction_posted"])
async def test_what_holds_for_a_correction_is_taken_for_no_call(shop: Shop, point: str) -> None:
    """Its process dies, and is swept before the correction is resumed: nobody called anything."""
    order = await shop.bought(100)
    hooks[point] = end
    try:
        with pytest.raises(Gone):
            await take_back(shop, order.order_id, key="k1")
    finally:
        hooks.clear()
    assert await shop.hot.adopt_orphans("another process", shop.now) == 0
    await shop.hot.settle_pending(10)
    assert await shop.rows("SELECT * FROM usage") == []
    assert await shop.corrections.resume() == 1
    account = await shop.account()
    assert (account.balance, account.held, account.seq) == (0, 0, 2)


async def test_a_correction_that_is_refused_gives_its_hold_back_first(place: Place) -> None:
    """Else a hold would be left that belongs to nothing."""

    class Dying(DatabaseHoldStore):
        async def release(self, account: str, hold_id: str) -> None:
            raise GuardUnavailableError

    async with open_shop(place, check=False) as shop:
        await shop.hot.post([purchase(100, account="ada", event_id="adjustment:k1")])
        shop.corrections = shop.corrections_with(Dying(shop.hot))
        with pytest.raises(GuardUnavailableError):
            await adjust(shop, -1, "k1")
        shop.corrections = shop.corrections_with(shop.holds)
        with pytest.raises(EntryConflictError):
            await adjust(shop, -1, "k1")
        assert await shop.rows("SELECT * FROM corrections") == []
        assert await shop.rows("SELECT * FROM holds") == []


# --- lists and R8 -------------------------------------------------------------------------------


async def test_pages(shop: Shop) -> None:
    order = await shop.bought(100)
    shop.now += 1
    await adjust(shop, -1, "k1")
    shop.now += 1
    await take_back(shop, order.order_id, 2, "k2")
    page = await shop.corrections.page(PageRequest(page_size=1), account="ada")
    assert [each.kind for each in page.items] == ["order_refund"]
    assert (page.total, page.has_more) == (2, True)
    kinds = await shop.corrections.page(PageRequest(), kind="adjustment")
    assert [each.event_id for each in kinds.items] == ["adjustment:k1"]
    assert (await shop.corrections.page(PageRequest(), ref_id=order.order_id)).total == 1
    assert (await shop.corrections.page(PageRequest(), account="bob")).total == 0


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE corrections SET wanted = 2 * wanted, amount = 2 * amount",
        "UPDATE corrections SET account = 'eve'",
        "DELETE FROM corrections",
    ],
)
async def test_r8_sees_what_is_wrong_with_corrections(place: Place, change: str) -> None:
    async with open_shop(place, check=False) as shop:
        order = await shop.bought(100)
        charge_id = await shop.call(20)
        for work in (
            adjust(shop, -30, "k1"),
            take_back(shop, order.order_id, 5, "k2"),
            give_back(shop, charge_id, 10, "k3"),
        ):
            done = await work
            assert await shop.wrong() == []
            saved = done.correction
            await shop.change(f"{change} WHERE event_id = :id", id=saved.event_id)
            assert await shop.wrong() == [f"R8 {saved.event_id}"]
            await shop.change("DELETE FROM corrections WHERE event_id = :id", id=saved.event_id)
            async with shop.database.write() as connection:
                values = msgspec.structs.asdict(saved)
                await connection.execute(corrections.insert().values(**values))


async def test_r8_sees_more_given_back_than_was_charged(place: Place) -> None:
    """Estimated 20 and given back; then a final of 15 that nobody waited for any more."""
    async with open_shop(place, check=False) as shop:
        await shop.give(100)
        charge_id = await shop.settled(estimate(shop.new_id(), 20, account="ada"))
        shop.now += 2 * 86_400_000
        await give_back(shop, charge_id)
        assert [each for each in await shop.wrong() if each.startswith("R8")] == []
        await shop.hot.record(charge(charge_id, 15, account="ada"))
        await shop.hot.settle_pending(10)
        assert await shop.wrong() == [f"R8 {charge_id}"]


async def test_r8_sees_more_taken_back_than_was_credited(place: Place) -> None:
    async with open_shop(place, check=False) as shop:
        order = await shop.bought(100)
        await take_back(shop, order.order_id, 60)
        await shop.change("UPDATE orders SET credit_amount = 59")
        report = await shop.reconciler.run()
        told = {each.what for finding in report.findings for each in finding.examples}
        assert told == {"credited 59, posted 100", "refunded 60, credited 59"}
