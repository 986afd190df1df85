"""Charged calls as a list."""

from typing import TYPE_CHECKING

import msgspec

from llm_gateway.api.views.charges import UsageView, usage_view
from llm_gateway.api.views.shared import Time, cursor, moment

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.shop.calls import Call, Calls


class CallSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A charged call; /charges/{event_id} explains it."""

    event_id: str
    started_at: Time
    finished_at: Time
    scene: str
    provider: str
    model_requested: str
    model_sent: str
    key_id: str
    app: str
    run_id: str
    client_request_id: str
    book: int
    rule_id: str
    amount_micro_credits: int
    quality: str
    reason: str
    usage: UsageView


class ChargeList(msgspec.Struct, frozen=True, kw_only=True):
    """Charged calls, the newest charge first.

    Go on with `next_after` as `after` while it is not null: where a filter is rare, a page may hold
    fewer items than asked for, even none, and others still follow.
    """

    items: list[CallSummary]
    has_more: bool
    next_after: str | None


def charge_list(calls: "Calls") -> ChargeList:
    """Some charged calls."""
    return ChargeList(
        items=[_summary(call) for call in calls.items],
        has_more=calls.next_after is not None,
        next_after=cursor(calls.next_after),
    )


def _summary(call: "Call") -> CallSummary:
    return CallSummary(
        event_id=call.event_id,
        started_at=moment(call.started_at),
        finished_at=moment(call.finished_at),
        scene=call.scene,
        provider=call.provider,
        model_requested=call.model_requested,
        model_sent=call.model_sent,
        key_id=call.key_id,
        app=call.app,
        run_id=call.run_id,
        client_request_id=call.client_request_id,
        book=call.book,
        rule_id=call.rule,
        amount_micro_credits=call.amount,
        quality=call.quality,
        reason=call.reason,
        usage=usage_view(call.usage),
    )
