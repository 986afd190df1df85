"""/admin/outbox: charges on their way into the ledger."""

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from billing.admins import Permission
from billing.backlog import Backlog
from billing.lists import PageRequest
from llm_gateway.api.admin.params import Version
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.outbox import (
    OutboxList,
    WaitingEventView,
    outbox_view,
    waiting_event_view,
)


class OutboxController(Controller):
    """Charges on their way into the ledger."""

    path = "/outbox"

    @get("/", permission=Permission.READ)
    async def list_outbox(
        self, api: NamedDependency[ApiState], listing: NamedDependency[PageRequest]
    ) -> OutboxList:
        """List charge events that are not in the ledger yet, oldest first."""
        page = await Backlog(api.database).outbox(listing)
        return OutboxList(
            items=[outbox_view(waiting) for waiting in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @get("/{event_id:str}/{revision:int}", permission=Permission.READ)
    async def show_waiting(
        self, api: NamedDependency[ApiState], event_id: FromPath[str], revision: Version
    ) -> WaitingEventView:
        """Show a waiting event; revision 1 is an estimate, 2 the final."""
        return waiting_event_view(await api.desk.waiting(event_id, revision))
