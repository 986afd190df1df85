"""Orders: what was bought, and how it is paid."""

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from billing.kinds import QUANTITY_MAX, OrderStatus
from llm_gateway.api.views.products import SnapshotView, snapshot_view
from llm_gateway.api.views.shared import (
    Line,
    Listing,
    Reference,
    Source,
    Time,
    moment,
    moment_or_none,
)
from llm_gateway.payments.port import PaymentInstructions

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.shop.orders import Order


class OrderView(msgspec.Struct, frozen=True, kw_only=True):
    """An order as its owner sees it; amounts are those of the whole order."""

    order_id: str
    order_no: str
    status: OrderStatus
    product_snapshot: SnapshotView
    product_name: str
    quantity: int
    credit_amount_micro_credits: int
    amount_cent: int
    price_text: str
    currency: str
    payment_mode: str
    created_at: Time
    paid_at: Time | None
    credited_at: Time | None


class OrderList(Listing, frozen=True, kw_only=True):
    """A page of an account's orders, newest first."""

    items: list[OrderView]


class AdminOrderView(OrderView, frozen=True, kw_only=True):
    """An order as an administrator sees it."""

    account: str
    created_by: str
    paid_by: str | None
    payment_ref: str | None
    cancelled_at: Time | None


class AdminOrderList(Listing, frozen=True, kw_only=True):
    """A page of orders, newest first."""

    items: list[AdminOrderView]


class OrderRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to order; a payment mode that is left out is the gateway's first."""

    product_id: Reference
    quantity: Annotated[int, Meta(ge=1, le=QUANTITY_MAX)] = 1
    payment_mode: Source | None = None


class PaymentView(msgspec.Struct, frozen=True, kw_only=True):
    """What to do to pay; with `self_service`, POST to the order's `pay`."""

    mode: str
    text: str
    url: str | None
    reference: str
    self_service: bool


class PlacedOrderView(msgspec.Struct, frozen=True, kw_only=True):
    """An order, and how to pay it: null if there is nothing to pay any more."""

    repeated: bool
    order: OrderView
    payment: PaymentView | None


class OrderPayment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That an order was paid, and the payment's id where the money was taken."""

    payment_ref: Line = ""


class PaidOrderView(msgspec.Struct, frozen=True, kw_only=True):
    """An order that is credited; `repeated`: it was so before."""

    repeated: bool
    order: AdminOrderView


class OwnPaidOrderView(msgspec.Struct, frozen=True, kw_only=True):
    """An order that is credited, as its owner sees it."""

    repeated: bool
    order: OrderView


def order_view(order: "Order") -> OrderView:
    """An order as its owner sees it."""
    return msgspec.convert(_values(order), OrderView)


def admin_order_view(order: "Order") -> AdminOrderView:
    """An order as an administrator sees it."""
    cancelled_at = moment_or_none(order.cancelled_at)
    return msgspec.convert(_values(order) | {"cancelled_at": cancelled_at}, AdminOrderView)


def payment_view(payment: PaymentInstructions) -> PaymentView:
    """How to pay."""
    return msgspec.convert(payment, PaymentView, from_attributes=True)


def _values(order: "Order") -> dict[str, object]:
    values = msgspec.structs.asdict(order)
    return values | {
        "product_snapshot": snapshot_view(order.product_snapshot),
        "credit_amount_micro_credits": order.credit_amount,
        "price_text": order.price_text,
        "created_at": moment(order.created_at),
        "paid_at": moment_or_none(order.paid_at),
        "credited_at": moment_or_none(order.credited_at),
    }
