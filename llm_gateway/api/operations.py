"""The admin API's part for operations: holds, outbox, quarantine, the guard, reconciliation.

What is only looked at is a GET; each act is a POST with a reason, and leaves a row in the audit trail.
"""

from typing import Annotated

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from billing.audit import Act
from billing.backlog import Backlog
from billing.lists import PageRequest
from llm_gateway.api.deps import ADMIN_ACTOR
from llm_gateway.api.operation_views import (
    HoldDetailView,
    QuarantinedEventView,
    Reason,
    RebuiltView,
    ReleasedHoldView,
    RepairView,
    ReportView,
    ResolvedView,
    WaitingEventView,
    hold_detail_view,
    hold_view,
    outbox_view,
    quarantine_view,
    quarantined_event_view,
    repaired_view,
    report_view,
    resolved_view,
    waiting_event_view,
)
from llm_gateway.api.state import ApiState
from llm_gateway.api.views import HoldList, OutboxList, QuarantineList

AccountId = Annotated[str, QueryParameter(max_length=64)]


class HoldsController(Controller):
    """Credit that is set aside for calls."""

    path = "/holds"

    @get("/")
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

    @get("/{hold_id:str}")
    async def show_hold(
        self, api: NamedDependency[ApiState], hold_id: FromPath[str]
    ) -> HoldDetailView:
        """Show a hold, its call, and whether its process lives."""
        return hold_detail_view(await api.desk.hold(hold_id))

    @post("/{hold_id:str}/release", status_code=200)
    async def release_hold(
        self, api: NamedDependency[ApiState], hold_id: FromPath[str], data: JSONBody[Reason]
    ) -> ReleasedHoldView:
        """Let go of a hold whose process is gone; its call is recorded as one that costs nothing.

        409 while the process lives, or the charge waits or is in quarantine.
        """
        released = await api.desk.release_hold(hold_id, data.reason, actor=ADMIN_ACTOR)
        return ReleasedHoldView(
            hold_id=released.hold_id, repeated=released.repeated, cancelled=released.cancelled
        )


class OutboxController(Controller):
    """Charges on their way into the ledger."""

    path = "/outbox"

    @get("/")
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

    @get("/{event_id:str}/{revision:int}")
    async def show_waiting(
        self, api: NamedDependency[ApiState], event_id: FromPath[str], revision: FromPath[int]
    ) -> WaitingEventView:
        """Show a waiting event; revision 1 is an estimate, 2 the final."""
        return waiting_event_view(await api.desk.waiting(event_id, revision))


class QuarantineController(Controller):
    """Events that could not be posted as they are; a person decides."""

    path = "/quarantine"

    @get("/")
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

    @get("/{number:int}")
    async def show_quarantined(
        self, api: NamedDependency[ApiState], number: FromPath[int]
    ) -> QuarantinedEventView:
        """Show an event in quarantine, decoded."""
        return quarantined_event_view(await api.desk.quarantined(number))

    @post("/{number:int}/replay", status_code=200)
    async def replay(
        self, api: NamedDependency[ApiState], number: FromPath[int], data: JSONBody[Reason]
    ) -> ResolvedView:
        """Put an event back into the outbox; 409 if it could only fail again."""
        return resolved_view(await api.desk.replay(number, data.reason, actor=ADMIN_ACTOR))

    @post("/{number:int}/discard", status_code=200)
    async def discard(
        self, api: NamedDependency[ApiState], number: FromPath[int], data: JSONBody[Reason]
    ) -> ResolvedView:
        """Drop an event for good: it is never charged, and its call's hold goes."""
        return resolved_view(await api.desk.discard(number, data.reason, actor=ADMIN_ACTOR))


class GuardController(Controller):
    """The hold store."""

    path = "/guard"

    @post("/rebuild", status_code=200)
    async def rebuild(self, api: NamedDependency[ApiState], data: JSONBody[Reason]) -> RebuiltView:
        """Make the hold store forget what it derived and load it anew from the ledger."""
        rebuilt = await api.desk.rebuild_guard(data.reason, actor=ADMIN_ACTOR)
        return RebuiltView(accounts=rebuilt)


class ReconcileController(Controller):
    """The invariants of ledger, holds and rollups."""

    path = "/reconcile"

    @get("/")
    async def reconcile(
        self, api: NamedDependency[ApiState], *, full: FromQuery[bool] = False
    ) -> ReportView:
        """Run every check now, changing nothing; not `full`: only over the last hours."""
        return report_view(await api.reconciler.run(full=full))

    @post("/repair", status_code=200)
    async def repair(self, api: NamedDependency[ApiState], data: JSONBody[Reason]) -> RepairView:
        """Rebuild what is only derived (held credit, hourly usage, the hold store), then check."""
        await api.audit.write(
            Act(
                actor=ADMIN_ACTOR,
                action="reconcile.repair",
                target="",
                detail={"reason": data.reason},
            ),
            api.now_ms(),
        )
        repaired = await api.reconciler.repair()
        report = await api.reconciler.run(full=True)
        return RepairView(repaired=repaired_view(repaired), report=report_view(report))
