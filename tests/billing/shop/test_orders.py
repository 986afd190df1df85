"""Orders: frozen when made, once per key; paid once, credited once, by whoever comes and however often."""

import asyncio
import datetime as dt
import re
from contextlib import suppress
from itertools import product as pairs

import msgspec
import pytest

from billing.accounts import EntryConflictError, EntryRefusedError
from billing.failpoints import hooks
from billing.kinds import OrderStatus
from billing.ledger import AMOUNT_MAX, Entry
from billing.lists import PageRequest
from billing.shop.fields import InvalidFieldsError
from billing.shop.orders import (
    TRANSITIONS,
    NewOrder,
    Order,
    OrderConflictError,
    Payment,
    PaymentMismatchError,
    ProductUnavailableError,
    TooManyPendingError,
    TransitionRefusedError,
    UnknownOrderError,
    check_transition,
    order_no,
)
from billing.shop.products import ProductChange, UnknownProductError
from tests.support.money import T0, Place, purchase
from tests.support.shop import ADMIN, CREDIT, Gone, Shop, die, end, many_shops, open_shop


async def pay(shop: Shop, order: Order) -> Order:
    return (await shop.orders.pay(order.order_id, paid_by=ADMIN)).order


# --- making one ---------------------------------------------------------------------------------


async def test_an_order_is_a_frozen_copy(shop: Shop) -> None:
    """3 of ten credits at ¥9.90: 30 credits for 3 x 990 = 2,970 cents."""
    product = await shop.product(sku="c-10", original_price_cent=1990, badge="hot")
    order = await shop.order(product, quantity=3)
    await shop.products.update(
        product.product_id,
        ProductChange(name="Other", sku="c-11", price_cent=1, credit_amount=1, status="inactive"),
        actor=ADMIN,
    )
    read = await shop.orders.get(order.order_id)
    assert read == order
    assert read.product_snapshot == product
    assert read.product_snapshot.sku == "c-10"
    assert (read.product_name, read.quantity) == ("Ten credits", 3)
    assert (read.credit_amount, read.amount_cent) == (30 * CREDIT, 2_970)
    assert (read.currency, read.price_text) == ("CNY", "¥29.70")
    assert (read.status, read.payment_mode) == ("pending", "manual")
    assert (read.created_at, read.paid_at, read.credited_at, read.cancelled_at) == (
        T0, None, None, None,
    )  # fmt: skip
    paid = await pay(shop, order)
    assert (paid.credit_amount, paid.product_snapshot) == (30 * CREDIT, product)
    assert (await shop.account()).balance == 30 * CREDIT


def test_an_order_number_tells_its_second() -> None:
    moment = dt.datetime(2026, 12, 31, 23, 59, 58, 999_000, dt.UTC)
    number = order_no(round(moment.timestamp() * 1000))
    assert re.fullmatch(r"CS20261231235958[0-9a-f]{32}", number)
    assert number != order_no(round(moment.timestamp() * 1000))


async def test_an_account_needs_no_row_to_order(shop: Shop) -> None:
    order = await shop.order(await shop.product(), "new:comer")
    assert (await shop.account("new:comer")).created_at is None
    paid = await pay(shop, order)
    assert paid.status == "credited"
    account = await shop.account("new:comer")
    assert (account.balance, account.total_recharged, account.seq) == (10 * CREDIT, 10 * CREDIT, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("account", ""),
        ("account", "a/b"),
        ("account", "x" * 65),
        ("product_id", ""),
        ("product_id", "x" * 129),
        ("product_id", "a b"),
        ("quantity", 0),
        ("quantity", -1),
        ("quantity", 1_001),
        ("quantity", 1.0),
        ("quantity", True),
        ("payment_mode", ""),
        ("payment_mode", "Manual"),
        ("idempotency_key", ""),
        ("idempotency_key", "x" * 129),
        ("idempotency_key", "a\nb"),
    ],
)
async def test_a_bad_field_is_named_and_nothing_is_ordered(
    shop: Shop, field: str, value: object
) -> None:
    values: dict[str, object] = {
        "account": "ada", "product_id": "p", "quantity": 1, "payment_mode": "manual",
        "idempotency_key": "k", field: value,
    }  # fmt: skip
    with pytest.raises(InvalidFieldsError) as raised:
        await shop.orders.create(NewOrder(**values))  # type: ignore[arg-type]
    assert [problem.field for problem in raised.value.problems] == [field]
    assert await shop.rows("SELECT * FROM orders") == []


