"""Payment outside of the product, such as a bank transfer: an administrator sees the money and says so."""

from typing import Final

from billing.shop.orders import Order, Payment
from llm_gateway.payments.port import PaymentInstructions, PaymentProof, PaymentRefusedError

MANUAL: Final = "manual"


class ManualPayment:
    """PaymentMode: nothing happens by itself."""

    name = MANUAL

    async def begin(self, order: Order) -> PaymentInstructions:
        """Whom to pay is for the operator to tell; what to name with the payment, for us."""
        return PaymentInstructions(
            mode=MANUAL,
            text=f"Pay {order.price_text} and name the order {order.order_no};"
            " it is credited when an administrator confirms the payment.",
            reference=order.order_no,
        )

    async def confirm(self, order: Order, proof: PaymentProof) -> Payment:
        """An administrator's word."""
        if not proof.by_admin:
            raise PaymentRefusedError("an administrator confirms manual payments")
        return Payment(payment_ref=proof.payment_ref)
