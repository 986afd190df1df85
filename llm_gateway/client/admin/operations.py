"""What is stuck, and what to do about it: holds, outbox, quarantine, the guard, reconcile."""

from llm_gateway.api.views.guard import RebuiltView
from llm_gateway.api.views.holds import (
    HoldDetailView,
    HoldList,
    OpenHoldView,
    ReleasedHoldView,
)
from llm_gateway.api.views.outbox import OutboxList, OutboxView, WaitingEventView
from llm_gateway.api.views.quarantine import (
    QuarantinedEventView,
    QuarantineList,
    QuarantineView,
    ResolvedView,
)
from llm_gateway.api.views.reconcile import RepairView, ReportView
from llm_gateway.api.views.shared import Reason
from llm_gateway.client.methods import AskList, get, pages, post
from llm_gateway.client.requests import PAGE_SIZE, Ask


class Operations:
    """Acts with a reason, which stands in the audit trail."""

    @pages("/admin/holds")
    def holds(
        self, *, account: str = "", page: int = 1, page_size: int = PAGE_SIZE, after: str = ""
    ) -> AskList[HoldList, OpenHoldView]:
        """List holds, newest first."""
        return AskList(HoldList, page=page, page_size=page_size, after=after, account=account)

    @get("/admin/holds/{hold_id}")
    def hold(self, hold_id: str) -> Ask[HoldDetailView]:
        """Show a hold, its call, and whether its process lives."""
        return Ask(HoldDetailView, hold_id)

    @post("/admin/holds/{hold_id}/release")
    def release_hold(self, hold_id: str, *, reason: str) -> Ask[ReleasedHoldView]:
        """Let go of a hold whose process is gone."""
        return Ask(ReleasedHoldView, hold_id, body=Reason(reason=reason), repeatable=True)

    @pages("/admin/outbox")
    def outbox(
        self, *, page: int = 1, page_size: int = PAGE_SIZE, after: str = ""
    ) -> AskList[OutboxList, OutboxView]:
        """List charge events that are not in the ledger yet, oldest first."""
        return AskList(OutboxList, page=page, page_size=page_size, after=after)

    @get("/admin/outbox/{event_id}/{revision}")
    def waiting_event(self, event_id: str, revision: int = 2) -> Ask[WaitingEventView]:
        """Show a waiting event; revision 1 is an estimate, 2 the final."""
        return Ask(WaitingEventView, event_id, revision)

    @pages("/admin/quarantine")
    def quarantine(
        self,
        *,
        unresolved_only: bool = False,
        page: int = 1,
        page_size: int = PAGE_SIZE,
        after: str = "",
    ) -> AskList[QuarantineList, QuarantineView]:
        """List events that could not be posted as they are, newest first."""
        return AskList(
            QuarantineList,
            page=page,
            page_size=page_size,
            after=after,
            unresolved_only=unresolved_only,
        )

    @get("/admin/quarantine/{number}")
    def quarantined(self, number: int) -> Ask[QuarantinedEventView]:
        """Show an event in quarantine, decoded."""
        return Ask(QuarantinedEventView, number)

    @post("/admin/quarantine/{number}/replay")
    def replay_quarantined(self, number: int, *, reason: str) -> Ask[ResolvedView]:
        """Put an event back into the outbox."""
        return Ask(ResolvedView, number, body=Reason(reason=reason), repeatable=True)

    @post("/admin/quarantine/{number}/discard")
    def discard_quarantined(self, number: int, *, reason: str) -> Ask[ResolvedView]:
        """Drop an event for good: it is never charged."""
        return Ask(ResolvedView, number, body=Reason(reason=reason), repeatable=True)

    @post("/admin/guard/rebuild")
    def rebuild_guard(self, *, reason: str) -> Ask[RebuiltView]:
        """Make the hold store forget what it derived and load it anew from the ledger."""
        return Ask(RebuiltView, body=Reason(reason=reason), repeatable=True)

    @get("/admin/reconcile")
    def reconcile(self, *, full: bool = False) -> Ask[ReportView]:
        """Run every check now, changing nothing."""
        return Ask(ReportView, query={"full": full})

    @post("/admin/reconcile/repair")
    def repair(self, *, reason: str) -> Ask[RepairView]:
        """Rebuild what is only derived, then check."""
        return Ask(RepairView, body=Reason(reason=reason), repeatable=True)
