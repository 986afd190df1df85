"""What an admin should know about a price book before it takes effect. Pure."""

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Final

from pricing_rules import globs
from pricing_rules.book import Problem, Rule, place, read_book

# The cheapest list price known is near 0.003 (cached input, USD); per token it would be 1e-9.
_PER_TOKEN_BELOW: Final = Decimal("0.001")
# The dearest list price known is 600 USD, some 4,300 CNY.
_DEAR_ABOVE: Final = Decimal(5000)
_DEAR_CALL_ABOVE: Final = Decimal(10)

_RATES: Final = ("input", "cached_input", "output", "reasoning")
_NOT_IN_ID: Final = re.compile(r"[^A-Za-z0-9._:/@+-]+")


def lint(text: str) -> list[Problem]:
    """Every error that `parse_book` would raise, and warnings, in the order of lines."""
    reading = read_book(text)
    warnings: list[Problem] = []
    for rule in reading.rules:
        warnings += _prices(rule)
        if not rule.description:
            warnings.append(
                _warning(
                    rule,
                    "description",
                    "says nothing: name the price list and its date, so that the price can be "
                    "checked later",
                )
            )
    warnings += _unreachable(reading.rules)
    if reading.rules and all(rule.status == "disabled" for rule in reading.rules):
        warnings.append(
            _warning(reading.rules[0], "status", "every rule is disabled: every call is refused")
        )
    problems = list(reading.problems)
    if reading.lines is not None:
        problems += place(warnings, reading.lines)
    return sorted(problems, key=lambda problem: problem.line)


def near_rule_toml(scene: str, provider: str, model: str) -> str:
    """The rule to add for a call that none matches, its prices left at 0 to be filled in.

    A book with such a rule is refused until prices are filled in.
    """
    name = _NOT_IN_ID.sub("-", f"{provider}-{model}").lstrip("._:/@+-")[:100] or "rule"
    return "\n".join(
        [
            "[[rule]]",
            f"id = {_quoted(name)}",
            'description = ""  # the price list this is from, and its date',
            f'scene = {_quoted(scene)}  # or "*" for every scene',
            f"provider = {_quoted(provider)}",
            f"model = {_quoted(model)}",
            'input = "0"  # price of 1M tokens, in the currency of [book]',
            'output = "0"',
            "",
        ]
    )


def _prices(rule: Rule) -> Iterator[Problem]:
    for field in _RATES:
        rate = _rate(rule, field)
        if rate is None or rule.free:
            continue
        if rate == 0:
            yield _warning(rule, field, "is 0: these tokens are given away; is that meant?")
        elif rate < _PER_TOKEN_BELOW:
            yield _warning(
                rule,
                field,
                f"is {rate:f} for 1M tokens, which looks like a price per token; per 1M tokens it "
                f"would be {rate * 1_000_000:f}",
            )
        elif rate > _DEAR_ABOVE:
            yield _warning(
                rule, field, f"is {rate:f} for 1M tokens, dearer than any price list known"
            )
    yield from _against_each_other(rule)
    per_call = _rate(rule, "per_call")
    if per_call is not None and per_call > _DEAR_CALL_ABOVE:
        yield _warning(
            rule, "per_call", f"is {per_call:f} for one call, not for a thousand; is that meant?"
        )


def _against_each_other(rule: Rule) -> Iterator[Problem]:
    """Prices that are usually the other way round: a sign of swapped or mistyped numbers."""
    for field, other, is_odd in (
        ("cached_input", "input", "dearer"),
        ("output", "input", "cheaper"),
        ("reasoning", "output", "cheaper"),
    ):
        rate, reference = _rate(rule, field), _rate(rule, other)
        if rate is None or reference is None or not rate:
            continue
        if rate > reference if is_odd == "dearer" else rate < reference:
            yield _warning(rule, field, f"is {is_odd} than {other}; are the two swapped?")


def _unreachable(rules: tuple[Rule, ...]) -> Iterator[Problem]:
    """Rules whose every call goes to one other rule.

    Only a higher priority can do that: what covers a rule is never narrower than it.
    """
    active = [rule for rule in rules if rule.status == "active"]
    for rule in active:
        winner = next((other for other in active if _always_wins(other, rule)), None)
        if winner is not None:
            yield _warning(
                rule,
                "priority",
                f'is never reached: rule "{winner.id}" at line {winner.line} has priority '
                f"{winner.priority} and matches all that this rule does",
            )


def _always_wins(other: Rule, rule: Rule) -> bool:
    return (
        other.priority > rule.priority
        and globs.covers(other.scene, rule.scene)
        and globs.covers(other.provider, rule.provider)
        and globs.covers(other.model, rule.model)
    )


def _rate(rule: Rule, field: str) -> Decimal | None:
    text: str | None = getattr(rule, field)
    return None if text is None else Decimal(text)


def _quoted(text: str) -> str:
    """A TOML basic string (toml.io, v1.0.0, "String")."""
    escaped = "".join(
        f"\\u{ord(letter):04x}"
        if ord(letter) < 0x20 or letter == "\x7f"
        else "\\" + letter
        if letter in '"\\'
        else letter
        for letter in text.encode("utf-8", "replace").decode()
    )
    return f'"{escaped}"'


def _warning(rule: Rule, field: str, message: str) -> Problem:
    return Problem(level="warning", line=rule.line, rule=rule.id, field=field, message=message)
