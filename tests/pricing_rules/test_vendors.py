"""How the vendors charge, as a table: a rule as an admin writes it, a call, the cost worked by hand.

One credit is a US cent (credits_per_unit 100), so a price of 1 USD for 1M tokens is 100
micro-credits a token. Prices are examples in the vendors' shape, not their lists.
"""

from datetime import datetime

import pytest

from llm_gateway.usage_report import read_usage
from pricing_rules.book import Rule, parse_book
from pricing_rules.match import match
from pricing_rules.price import as_answered, breakdown, ceiling_of, factors_of, price
from pricing_rules.usage import Units, Usage, normalise

BOOK = parse_book(
    """
[book]
name = "vendors"
currency = "USD"
credits_per_unit = "100"

[[rule]]
id = "deepseek"
provider = "deepseek"
model = "deepseek-*"
input = "0.28"
cached_input = "0.028"
output = "0.42"
hours = [
    { days = "Mon-Fri", tz = "UTC", from = "01:00", to = "04:00", multiply = "2" },
    { days = "Mon-Fri", tz = "UTC", from = "06:00", to = "10:00", multiply = "2" },
]

[[rule]]
id = "anthropic"
provider = "anthropic"
model = "claude-*"
input = "3.00"
cached_input = "0.30"
cache_write_5m = "3.75"
cache_write_1h = "6.00"
output = "15.00"

[[rule]]
id = "gemini"
provider = "google"
model = "gemini-*"
input = "1.25"
cached_input = "0.125"
output = "10.00"
tiers = [
    { over_input_tokens = 200000, input = "2.50", cached_input = "0.25", output = "15.00" },
]

[[rule]]
id = "xai"
provider = "xai"
model = "grok-*"
input = "3.00"
cached_input = "0.75"
output = "15.00"
tiers = [{ from_input_tokens = 200000, input = "6.00", output = "30.00" }]

[[rule]]
id = "openai"
provider = "openai"
model = "gpt-*"
input = "1.25"
cached_input = "0.125"
output = "10.00"
per_search = "0.01"
service_tiers = { priority = "2", flex = "0.5" }

[[rule]]
id = "openai-audio"
provider = "openai"
model = "gpt-*-audio"
input = "2.50"
audio_input = "40.00"
output = "10.00"
audio_output = "80.00"

[[rule]]
id = "openai-transcribe"
provider = "openai"
model = "whisper-1"
input = "0"
output = "0"
per_second = "0.0001"

[[rule]]
id = "openai-speech"
provider = "openai"
model = "tts-1"
input = "0"
output = "0"
per_character = "0.000015"

[[rule]]
id = "images"
provider = "openai"
model = "gpt-image"
input = "5.00"
image_input = "10.00"
output = "0"
per_image = "0.04"

[[rule]]
id = "openrouter"
provider = "openrouter"
model = "*"
currency = "USD"
credits_per_unit = "110"
input = "0.50"
output = "1.50"
minimum_charge = "0.0001"
"""
)
MONDAY_NOON = "2026-11-23T12:00:00Z"


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def rule_for(provider: str, model: str) -> Rule:
    rule = match(BOOK, "agent", provider, model, ms(MONDAY_NOON))
    assert rule is not None
    return rule


@pytest.mark.parametrize(
    ("at", "amount"),
    [
        # Off peak: 1000 x 28 + 500 x 2.8 + 100 x 42 = 28000 + 1400 + 4200
        ("2026-11-23T00:59:59.999Z", 33_600),
        ("2026-11-23T01:00:00Z", 67_200),  # Monday, peak: twice
        ("2026-11-23T03:59:59.999Z", 67_200),
        ("2026-11-23T04:00:00Z", 33_600),
        ("2026-11-23T06:00:00Z", 67_200),
        ("2026-11-23T10:00:00Z", 33_600),
        ("2026-11-27T09:59:00Z", 67_200),  # Friday
        ("2026-11-28T02:00:00Z", 33_600),  # Saturday
        ("2026-11-29T07:00:00Z", 33_600),  # Sunday
        ("2026-11-30T07:00:00Z", 67_200),
        ("2026-11-27T23:30:00-03:00", 33_600),  # is Saturday 02:30 in UTC
    ],
)
def test_deepseek_doubles_at_peak_hours_by_when_the_call_was_admitted(at: str, amount: int) -> None:
    rule = rule_for("deepseek", "deepseek-chat")
    factors = factors_of(rule, ms(at))
    usage = Usage(input=1000, cached_input=500, output=100)
    assert price(rule, usage, factors=factors) == amount
    charge = breakdown(rule, usage, factors=factors)
    assert (charge.amount, charge.hours) == (amount, "2" if amount == 67_200 else "1")
    # All of it as dearest input: 1500 x 28 + 100 x 42 = 46200.
    bound = 92_400 if amount == 67_200 else 46_200
    assert ceiling_of(rule, factors).amount(1500, 100) == bound
    assert ceiling_of(rule).amount(1500, 100) == 92_400


