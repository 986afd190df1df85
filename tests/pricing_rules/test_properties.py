"""What holds for every book of the whole rule language, whatever its rules are."""

import random
from fractions import Fraction
from math import ceil

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from pricing_rules.book import Book, Rule, parse_book
from pricing_rules.diff import diff
from pricing_rules.export import dump_book
from pricing_rules.match import explain, holds, match
from pricing_rules.price import (
    UNLIMITED_TOKENS,
    Factors,
    as_answered,
    breakdown,
    ceiling_of,
    factors_of,
    price,
)
from pricing_rules.rates import FEES, PARENTS, TOKEN_CLASSES
from pricing_rules.usage import Units, Usage
from tests.support.price_books import (
    HEAD,
    MOMENT,
    SERVICE_TIERS,
    UNITS,
    USAGES,
    WORD,
    book_texts,
    rule_bodies,
)

ANSWERED = st.none() | st.sampled_from([*SERVICE_TIERS, "auto", "default", "never heard of"])


def make_rule(body: str) -> Rule:
    return parse_book(f'{HEAD}[[rule]]\nid = "r"\nprovider = "p"\nmodel = "m"\n{body}\n').rules[0]


RULES = rule_bodies().map(make_rule)
RISING = rule_bodies(rising=True).map(make_rule)


def factors_for(rule: Rule, at: int, answered: str | None) -> Factors:
    return as_answered(rule, factors_of(rule, at), answered)


def text_rates(rule: Rule, total_input: int) -> dict[str, Fraction]:
    """The price of each class from the texts, by the rules as they are written down."""
    rates: dict[str, Fraction] = {}
    for name in ("input", "output", *PARENTS):
        own = getattr(rule, name)
        falls_back = max((rates[parent] for parent in PARENTS.get(name, ())), default=Fraction(0))
        rates[name] = falls_back if own is None else Fraction(own)
    for tier in sorted(rule.tiers, key=lambda tier: tier.first_tokens):
        if total_input < tier.first_tokens:
            break
        before, moved = rates, set()
        rates = {}
        for name in ("input", "output", *PARENTS):
            own = getattr(tier, name)
            parents = [parent for parent in PARENTS.get(name, ()) if parent in moved]
            if own is not None:
                rates[name] = Fraction(own)
            else:
                rates[name] = max([before[name], *(rates[parent] for parent in parents)])
            if own is not None or parents:
                moved.add(name)
    return rates


def reference(rule: Rule, usage: Usage, factors: Factors, units: Units) -> Fraction:
    """Micro-credits by the formula; of the code only the choice of the factors is used."""
    rates = text_rates(rule, usage.total_input)
    tokens = sum(getattr(usage, name) * rates[name] for name in TOKEN_CLASSES) / 1_000_000
    counts = (1, units.images, units.seconds, units.characters, units.searches)
    fees = sum(
        count * Fraction(getattr(rule, name) or 0) for name, count in zip(FEES, counts, strict=True)
    )
    exact = (tokens * Fraction(factors.service.text) + fees) * Fraction(factors.hours.text)
    exact = Fraction(max(exact, Fraction(rule.minimum_charge or 0)))
    return exact * Fraction(rule.credits_per_unit) * 1_000_000


@given(RULES, USAGES, MOMENT, ANSWERED, UNITS)
def test_a_price_is_the_formula_rounded_up_once(
    rule: Rule, usage: Usage, at: int, answered: str | None, units: Units
) -> None:
    factors = factors_for(rule, at, answered)
    exact = reference(rule, usage, factors, units)
    assert price(rule, usage, factors=factors, units=units) == ceil(exact)
    charge = breakdown(rule, usage, factors=factors, units=units)
    assert charge.amount == ceil(exact)
    assert sum(Fraction(line.micro_credits) for line in charge.lines) == exact
    counted = {line.kind: line.quantity for line in charge.lines}
    assert sum(counted.get(name, 0) for name in TOKEN_CLASSES) == usage.total
    unit = Fraction(rule.credits_per_unit)
    for line in charge.lines:
        if line.kind in TOKEN_CLASSES:
            share = Fraction(line.rate) * line.quantity * Fraction(line.factor) * unit
            assert Fraction(line.micro_credits) == share


