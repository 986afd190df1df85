"""/admin/holds: credit that is set aside for calls."""

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from billing.admins import Admin, Permission
from billing.lists import PageRequest
from llm_gateway.api.admin.params import AccountId
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.holds import (
    HoldDetailView,
    HoldList,
    ReleasedHoldView,
    hold_detail_view,
    hold_view,
)
from llm_gateway.api.views.shared import Reason


class HoldsController(Controller):
    """Credit that is set aside for calls."""

    path = "/holds"

    @get("/", permission=Permission.READ)
    async def list_holds(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        account: AccountId = "",
    ) -> HoldList:
        """List holds, newest first."""
        page = await api.desk.shelf.page(listing, account=account)
        return HoldList(
            items=[hold_view(hold) for hold in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @get("/{hold_id:str}", permission=Permission.READ)
    async def show_hold(
        self, api: NamedDependency[ApiState], hold_id: FromPath[str]
    ) -> HoldDetailView:
        """Show a hold, its call, and whether its process lives."""
        return hold_detail_view(await api.desk.hold(hold_id))

    @post("/{hold_id:str}/release", status_code=200, permission=Permission.HOLDS)
    async def release_hold(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        hold_id: FromPath[str],
        data: JSONBody[Reason],
    ) -> ReleasedHoldView:
        """Let go of a hold whose process is gone; its call is recorded as one that costs nothing.

        409 while the process lives, or the charge waits or is in quarantine.
        """
        released = await api.desk.release_hold(hold_id, data.reason, actor=admin.name)
        return ReleasedHoldView(
            hold_id=released.hold_id, repeated=released.repeated, cancelled=released.cancelled
        )
