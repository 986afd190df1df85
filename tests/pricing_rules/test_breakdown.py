"""The lines of a charge say the rates that were used, and add up to what is charged."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing_rules.book import Book, parse_book
from pricing_rules.match import explain
from pricing_rules.price import Line, breakdown, price
from pricing_rules.usage import Usage

HEAD = '[book]\nname = "test"\ncurrency = "USD"\ncredits_per_unit = "100"\n'


def book(*rules: str) -> Book:
    text = HEAD
    for number, rule in enumerate(rules):
        text += (
            f'[[rule]]\nid = "r{number}"\ndescription = "d"\nscene = "*"\nprovider = "*"\n'
            f'model = "*"\ninput = "1.00"\noutput = "2.00"\n{rule}\n'
        )
    return parse_book(text)


USED = Usage(input=1, cached_input=2, output=3, reasoning=4)


@pytest.mark.parametrize(
    ("rule", "rates", "micro_credits"),
    [
        # An input token costs 1.00 x 100 = 100 micro-credits.
        ("", ["1.00", "1.00", "2.00", "2.00"], ["100", "200", "600", "800"]),
        (
            'cached_input = "0.50"\nreasoning = "3.00"',
            ["1.00", "0.50", "2.00", "3.00"],
            ["100", "100", "600", "1200"],
        ),
    ],
)
def test_each_class_has_its_own_rate_or_that_of_its_side(
    rule: str, rates: list[str], micro_credits: list[str]
) -> None:
    lines = breakdown(book(rule).rules[0], USED).lines
    assert [line.rate for line in lines] == rates
    assert [line.micro_credits for line in lines] == micro_credits


def test_a_breakdown_is_of_one_call() -> None:
    charge = breakdown(book('per_call = "0.01"').rules[0], Usage())
    # 0.01 x 100 = 1 credit
    assert charge.lines == (
        Line(kind="per_call", quantity=1, rate="0.01", micro_credits="1000000"),
    )
    assert charge.amount == 1_000_000


@given(
    st.builds(
        Usage,
        input=st.integers(0, 10**6),
        cached_input=st.integers(0, 10**6),
        output=st.integers(0, 10**6),
        reasoning=st.integers(0, 10**6),
    ),
    st.integers(0, 3),
)
def test_the_lines_add_up(usage: Usage, calls: int) -> None:
    rule = book('cached_input = "0.0375"\nreasoning = "3.1"\nper_call = "0.0007"').rules[0]
    charge = breakdown(rule, usage, calls)
    assert math.ceil(sum(Decimal(line.micro_credits) for line in charge.lines)) == charge.amount
    assert charge.amount == price(rule, usage, calls)


def test_the_winner_is_explained_first() -> None:
    candidates = explain(book("priority = 1", "priority = 3", "priority = 2"), "s", "p", "m")
    assert [candidate.rule.id for candidate in candidates] == ["r1", "r2", "r0"]
    assert [candidate.won for candidate in candidates] == [True, False, False]
