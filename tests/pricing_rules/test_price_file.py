"""The price book that ships: clean, sourced, and its figures as the vendors list them."""

import re
from pathlib import Path

import pytest

from pricing_rules.book import parse_book
from pricing_rules.lint import lint
from pricing_rules.match import match
from pricing_rules.price import factors_of, price
from pricing_rules.usage import Usage

TEXT = (Path(__file__).parents[2] / "prices.toml").read_text("utf-8")
BOOK = parse_book(TEXT)


def test_the_book_has_no_problems() -> None:
    assert lint(TEXT) == []


def test_every_rule_names_its_source_and_date() -> None:
    for rule in BOOK.rules:
        assert re.search(r"20(25|26)|November 2026", rule.description), rule.id
        if rule.provider != "echo":
            assert re.search(r"page|model list", rule.description), rule.id
            assert re.search(r"[a-z]+\.[a-z]+/", rule.description), rule.id


def test_the_vendors_are_priced() -> None:
    assert {rule.provider for rule in BOOK.rules} == {
        "echo",
        "openai",
        "anthropic",
        "google",
        "qwen",
        "moonshot",
        "deepseek",
    }


@pytest.mark.parametrize(
    ("provider", "model", "usage", "micro_credits"),
    [
        # 1 credit = 1 US cent: 0.15 USD for 1M tokens is 15 credits.
        ("openai", "gpt-4o-mini", Usage(input=1_000_000), 15_000_000),
        ("openai", "gpt-4o-mini-2024-07-18", Usage(cached_input=1_000_000), 7_500_000),
        ("openai", "gpt-4o", Usage(input=1_000_000, reasoning=1_000_000), 1_250_000_000),
        ("anthropic", "claude-opus-5", Usage(output=1_000_000), 2_500_000_000),
        ("google", "gemini-3.5-flash", Usage(audio_input=1_000_000), 150_000_000),
        ("moonshot", "kimi-k2.6", Usage(cached_input=1_000_000), 16_000_000),
        ("qwen", "qwq-plus", Usage(input=1_000_000, output=1_000_000), 320_000_000),
        # 400 x 100 + 100 x 25 + 50 x 400 + 10 x 500
        ("echo", "echo", Usage(input=400, cached_input=100, output=50, reasoning=10), 67_500),
        ("echo", "echo-slow", Usage(input=1), 100),
    ],
)
def test_a_call_costs_the_list_price(
    provider: str, model: str, usage: Usage, micro_credits: int
) -> None:
    rule = match(BOOK, "any-scene", provider, model)
    assert rule is not None
    assert price(rule, usage) == micro_credits


@pytest.mark.parametrize(
    ("at", "micro_credits"),
    [
        # 1M in at 0.66 USD and 0.5M out at 1.98 USD: 66 + 99 credits
        (1_795_399_200_000, 330_000_000),  # Monday 2026-11-23, 02:00 UTC: twice that
        (1_795_406_400_000, 165_000_000),  # 04:00
        (1_795_831_200_000, 165_000_000),  # Saturday, 02:00
    ],
)
def test_deepseek_is_dearer_at_peak_hours(at: int, micro_credits: int) -> None:
    rule = match(BOOK, "any-scene", "deepseek", "deepseek-v4-pro", at)
    assert rule is not None
    usage = Usage(input=1_000_000, output=500_000)
    assert price(rule, usage, factors=factors_of(rule, at)) == micro_credits


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-audio-preview"),
        ("openai", "gpt-4o-2024-05-13"),
        ("openai", "gpt-5.4"),
        ("google", "gemini-2.5-pro"),
        ("google", "gemini-2.5-flash"),
        ("deepseek", "deepseek-chat"),
        ("anthropic", "claude-sonnet-4-5"),
        ("azure", "gpt-4o"),
    ],
)
def test_what_these_rules_cannot_price_has_no_rule(provider: str, model: str) -> None:
    assert match(BOOK, "any-scene", provider, model) is None
