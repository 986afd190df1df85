"""The port that every payment mode implements: manual and mock here, Stripe and others later."""

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.shop.orders import Order, Payment


class PaymentInstructions(msgspec.Struct, frozen=True, kw_only=True):
    """What the buyer is to do now; safe to show to the order's owner."""

    mode: str
    text: str  # one sentence
    url: str | None = None  # where to pay, if the mode has such a page
    reference: str  # to be named with the payment
    self_service: bool = False  # the owner may confirm the payment through our own API


class PaymentProof(msgspec.Struct, frozen=True, kw_only=True):
    """What is given as proof that an order was paid."""

    by_admin: bool  # an administrator says so, else the order's owner
    payment_ref: str = ""  # the payment's id where the money was taken


class PaymentRefusedError(Exception):
    """The proof does not do: nothing is noted as paid."""


class PaymentUnavailableError(Exception):
    """Whoever takes the money cannot be reached; ask again."""


class PaymentMode(Protocol):
    """One way to pay. Every method may be called again for the same order, with the same outcome.

    A mode that hears from outside (a webhook) finds the order by the reference it gave in `begin`,
    checks the message, and ends in `Checkout.paid`, which is safe to repeat.
    """

    name: str  # as orders keep it: a-z 0-9 _

    async def begin(self, order: "Order") -> PaymentInstructions:
        """What the buyer of a pending order is to do; raises PaymentUnavailableError."""
        ...

    async def confirm(self, order: "Order", proof: PaymentProof) -> "Payment":
        """What was paid, if it was; raises PaymentRefusedError, PaymentUnavailableError."""
        ...
