"""Buying from order to credit: which payment modes there are, and orders that are paid through them."""

from collections.abc import Iterable

import msgspec

from billing.kinds import OrderStatus
from billing.shop.orders import NewOrder, Order, OrderDone, Orders, Payment, TransitionRefusedError
from llm_gateway.payments.manual import ManualPayment
from llm_gateway.payments.mock import MockPayment
from llm_gateway.payments.port import (
    PaymentInstructions,
    PaymentMode,
    PaymentProof,
)


class UnknownPaymentModeError(Exception):
    """The payment mode is not switched on; `known` are."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"payment mode {name!r} is not on; there is: {', '.join(known)}")
        self.name = name
        self.known = known


class Ordered(msgspec.Struct, frozen=True, kw_only=True):
    """An order, and how to pay it; None: there is nothing to pay any more."""

    order: Order
    repeated: bool
    instructions: PaymentInstructions | None


def payment_modes(*, mock: bool) -> tuple[PaymentMode, ...]:
    """The modes that ship; the first is the default. `mock`: also the one that takes no money."""
    return (ManualPayment(), MockPayment()) if mock else (ManualPayment(),)


class Checkout:
    """Orders with their payment modes; raises what `Orders` raises, beside what is named."""

    def __init__(self, orders: Orders, modes: Iterable[PaymentMode]) -> None:
        """`modes`: at least one; the first is the default."""
        self._orders = orders
        self._modes = {mode.name: mode for mode in modes}

    @property
    def modes(self) -> tuple[str, ...]:
        """The names of the modes that are on, the default first."""
        return tuple(self._modes)

    async def create(self, new: NewOrder, *, created_by: str = "") -> Ordered:
        """Order, and say how to pay; `payment_mode` "" is the default mode.

        Raises UnknownPaymentModeError before anything is ordered. PaymentUnavailableError leaves
        an order that is pending: asked again with its idempotency key, it is the same one.
        """
        mode = self._mode(new.payment_mode or self.modes[0])
        named = msgspec.structs.replace(new, payment_mode=mode.name)
        done = await self._orders.create(named, created_by=created_by)
        return Ordered(
            order=done.order,
            repeated=done.repeated,
            instructions=await self.instructions(done.order),
        )

    async def instructions(self, order: Order) -> PaymentInstructions | None:
        """How to pay an order; None: it is not pending, or its mode has been switched off."""
        mode = self._modes.get(order.payment_mode)
        if order.status is not OrderStatus.PENDING or mode is None:
            return None
        return await mode.begin(order)

    async def pay_as_admin(self, order_id: str, *, payment_ref: str = "", admin: str) -> OrderDone:
        """An administrator confirms a payment, whatever the order's mode; see `Orders.pay`."""
        proof = PaymentProof(by_admin=True, payment_ref=payment_ref)
        return await self._pay(await self._orders.get(order_id), proof, paid_by=admin)

    async def pay_as_owner(self, order_id: str, *, account: str) -> OrderDone:
        """The order's owner says that it is paid, where the mode lets them.

        Raises UnknownOrderError (also for another account's), PaymentRefusedError.
        """
        order = await self._orders.get(order_id, account=account)
        return await self._pay(order, PaymentProof(by_admin=False), paid_by=account)

    async def paid(self, order_id: str, payment: Payment) -> OrderDone:
        """What a payment mode heard from outside; it has checked who says so."""
        order = await self._orders.get(order_id)
        return await self._orders.pay(
            order_id, payment, paid_by=f"payment:{order.payment_mode}", admin=False
        )

    async def _pay(self, order: Order, proof: PaymentProof, *, paid_by: str) -> OrderDone:
        if order.status is OrderStatus.CANCELLED:
            raise TransitionRefusedError(order.status, OrderStatus.PAID)
        payment = await self._mode(order.payment_mode).confirm(order, proof)
        return await self._orders.pay(
            order.order_id, payment, paid_by=paid_by, admin=proof.by_admin
        )

    def _mode(self, name: str) -> PaymentMode:
        if (mode := self._modes.get(name)) is None:
            raise UnknownPaymentModeError(name, self.modes)
        return mode
