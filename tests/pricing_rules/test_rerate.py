"""What a call would have cost by another rule; a doubt is told and never guessed away.

With credits_per_unit = 1 a price of "1" per million tokens is one micro-credit per token.
"""

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pricing_rules.book import Rule, parse_book
from pricing_rules.price import as_answered, factors_of, price
from pricing_rules.rerate import fitting_factors, rerate
from pricing_rules.usage import Usage
from tests.support.price_books import USAGES

AT = 1_790_000_000_000  # Monday, 2026-09-21, 14:13:20 UTC
USAGE = Usage(input=100, output=10)
TIERED = 'service_tiers = { priority = "2", flex = "0.5" }'
AFTERNOON = 'hours = [{ days = "Mon", tz = "UTC", from = "14:00", to = "15:00", multiply = "3" }]'


def rule(prices: str = 'input = "1"\noutput = "4"') -> Rule:
    text = (
        '[book]\nname = "t"\ncurrency = "USD"\ncredits_per_unit = "1"\n'
        f'[[rule]]\nid = "r"\nprovider = "p"\nmodel = "m"\n{prices}\n'
    )
    return parse_book(text).rules[0]


OLD = rule()  # 100 x 1 + 10 x 4 = 140
NEW = rule('input = "2"\noutput = "4"')  # 240


def test_the_moment_of_the_tests() -> None:
    assert datetime.fromtimestamp(AT / 1000, UTC).strftime("%a %H:%M") == "Mon 14:13"


@pytest.mark.parametrize(
    ("old", "new", "amount", "expected"),
    [
        (OLD, NEW, 140, 240),
        (OLD, OLD, 140, 140),
        (rule("free = true"), NEW, 0, 240),
        (OLD, rule("free = true"), 140, 0),
        (OLD, rule('input = "2"\noutput = "4"\nper_call = "0.000060"'), 140, 300),
        (OLD, rule('input = "0.01"\noutput = "0"\nminimum_charge = "0.000050"'), 140, 50),
        # The whole call is on the tier that 100 input tokens fall on.
        (OLD, rule('input = "2"\noutput = "4"\ntiers = [{ from_input_tokens = 100, input = "5" }]'), 140, 540),
        (OLD, rule('input = "2"\noutput = "4"\ntiers = [{ over_input_tokens = 100, input = "5" }]'), 140, 240),
        # The hour is that of the call, by either rule.
        (OLD, rule(f'input = "2"\noutput = "4"\n{AFTERNOON}'), 140, 720),
        (rule(f'input = "1"\noutput = "4"\n{AFTERNOON}'), NEW, 420, 240),
        # A service tier is known by what was charged: 280 is twice 140, 70 half of it.
        (rule(f'input = "1"\noutput = "4"\n{TIERED}'), rule(f'input = "2"\noutput = "4"\n{TIERED}'), 280, 480),
        (rule(f'input = "1"\noutput = "4"\n{TIERED}'), rule(f'input = "2"\noutput = "4"\n{TIERED}'), 70, 120),
        (rule(f'input = "1"\noutput = "4"\n{TIERED}'), NEW, 140, 240),
        # By hour and tier: 140 x 3 x 2, then 240 x 3 x 2.
        (
            rule(f'input = "1"\noutput = "4"\n{TIERED}\n{AFTERNOON}'),
            rule(f'input = "2"\noutput = "4"\n{TIERED}\n{AFTERNOON}'),
            840,
            1440,
        ),
    ],
)  # fmt: skip
def test_price_by_another_rule(old: Rule, new: Rule, amount: int, expected: int) -> None:
    assert rerate(old, new, USAGE, AT, amount) == expected


@pytest.mark.parametrize("amount", [0, 139, 141, 240])
def test_what_was_not_charged_by_the_price_is_in_doubt(amount: int) -> None:
    assert rerate(OLD, NEW, USAGE, AT, amount) == "not_as_priced"


def test_an_hour_of_another_day_explains_no_charge() -> None:
    old = rule(f'input = "1"\noutput = "4"\n{AFTERNOON}')
    assert rerate(old, NEW, USAGE, AT + 86_400_000, 420) == "not_as_priced"
    assert rerate(old, NEW, USAGE, AT + 86_400_000, 140) == 240


def test_a_tier_that_the_other_rule_does_not_list_is_in_doubt() -> None:
    old = rule(f'input = "1"\noutput = "4"\n{TIERED}')
    for new in (NEW, rule('input = "2"\noutput = "4"\nservice_tiers = { priority = "2" }')):
        assert rerate(old, new, USAGE, AT, 70) == "service_tier"


def test_two_tiers_of_one_price_are_in_doubt_only_if_the_other_rule_parts_them() -> None:
    one = 'service_tiers = { priority = "2", fast = "2" }'
    old = rule(f'input = "1"\noutput = "4"\n{one}')
    assert rerate(old, rule(f'input = "2"\noutput = "4"\n{one}'), USAGE, AT, 280) == 480
    parted = rule('input = "2"\noutput = "4"\nservice_tiers = { priority = "2", fast = "3" }')
    assert rerate(old, parted, USAGE, AT, 280) == "service_tier"


def test_a_minimum_charge_hides_the_tier() -> None:
    """100 tokens at 1 and its half are both below the minimum of 500: either it was."""
    hiding = f'input = "1"\noutput = "4"\nminimum_charge = "0.000500"\n{TIERED}'
    assert (
        rerate(rule(hiding), rule(f'input = "9"\noutput = "4"\n{TIERED}'), USAGE, AT, 500)
        == "service_tier"
    )
    assert rerate(rule(hiding), rule(hiding.replace("500", "600")), USAGE, AT, 500) == 600


def test_plain_factors_come_first() -> None:
    fitting = list(fitting_factors(rule(f'input = "1"\noutput = "4"\n{TIERED}'), Usage(), AT, 0))
    assert [factors.service_tier for factors in fitting] == ["", "priority", "flex"]


TIERS = st.sampled_from(["", TIERED, AFTERNOON, f"{TIERED}\n{AFTERNOON}"])
PRICES = st.integers(1, 50)


@given(USAGES, PRICES, PRICES, TIERS, st.sampled_from([None, "priority", "flex"]))
def test_a_price_of_a_rule_leads_to_the_price_of_the_other(
    usage: Usage, one: int, other: int, conditions: str, tier: str | None
) -> None:
    """Whatever the tier was: the other rule's price under that tier, unless it is told as a doubt."""
    old, new = (rule(f'input = "{number}"\noutput = "4"\n{conditions}') for number in (one, other))
    assume(tier is None or old.service_tiers)
    before, after = (
        price(each, usage, factors=as_answered(each, factors_of(each, AT), tier))
        for each in (old, new)
    )
    found = rerate(old, new, usage, AT, before)
    assert found in (after, "service_tier")
    if tier is None and not old.service_tiers:
        assert found == after
    assert rerate(old, old, usage, AT, before) == before


@given(USAGES, st.lists(PRICES, min_size=2, max_size=5))
def test_a_chain_of_rules_ends_where_it_began(usage: Usage, steps: list[int]) -> None:
    """Re-rating is by the call's own rule, so the way does not matter; here: step by step."""
    rules = [rule(f'input = "{number}"\noutput = "4"') for number in (*steps, steps[0])]
    amount = first = price(rules[0], usage)
    for old, new in pairwise(rules):
        found = rerate(old, new, usage, AT, amount)
        assert isinstance(found, int)
        amount = found
    assert amount == first
