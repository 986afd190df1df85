"""/admin/audit: who did what."""

from litestar import Controller, get
from litestar.di import NamedDependency

from billing.admins import Permission
from billing.lists import PageRequest
from llm_gateway.api.admin.params import Filter
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.audit import AuditList, audit_view
from llm_gateway.api.views.shared import cursor


class AuditController(Controller):
    """What administrators did."""

    @get("/audit", permission=Permission.READ)
    async def audit(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        action: Filter = "",
        target: Filter = "",
    ) -> AuditList:
        """List administrators' acts, newest first."""
        page = await api.audit.page(listing, action=action, target=target)
        return AuditList(
            items=[audit_view(row) for row in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
            next_after=cursor(page.next_after),
        )