@given(RULES, USAGES, USAGES, MOMENT, ANSWERED, UNITS, UNITS)
def test_no_call_costs_more_than_its_ceiling(
    rule: Rule,
    usage: Usage,
    more: Usage,
    at: int,
    answered: str | None,
    units: Units,
    more_units: Units,
) -> None:
    cost = price(rule, usage, factors=factors_for(rule, at, answered), units=units)
    bounds = Units(
        **{n: getattr(units, n) + getattr(more_units, n) for n in Units.__struct_fields__}
    )
    tokens = (usage.total_input + more.total_input, usage.total_output + more.total_output)
    quoted = ceiling_of(rule, factors_of(rule, at), bounds).amount(*tokens)
    assert cost <= quoted <= ceiling_of(rule, units=bounds).amount(*tokens)


@given(RULES, st.integers(0, 400_000), st.integers(0, 400_000), MOMENT)
def test_a_ceiling_is_what_some_call_costs_at_most_two_tiers_mixed(
    rule: Rule, input_tokens: int, output_tokens: int, at: int
) -> None:
    assume(not rule.tiers)
    factors = factors_of(rule, at)
    answers = [as_answered(rule, factors, tier) for tier in (None, *SERVICE_TIERS)]
    assert ceiling_of(rule, factors).amount(input_tokens, output_tokens) == max(
        price(rule, Usage(**{into: input_tokens, out: output_tokens}), factors=answer)
        for into in TOKEN_CLASSES[:6]
        for out in TOKEN_CLASSES[6:]
        for answer in answers
    )


@given(RULES, st.integers(0, 10**12), st.integers(0, 400_000), MOMENT)
def test_affordable_output_is_the_most_that_fits(
    rule: Rule, grant: int, tokens: int, at: int
) -> None:
    ceiling = ceiling_of(rule, factors_of(rule, at))
    most = ceiling.affordable_output(grant, tokens)
    if ceiling.amount(tokens, 0) > grant:
        assert most == 0
    elif most == UNLIMITED_TOKENS:
        assert ceiling.amount(tokens, 10**9) == ceiling.amount(tokens, 0)
    else:
        assert ceiling.amount(tokens, most) <= grant < ceiling.amount(tokens, most + 1)


@given(RISING, USAGES, USAGES, UNITS, UNITS, MOMENT)
def test_more_usage_never_costs_less(
    rule: Rule, usage: Usage, more: Usage, units: Units, more_units: Units, at: int
) -> None:
    both = Usage(**{n: getattr(usage, n) + getattr(more, n) for n in TOKEN_CLASSES})
    all_units = Units(
        **{n: getattr(units, n) + getattr(more_units, n) for n in Units.__struct_fields__}
    )
    factors = factors_of(rule, at)
    least = price(rule, usage, factors=factors, units=units)
    assert least <= price(rule, both, factors=factors, units=all_units)


def written(book: Book) -> list[Rule]:
    """The rules without their places in the file, by id."""
    rules = [msgspec.structs.replace(rule, line=0, number=0) for rule in book.rules]
    return sorted(rules, key=lambda rule: rule.id)


@given(book_texts(), st.randoms(use_true_random=False), WORD, WORD, WORD, st.none() | MOMENT)
def test_the_order_of_rules_in_the_file_is_irrelevant(
    texts: list[str],
    shuffler: random.Random,
    scene: str,
    provider: str,
    model: str,
    at: int | None,
) -> None:
    book = parse_book("".join(texts))
    shuffled = texts[1:]
    shuffler.shuffle(shuffled)
    other = parse_book("".join([texts[0], *shuffled]))
    assert written(book) == written(other)
    assert diff(book, other).is_empty
    one, two = (match(each, scene, provider, model, at) for each in (book, other))
    assert (one and one.id) == (two and two.id)


@given(book_texts(), WORD, WORD, WORD, st.none() | MOMENT)
def test_one_rule_wins_and_all_others_are_told_why_not(
    texts: list[str], scene: str, provider: str, model: str, at: int | None
) -> None:
    book = parse_book("".join(texts))
    winner = match(book, scene, provider, model, at)
    candidates = explain(book, scene, provider, model, at)
    assert [each.rule for each in candidates if each.won] == ([winner] if winner else [])
    assert all(each.why for each in candidates)
    if winner is not None:
        assert candidates[0].rule is winner
        assert winner.status == "active"
        assert holds(winner, at)


@given(book_texts())
def test_a_book_written_out_is_the_same_book(texts: list[str]) -> None:
    book = parse_book("".join(texts))
    text = dump_book(book)
    again = parse_book(text)
    assert written(again) == written(book)
    assert [rule.id for rule in again.rules] == [rule.id for rule in book.rules]
    assert diff(book, again).is_empty
    assert dump_book(again) == text
