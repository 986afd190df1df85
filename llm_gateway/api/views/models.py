"""Models in OpenAI's shape, and what they cost."""

from typing import Literal

import msgspec

from pricing_rules.book import Rule
from pricing_rules.money import MICRO_CREDITS_PER_CREDIT
from pricing_rules.price import decimal_text, factors_of
from pricing_rules.rates import TOKEN_CLASSES, Card


class TokenCreditsView(msgspec.Struct, frozen=True, kw_only=True):
    """Credits for 1M tokens of each class, as decimals; what a book leaves out is filled in."""

    input: str
    cached_input: str
    cache_write_5m: str
    cache_write_1h: str
    audio_input: str
    image_input: str
    output: str
    reasoning: str
    audio_output: str


class PieceCreditsView(msgspec.Struct, frozen=True, kw_only=True):
    """Credits for one call, and for each thing that is no token, as decimals."""

    call: str
    image: str
    second: str
    character: str
    search: str


class TierCreditsView(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for all of a call from so many input tokens on."""

    from_input_tokens: int
    credits_per_1m_tokens: TokenCreditsView


class ModelPricingView(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs the caller in its scene, by the rule and book that price it now.

    All prices are multiplied by `hours_factor`, which changes over the day where `has_hours` says so;
    those of tokens also by the factor of the service tier, if one of these is asked for. Whatever is
    left out costs nothing extra. `currency` and `credits_per_unit` are how the rule states its prices.
    """

    book: int
    rule_id: str
    currency: str
    credits_per_unit: str
    free: bool
    credits_per_1m_tokens: TokenCreditsView
    credits_each: PieceCreditsView
    minimum_charge_credits: str
    tiers: list[TierCreditsView]
    has_hours: bool
    hours_factor: str
    service_tiers: dict[str, str]


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model in OpenAI's shape; `created` is not known and 0."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str
    pricing: ModelPricingView


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models in OpenAI's shape."""

    object: Literal["list"] = "list"
    data: list[ModelView]


def model_pricing_view(rule: Rule, book: int, at: int) -> ModelPricingView:
    """What a rule asks for a call at a time, milliseconds since the epoch."""
    fees, each = rule.fees, rule.denominator * MICRO_CREDITS_PER_CREDIT
    return ModelPricingView(
        book=book,
        rule_id=rule.id,
        currency=rule.currency,
        credits_per_unit=rule.credits_per_unit,
        free=rule.free,
        credits_per_1m_tokens=_token_credits(rule, rule.cards[0]),
        credits_each=PieceCreditsView(
            call=decimal_text(fees.call, each),
            image=decimal_text(fees.image, each),
            second=decimal_text(fees.second, each),
            character=decimal_text(fees.character, each),
            search=decimal_text(fees.search, each),
        ),
        minimum_charge_credits=decimal_text(rule.minimum, each),
        tiers=[
            TierCreditsView(
                from_input_tokens=card.from_input_tokens,
                credits_per_1m_tokens=_token_credits(rule, card),
            )
            for card in rule.cards[1:]
        ],
        has_hours=bool(rule.hours),
        hours_factor=factors_of(rule, at).hours.text,
        service_tiers={tier.name: tier.multiply.text for tier in rule.service_tiers},
    )


def _token_credits(rule: Rule, card: Card) -> TokenCreditsView:
    # Micro-credits for a token are credits for a million of them.
    return TokenCreditsView(
        **{
            name: decimal_text(getattr(card.rates, name), rule.denominator)
            for name in TOKEN_CLASSES
        }
    )
