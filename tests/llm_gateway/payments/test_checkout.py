"""Buying from order to credit: manual payments by admins, mock ones only where they are switched on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from billing.shop.fields import InvalidFieldsError
from billing.shop.orders import (
    NewOrder,
    Order,
    Payment,
    PaymentMismatchError,
    TransitionRefusedError,
    UnknownOrderError,
)
from llm_gateway.payments.checkout import Checkout, Ordered, UnknownPaymentModeError, payment_modes
from llm_gateway.payments.manual import ManualPayment
from llm_gateway.payments.port import (
    PaymentInstructions,
    PaymentMode,
    PaymentProof,
    PaymentRefusedError,
    PaymentUnavailableError,
)
from tests.support.migrated import migrated
from tests.support.shop import CREDIT, Shop, open_shop


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(migrated(tmp_path)) as made:
        yield made


def checkout(shop: Shop, *, mock: bool = False) -> Checkout:
    return Checkout(shop.orders, payment_modes(mock=mock))


async def ordered(shop: Shop, desk: Checkout, mode: str = "", key: str | None = None) -> Ordered:
    product_id = (await shop.product()).product_id
    return await desk.create(
        NewOrder(account="ada", product_id=product_id, payment_mode=mode, idempotency_key=key)
    )


async def test_manual_is_the_default(shop: Shop) -> None:
    desk = checkout(shop, mock=True)
    assert desk.modes == ("manual", "mock")
    bought = await ordered(shop, desk)
    assert bought.order.payment_mode == "manual"
    told = bought.instructions
    assert told is not None
    assert (told.mode, told.reference, told.self_service) == (
        "manual", bought.order.order_no, False,
    )  # fmt: skip
    assert "¥9.90" in told.text
    assert bought.order.order_no in told.text


async def test_an_admin_confirms_a_manual_payment(shop: Shop) -> None:
    desk = checkout(shop)
    bought = await ordered(shop, desk)
    done = await desk.pay_as_admin(bought.order.order_id, payment_ref="bank 17", admin="eve")
    assert (done.order.status, done.order.paid_by, done.order.payment_ref, done.repeated) == (
        "credited", "eve", "bank 17", False,
    )  # fmt: skip
    assert (await desk.pay_as_admin(bought.order.order_id, admin="bob")).repeated
    assert (await shop.account()).balance == 10 * CREDIT
    assert await shop.rows("SELECT actor FROM admin_audit WHERE action = 'order.pay'") == [("eve",)]
    assert await desk.instructions(done.order) is None


async def test_nobody_pays_a_manual_order_for_themselves(shop: Shop) -> None:
    desk = checkout(shop, mock=True)
    bought = await ordered(shop, desk)
    with pytest.raises(PaymentRefusedError, match="administrator"):
        await desk.pay_as_owner(bought.order.order_id, account="ada")
    assert (await shop.orders.get(bought.order.order_id)).status == "pending"
    assert (await shop.account()).balance == 0


async def test_a_mock_payment_is_the_owners_word(shop: Shop) -> None:
    desk = checkout(shop, mock=True)
    bought = await ordered(shop, desk, "mock")
    assert bought.instructions is not None
    assert bought.instructions.self_service
    with pytest.raises(UnknownOrderError):
        await desk.pay_as_owner(bought.order.order_id, account="bob")
    done = await desk.pay_as_owner(bought.order.order_id, account="ada")
    order_no = bought.order.order_no
    assert (done.order.status, done.order.paid_by, done.order.payment_ref) == (
        "credited", "ada", f"mock:{order_no}",
    )  # fmt: skip
    assert (await desk.pay_as_owner(bought.order.order_id, account="ada")).repeated
    assert (await shop.account()).balance == 10 * CREDIT
    assert await shop.rows("SELECT * FROM admin_audit WHERE action = 'order.pay'") == []


async def test_mock_is_refused_unless_it_is_switched_on(shop: Shop) -> None:
    desk = checkout(shop)
    assert desk.modes == ("manual",)
    with pytest.raises(UnknownPaymentModeError) as raised:
        await ordered(shop, desk, "mock")
    assert (raised.value.name, raised.value.known) == ("mock", ("manual",))
    assert await shop.rows("SELECT * FROM orders") == []


async def test_a_mock_order_cannot_be_paid_once_mock_is_off(shop: Shop) -> None:
    """Not even by an admin: no money was ever taken for it."""
    bought = await ordered(shop, checkout(shop, mock=True), "mock")
    desk = checkout(shop)
    with pytest.raises(UnknownPaymentModeError):
        await desk.pay_as_owner(bought.order.order_id, account="ada")
    with pytest.raises(UnknownPaymentModeError):
        await desk.pay_as_admin(bought.order.order_id, admin="eve")
    assert await desk.instructions(bought.order) is None
    assert (await shop.account()).balance == 0


async def test_a_cancelled_order_is_not_paid(shop: Shop) -> None:
    desk = checkout(shop, mock=True)
    bought = await ordered(shop, desk, "mock")
    cancelled = await shop.orders.cancel(bought.order.order_id, cancelled_by="eve")
    with pytest.raises(TransitionRefusedError, match="is cancelled cannot become paid"):
        await desk.pay_as_owner(bought.order.order_id, account="ada")
    assert await desk.instructions(cancelled) is None


async def test_what_orders_refuse_is_refused_here(shop: Shop) -> None:
    desk = checkout(shop)
    with pytest.raises(UnknownOrderError):
        await desk.pay_as_admin("nothing", admin="eve")
    with pytest.raises(InvalidFieldsError):
        await desk.create(NewOrder(account="ada", product_id="p", quantity=0))


async def test_one_key_is_one_order_with_the_default_mode(shop: Shop) -> None:
    desk = checkout(shop)
    product_id = (await shop.product()).product_id
    named, unnamed = [
        NewOrder(account="ada", product_id=product_id, payment_mode=mode, idempotency_key="k")
        for mode in ("manual", "")
    ]
    first, again = await desk.create(named), await desk.create(unnamed)
    assert (first.repeated, again.repeated) == (False, True)
    assert again.order == first.order
    assert again.instructions == first.instructions


class Card:
    """PaymentMode of somebody else: it can be away, and says what was paid."""

    name = "card"

    def __init__(self) -> None:
        self.away = False

    async def begin(self, order: Order) -> PaymentInstructions:
        if self.away:
            raise PaymentUnavailableError("the card company is away")
        return PaymentInstructions(
            mode="card", text="Pay by card.", url="https://pay.example/1", reference="pi_1"
        )

    async def confirm(self, order: Order, proof: PaymentProof) -> Payment:
        raise PaymentRefusedError("only its webhook says so")


async def test_another_mode_needs_the_port_alone(shop: Shop) -> None:
    """Its page is away at first: the order is there once; then its webhook comes, twice."""
    card = Card()
    modes: list[PaymentMode] = [ManualPayment(), card]
    desk = Checkout(shop.orders, modes)
    product_id = (await shop.product()).product_id
    new = NewOrder(account="ada", product_id=product_id, payment_mode="card", idempotency_key="k")
    card.away = True
    with pytest.raises(PaymentUnavailableError):
        await desk.create(new)
    card.away = False
    bought = await desk.create(new)
    assert bought.repeated
    assert bought.instructions is not None
    assert bought.instructions.url == "https://pay.example/1"
    order_id = bought.order.order_id
    with pytest.raises(PaymentRefusedError):
        await desk.pay_as_admin(order_id, admin="eve")
    with pytest.raises(PaymentMismatchError):
        await desk.paid(order_id, Payment(payment_ref="pi_1", amount_cent=1, currency="CNY"))
    heard = Payment(payment_ref="pi_1", amount_cent=990, currency="CNY")
    first, again = await desk.paid(order_id, heard), await desk.paid(order_id, heard)
    assert (first.repeated, again.repeated) == (False, True)
    assert (again.order.status, again.order.paid_by) == ("credited", "payment:card")
    assert (await shop.account()).balance == 10 * CREDIT
