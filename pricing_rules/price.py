"""What usage costs under a rule: integers, one rounding a charge, upwards. Pure.

    tokens   = sum(tokens of a class x its rate), by the card that the whole input falls on
    fees     = calls, images, seconds, characters and searches x their prices
    exact    = (tokens x service tier + fees) x hours
    amount   = ceil(max(exact, minimum charge x calls))

Hours multiply every price, for all of a vendor's prices follow its peak hours; service tiers only
those per token, for that is what vendors sell by tier. Neither multiplies the minimum charge.
"""

from typing import Final

import msgspec

from pricing_rules.book import PLAIN_SERVICE_TIERS, Rule
from pricing_rules.hours import ONE, Multiplier, multiplier_at
from pricing_rules.rates import TOKEN_CLASSES, Card
from pricing_rules.usage import NO_UNITS, Units, Usage

# "As much as you like", where output costs nothing; still an integer that JSON can carry.
UNLIMITED_TOKENS: Final = 2**53 - 1

_FEE_KINDS: Final = (
    ("per_call", "call", ""),
    ("per_image", "image", "images"),
    ("per_second", "second", "seconds"),
    ("per_character", "character", "characters"),
    ("per_search", "search", "searches"),
)


class UnlistedServiceTierError(ValueError):
    """A call asks for a service tier that its rule has no price for."""

    def __init__(self, rule: Rule, service_tier: str) -> None:
        self.service_tier = service_tier
        self.listed = tuple(tier.name for tier in rule.service_tiers)
        super().__init__(
            f"the price rule {rule.id} lists no service tier of this name; "
            + (f"it lists {', '.join(self.listed)}" if self.listed else "it lists none")
        )


class Factors(msgspec.Struct, frozen=True, kw_only=True):
    """What the quote fixes for a call beside its rule: by how much the prices count."""

    hours: Multiplier = ONE
    service_tier: str = ""  # "" where none but auto or default was asked for
    service: Multiplier = ONE


PLAIN: Final = Factors()


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One class of what was used and its exact share of the cost."""

    kind: str  # a class of Usage, "per_call" and other fees, or "minimum_charge"
    quantity: int  # tokens, or pieces
    rate: str  # in the rule's currency per 1M tokens, or per piece
    micro_credits: str  # exact decimal, before the charge is rounded
    factor: str = "1"  # by which hours and service tier multiply the rate


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """A cost with its derivation: the lines' sum, rounded up once, is the amount."""

    amount: int  # micro-credits
    lines: tuple[Line, ...]
    from_input_tokens: int = 0  # where the tier begins whose prices hold; 0: none does
    hours: str = "1"  # the factor of the hour
    service_tier: str = ""
    service: str = "1"  # the factor of the service tier


