"""Prices as written become exact integers: one scale for all of a rule, and nothing is left free. Pure."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import gcd
from typing import Final

import msgspec

from pricing_rules.money import MICRO_CREDITS_PER_CREDIT
from pricing_rules.usage import Usage

TOKEN_CLASSES: Final = Usage.__struct_fields__
# What each class costs where its own price is left out: the dearest of these.
PARENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "cached_input": ("input",),
    "cache_write_5m": ("input",),
    "cache_write_1h": ("input", "cache_write_5m"),
    "audio_input": ("input",),
    "image_input": ("input",),
    "reasoning": ("output",),
    "audio_output": ("output",),
}
# Prices of one piece each, in the order of the fields of Fees.
FEES: Final = ("per_call", "per_image", "per_second", "per_character", "per_search")
MINIMUM: Final = "minimum_charge"
_TEXTS_CACHED_MAX: Final = 4096  # the rules of a book have few different prices


class Rates(msgspec.Struct, frozen=True):
    """What a token of each class costs: micro-credits x the rule's denominator."""

    input: int
    cached_input: int
    cache_write_5m: int
    cache_write_1h: int
    audio_input: int
    image_input: int
    output: int
    reasoning: int
    audio_output: int

    @property
    def dearest_input(self) -> int:
        """The most that a token of the prompt can cost."""
        return max(
            self.input,
            self.cached_input,
            self.cache_write_5m,
            self.cache_write_1h,
            self.audio_input,
            self.image_input,
        )

    @property
    def dearest_output(self) -> int:
        """The most that a token of the completion can cost."""
        return max(self.output, self.reasoning, self.audio_output)


class Fees(msgspec.Struct, frozen=True):
    """What a call, and each thing that is no token, costs: micro-credits x the rule's denominator."""

    call: int
    image: int
    second: int
    character: int
    search: int


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """The rates of all calls whose whole input has at least so many tokens."""

    from_input_tokens: int
    rates: Rates
    texts: tuple[
        str, ...
    ]  # the price of each class as written, its own or the one it falls back to


class Exact(msgspec.Struct, frozen=True, kw_only=True):
    """All prices of a rule over one power of ten."""

    cards: tuple[Card, ...]  # ascending; the first from 0 tokens
    fees: Fees
    minimum: int
    denominator: int


def exact(
    base: Mapping[str, str],
    tiers: Sequence[tuple[int, Mapping[str, str]]],
    fees: Mapping[str, str],
    credits_per_unit: str,
) -> Exact:
    """Resolve the prices of a rule. `tiers`: from how many input tokens on, ascending; its prices.

    Micro-credits per token = price per 1M tokens / 1,000,000 x credits per unit x 1,000,000: the
    two millions cancel out. Micro-credits per call = price x credits per unit x 1,000,000.
    """
    unit, unit_decimals = _split(credits_per_unit)
    texts = [*base.values(), *fees.values(), *(t for _, prices in tiers for t in prices.values())]
    decimals = max((_split(text)[1] for text in texts), default=0)

    def whole(text: str) -> int:
        digits, own = _split(text)
        return digits * unit * _tens(decimals - own)

    found = [{name: (whole(text), text) for name, text in base.items()}]
    found += [{name: (whole(t), t) for name, t in prices.items()} for _, prices in tiers]
    cards = [_fill(found[0], None)]
    for own in found[1:]:
        cards.append(_fill(own, cards[-1]))
    pieces = [whole(fees.get(name, "0")) * MICRO_CREDITS_PER_CREDIT for name in (*FEES, MINIMUM)]
    rates = [rate for card in cards for rate, _ in card.values()]
    divisor = _common_tens([*rates, *pieces], decimals + unit_decimals)
    pieces = [piece // divisor for piece in pieces]
    return Exact(
        cards=tuple(
            Card(
                from_input_tokens=from_tokens,
                rates=Rates(*(card[name][0] // divisor for name in TOKEN_CLASSES)),
                texts=tuple(card[name][1] for name in TOKEN_CLASSES),
            )
            for from_tokens, card in zip((0, *(at for at, _ in tiers)), cards, strict=True)
        ),
        fees=Fees(*pieces[:-1]),
        minimum=pieces[-1],
        denominator=_tens(decimals + unit_decimals) // divisor,
    )


_Priced = tuple[int, str]  # a rate, and the text it comes from
_FREE: Final[_Priced] = (0, "0")
# Parents before their children.
_ORDER: Final = ("input", "output", *PARENTS)


def _fill(own: Mapping[str, _Priced], below: Mapping[str, _Priced] | None) -> dict[str, _Priced]:
    """A price for every class: its own, else its parent's, so that nothing is free by accident.

    In a tier a class that is left out costs what it does in the tier below; or, if the tier moves
    its parent and that is dearer, what its parent does.
    """
    moved = set(own)
    filled: dict[str, _Priced] = {}
    for name in _ORDER:
        parents = PARENTS.get(name, ())
        if name in own:
            filled[name] = own[name]
            continue
        if below is None:
            choice = [filled[parent] for parent in parents] or [_FREE]
        else:
            choice = [below[name], *(filled[parent] for parent in parents if parent in moved)]
            if len(choice) > 1:
                moved.add(name)
        filled[name] = max(choice, key=lambda priced: priced[0])
    return filled


@lru_cache(maxsize=_TEXTS_CACHED_MAX)
def _split(text: str) -> tuple[int, int]:
    """A decimal's digits as one integer, and how many of them are decimals."""
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0")
    return int(whole + decimals), len(decimals)


def _tens(power: int) -> int:
    return int(10**power)


def _common_tens(numbers: list[int], most: int) -> int:
    """The greatest power of ten, up to 10**most, that divides all numbers."""
    common, divisor = gcd(*numbers), 1
    for _ in range(most):
        if common % (divisor * 10):
            break
        divisor *= 10
    return divisor
