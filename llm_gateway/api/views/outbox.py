"""Charge events on their way into the ledger."""

from typing import TYPE_CHECKING

import msgspec

from llm_gateway.api.views.charges import EventView, event_view
from llm_gateway.api.views.shared import Listing, Time, moment, moment_or_none

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.backlog import WaitingCharge
    from billing.settlement.desk import WaitingEvent


class OutboxView(msgspec.Struct, frozen=True, kw_only=True):
    """A charge event that is not in the ledger yet."""

    event_id: str
    revision: int
    account: str
    cancelled: bool
    attempts: int
    claimed_by: str | None
    claimed_at: Time | None
    created_at: Time


class OutboxList(Listing, frozen=True, kw_only=True):
    """A page of the outbox, oldest first."""

    items: list[OutboxView]


class WaitingEventView(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the outbox; `event` null: its payload cannot be read."""

    row: OutboxView
    event: EventView | None
    payload_bytes: int


def outbox_view(waiting: "WaitingCharge") -> OutboxView:
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


def waiting_event_view(waiting: "WaitingEvent") -> WaitingEventView:
    """A row of the outbox with its event."""
    return WaitingEventView(
        row=outbox_view(waiting.row),
        event=None if waiting.event is None else event_view(waiting.event),
        payload_bytes=waiting.payload_bytes,
    )
