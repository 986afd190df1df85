"""Patterns agree with brute force over all short texts."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing_rules import globs

PATTERN = st.text("ab*?", max_size=5)
# "c" is in no pattern: it stands for the letters that only a wildcard matches.
TEXTS = ["".join(letters) for size in range(8) for letters in itertools.product("abc", repeat=size)]


def matched(pattern: str) -> set[str]:
    """The reference: a regular expression over every short text."""
    expression = re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."))
    return {text for text in TEXTS if expression.fullmatch(text)}


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("*", ""),
        ("*", "gpt-4o"),
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o*", "gpt-4o"),
        ("*-mini*", "gpt-4o-mini-2024"),
        ("gpt-?o", "gpt-4o"),
        ("a[b]", "a[b]"),
    ],
)
def test_pattern_matches(pattern: str, text: str) -> None:
    assert globs.matches(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("", "a"),
        ("gpt-4o", "GPT-4o"),
        ("gpt-4o", "gpt-4o-mini"),
        ("gpt-4o-mini", "gpt-4o"),
        ("gpt-?o", "gpt-o"),
        ("*-mini", "gpt-4o-mini-2024"),
        ("a[b]", "ab"),
        (".", "a"),
    ],
)
def test_pattern_does_not_match(pattern: str, text: str) -> None:
    assert not globs.matches(pattern, text)


def test_many_stars_do_not_explode() -> None:
    assert not globs.matches("*a" * 40 + "b", "a" * 250)


@given(PATTERN)
def test_matches_agrees_with_regular_expressions(pattern: str) -> None:
    assert {text for text in TEXTS if globs.matches(pattern, text)} == matched(pattern)


@given(PATTERN)
def test_tidy_changes_no_meaning(pattern: str) -> None:
    assert matched(globs.tidy(pattern)) == matched(pattern)


@given(PATTERN, PATTERN)
def test_covers_agrees_with_brute_force(wider: str, narrower: str) -> None:
    truly = matched(wider) >= matched(narrower)
    if globs.covers(wider, narrower):
        assert truly
    elif "?" not in wider:
        assert not truly


@pytest.mark.parametrize(
    ("wider", "narrower"),
    [
        ("*", ""),
        ("*", "a?*"),
        ("a*", "a"),
        ("a*", "ab*"),
        ("*b*", "a*b?"),
        ("a?", "ab"),
        ("?*", "*?"),
    ],
)
def test_a_wider_pattern_covers(wider: str, narrower: str) -> None:
    assert globs.covers(wider, narrower)
    assert globs.covers(wider, wider)


@given(PATTERN, PATTERN)
def test_overlap_agrees_with_brute_force(one: str, other: str) -> None:
    # Seven letters are enough for a common text only where both patterns are short.
    one, other = one[:3], other[:3]
    assert globs.overlap(one, other) == bool(matched(one) & matched(other))


@given(PATTERN, PATTERN)
def test_what_covers_is_never_narrower(wider: str, narrower: str) -> None:
    if globs.covers(wider, narrower):
        assert globs.specificity(wider) <= globs.specificity(narrower)


def test_specificity_orders_exact_then_literals_then_any() -> None:
    ordered = ["gpt-4o", "gpt-4o*", "gpt-?o*", "gpt-*", "?*", "**"]
    ranks = [globs.specificity(pattern) for pattern in ordered]
    assert ranks == [globs.EXACT, 6, 5, 4, 0, globs.ANY]
    assert globs.specificity("*") == globs.ANY
