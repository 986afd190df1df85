"""What a call of another rule would have cost under this one, as far as what is known of it tells. Pure.

The hour and the tier by input length are known by the call's time and usage. The service tier is
not recorded: it is any that makes the old rule's price the amount that was charged. If there are
several and the new rule prices them differently, nobody can say what the call would have cost.
"""

from collections.abc import Iterator
from typing import Final, Literal

from pricing_rules.book import Rule
from pricing_rules.price import (
    PLAIN,
    Factors,
    UnlistedServiceTierError,
    as_answered,
    factors_of,
    price,
)
from pricing_rules.usage import Usage

# Why a call has no price under another rule: what was charged is not the price of its usage by its
# own rule; or its service tier is unknown, or not among those of the other rule.
Doubt = Literal["not_as_priced", "service_tier"]

NOT_AS_PRICED: Final = "not_as_priced"
SERVICE_TIER: Final = "service_tier"


def fitting_factors(rule: Rule, usage: Usage, at: int, amount: int) -> Iterator[Factors]:
    """The factors under which a rule's price of the usage is the amount; the plain ones first.

    `at`: when the call was admitted, milliseconds since the epoch.
    """
    plain = factors_of(rule, at)
    if price(rule, usage, factors=plain) == amount:
        yield plain
    for tier in rule.service_tiers:
        factors = as_answered(rule, plain, tier.name)
        if price(rule, usage, factors=factors) == amount:
            yield factors


def rerate(old: Rule, new: Rule, usage: Usage, at: int, amount: int) -> int | Doubt:
    """Micro-credits by the new rule of a call that was charged `amount` by the old one."""
    if not (old.service_tiers or old.hours or new.service_tiers or new.hours):
        # Of most books all of it, and of a long history millions.
        if price(old, usage) != amount:
            return NOT_AS_PRICED
        return price(new, usage, 1, PLAIN)
    found: int | None = None
    for fitting in fitting_factors(old, usage, at, amount):
        try:
            factors = factors_of(new, at, fitting.service_tier or None)
        except UnlistedServiceTierError:
            return SERVICE_TIER
        cost = price(new, usage, factors=factors)
        if found is not None and cost != found:
            return SERVICE_TIER
        found = cost
    return NOT_AS_PRICED if found is None else found
