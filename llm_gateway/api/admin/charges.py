"""/admin/charges: give back what a call cost."""

from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from billing.admins import Admin, Permission
from billing.corrections import ChargeRefund
from llm_gateway.api.deps import IdempotencyKey
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.corrections import (
    CorrectionDoneView,
    RefundRequest,
    correction_done_view,
)


class ChargesController(Controller):
    """Charges of calls."""

    path = "/charges"

    @post("/{event_id:str}/refund", status_code=200, permission=Permission.REFUNDS)
    async def refund_charge(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        event_id: FromPath[str],
        data: JSONBody[RefundRequest],
        idempotency_key: IdempotencyKey = "",
    ) -> CorrectionDoneView:
        """Give back a call's charge, in whole or in part, never more than it came to."""
        asked = ChargeRefund(
            charge_id=event_id,
            amount=data.amount_micro_credits,
            reason=data.reason,
            idempotency_key=idempotency_key.strip() or None,
        )
        done = await api.shop.corrections.refund_charge(asked, actor=admin.name)
        return correction_done_view(done)