class Ceiling(msgspec.Struct, frozen=True):
    """The dearest rates of a rule: what a call cannot exceed, given bounds on its tokens."""

    input_rate: int
    output_rate: int
    fee: int
    denominator: int
    minimum: int = 0
    # From how many input tokens on other rates may hold, ascending: tokens, input and output rate.
    steps: tuple[tuple[int, int, int], ...] = ()

    def amount(self, input_tokens: int, output_tokens: int) -> int:
        """Micro-credits of one call at the dearest rates, rounded up once."""
        input_rate, output_rate = self._rates(input_tokens)
        exact = input_tokens * input_rate + output_tokens * output_rate + self.fee
        return -(-max(exact, self.minimum) // self.denominator)

    def affordable_output(self, grant: int, input_tokens: int) -> int:
        """The most output tokens whose `amount` is within `grant` micro-credits.

        0 also where the input alone is beyond the grant; UNLIMITED_TOKENS where output is free.
        """
        input_rate, output_rate = self._rates(input_tokens)
        most = grant * self.denominator
        left = most - input_tokens * input_rate - self.fee
        if left < 0 or most < self.minimum:
            return 0
        # Rounding up needs no allowance: ceil(x) <= grant just when x <= grant.
        return left // output_rate if output_rate else UNLIMITED_TOKENS

    def _rates(self, input_tokens: int) -> tuple[int, int]:
        input_rate, output_rate = self.input_rate, self.output_rate
        for from_tokens, higher_input, higher_output in self.steps:
            if input_tokens < from_tokens:
                break
            input_rate, output_rate = higher_input, higher_output
        return input_rate, output_rate


def factors_of(rule: Rule, at: int, service_tier: str | None = None) -> Factors:
    """The factors of a call admitted at a moment (milliseconds since the epoch).

    `service_tier`: as the client asked for it. Raises UnlistedServiceTierError for one that the
    rule has no price for: the client would choose what costs more than it pays.
    """
    found = PLAIN
    if rule.hours and (hours := multiplier_at(rule.hours, at)) is not ONE:
        found = Factors(hours=hours)
    if service_tier is None or service_tier in PLAIN_SERVICE_TIERS:
        return found
    for tier in rule.service_tiers:
        if tier.name == service_tier:
            return Factors(hours=found.hours, service_tier=tier.name, service=tier.multiply)
    raise UnlistedServiceTierError(rule, service_tier)


def as_answered(rule: Rule, factors: Factors, service_tier: str | None) -> Factors:
    """The factors once the provider has said which service tier it was; None leaves them.

    One that the rule does not list counts as the dearest that it lists.
    """
    if service_tier is None or service_tier == factors.service_tier:
        return factors
    if service_tier in PLAIN_SERVICE_TIERS:
        return Factors(hours=factors.hours)
    multiply = next(
        (tier.multiply for tier in rule.service_tiers if tier.name == service_tier),
        rule.dearest_service,
    )
    return Factors(hours=factors.hours, service_tier=service_tier, service=multiply)


def price(
    rule: Rule,
    usage: Usage,
    calls: int = 1,
    factors: Factors = PLAIN,
    units: Units = NO_UNITS,
) -> int:
    """Micro-credits for the usage of so many calls, rounded up once.

    Cost = ceil(sum(tokens x rate) x credits_per_unit), fees included; the module says how factors
    and the minimum charge come in. With several calls, all of the usage is on one card.
    """
    rates = (_card(rule, usage) if rule.tiers else rule.cards[0]).rates
    exact = (
        usage.input * rates.input
        + usage.cached_input * rates.cached_input
        + usage.cache_write_5m * rates.cache_write_5m
        + usage.cache_write_1h * rates.cache_write_1h
        + usage.audio_input * rates.audio_input
        + usage.image_input * rates.image_input
        + usage.output * rates.output
        + usage.reasoning * rates.reasoning
        + usage.audio_output * rates.audio_output
    )
    fees = calls * rule.fees.call
    if units is not NO_UNITS:
        fees += _fees(rule, units)
    denominator, minimum = rule.denominator, calls * rule.minimum
    if factors is PLAIN:
        exact += fees
    else:
        hours, service = factors.hours, factors.service
        exact = (exact * service.numerator + fees * service.denominator) * hours.numerator
        scale = hours.denominator * service.denominator
        denominator *= scale
        minimum *= scale
    return -(-max(exact, minimum) // denominator)


def breakdown(
    rule: Rule,
    usage: Usage,
    calls: int = 1,
    factors: Factors = PLAIN,
    units: Units = NO_UNITS,
) -> Charge:
    """The same amount as `price`, with a line for each class that was used."""
    card = _card(rule, usage)
    both = _times(factors.hours, factors.service)
    lines: list[Line] = []
    total = 0
    for kind, text in zip(TOKEN_CLASSES, card.texts, strict=True):
        if quantity := getattr(usage, kind):
            exact = quantity * getattr(card.rates, kind) * both.numerator
            # Over the denominator of all factors, so that the lines can be added up.
            total += exact
            denominator = rule.denominator * both.denominator
            lines.append(_line(kind, quantity, text, both, (exact, denominator)))
    for key, fee, counted in _FEE_KINDS:
        quantity = getattr(units, counted) if counted else calls
        rate = getattr(rule.fees, fee)
        if quantity and rate:
            exact = quantity * rate * factors.hours.numerator
            total += exact * factors.service.denominator
            denominator = rule.denominator * factors.hours.denominator
            text = getattr(rule, key)
            lines.append(_line(key, quantity, text, factors.hours, (exact, denominator)))
    missing = calls * rule.minimum * both.denominator - total
    if missing > 0:
        assert rule.minimum_charge is not None
        denominator = rule.denominator * both.denominator
        lines.append(
            _line("minimum_charge", calls, rule.minimum_charge, ONE, (missing, denominator))
        )
    return Charge(
        amount=price(rule, usage, calls, factors, units),
        lines=tuple(lines),
        from_input_tokens=card.from_input_tokens,
        hours=factors.hours.text,
        service_tier=factors.service_tier,
        service=factors.service.text,
    )


def ceiling_of(rule: Rule, factors: Factors | None = None, units: Units = NO_UNITS) -> Ceiling:
    """The ceiling of a rule; made anew each time, which is quicker than looking it up.

    `factors`: the quote's, whose hours hold for the whole call; None: the dearest hours. Service
    tiers count as the dearest in any case: which one it was, only the answer tells. `units`: the
    most of each that the call can use.
    """
    hours = rule.dearest_hours if factors is None else factors.hours
    service = rule.dearest_service
    fee = rule.fees.call if units is NO_UNITS else rule.fees.call + _fees(rule, units)
    _, input_rate, output_rate = rule.worst[0]
    if hours is ONE and service is ONE:
        return Ceiling(input_rate, output_rate, fee, rule.denominator, rule.minimum, rule.worst[1:])
    both = _times(hours, service)
    by = both.numerator
    return Ceiling(
        input_rate * by,
        output_rate * by,
        fee * hours.numerator * service.denominator,
        rule.denominator * both.denominator,
        rule.minimum * both.denominator,
        tuple((tokens, into * by, out * by) for tokens, into, out in rule.worst[1:]),
    )


def _card(rule: Rule, usage: Usage) -> Card:
    """The card that the whole input falls on; cached tokens count, a hit makes no call cheaper."""
    found, tokens = rule.cards[0], usage.total_input
    for card in rule.cards:
        if tokens < card.from_input_tokens:
            break
        found = card
    return found


def _fees(rule: Rule, units: Units) -> int:
    fees = rule.fees
    return (
        units.images * fees.image
        + units.seconds * fees.second
        + units.characters * fees.character
        + units.searches * fees.search
    )


def _times(one: Multiplier, other: Multiplier) -> Multiplier:
    if other is ONE:
        return one
    if one is ONE:
        return other
    numerator, denominator = one.numerator * other.numerator, one.denominator * other.denominator
    text = decimal_text(numerator, denominator)
    return Multiplier(text=text, numerator=numerator, denominator=denominator)


def _line(kind: str, quantity: int, text: str, factor: Multiplier, exact: tuple[int, int]) -> Line:
    return Line(
        kind=kind,
        quantity=quantity,
        rate=text,
        micro_credits=decimal_text(*exact),
        factor=factor.text,
    )


def decimal_text(numerator: int, denominator: int) -> str:
    """The exact decimal text of a fraction whose denominator is a power of ten."""
    whole, rest = divmod(numerator, denominator)
    digits = str(rest).zfill(len(str(denominator)) - 1).rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)