@pytest.mark.parametrize(
    ("raw", "amount"),
    [
        # input_tokens leaves the cache out: 10 x 300 + 2000 x 30 + 50 x 1500
        (
            {"input_tokens": 10, "cache_read_input_tokens": 2000, "output_tokens": 50},
            138_000,
        ),
        # 5 minutes: 10 x 300 + 1000 x 375 + 50 x 1500
        (
            {
                "input_tokens": 10,
                "cache_creation_input_tokens": 1000,
                "cache_creation": {"ephemeral_5m_input_tokens": 1000},
                "output_tokens": 50,
            },
            453_000,
        ),
        # An hour: 10 x 300 + 1000 x 600 + 50 x 1500
        (
            {
                "input_tokens": 10,
                "cache_creation_input_tokens": 1000,
                "cache_creation": {"ephemeral_1h_input_tokens": 1000},
                "output_tokens": 50,
            },
            678_000,
        ),
        # Both: 10 x 300 + 400 x 375 + 600 x 600 + 7 x 30 + 50 x 1500
        (
            {
                "input_tokens": 10,
                "cache_read_input_tokens": 7,
                "cache_creation_input_tokens": 1000,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 400,
                    "ephemeral_1h_input_tokens": 600,
                },
                "output_tokens": 50,
            },
            588_210,
        ),
        # The old format knows the sum alone: at the price of 5 minutes.
        ({"input_tokens": 10, "cache_creation_input_tokens": 1000, "output_tokens": 0}, 378_000),
    ],
)
def test_anthropic_charges_for_writing_to_the_cache(raw: dict[str, object], amount: int) -> None:
    reported = read_usage(raw)
    assert reported is not None
    usage = normalise(reported)
    assert isinstance(usage, Usage)
    assert price(rule_for("anthropic", "claude-sonnet"), usage) == amount


@pytest.mark.parametrize(
    ("provider", "usage", "amount", "tier"),
    [
        # Gemini: over 200,000. 200000 x 125 + 10 x 1000
        ("google", Usage(input=200_000, output=10), 25_010_000, 0),
        # One more and the whole call moves: 200001 x 250 + 10 x 1500
        ("google", Usage(input=200_001, output=10), 50_015_250, 200_001),
        # Cached tokens count towards it: 100000 x 250 + 100001 x 25 + 10 x 1500
        (
            "google",
            Usage(input=100_000, cached_input=100_001, output=10),
            27_515_025,
            200_001,
        ),
        # Thoughts do not: 200000 x 125 + 300000 x 1000
        ("google", Usage(input=200_000, reasoning=300_000), 325_000_000, 0),
        # xAI: from 200,000. 199999 x 300 + 10 x 1500
        ("xai", Usage(input=199_999, output=10), 60_014_700, 0),
        # 200000 x 600 + 10 x 3000
        ("xai", Usage(input=200_000, output=10), 120_030_000, 200_000),
        # The tier names no price for cached tokens: they cost as its input, not as below it.
        ("xai", Usage(cached_input=200_000), 120_000_000, 200_000),
        ("xai", Usage(cached_input=199_999), 14_999_925, 0),
    ],
)
def test_a_long_prompt_moves_the_whole_call(
    provider: str, usage: Usage, amount: int, tier: int
) -> None:
    model = {"google": "gemini-pro", "xai": "grok-4"}[provider]
    rule = rule_for(provider, model)
    assert price(rule, usage) == amount
    assert breakdown(rule, usage).from_input_tokens == tier
    assert ceiling_of(rule).amount(usage.total_input, usage.total_output) >= amount


def test_a_ceiling_counts_only_tiers_that_the_input_can_reach() -> None:
    ceiling = ceiling_of(rule_for("google", "gemini-pro"))
    assert ceiling.amount(200_000, 10) == 200_000 * 125 + 10 * 1000
    assert ceiling.amount(200_001, 10) == 200_001 * 250 + 10 * 1500
    assert ceiling.affordable_output(200_001 * 250 + 2999, 200_001) == 1


