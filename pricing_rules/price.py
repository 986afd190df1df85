"""What usage costs under a rule: integers, one rounding a charge, upwards. Pure."""

from typing import Final

import msgspec

from pricing_rules.book import Rule
from pricing_rules.usage import Usage

# "As much as you like", where output costs nothing; still an integer that JSON can carry.
UNLIMITED_TOKENS: Final = 2**53 - 1

_INPUT_CLASSES: Final = ("input", "cache_write_5m", "cache_write_1h", "audio_input", "image_input")
_OUTPUT_CLASSES: Final = ("output", "audio_output")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One class of what was used and its exact share of the cost."""

    kind: str  # a class of Usage, or "per_call"
    quantity: int  # tokens, or calls
    rate: str  # in the rule's currency per 1M tokens, or per call
    micro_credits: str  # exact decimal, before the charge is rounded


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """A cost with its derivation: the lines' sum, rounded up once, is the amount."""

    amount: int  # micro-credits
    lines: tuple[Line, ...]


class Ceiling(msgspec.Struct, frozen=True):
    """The dearest rates of a rule: what a call cannot exceed, given bounds on its tokens."""

    input_rate: int
    output_rate: int
    fee: int
    denominator: int

    def amount(self, input_tokens: int, output_tokens: int) -> int:
        """Micro-credits of one call at the dearest rates, rounded up once."""
        exact = input_tokens * self.input_rate + output_tokens * self.output_rate + self.fee
        return -(-exact // self.denominator)

    def affordable_output(self, grant: int, input_tokens: int) -> int:
        """The most output tokens whose `amount` is within `grant` micro-credits.

        0 also where the input alone is beyond the grant; UNLIMITED_TOKENS where output is free.
        """
        left = grant * self.denominator - input_tokens * self.input_rate - self.fee
        if left < 0:
            return 0
        # Rounding up needs no allowance: ceil(x) <= grant just when x <= grant.
        return left // self.output_rate if self.output_rate else UNLIMITED_TOKENS


def price(rule: Rule, usage: Usage, calls: int = 1) -> int:
    """Micro-credits for the usage of so many calls, rounded up once.

    Cost = ceil(sum(tokens x rate) x credits_per_unit), per-call fees included.
    """
    exact = (
        (
            usage.input
            + usage.cache_write_5m
            + usage.cache_write_1h
            + usage.audio_input
            + usage.image_input
        )
        * rule.input_rate
        + usage.cached_input * rule.cached_input_rate
        + (usage.output + usage.audio_output) * rule.output_rate
        + usage.reasoning * rule.reasoning_rate
        + calls * rule.fee
    )
    return -(-exact // rule.denominator)


def breakdown(rule: Rule, usage: Usage, calls: int = 1) -> Charge:
    """The same amount as `price`, with a line for each class that was used."""
    cached = rule.cached_input if rule.cached_input is not None else rule.input
    reasoning = rule.reasoning if rule.reasoning is not None else rule.output
    rates = dict.fromkeys(_INPUT_CLASSES, (rule.input, rule.input_rate))
    rates |= dict.fromkeys(_OUTPUT_CLASSES, (rule.output, rule.output_rate))
    rates["cached_input"] = (cached, rule.cached_input_rate)
    rates["reasoning"] = (reasoning, rule.reasoning_rate)
    lines = [
        _line(rule, kind, getattr(usage, kind), *rates[kind])
        for kind in Usage.__struct_fields__
        if getattr(usage, kind)
    ]
    if rule.fee and calls:
        lines.append(_line(rule, "per_call", calls, rule.per_call, rule.fee))
    return Charge(amount=price(rule, usage, calls), lines=tuple(lines))


def ceiling_of(rule: Rule) -> Ceiling:
    """The ceiling of a rule; made anew each time, which is quicker than looking it up."""
    return Ceiling(
        max(rule.input_rate, rule.cached_input_rate),
        max(rule.output_rate, rule.reasoning_rate),
        rule.fee,
        rule.denominator,
    )


def _line(rule: Rule, kind: str, quantity: int, text: str | None, rate: int) -> Line:
    return Line(
        kind=kind,
        quantity=quantity,
        rate=text or "0",
        micro_credits=_decimal(quantity * rate, rule.denominator),
    )


def _decimal(numerator: int, denominator: int) -> str:
    """The exact decimal text of a fraction whose denominator is a power of ten."""
    whole, rest = divmod(numerator, denominator)
    digits = str(rest).zfill(len(str(denominator)) - 1).rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)
