"""/admin/corrections: adjustments and refunds that were made."""

from typing import Literal

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from billing.admins import Permission
from billing.lists import PageRequest
from llm_gateway.api.admin.params import AccountId, Filter
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.corrections import CorrectionList, correction_view


class CorrectionsController(Controller):
    """Adjustments and refunds."""

    path = "/corrections"

    @get("/", permission=Permission.READ)
    async def list_corrections(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        account: AccountId = "",
        ref_id: Filter = "",
        kind: FromQuery[Literal["adjustment", "charge_refund", "order_refund"] | None] = None,
    ) -> CorrectionList:
        """List corrections, newest first; `ref_id` is a charge or an order."""
        page = await api.shop.corrections.page(
            listing, account=account, kind=kind or "", ref_id=ref_id
        )
        return CorrectionList(
            items=[correction_view(correction) for correction in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )
