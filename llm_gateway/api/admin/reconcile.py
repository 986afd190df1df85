"""/admin/reconcile: the invariants of ledger, holds and rollups."""

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery, JSONBody

from billing.admins import Admin, Permission
from billing.audit import Act
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.reconcile import RepairView, ReportView, repaired_view, report_view
from llm_gateway.api.views.shared import Reason


class ReconcileController(Controller):
    """The invariants of ledger, holds and rollups."""

    path = "/reconcile"

    @get("/", permission=Permission.READ)
    async def reconcile(
        self, api: NamedDependency[ApiState], *, full: FromQuery[bool] = False
    ) -> ReportView:
        """Run every check now, changing nothing; not `full`: only over the last hours."""
        return report_view(await api.reconciler.run(full=full))

    @post("/repair", status_code=200, permission=Permission.RECONCILE)
    async def repair(
        self, api: NamedDependency[ApiState], admin: NamedDependency[Admin], data: JSONBody[Reason]
    ) -> RepairView:
        """Rebuild what is only derived (held credit, the rollup of usage, the hold store), then check."""
        await api.audit.write(
            Act(
                actor=admin.name,
                action="reconcile.repair",
                target="",
                detail={"reason": data.reason},
            ),
            api.now_ms(),
        )
        repaired = await api.reconciler.repair()
        report = await api.reconciler.run(full=True)
        return RepairView(repaired=repaired_view(repaired), report=report_view(report))
