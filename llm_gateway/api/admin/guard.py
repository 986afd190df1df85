"""/admin/guard: the store that keeps holds."""

from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from billing.admins import Admin, Permission
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.guard import RebuiltView
from llm_gateway.api.views.shared import Reason


class GuardController(Controller):
    """The hold store."""

    path = "/guard"

    @post("/rebuild", status_code=200, permission=Permission.GUARD)
    async def rebuild(
        self, api: NamedDependency[ApiState], admin: NamedDependency[Admin], data: JSONBody[Reason]
    ) -> RebuiltView:
        """Make the hold store forget what it derived and load it anew from the ledger."""
        rebuilt = await api.desk.rebuild_guard(data.reason, actor=admin.name)
        return RebuiltView(accounts=rebuilt)
