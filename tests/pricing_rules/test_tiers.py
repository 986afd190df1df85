"""What is left out, in a rule or in a tier, costs what its dearer parent does; never nothing."""

import msgspec
import pytest

from pricing_rules.book import Rule, parse_book
from pricing_rules.hours import ONE, multiplier
from pricing_rules.price import (
    PLAIN,
    Factors,
    UnlistedServiceTierError,
    as_answered,
    breakdown,
    ceiling_of,
    factors_of,
    price,
)
from pricing_rules.rates import TOKEN_CLASSES
from pricing_rules.usage import Units, Usage


def make_rule(lines: str) -> Rule:
    return parse_book(
        '[book]\nname = "t"\ncurrency = "USD"\ncredits_per_unit = "1"\n'
        f'[[rule]]\nid = "r"\nprovider = "p"\nmodel = "m"\n{lines}\n'
    ).rules[0]


def costs(rule: Rule, tokens: int = 0) -> dict[str, int]:
    """Micro-credits of 1M tokens of each class, in millions; `tokens` decide the tier."""
    card = [card for card in rule.cards if card.from_input_tokens <= tokens][-1]
    return {name: getattr(card.rates, name) // rule.denominator for name in TOKEN_CLASSES}


BASE = 'input = "2"\noutput = "8"\n'
ALL_2_8 = {name: 8 if name in TOKEN_CLASSES[6:] else 2 for name in TOKEN_CLASSES}


@pytest.mark.parametrize(
    ("lines", "different"),
    [
        ("", {}),
        ('cached_input = "1"', {"cached_input": 1}),
        # An hour costs what 5 minutes do, if that is dearer than the input.
        ('cache_write_5m = "3"', {"cache_write_5m": 3, "cache_write_1h": 3}),
        ('cache_write_5m = "1"', {"cache_write_5m": 1}),
        ('cache_write_1h = "4"', {"cache_write_1h": 4}),
        ('audio_input = "9"', {"audio_input": 9}),
        ('image_input = "7"', {"image_input": 7}),
        ('reasoning = "5"', {"reasoning": 5}),
        ('audio_output = "6"', {"audio_output": 6}),
    ],
)
def test_a_class_left_out_costs_as_its_parent(lines: str, different: dict[str, int]) -> None:
    assert costs(make_rule(BASE + lines)) == {**ALL_2_8, **different}


@pytest.mark.parametrize(
    ("lines", "tier", "different"),
    [
        ("", 'input = "4"', dict.fromkeys(TOKEN_CLASSES[:6], 4)),
        ("", 'output = "16"', dict.fromkeys(TOKEN_CLASSES[6:], 16)),
        # The tier moves the input: what is cached moves with it, however cheap it was.
        ('cached_input = "1"', 'input = "4"', dict.fromkeys(TOKEN_CLASSES[:6], 4)),
        # It does not: cached tokens cost what they did.
        ('cached_input = "1"', 'output = "8"', {"cached_input": 1}),
        # Dearer than the tier's input before: it stays.
        (
            'audio_input = "9"',
            'input = "4"',
            {**dict.fromkeys(TOKEN_CLASSES[:6], 4), "audio_input": 9},
        ),
        # Writes for 5 minutes move those for an hour, and nothing else.
        (
            'cache_write_5m = "3"\ncache_write_1h = "4"',
            'cache_write_5m = "5"',
            {"cache_write_5m": 5, "cache_write_1h": 5},
        ),
        # The tier moves them by way of the input; those for an hour were cheaper than either.
        (
            'cache_write_5m = "5"\ncache_write_1h = "1"',
            'input = "4"',
            {
                **dict.fromkeys(TOKEN_CLASSES[:6], 4),
                "cache_write_5m": 5,
                "cache_write_1h": 5,
            },
        ),
        ("", 'reasoning = "9"', {"reasoning": 9}),
    ],
)
def test_a_class_left_out_of_a_tier_is_never_cheaper_there(
    lines: str, tier: str, different: dict[str, int]
) -> None:
    rule = make_rule(f"{BASE}{lines}\ntiers = [{{ from_input_tokens = 100, {tier} }}]")
    assert costs(rule, 99) == costs(make_rule(BASE + lines))
    assert costs(rule, 100) == {**ALL_2_8, **different}


def test_tiers_build_on_each_other_in_whatever_order_they_stand() -> None:
    rule = make_rule(
        BASE
        + 'tiers = [{ over_input_tokens = 199, input = "6" }, '
        + '{ from_input_tokens = 100, input = "4", audio_input = "20", output = "9" }]'
    )
    assert [card.from_input_tokens for card in rule.cards] == [0, 100, 200]
    assert costs(rule, 199)["audio_input"] == 20
    assert costs(rule, 200)["audio_input"] == 20
    assert (costs(rule, 200)["input"], costs(rule, 200)["output"]) == (6, 9)
    assert [tier.first_tokens for tier in rule.tiers] == [200, 100]
    # The dearest so far, by input and output.
    assert rule.worst == ((0, 2, 8), (100, 20, 9), (200, 20, 9))


def test_a_breakdown_names_the_price_that_a_class_falls_back_to() -> None:
    rule = make_rule(BASE + 'tiers = [{ from_input_tokens = 100, input = "4.0" }]')
    lines = breakdown(rule, Usage(cached_input=100, reasoning=1)).lines
    assert [(line.kind, line.rate, line.micro_credits) for line in lines] == [
        ("cached_input", "4.0", "400"),
        ("reasoning", "8", "8"),
    ]


def test_every_input_class_counts_towards_the_tier_and_no_output_class() -> None:
    rule = make_rule(BASE + 'tiers = [{ from_input_tokens = 100, input = "4", output = "9" }]')
    for name in TOKEN_CLASSES[:6]:
        assert price(rule, Usage(**{name: 99})) == 198
        assert price(rule, Usage(**{name: 100})) == 400
        assert (
            price(rule, Usage(**{name: 60}, input=40) if name != "input" else Usage(input=100))
            == 400
        )
    for name in TOKEN_CLASSES[6:]:
        assert price(rule, Usage(**{name: 100})) == 800


FULL = (
    BASE
    + 'per_call = "0.000001"\nper_image = "0.00001"\nper_second = "0.0001"\n'
    + 'per_character = "0.001"\nper_search = "0.01"\n'
    + 'hours = [{ from = "01:00", to = "02:00", multiply = "1.5" }]\n'
    + 'service_tiers = { priority = "3", flex = "0.5" }\n'
)
ALL = Units(images=2, seconds=3, characters=4, searches=5)
AT_ONE = 3_600_000  # 1970-01-01T01:00:00Z


def test_hours_multiply_all_and_service_tiers_the_tokens() -> None:
    rule = make_rule(FULL)
    used = Usage(input=10, output=10)
    # 10 x 2 + 10 x 8 = 100; 1 + 2 x 10 + 3 x 100 + 4 x 1000 + 5 x 10000 = 54321
    assert price(rule, used, units=ALL) == 54_421
    assert price(rule, used, calls=3, units=ALL) == 54_423
    peak = factors_of(rule, AT_ONE)
    assert peak == Factors(hours=multiplier("1.5"))
    assert price(rule, used, factors=peak, units=ALL) == 81_632  # 81631.5
    both = factors_of(rule, AT_ONE, "priority")
    assert price(rule, used, factors=both, units=ALL) == 81_932  # (300 + 54321) x 1.5 = 81931.5
    charge = breakdown(rule, used, factors=both, units=ALL)
    assert (charge.amount, charge.hours, charge.service_tier, charge.service) == (
        81_932,
        "1.5",
        "priority",
        "3",
    )
    assert [
        (line.kind, line.quantity, line.factor, line.micro_credits) for line in charge.lines
    ] == [
        ("input", 10, "4.5", "90"),
        ("output", 10, "4.5", "360"),
        ("per_call", 1, "1.5", "1.5"),
        ("per_image", 2, "1.5", "30"),
        ("per_second", 3, "1.5", "450"),
        ("per_character", 4, "1.5", "6000"),
        ("per_search", 5, "1.5", "75000"),
    ]
    # Tokens as priority, whatever was asked for: (10 x 2 + 10 x 8) x 3 x 1.5 + 54321 x 1.5
    assert ceiling_of(rule, peak, ALL).amount(10, 10) == 81_932
    assert ceiling_of(rule, PLAIN, ALL).amount(10, 10) == 54_621
    assert ceiling_of(rule, None, ALL).amount(10, 10) == 81_932
    assert ceiling_of(rule).amount(10, 10) == 452  # (300 + 1) x 1.5


def test_the_minimum_is_for_each_call_and_multiplied_by_nothing() -> None:
    rule = make_rule(FULL + 'minimum_charge = "0.0005"\n')  # 500 micro-credits
    assert price(rule, Usage()) == 500
    assert price(rule, Usage(), calls=2) == 1_000
    assert price(rule, Usage(), calls=0) == 0
    assert price(rule, Usage(input=249), calls=1) == 500  # 498 + 1 for the call
    assert price(rule, Usage(input=250)) == 501
    night = factors_of(rule, AT_ONE, "priority")
    assert price(rule, Usage(), factors=night) == 500
    charge = breakdown(rule, Usage(input=10), 2, night)
    assert charge.amount == 1_000
    # 10 x 2 x 4.5 + 2 x 1.5 = 93
    assert [(line.kind, line.quantity, line.rate, line.micro_credits) for line in charge.lines] == [
        ("input", 10, "2", "90"),
        ("per_call", 2, "0.000001", "3"),
        ("minimum_charge", 2, "0.0005", "907"),
    ]
    ceiling = ceiling_of(rule, night)
    assert ceiling.amount(0, 0) == 500
    assert ceiling.affordable_output(499, 0) == 0
    assert ceiling.affordable_output(500, 0) == 13  # (500 - 1.5) / 36


def test_a_rule_without_a_minimum_has_none() -> None:
    assert price(make_rule(BASE), Usage()) == 0
    assert ceiling_of(make_rule(BASE)).minimum == 0


@pytest.mark.parametrize("asked", [None, "auto", "default"])
def test_no_service_tier_counts_once(asked: str | None) -> None:
    rule = make_rule(FULL)
    assert factors_of(rule, 0, asked) is PLAIN
    assert factors_of(make_rule(BASE), AT_ONE, asked) is PLAIN


@pytest.mark.parametrize("asked", ["", "Priority", "scale"])
def test_a_service_tier_that_is_not_listed_is_refused(asked: str) -> None:
    with pytest.raises(UnlistedServiceTierError, match="it lists priority, flex") as refused:
        factors_of(make_rule(FULL), 0, asked)
    assert refused.value.listed == ("priority", "flex")
    assert refused.value.service_tier == asked
    with pytest.raises(UnlistedServiceTierError, match=r"rule r lists no .* it lists none"):
        factors_of(make_rule(BASE), 0, asked)


def test_an_answer_in_a_tier_that_nobody_listed_costs_as_the_dearest() -> None:
    rule = make_rule(FULL)
    peak = factors_of(rule, AT_ONE, "flex")
    assert (peak.hours.text, peak.service.text) == ("1.5", "0.5")
    assert as_answered(rule, peak, None) is peak
    assert as_answered(rule, peak, "flex") is peak
    for answered, service in (("default", "1"), ("priority", "3"), ("scale", "3")):
        found = as_answered(rule, peak, answered)
        assert (found.hours.text, found.service.text) == ("1.5", service)
        assert found.service_tier == ("" if answered == "default" else answered)
    cheap = make_rule(BASE + 'service_tiers = { flex = "0.5" }')
    assert as_answered(cheap, factors_of(cheap, 0, "flex"), "scale").service is ONE
    assert cheap.dearest_service is ONE


def test_a_free_rule_is_free_at_any_hour() -> None:
    rule = make_rule('free = true\nhours = [{ from = "01:00", to = "02:00", multiply = "9" }]')
    assert price(rule, Usage(input=10**9), factors=factors_of(rule, AT_ONE), units=ALL) == 0
    assert ceiling_of(rule).amount(10**9, 10**9) == 0


def test_a_rule_does_not_depend_on_how_its_decimals_are_written() -> None:
    one, other = make_rule('input = "2"\noutput = "8"'), make_rule('input = "2.00"\noutput = "8.0"')
    assert (one.cards[0].rates, one.denominator) == (other.cards[0].rates, other.denominator)
    assert msgspec.structs.replace(one, input="2.00", output="8.0", cards=other.cards) == other


@pytest.mark.parametrize("tokens", [0, 1, 99, 100, 199, 200, 1_000])
@pytest.mark.parametrize("minutes", [0, 90])
def test_the_ceiling_is_the_price_of_the_tier_at_its_dearest_service(
    tokens: int, minutes: int
) -> None:
    rule = make_rule(
        BASE
        + 'per_call = "0.000007"\n'
        + 'tiers = [{ from_input_tokens = 100, input = "4", output = "10" }, '
        + '{ from_input_tokens = 200, input = "6", output = "11" }]\n'
        + 'hours = [{ from = "01:00", to = "02:00", multiply = "1.5" }]\n'
        + 'service_tiers = { priority = "3.3" }\n'
    )
    asked = factors_of(rule, minutes * 60_000)
    dearest = Factors(hours=asked.hours, service_tier="priority", service=multiplier("3.3"))
    ceiling = ceiling_of(rule, asked).amount(tokens, 7)
    assert ceiling == price(rule, Usage(input=tokens, output=7), factors=dearest)


def test_a_minimum_that_is_missed_by_next_to_nothing_is_a_line() -> None:
    rule = make_rule('input = "1"\noutput = "1"\nminimum_charge = "0.000002"')
    charge = breakdown(rule, Usage(input=1))
    assert [(line.kind, line.micro_credits) for line in charge.lines] == [
        ("input", "1"),
        ("minimum_charge", "1"),
    ]
    assert charge.amount == 2
    reached = breakdown(rule, Usage(input=1, output=1))  # by all that was used together
    assert [line.kind for line in reached.lines] == ["input", "output"]
