"""Calls: what they used, what they cost and why."""

from typing import TYPE_CHECKING, Literal

import msgspec

from llm_gateway.api.views.prices import (
    CandidateView,
    PriceRuleView,
    candidate_view,
    price_rule_view,
)
from llm_gateway.api.views.shared import Time, moment, moment_or_none
from llm_gateway.api.views.transactions import TransactionView, transaction_view
from pricing_rules.price import Line
from pricing_rules.usage import Usage

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.charges import ExplainedCharge, Pricing
    from billing.context import BillingContext
    from billing.events import ChargeEvent


class UsageView(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens by class; the classes are disjoint."""

    input: int
    cached_input: int
    cache_write_5m: int
    cache_write_1h: int
    audio_input: int
    image_input: int
    output: int
    reasoning: int
    audio_output: int


class LineView(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the price: quantity x price x factor, in micro-credits before rounding.

    The price is in the rule's currency, per 1M tokens or per piece. The factor is that of the hour
    and the service tier.
    """

    kind: str
    quantity: int
    price: str
    factor: str
    exact_micro_credits: str


class PricingView(msgspec.Struct, frozen=True, kw_only=True):
    """How the amount came about. Rounded up once, at the end.

    `computed_micro_credits` is not the amount of an estimate that was kept to what was held.
    `from_input_tokens`: where the tier of prices began that held; null: none did. Rules that miss
    the call in one of scene, provider and model come last, and not all of them.
    """

    rule: PriceRuleView
    considered: list[CandidateView]
    considered_left_out: int
    from_input_tokens: int | None
    hours_factor: str
    service_tier: str | None
    service_tier_factor: str
    lines: list[LineView]
    exact_micro_credits: str
    rounding_micro_credits: str
    computed_micro_credits: int


class HoldView(msgspec.Struct, frozen=True, kw_only=True):
    """Credit still set aside for the call."""

    held_micro_credits: int
    progress_micro_credits: int
    state: str


class ChargeView(msgspec.Struct, frozen=True, kw_only=True):
    """A call explained; amount, usage and pricing are null while it runs.

    `provider_cost` is what the provider itself said that the call cost, in its own money; few do.
    """

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
    settlement: str
    amount_micro_credits: int | None
    ceiling_micro_credits: int | None
    provider_cost: str | None
    quality: str | None
    usage_source: str | None
    revision: int | None
    reason: str | None
    usage: UsageView | None
    pricing: PricingView | None
    hold: HoldView | None
    entries: list[TransactionView]
    started_at: Time
    finished_at: Time | None
    source: Literal["db", "cache"]


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


def charge_view(charge: "ExplainedCharge") -> ChargeView:
    """A call explained."""
    context, hold = charge.context, charge.hold
    return ChargeView(
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
        settlement=charge.settlement,
        amount_micro_credits=charge.amount,
        ceiling_micro_credits=charge.ceiling,
        provider_cost=charge.provider_cost,
        quality=charge.quality,
        usage_source=charge.usage_source,
        revision=charge.revision,
        reason=charge.reason,
        usage=None if charge.usage is None else usage_view(charge.usage),
        pricing=None if charge.pricing is None else pricing_view(charge.pricing),
        hold=None
        if hold is None
        else HoldView(
            held_micro_credits=hold.amount,
            progress_micro_credits=hold.progress,
            state=hold.state,
        ),
        entries=[transaction_view(entry) for entry in charge.entries],
        started_at=moment(context.started_at),
        finished_at=moment_or_none(charge.finished_at),
        source="db",
    )


def usage_view(usage: Usage) -> UsageView:
    """Every class, also those that are 0."""
    return UsageView(
        input=usage.input,
        cached_input=usage.cached_input,
        cache_write_5m=usage.cache_write_5m,
        cache_write_1h=usage.cache_write_1h,
        audio_input=usage.audio_input,
        image_input=usage.image_input,
        output=usage.output,
        reasoning=usage.reasoning,
        audio_output=usage.audio_output,
    )


def pricing_view(pricing: "Pricing") -> PricingView:
    """How an amount came about."""
    return PricingView(
        rule=price_rule_view(pricing.rule),
        considered=[candidate_view(candidate) for candidate in pricing.considered],
        considered_left_out=pricing.considered_left_out,
        from_input_tokens=pricing.from_input_tokens or None,
        hours_factor=pricing.factors.hours.text,
        service_tier=pricing.factors.service_tier or None,
        service_tier_factor=pricing.factors.service.text,
        lines=[line_view(line) for line in pricing.lines],
        exact_micro_credits=pricing.exact,
        rounding_micro_credits=pricing.rounding,
        computed_micro_credits=pricing.computed,
    )


def line_view(line: Line) -> LineView:
    """A part of a price."""
    return LineView(
        kind=line.kind,
        quantity=line.quantity,
        price=line.rate,
        factor=line.factor,
        exact_micro_credits=line.micro_credits,
    )


def call_view(context: "BillingContext") -> CallView:
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


def event_view(event: "ChargeEvent") -> EventView:
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
