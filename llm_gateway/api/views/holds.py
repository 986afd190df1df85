"""Credit that is set aside for calls."""

from typing import TYPE_CHECKING

import msgspec

from llm_gateway.api.views.charges import CallView, call_view
from llm_gateway.api.views.shared import Listing, Time, moment

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.backlog import HeldCredit
    from billing.settlement.desk import HoldDetail


class OpenHoldView(msgspec.Struct, frozen=True, kw_only=True):
    """A hold of any account."""

    hold_id: str
    account: str
    held_micro_credits: int
    progress_micro_credits: int
    state: str
    process: str
    started_at: Time


class HoldList(Listing, frozen=True, kw_only=True):
    """A page of holds, newest first."""

    items: list[OpenHoldView]


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


def hold_view(hold: "HeldCredit") -> OpenHoldView:
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


def hold_detail_view(detail: "HoldDetail") -> HoldDetailView:
    """A hold with its call."""
    return HoldDetailView(
        hold=hold_view(detail.hold),
        call=None if detail.context is None else call_view(detail.context),
        process_alive=detail.process_alive,
        recorded_revisions=list(detail.recorded),
        waiting=detail.waiting,
        quarantined=detail.quarantined,
    )
