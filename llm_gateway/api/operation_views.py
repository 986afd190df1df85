"""What the endpoints for stuck events, holds and reconciliation answer and take.

Amounts are micro-credits, times are ISO 8601 in UTC. Nothing here has text of a call in it: events
and holds do not contain any.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from billing.backlog import HeldCredit, SetAside, WaitingCharge
from billing.context import BillingContext
from billing.events import ChargeEvent
from billing.settlement.desk import HoldDetail, QuarantinedEvent, Resolved, WaitingEvent
from billing.settlement.reconcile import Repaired, Report
from llm_gateway.api.views import (
    OpenHoldView,
    OutboxView,
    QuarantineView,
    Time,
    UsageView,
    moment,
    moment_or_none,
    usage_view,
)


class Reason(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why somebody does what he does; it goes into the audit trail."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class CallView(msgspec.Struct, frozen=True, kw_only=True):
    """The call that a hold or an event belongs to."""

    event_id: str
    account: str
    key_id: str
    app: str
    scene: str
    provider: str
    model_requested: str
    model_sent: str
    run_id: str
    client_request_id: str
    book: int
    rule_id: str
    started_at: Time


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """A charge event: what a call used and costs."""

    version: int
    revision: int
    call: CallView
    usage: UsageView
    quality: str
    usage_source: str
    amount_micro_credits: int
    ceiling_micro_credits: int
    finished_at: Time


class WaitingEventView(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the outbox; `event` null: its payload cannot be read."""

    row: OutboxView
    event: EventView | None
    payload_bytes: int


class QuarantinedEventView(msgspec.Struct, frozen=True, kw_only=True):
    """An event in quarantine; `event` null: its payload cannot be read."""

    row: QuarantineView
    event: EventView | None
    call: CallView | None
    payload_bytes: int
    recorded_revisions: list[int]
    held_micro_credits: int | None