async def test_all_mistakes_are_told_at_once(shop: Shop) -> None:
    with pytest.raises(InvalidFieldsError) as raised:
        await shop.orders.create(
            NewOrder(account="", product_id="", quantity=0, payment_mode="", idempotency_key="")
        )
    assert [problem.field for problem in raised.value.problems] == [
        "account", "product_id", "quantity", "payment_mode", "idempotency_key",
    ]  # fmt: skip


async def test_what_is_not_for_sale_is_not_ordered(shop: Shop) -> None:
    with pytest.raises(UnknownProductError):
        await shop.orders.create(NewOrder(account="ada", product_id="nothing"))
    hidden = await shop.product(status="inactive")
    with pytest.raises(ProductUnavailableError):
        await shop.order(hidden)
    assert await shop.rows("SELECT * FROM orders") == []


@pytest.mark.parametrize("field", ["credit_amount", "price_cent"])
async def test_an_order_beyond_all_amounts_is_refused(shop: Shop, field: str) -> None:
    product = await shop.product(**{field: AMOUNT_MAX // 2})
    order = await shop.order(product, quantity=2)
    assert max(order.credit_amount, order.amount_cent) == AMOUNT_MAX - 1
    with pytest.raises(InvalidFieldsError) as raised:
        await shop.order(product, quantity=3)
    assert [problem.field for problem in raised.value.problems] == ["quantity"]


async def test_one_key_is_one_order(shop: Shop) -> None:
    product = await shop.product()
    new = NewOrder(account="ada", product_id=product.product_id, quantity=2, idempotency_key="k1")
    first = await shop.orders.create(new)
    await shop.products.update(
        product.product_id, ProductChange(status="inactive", price_cent=1), actor=ADMIN
    )
    again = await shop.orders.create(new)
    assert (first.repeated, again.repeated) == (False, True)
    assert again.order == first.order
    paid = await pay(shop, first.order)
    assert (await shop.orders.create(new)).order == paid
    assert await shop.rows("SELECT COUNT(*) FROM orders") == [(1,)]


async def test_another_account_may_have_the_same_key(shop: Shop) -> None:
    product = await shop.product()
    one, two = [
        await shop.order(product, account, idempotency_key="k1") for account in ("ada", "bob")
    ]
    assert one.order_id != two.order_id


@pytest.mark.parametrize("changed", ["quantity", "payment_mode", "product_id"])
async def test_a_key_with_other_content_is_a_conflict(shop: Shop, changed: str) -> None:
    product, other = await shop.product(), await shop.product()
    new = NewOrder(account="ada", product_id=product.product_id, idempotency_key="k1")
    await shop.orders.create(new)
    values = {"quantity": 2, "payment_mode": "mock", "product_id": other.product_id}
    with pytest.raises(OrderConflictError):
        await shop.orders.create(msgspec.structs.replace(new, **{changed: values[changed]}))
    assert await shop.rows("SELECT COUNT(*) FROM orders") == [(1,)]


async def test_without_a_key_each_is_an_order(shop: Shop) -> None:
    product = await shop.product()
    assert (await shop.order(product)).order_id != (await shop.order(product)).order_id


async def test_unpaid_orders_are_not_without_end(place: Place) -> None:
    """100 of an account, however many ask at once; paid and cancelled ones make room."""
    async with open_shop(place) as shop:
        product = await shop.product()
        first = await shop.order(product, idempotency_key="first")
        for _ in range(94):
            await shop.order(product)
        async with many_shops(place, 5) as shops:
            done = await asyncio.gather(
                *(each.order(product) for each in shops * 2), return_exceptions=True
            )
        assert sum(isinstance(each, Order) for each in done) == 5
        assert sum(isinstance(each, TooManyPendingError) for each in done) == 5
        assert (await shop.order(product, idempotency_key="first")).order_id == first.order_id
        await shop.order(product, account="bob")
        await shop.orders.cancel(first.order_id, cancelled_by="ada", admin=False)
        another = await shop.order(product)
        with pytest.raises(TooManyPendingError, match="100 orders"):
            await shop.order(product)
        await pay(shop, another)
        await shop.order(product)


async def test_one_key_at_once_by_many(place: Place) -> None:
    async with open_shop(place) as shop:
        product = await shop.product()
        new = NewOrder(account="ada", product_id=product.product_id, idempotency_key="k1")
        other = NewOrder(
            account="ada", product_id=product.product_id, idempotency_key="k1", quantity=2
        )
        async with many_shops(place, 5) as shops:
            made = await asyncio.gather(
                *(each.orders.create(new) for each in shops for _ in range(4)),
                *(each.orders.create(other) for each in shops),
                return_exceptions=True,
            )
        orders = {each.order.order_id for each in made if not isinstance(each, BaseException)}
        assert len(orders) == 1
        refused = [each for each in made if isinstance(each, BaseException)]
        assert len(refused) in {5, 20}  # whichever content came first
        assert {type(each) for each in refused} == {OrderConflictError}
        assert await shop.rows("SELECT COUNT(*) FROM orders") == [(1,)]


# --- the table of transitions -------------------------------------------------------------------

ALLOWED = {("pending", "paid"), ("pending", "cancelled"), ("paid", "credited")}


@pytest.mark.parametrize(("was", "wanted"), list(pairs(OrderStatus, OrderStatus)))
def test_transitions(was: OrderStatus, wanted: OrderStatus) -> None:
    assert set(TRANSITIONS) == set(OrderStatus)
    if (was.value, wanted.value) in ALLOWED:
        check_transition(was, wanted)
        return
    with pytest.raises(TransitionRefusedError, match=f"is {was} cannot become {wanted}"):
        check_transition(was, wanted)


async def test_a_pending_order_can_be_cancelled(shop: Shop) -> None:
    order = await shop.order(await shop.product())
    shop.now += 7
    cancelled = await shop.orders.cancel(order.order_id, cancelled_by=ADMIN)
    assert (cancelled.status, cancelled.cancelled_at) == ("cancelled", T0 + 7)
    with pytest.raises(TransitionRefusedError, match="is cancelled cannot become paid"):
        await pay(shop, order)
    with pytest.raises(TransitionRefusedError, match="is cancelled cannot become cancelled"):
        await shop.orders.cancel(order.order_id, cancelled_by=ADMIN)
    assert await shop.entries() == []
    assert (await shop.account()).created_at is None


async def test_a_credited_order_cannot_be_cancelled(shop: Shop) -> None:
    order = await pay(shop, await shop.order(await shop.product()))
    with pytest.raises(TransitionRefusedError, match="is credited cannot become cancelled"):
        await shop.orders.cancel(order.order_id, cancelled_by=ADMIN)
    assert (await shop.orders.get(order.order_id)).status == "credited"


async def test_an_order_is_its_accounts_own(shop: Shop) -> None:
    order = await shop.order(await shop.product())
    for work in (
        shop.orders.get(order.order_id, account="bob"),
        shop.orders.cancel(order.order_id, account="bob", cancelled_by="bob", admin=False),
        shop.orders.get("nothing"),
        shop.orders.cancel("nothing", cancelled_by=ADMIN),
        shop.orders.pay("nothing", paid_by=ADMIN),
    ):
        with pytest.raises(UnknownOrderError):
            await work
    assert (await shop.orders.get(order.order_id, account="ada")).status == "pending"
    own = await shop.orders.cancel(order.order_id, account="ada", cancelled_by="ada", admin=False)
    assert own.status == "cancelled"
    assert await shop.rows("SELECT action FROM admin_audit WHERE action LIKE 'order%'") == []


# --- paying -------------------------------------------------------------------------------------


async def test_paying_credits_the_order(shop: Shop) -> None:
    order = await shop.order(await shop.product(sku="c-10"), quantity=2)
    shop.now += 60_000
    done = await shop.orders.pay(order.order_id, Payment(payment_ref=" bank 17 "), paid_by="eve")
    paid = done.order
    assert not done.repeated
    assert (paid.status, paid.paid_at, paid.credited_at) == (
        "credited", T0 + 60_000, T0 + 60_000,
    )  # fmt: skip
    assert (paid.paid_by, paid.payment_ref) == ("eve", "bank 17")
    assert shop.told == ["ada"]
    columns = "event_id, source, direction, order_id, amount, status, source_label, metadata_json"
    assert await shop.rows(f"SELECT {columns} FROM ledger_entries") == [
        (
            f"credit-order:{order.order_id}:paid", "purchase", "income", order.order_id,
            20 * CREDIT, "applied", "购买充值",
            f'{{"order_no":"{order.order_no}","sku":"c-10","quantity":2}}',
        )
    ]  # fmt: skip
    account = await shop.account()
    assert (account.balance, account.total_recharged) == (20 * CREDIT, 20 * CREDIT)
    acts = await shop.rows("SELECT actor, action, target FROM admin_audit ORDER BY id DESC LIMIT 1")
    assert acts == [("eve", "order.pay", order.order_id)]


async def test_paying_twice_credits_once(shop: Shop) -> None:
    order = await shop.order(await shop.product())
    first = await shop.orders.pay(order.order_id, Payment(payment_ref="one"), paid_by="eve")
    shop.now += 5
    for payment in (Payment(payment_ref=" one "), Payment(), Payment(amount_cent=990)):
        again = await shop.orders.pay(order.order_id, payment, paid_by="bob")
        assert again.repeated
        assert again.order == first.order
    assert (await shop.account()).balance == 10 * CREDIT
    pays = await shop.rows("SELECT actor FROM admin_audit WHERE action = 'order.pay'")
    assert pays == [("eve",)]


@pytest.mark.parametrize("first", ["one", ""])
async def test_a_second_payment_of_an_order_is_not_swallowed(shop: Shop, first: str) -> None:
    """Somebody paid twice: one credit, and whoever confirms the second payment hears of it."""
    order = await shop.order(await shop.product())
    await shop.orders.pay(order.order_id, Payment(payment_ref=first), paid_by="eve")
    with pytest.raises(PaymentMismatchError, match="was paid before"):
        await shop.orders.pay(order.order_id, Payment(payment_ref="two"), paid_by="bob")
    with pytest.raises(PaymentMismatchError, match="the order costs"):
        await shop.orders.pay(order.order_id, Payment(amount_cent=1), paid_by="bob")
    assert (await shop.orders.get(order.order_id)).payment_ref == (first or None)
    assert (await shop.account()).balance == 10 * CREDIT


@pytest.mark.parametrize(
    "payment",
    [Payment(amount_cent=989), Payment(amount_cent=990, currency="USD"), Payment(amount_cent=991)],
)
async def test_another_amount_is_no_payment(shop: Shop, payment: Payment) -> None:
    order = await shop.order(await shop.product())
    with pytest.raises(PaymentMismatchError, match=r"the order costs ¥9\.90"):
        await shop.orders.pay(order.order_id, payment, paid_by=ADMIN)
    assert (await shop.orders.get(order.order_id)).status == "pending"
    right = Payment(amount_cent=990, currency="CNY")
    assert (await shop.orders.pay(order.order_id, right, paid_by=ADMIN)).order.paid_at == T0


@pytest.mark.parametrize(
    ("payment", "field"),
    [
        (Payment(payment_ref="x" * 201), "payment_ref"),
        (Payment(payment_ref="a\x00"), "payment_ref"),
        (Payment(amount_cent=-1), "amount_cent"),
        (Payment(currency="yuan"), "currency"),
    ],
)
async def test_a_bad_payment_is_named(shop: Shop, payment: Payment, field: str) -> None:
    order = await shop.order(await shop.product())
    with pytest.raises(InvalidFieldsError) as raised:
        await shop.orders.pay(order.order_id, payment, paid_by=ADMIN)
    assert [problem.field for problem in raised.value.problems] == [field]
    assert (await shop.orders.get(order.order_id)).status == "pending"


async def test_paid_at_once_by_twenty_connections(place: Place) -> None:
    async with open_shop(place) as shop:
        order = await shop.order(await shop.product())
        async with many_shops(place, 10) as shops:
            done = await asyncio.gather(*(pay(each, order) for each in shops for _ in range(2)))
        assert {each.status for each in done} == {"credited"}
        assert (await shop.account()).balance == 10 * CREDIT
        assert await shop.entries() == [(order.event_id, 10 * CREDIT)]
        assert await shop.rows("SELECT COUNT(*) FROM admin_audit WHERE action = 'order.pay'") == [
            (1,)
        ]


async def test_paid_or_cancelled_never_both(place: Place) -> None:
    """Ten orders, each paid and cancelled at once: its credit is there exactly if it is credited."""
    async with open_shop(place) as shop:
        product = await shop.product(credit_amount=7)
        orders = [await shop.order(product) for _ in range(10)]
        async with many_shops(place, 4) as shops:

            async def cancel(by: Shop, order: Order) -> None:
                with suppress(TransitionRefusedError):
                    await by.orders.cancel(order.order_id, cancelled_by=ADMIN)

            async def buy(by: Shop, order: Order) -> None:
                with suppress(TransitionRefusedError):
                    await pay(by, order)

            work = [
                act(shops[(number + shift) % 4], order)
                for number, order in enumerate(orders)
                for shift, act in enumerate((cancel, buy) if number % 2 else (buy, cancel))
            ]
            await asyncio.gather(*work)
        ends = [(await shop.orders.get(order.order_id)).status for order in orders]
        assert set(ends) <= {"credited", "cancelled"}
        assert (await shop.account()).balance == 7 * ends.count(OrderStatus.CREDITED)


# --- dying in between ---------------------------------------------------------------------------


@pytest.fixture(params=["order_paid", "order_posted"])
def point(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def test_whoever_pays_again_finishes_what_broke_off(shop: Shop, point: str) -> None:
    order = await shop.order(await shop.product())
    hooks[point] = end
    try:
        with pytest.raises(Gone):
            await pay(shop, order)
    finally:
        hooks.clear()
    assert (await shop.orders.get(order.order_id)).status == "paid"
    assert (await pay(shop, order)).status == "credited"
    assert (await shop.account()).balance == 10 * CREDIT


async def test_a_killed_process_leaves_an_order_to_be_resumed(place: Place, point: str) -> None:
    async with open_shop(place) as shop:
        order = await shop.order(await shop.product())
        await die(place, point, "pay", order.order_id)
        assert (await shop.orders.get(order.order_id)).status == "paid"
        posted = [(order.event_id, 10 * CREDIT)] if point == "order_posted" else []
        assert await shop.entries() == posted
        shop.now += 60_001
        assert await shop.wrong() == [f"R8 {order.order_id}"]
        assert await shop.orders.resume() == 1
        assert await shop.orders.resume() == 0
        read = await shop.orders.get(order.order_id)
        assert (read.status, read.paid_by) == ("credited", "ops")
        assert (await shop.account()).balance == 10 * CREDIT
        assert await shop.wrong() == []


async def test_an_order_that_the_ledger_refuses_stays_paid(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.hot.post([purchase(AMOUNT_MAX, account="ada")])
    stuck, fine = (
        await shop.order(await shop.product()),
        await shop.order(await shop.product(), "b"),
    )
    with pytest.raises(EntryRefusedError, match="balance would pass"):
        await pay(shop, stuck)
    assert (await shop.orders.get(stuck.order_id)).status == "paid"
    hooks["order_paid"] = end
    try:
        with pytest.raises(Gone):
            await pay(shop, fine)
    finally:
        hooks.clear()
    monkeypatch.setattr("billing.db.pages.ROWS_AT_ONCE", 1)  # as if there were a hundred stuck
    assert await shop.orders.resume() == 1  # the other one
    assert (await shop.orders.get(fine.order_id)).status == "credited"
    assert (await shop.orders.get(stuck.order_id)).status == "paid"


async def test_an_event_id_that_is_taken_is_a_conflict(place: Place) -> None:
    async with open_shop(place, check=False) as shop:
        order = await shop.order(await shop.product())
        await shop.hot.post([purchase(5, account="ada", event_id=order.event_id)])
        with pytest.raises(EntryConflictError):
            await pay(shop, order)
        assert (await shop.account()).balance == 5
        # Paid with another entry than its own: the entry has no order, the order no credit.
        shop.now += 60_001
        found = await shop.wrong()
        assert sorted(found) == sorted([f"R8 {order.order_id}", f"R8 {order.event_id}"])


# --- lists --------------------------------------------------------------------------------------


async def test_pages_are_newest_first_and_an_accounts_own(shop: Shop) -> None:
    product = await shop.product()
    made = []
    for account in ("ada", "bob", "ada", "ada"):
        shop.now += 1
        made.append(await shop.order(product, account))
    mine = [made[3].order_id, made[2].order_id, made[0].order_id]
    page = await shop.orders.page(PageRequest(page_size=2), account="ada")
    assert [order.order_id for order in page.items] == mine[:2]
    assert (page.total, page.has_more) == (3, True)
    rest = await shop.orders.page(PageRequest(page=2, page_size=2), account="ada")
    assert [order.order_id for order in rest.items] == mine[2:]
    assert not rest.has_more
    await pay(shop, made[1])
    credited = await shop.orders.page(PageRequest(), status="credited")
    assert [order.order_id for order in credited.items] == [made[1].order_id]
    assert (await shop.orders.page(PageRequest())).total == 4
    assert (await shop.orders.page(PageRequest(), account="nobody")).items == ()


# --- R8 -----------------------------------------------------------------------------------------


UNPAID = "status = 'pending', paid_at = NULL, credited_at = NULL"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE orders SET credit_amount = 5",
        "UPDATE orders SET account = 'eve'",
        f"UPDATE orders SET {UNPAID}",
        f"UPDATE orders SET {UNPAID.replace('pending', 'cancelled')}, cancelled_at = 1",
        "DELETE FROM orders",
    ],
)
async def test_r8_sees_what_is_wrong_with_orders(place: Place, change: str) -> None:
    async with open_shop(place, check=False) as shop:
        order = await shop.bought(7)
        assert await shop.wrong() == []
        await shop.change(change)
        gone = change.startswith("DELETE")
        assert await shop.wrong() == [f"R8 {order.event_id if gone else order.order_id}"]


async def test_r8_sees_an_order_that_was_not_posted(place: Place) -> None:
    async with open_shop(place, check=False) as shop:
        order = await shop.order(await shop.product())
        await shop.change("UPDATE orders SET status = 'credited', paid_at = 1, credited_at = 1")
        assert await shop.wrong() == [f"R8 {order.order_id}"]


async def test_r8_sees_a_purchase_of_no_order(place: Place) -> None:
    async with open_shop(place, check=False) as shop:
        entry = Entry(
            event_id="elsewhere", account="ada", source="purchase", direction="income", amount=5,
            order_id="none",
        )  # fmt: skip
        await shop.hot.post([entry])
        assert await shop.wrong() == ["R8 elsewhere"]
