"""/admin/quarantine: events that could not be posted; a person decides."""

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery, JSONBody

from billing.admins import Admin, Permission
from billing.backlog import Backlog
from billing.lists import PageRequest
from llm_gateway.api.admin.params import RowNumber
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.quarantine import (
    QuarantinedEventView,
    QuarantineList,
    ResolvedView,
    quarantine_view,
    quarantined_event_view,
    resolved_view,
)
from llm_gateway.api.views.shared import Reason


class QuarantineController(Controller):
    """Events that could not be posted as they are; a person decides."""

    path = "/quarantine"

    @get("/", permission=Permission.READ)
    async def list_quarantine(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        *,
        unresolved_only: FromQuery[bool] = False,
    ) -> QuarantineList:
        """List events that could not be posted as they are, newest first."""
        page = await Backlog(api.database).quarantine(listing, unresolved_only=unresolved_only)
        return QuarantineList(
            items=[quarantine_view(row) for row in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @get("/{number:int}", permission=Permission.READ)
    async def show_quarantined(
        self, api: NamedDependency[ApiState], number: RowNumber
    ) -> QuarantinedEventView:
        """Show an event in quarantine, decoded."""
        return quarantined_event_view(await api.desk.quarantined(number))

    @post("/{number:int}/replay", status_code=200, permission=Permission.QUARANTINE)
    async def replay(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        number: RowNumber,
        data: JSONBody[Reason],
    ) -> ResolvedView:
        """Put an event back into the outbox; 409 if it could only fail again."""
        return resolved_view(await api.desk.replay(number, data.reason, actor=admin.name))

    @post("/{number:int}/discard", status_code=200, permission=Permission.QUARANTINE)
    async def discard(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        number: RowNumber,
        data: JSONBody[Reason],
    ) -> ResolvedView:
        """Drop an event for good: it is never charged, and its call's hold goes."""
        return resolved_view(await api.desk.discard(number, data.reason, actor=admin.name))
