"""Payment without money, for development: whoever ordered says that it is paid."""

from typing import Final

from billing.shop.orders import Order, Payment
from llm_gateway.payments.port import PaymentInstructions, PaymentProof

MOCK: Final = "mock"


class MockPayment:
    """PaymentMode: credit for nothing. Never to be switched on where credit is worth something."""

    name = MOCK

    async def begin(self, order: Order) -> PaymentInstructions:
        return PaymentInstructions(
            mode=MOCK,
            text="No money is taken: confirm the payment yourself. This is for development only.",
            reference=order.order_no,
            self_service=True,
        )

    async def confirm(self, order: Order, proof: PaymentProof) -> Payment:
        return Payment(
            payment_ref=proof.payment_ref or f"mock:{order.order_no}",
            amount_cent=order.amount_cent,
            currency=order.currency,
        )