class ResolvedView(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an event in quarantine."""

    row: QuarantineView
    repeated: bool
    hold_released: bool


class HoldDetailView(msgspec.Struct, frozen=True, kw_only=True):
    """A hold, its call, and what is known of its process and its charge."""

    hold: OpenHoldView
    call: CallView | None
    process_alive: bool
    recorded_revisions: list[int]
    waiting: bool
    quarantined: bool


class ReleasedHoldView(msgspec.Struct, frozen=True, kw_only=True):
    """A hold that is no more; `cancelled`: its call is recorded as one that costs nothing."""

    hold_id: str
    repeated: bool
    cancelled: bool


class RebuiltView(msgspec.Struct, frozen=True, kw_only=True):
    """In how many accounts `held` was wrong; null: the hold store is elsewhere, and reads anew."""

    accounts: int | None


class ViolationView(msgspec.Struct, frozen=True, kw_only=True):
    """Where an invariant does not hold."""

    id: str
    what: str


class FindingView(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one check; `examples` are the first ten of `count`."""

    check: str
    sentence: str
    ok: bool
    count: int
    examples: list[ViolationView]
    skipped: bool
    error: str


class ReportView(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of all checks found."""

    ok: bool
    full: bool
    at: Time
    findings: list[FindingView]


class RepairedView(msgspec.Struct, frozen=True, kw_only=True):
    """What a repair wrote anew."""

    held_accounts: int
    rollup_groups: int
    guard_rebuilt: bool


class RepairView(msgspec.Struct, frozen=True, kw_only=True):
    """What was repaired, and what the checks find after it."""

    repaired: RepairedView
    report: ReportView


def hold_view(hold: HeldCredit) -> OpenHoldView:
    """A hold in a list."""
    return OpenHoldView(
        hold_id=hold.hold_id,
        account=hold.account,
        held_micro_credits=hold.amount,
        progress_micro_credits=hold.progress,
        state=hold.state,
        process=hold.process,
        started_at=moment(hold.started_at),
    )


def outbox_view(waiting: WaitingCharge) -> OutboxView:
    """A row of the outbox in a list."""
    return OutboxView(
        event_id=waiting.event_id,
        revision=waiting.revision,
        account=waiting.account,
        cancelled=waiting.cancelled,
        attempts=waiting.attempts,
        claimed_by=waiting.claimed_by,
        claimed_at=moment_or_none(waiting.claimed_at),
        created_at=moment(waiting.created_at),
    )


def quarantine_view(row: SetAside) -> QuarantineView:
    """A row of the quarantine in a list."""
    return QuarantineView(
        id=row.id,
        event_id=row.event_id,
        revision=row.revision,
        account=row.account,
        origin=row.origin,
        reason=row.reason,
        resolution=row.resolution,
        created_at=moment(row.created_at),
        resolved_at=moment_or_none(row.resolved_at),
    )


def call_view(context: BillingContext) -> CallView:
    """A call as its hold and its events know it."""
    return CallView(
        event_id=context.event_id,
        account=context.account,
        key_id=context.key_id,
        app=context.app,
        scene=context.scene,
        provider=context.provider,
        model_requested=context.model_requested,
        model_sent=context.model_sent,
        run_id=context.run_id,
        client_request_id=context.client_request_id,
        book=context.book,
        rule_id=context.rule,
        started_at=moment(context.started_at),
    )


def event_view(event: ChargeEvent) -> EventView:
    """A charge event, decoded."""
    return EventView(
        version=event.version,
        revision=event.revision,
        call=call_view(event.context),
        usage=usage_view(event.usage),
        quality=event.quality,
        usage_source=event.usage_source,
        amount_micro_credits=event.amount,
        ceiling_micro_credits=event.ceiling,
        finished_at=moment(event.finished_at),
    )


def waiting_event_view(waiting: WaitingEvent) -> WaitingEventView:
    """A row of the outbox with its event."""
    return WaitingEventView(
        row=outbox_view(waiting.row),
        event=None if waiting.event is None else event_view(waiting.event),
        payload_bytes=waiting.payload_bytes,
    )


def quarantined_event_view(aside: QuarantinedEvent) -> QuarantinedEventView:
    """A row of the quarantine with its event."""
    return QuarantinedEventView(
        row=quarantine_view(aside.row),
        event=None if aside.event is None else event_view(aside.event),
        call=None if aside.context is None else call_view(aside.context),
        payload_bytes=aside.payload_bytes,
        recorded_revisions=list(aside.recorded),
        held_micro_credits=aside.held,
    )


def resolved_view(resolved: Resolved) -> ResolvedView:
    """A resolved event."""
    return ResolvedView(
        row=quarantine_view(resolved.row),
        repeated=resolved.repeated,
        hold_released=resolved.hold_released,
    )


def hold_detail_view(detail: HoldDetail) -> HoldDetailView:
    """A hold with its call."""
    return HoldDetailView(
        hold=hold_view(detail.hold),
        call=None if detail.context is None else call_view(detail.context),
        process_alive=detail.process_alive,
        recorded_revisions=list(detail.recorded),
        waiting=detail.waiting,
        quarantined=detail.quarantined,
    )


def report_view(report: Report) -> ReportView:
    """The findings of a run."""
    return ReportView(
        ok=report.ok,
        full=report.full,
        at=moment(report.at),
        findings=[
            FindingView(
                check=finding.check,
                sentence=finding.sentence,
                ok=finding.ok,
                count=finding.count,
                examples=[
                    ViolationView(id=example.id, what=example.what) for example in finding.examples
                ],
                skipped=finding.skipped,
                error=finding.error,
            )
            for finding in report.findings
        ],
    )


def repaired_view(repaired: Repaired) -> RepairedView:
    """What a repair did."""
    return RepairedView(
        held_accounts=repaired.held_accounts,
        rollup_groups=repaired.rollup_groups,
        guard_rebuilt=repaired.guard_rebuilt,
    )
