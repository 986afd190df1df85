"""Prices are exact, rounded up once, and never above their ceiling."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pricing_rules.book import Rule, parse_book
from pricing_rules.price import (
    UNLIMITED_TOKENS,
    Charge,
    Line,
    breakdown,
    ceiling_of,
    price,
)
from pricing_rules.usage import Usage


def make_rule(unit: str = "100", **rates: str) -> Rule:
    prices = "\n".join(f'{key} = "{value}"' for key, value in rates.items())
    if all(Fraction(value) == 0 for value in rates.values()):
        prices = "free = true"
    return parse_book(
        f'[book]\nname = "t"\ncurrency = "USD"\ncredits_per_unit = "{unit}"\n'
        f'[[rule]]\nid = "r"\nprovider = "p"\nmodel = "m"\n{prices}\n'
    ).rules[0]


DECIMAL = st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,9})?", fullmatch=True)
UNIT = st.from_regex(r"[1-9][0-9]{0,3}(\.[0-9]{1,6})?", fullmatch=True)
OPTIONAL = st.none() | DECIMAL
TOKENS = st.integers(0, 3_000_000)
USAGES = st.builds(Usage, **dict.fromkeys(Usage.__struct_fields__, TOKENS))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    rates = {"input": draw(DECIMAL), "output": draw(DECIMAL)}
    for key in ("cached_input", "reasoning", "per_call"):
        if (rate := draw(OPTIONAL)) is not None:
            rates[key] = rate
    return make_rule(draw(UNIT), **rates)


def reference(rule: Rule, usage: Usage, calls: int) -> Fraction:
    """Micro-credits by the formula, from the texts as uploaded; nothing shared with the code."""
    price_in, out = Fraction(rule.input or 0), Fraction(rule.output or 0)
    cached = price_in if rule.cached_input is None else Fraction(rule.cached_input)
    reasoning = out if rule.reasoning is None else Fraction(rule.reasoning)
    plain = usage.total_input - usage.cached_input
    currency = (
        plain * price_in
        + usage.cached_input * cached
        + (usage.total_output - usage.reasoning) * out
        + usage.reasoning * reasoning
    ) / 1_000_000 + calls * Fraction(rule.per_call or 0)
    return currency * Fraction(rule.credits_per_unit) * 1_000_000


@pytest.mark.parametrize(
    ("usage", "amount"),
    [
        (Usage(), 0),
        # 1 token x 2.50 USD / 1M x 100 credits = 0.00025 credits
        (Usage(input=1), 250),
        # 1000 x 250 + 500 x 125 + 300 x 1000 + 50 x 1200
        (Usage(input=1000, cached_input=500, output=300, reasoning=50), 672_500),
        (Usage(cache_write_5m=1), 250),
        (Usage(cache_write_1h=1), 250),
        (Usage(audio_input=1), 250),
        (Usage(image_input=1), 250),
        (Usage(audio_output=1), 1000),
        # 1M in and 1M out: 250 + 1000 credits
        (Usage(input=1_000_000, output=1_000_000), 1_250_000_000),
    ],
)
def test_usage_costs_what_it_does_by_hand(usage: Usage, amount: int) -> None:
    rule = make_rule(input="2.50", cached_input="1.25", output="10", reasoning="12")
    assert price(rule, usage) == amount


def test_rates_left_out_are_never_free() -> None:
    rule = make_rule(input="2.50", output="10")
    assert price(rule, Usage(cached_input=1)) == 250
    assert price(rule, Usage(reasoning=1)) == 1000


def test_a_fee_is_taken_for_each_call() -> None:
    rule = make_rule(input="0", output="0", per_call="0.0015")
    assert price(rule, Usage(input=9)) == 150_000  # 0.0015 USD = 0.15 credits
    assert price(rule, Usage(), calls=3) == 450_000
    assert price(rule, Usage(), calls=0) == 0


@pytest.mark.parametrize(("tokens", "amount"), [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_a_charge_is_rounded_up_once(tokens: int, amount: int) -> None:
    # 0.0033333 USD per 1M x 100 = 0.33333 micro-credits a token
    rule = make_rule(input="0.0033333", output="0.0033333")
    assert price(rule, Usage(input=tokens)) == amount
    # Half the tokens on either side: still one rounding for both.
    assert price(rule, Usage(input=tokens - 1, output=1)) == amount


def test_a_free_rule_costs_nothing() -> None:
    rule = make_rule(input="0", output="0")
    assert price(rule, Usage(input=10**9, reasoning=10**9)) == 0
    assert breakdown(rule, Usage(input=7)).lines == (
        Line(kind="input", quantity=7, rate="0", micro_credits="0"),
    )


def test_the_breakdown_explains_each_class() -> None:
    rule = make_rule(unit="13.9", input="2.5", output="10", reasoning="0.001", per_call="0.01")
    usage = Usage(input=3, cached_input=2, output=1, reasoning=1)
    # 2.5 x 13.9 = 34.75 a token, 10 x 13.9 = 139, 0.001 x 13.9 = 0.0139; a call 139000
    assert breakdown(rule, usage, calls=2) == Charge(
        amount=278_313,  # 104.25 + 69.5 + 139 + 0.0139 + 278000 = 278312.7639
        lines=(
            Line(kind="input", quantity=3, rate="2.5", micro_credits="104.25"),
            Line(kind="cached_input", quantity=2, rate="2.5", micro_credits="69.5"),
            Line(kind="output", quantity=1, rate="10", micro_credits="139"),
            Line(kind="reasoning", quantity=1, rate="0.001", micro_credits="0.0139"),
            Line(kind="per_call", quantity=2, rate="0.01", micro_credits="278000"),
        ),
    )
    assert breakdown(rule, Usage(), calls=0) == Charge(amount=0, lines=())


def test_the_breakdown_has_a_line_for_every_class() -> None:
    rule = make_rule(input="1", cached_input="0.5", output="2", reasoning="3")
    usage = Usage(**dict.fromkeys(Usage.__struct_fields__, 1))
    lines = breakdown(rule, usage).lines
    assert {line.kind: line.micro_credits for line in lines} == {
        "input": "100",
        "cached_input": "50",
        "cache_write_5m": "100",
        "cache_write_1h": "100",
        "audio_input": "100",
        "image_input": "100",
        "output": "200",
        "reasoning": "300",
        "audio_output": "200",
    }
    assert {line.kind: line.rate for line in lines}["reasoning"] == "3"


@given(rules(), USAGES, st.integers(0, 5))
def test_price_is_the_exact_formula_rounded_up(rule: Rule, usage: Usage, calls: int) -> None:
    exact = reference(rule, usage, calls)
    assert price(rule, usage, calls) == ceil(exact)
    charge = breakdown(rule, usage, calls)
    assert charge.amount == ceil(exact)
    assert sum(Fraction(line.micro_credits) for line in charge.lines) == exact
    assert sum(line.quantity for line in charge.lines if line.kind != "per_call") == usage.total


@given(rules(), USAGES, st.integers(0, 10**6), st.integers(0, 10**6))
@example(
    make_rule(input="1", cached_input="9", output="1", reasoning="9"), Usage(reasoning=1), 0, 0
)
def test_the_ceiling_is_never_below_the_price(
    rule: Rule, usage: Usage, more_input: int, more_output: int
) -> None:
    ceiling = ceiling_of(rule)
    bound = ceiling.amount(usage.total_input + more_input, usage.total_output + more_output)
    assert bound >= price(rule, usage)


@given(rules(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_ceiling_can_be_reached(rule: Rule, input_tokens: int, output_tokens: int) -> None:
    bound = ceiling_of(rule).amount(input_tokens, output_tokens)
    assert bound == max(
        price(rule, Usage(**{kind_in: input_tokens, kind_out: output_tokens}))
        for kind_in in ("input", "cached_input")
        for kind_out in ("output", "reasoning")
    )


@given(rules(), st.integers(0, 10**12), TOKENS)
def test_affordable_output_is_the_most_that_fits(rule: Rule, grant: int, tokens: int) -> None:
    ceiling = ceiling_of(rule)
    most = ceiling.affordable_output(grant, tokens)
    assert most >= 0
    if ceiling.amount(tokens, 0) > grant:
        assert most == 0
    elif ceiling.output_rate == 0:
        assert most == UNLIMITED_TOKENS
    else:
        assert ceiling.amount(tokens, most) <= grant < ceiling.amount(tokens, most + 1)


def test_affordable_output_by_hand() -> None:
    ceiling = ceiling_of(make_rule(input="2.50", output="10", per_call="0.0001"))
    # 100 tokens x 250 + 10000 for the call = 35000; 1000 a token of output
    assert ceiling.affordable_output(34_999, 100) == 0
    assert ceiling.affordable_output(35_000, 100) == 0
    assert ceiling.affordable_output(35_999, 100) == 0
    assert ceiling.affordable_output(36_000, 100) == 1
    assert ceiling_of(make_rule(input="1", output="0")).affordable_output(0, 0) == UNLIMITED_TOKENS
    assert ceiling_of(make_rule(input="1", output="0")).affordable_output(99, 1) == 0
