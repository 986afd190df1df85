"""Events that could not be posted as they are."""

from typing import TYPE_CHECKING

import msgspec

from llm_gateway.api.views.charges import CallView, EventView, call_view, event_view
from llm_gateway.api.views.shared import Listing, Time, moment, moment_or_none

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.backlog import SetAside
    from billing.settlement.desk import QuarantinedEvent, Resolved


class QuarantineView(msgspec.Struct, frozen=True, kw_only=True):
    """An event that could not be posted as it is; somebody has to decide."""

    id: int
    event_id: str
    revision: int
    account: str
    origin: str
    reason: str
    resolution: str
    created_at: Time
    resolved_at: Time | None


class QuarantineList(Listing, frozen=True, kw_only=True):
    """A page of the quarantine, newest first."""

    items: list[QuarantineView]


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


def quarantine_view(row: "SetAside") -> QuarantineView:
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


def quarantined_event_view(aside: "QuarantinedEvent") -> QuarantinedEventView:
    """A row of the quarantine with its event."""
    return QuarantinedEventView(
        row=quarantine_view(aside.row),
        event=None if aside.event is None else event_view(aside.event),
        call=None if aside.context is None else call_view(aside.context),
        payload_bytes=aside.payload_bytes,
        recorded_revisions=list(aside.recorded),
        held_micro_credits=aside.held,
    )


def resolved_view(resolved: "Resolved") -> ResolvedView:
    """A resolved event."""
    return ResolvedView(
        row=quarantine_view(resolved.row),
        repeated=resolved.repeated,
        hold_released=resolved.hold_released,
    )
