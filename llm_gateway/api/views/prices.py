"""Rules of price books, and why one applies to a call."""

import msgspec

from llm_gateway.api.views.shared import Listing
from pricing_rules.book import Rule
from pricing_rules.match import Candidate


class PriceRuleView(msgspec.Struct, frozen=True, kw_only=True):
    """What calls cost; a price that the book leaves out is null (cached input is as input then)."""

    rule_id: str
    scene: str
    provider_name: str
    model_name: str
    currency: str
    credits_per_unit: str
    input_price: str | None
    cached_input_price: str | None
    output_price: str | None
    reasoning_price: str | None
    per_call_price: str | None
    free: bool
    status: str
    priority: int
    description: str


class PriceRuleList(Listing, frozen=True, kw_only=True):
    """The rules of the book in effect that can apply to the caller."""

    book: int
    items: list[PriceRuleView]


class CandidateView(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that was considered, and why it applies or not."""

    rule_id: str
    won: bool
    why: str


def price_rule_view(rule: Rule) -> PriceRuleView:
    """A rule with its prices as uploaded."""
    return PriceRuleView(
        rule_id=rule.id,
        scene=rule.scene,
        provider_name=rule.provider,
        model_name=rule.model,
        currency=rule.currency,
        credits_per_unit=rule.credits_per_unit,
        input_price=rule.input,
        cached_input_price=rule.cached_input,
        output_price=rule.output,
        reasoning_price=rule.reasoning,
        per_call_price=rule.per_call,
        free=rule.free,
        status=rule.status,
        priority=rule.priority,
        description=rule.description,
    )


def candidate_view(candidate: Candidate) -> CandidateView:
    """A rule that was considered."""
    return CandidateView(rule_id=candidate.rule.id, won=candidate.won, why=candidate.why)