@pytest.mark.parametrize(
    ("raw", "amount"),
    [
        # prompt_tokens has the cached ones in it: 600 x 125 + 400 x 12.5; 50 x 1000
        (
            {
                "prompt_tokens": 1000,
                "completion_tokens": 50,
                "total_tokens": 1050,
                "prompt_tokens_details": {"cached_tokens": 400},
                "completion_tokens_details": {"reasoning_tokens": 30},
            },
            130_000,
        ),
        # More cached than prompt: all of it was cached. 1000 x 12.5
        (
            {
                "prompt_tokens": 1000,
                "completion_tokens": 0,
                "prompt_tokens_details": {"cached_tokens": 4000},
            },
            12_500,
        ),
        # xAI and Gemini count thoughts beside the completion: 1000 x 125 + (50 + 30) x 1000
        (
            {
                "prompt_tokens": 1000,
                "completion_tokens": 50,
                "total_tokens": 1080,
                "completion_tokens_details": {"reasoning_tokens": 30},
            },
            205_000,
        ),
        # One token in three: 3 x 12.5 = 37.5, rounded up once
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": 0,
                "prompt_tokens_details": {"cached_tokens": 3},
            },
            38,
        ),
    ],
)
def test_openai_has_cached_tokens_in_the_prompt_and_thoughts_in_the_completion(
    raw: dict[str, object], amount: int
) -> None:
    reported = read_usage(raw)
    assert reported is not None
    usage = normalise(reported)
    assert isinstance(usage, Usage)
    assert price(rule_for("openai", "gpt-5"), usage) == amount


@pytest.mark.parametrize(
    ("asked", "answered", "amount"),
    [
        # 1000 x 125 + 100 x 1000 = 225000, and a search for 0.01 USD = 1 credit
        (None, None, 1_225_000),
        ("auto", "default", 1_225_000),
        ("priority", None, 1_450_000),  # tokens twice, the search once
        ("priority", "default", 1_225_000),  # as answered: there was no room in the tier
        ("flex", None, 1_112_500),
        ("flex", "flex", 1_112_500),
        (None, "flex", 1_112_500),  # the project's setting
        ("flex", "scale", 1_450_000),  # nobody priced it: the dearest listed
        ("flex", "auto", 1_225_000),
    ],
)
def test_a_service_tier_counts_as_answered_else_as_asked(
    asked: str | None, answered: str | None, amount: int
) -> None:
    rule = rule_for("openai", "gpt-5")
    factors = as_answered(rule, factors_of(rule, ms(MONDAY_NOON), asked), answered)
    used = Usage(input=1000, output=100)
    assert price(rule, used, factors=factors, units=Units(searches=1)) == amount
    charge = breakdown(rule, used, factors=factors, units=Units(searches=1))
    assert charge.amount == amount
    # The hold covers whatever tier it turns out to be.
    ceiling = ceiling_of(rule, factors_of(rule, 0, asked), Units(searches=1))
    assert ceiling.amount(1000, 100) == 1_450_000


def test_audio_has_prices_of_its_own() -> None:
    rule = rule_for("openai", "gpt-4o-audio")
    # 100 x 250 + 20 x 4000 + 10 x 1000 + 30 x 8000
    usage = Usage(input=100, audio_input=20, output=10, audio_output=30)
    assert price(rule, usage) == 355_000
    # Not an audio model's rule: audio costs as text does, never nothing. 20 x 125 + 30 x 1000
    assert price(rule_for("openai", "gpt-5"), Usage(audio_input=20, audio_output=30)) == 32_500


@pytest.mark.parametrize(
    ("model", "usage", "units", "amount"),
    [
        # 61 s x 0.0001 USD = 0.61 cent
        ("whisper-1", Usage(), Units(seconds=61), 610_000),
        # 1000 characters x 0.000015 USD = 1.5 cents
        ("tts-1", Usage(), Units(characters=1000), 1_500_000),
        # 100 x 500 + 10 x 1000 + 2 x 0.04 USD = 8 cents
        ("gpt-image", Usage(input=100, image_input=10), Units(images=2), 8_060_000),
    ],
)
def test_what_is_no_token_is_priced_by_the_piece(
    model: str, usage: Usage, units: Units, amount: int
) -> None:
    rule = rule_for("openai", model)
    assert price(rule, usage, units=units) == amount
    assert ceiling_of(rule, units=units).amount(usage.total_input, 0) >= amount


def test_openrouter_reports_its_own_cost_and_we_charge_ours() -> None:
    raw = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100, "cost": 0.00095}
    reported = read_usage(raw)
    assert reported is not None
    usage = normalise(reported)
    assert isinstance(usage, Usage)
    # 10 % on top: 1000 x 55 + 100 x 165; what OpenRouter asks of us, 0.00095 USD, changes nothing.
    rule = rule_for("openrouter", "vendor/model")
    assert price(rule, usage) == 71_500
    # 0.0001 USD x 110 = 0.011 credits is the least, also for a call of 10 x 55.
    assert price(rule, Usage(input=10)) == 11_000
    lines = breakdown(rule, Usage(input=10)).lines
    assert [(line.kind, line.micro_credits) for line in lines] == [
        ("input", "550"),
        ("minimum_charge", "10450"),
    ]
