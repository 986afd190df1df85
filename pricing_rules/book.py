"""The price book: an admin's TOML file, read strictly into rules with exact integer rates. Pure."""

import re
import tomllib
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from typing import Final, Literal

import msgspec

from pricing_rules import globs
from pricing_rules.lines import Lines
from pricing_rules.money import MICRO_CREDITS_PER_CREDIT
from pricing_rules.reader import Problem, Table

__all__ = ["Book", "BookError", "Problem", "Reading", "Rule", "parse_book", "place", "read_book"]

BOOK_CHARACTERS_MAX: Final = 4_000_000
RULES_MAX: Final = 5_000
DESCRIPTION_CHARACTERS_MAX: Final = 1_000
PRIORITY_MAX: Final = 1_000_000


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls cost that match scene, provider and model.

    The texts stand as uploaded, None where left out. The integers say the same in micro-credits:
    a token costs rate / denominator, a call costs fee / denominator.
    """

    id: str
    description: str
    scene: str
    provider: str
    model: str
    priority: int
    status: Literal["active", "disabled"]
    currency: str
    credits_per_unit: str  # credits per unit of the currency
    free: bool
    input: str | None  # this and the next three: currency per 1M tokens
    cached_input: str | None
    output: str | None
    reasoning: str | None
    per_call: str | None  # currency per call

    input_rate: int
    cached_input_rate: int
    output_rate: int
    reasoning_rate: int
    fee: int
    denominator: int  # a power of ten

    line: int  # of its [[rule]] in the file


class Book(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One immutable version of all rules.

    Two books are equal only if they are the same object: that keeps `match` cheap, which has the
    book as part of its cache's key.
    """

    name: str
    currency: str
    credits_per_unit: str
    effective_from: int | None  # milliseconds since the epoch
    rules: tuple[Rule, ...]


class BookError(Exception):
    """A text that is no price book; `problems` has every error found, in the order of lines."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """All that could be read: the book if there is no error, the good rules in any case."""

    book: Book | None
    rules: tuple[Rule, ...]
    problems: tuple[Problem, ...]
    lines: Lines | None  # None if the text is not TOML


def parse_book(text: str) -> Book:
    """Read a price book; raises BookError with every problem, not only the first."""
    reading = read_book(text)
    if reading.book is None:
        raise BookError(reading.problems)
    return reading.book


def read_book(text: str) -> Reading:
    """Read as much of a price book as can be read; `lint` judges also the rules of a bad one."""
    text = text.removeprefix("\ufeff")
    if len(text) > BOOK_CHARACTERS_MAX:
        return _unreadable(0, f"the text is longer than {BOOK_CHARACTERS_MAX} characters")
    try:
        # Decimal, so that a price without quotes can be shown as it was written.
        document: dict[str, object] = tomllib.loads(text, parse_float=Decimal)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        return _unreadable(_line_of(error, text), f"this is not TOML: {error}")

    lines = Lines(text)
    problems: list[Problem] = []
    top = Table(values=document, lines=lines, path=(), problems=problems)
    top.refuse_unknown(_TOP_KEYS)
    head = _read_head(top)
    rules = _read_rules(top, head)
    problems += place(_repeated_ids(rules) + _ties(rules), lines)
    problems.sort(key=lambda problem: problem.line)
    book = None
    if not problems and head is not None:
        book = Book(
            name=head.name,
            currency=head.currency,
            credits_per_unit=head.credits_per_unit,
            effective_from=head.effective_from,
            rules=rules,
        )
    return Reading(book=book, rules=rules, problems=tuple(problems), lines=lines)


def place(problems: list[Problem], lines: Lines) -> list[Problem]:
    """Move problems that stand at their [[rule]] to the line of the field they are about."""
    return [
        msgspec.structs.replace(problem, line=lines.below("rule", problem.line, problem.field))
        for problem in problems
    ]


_TOP_KEYS: Final = ("book", "rule")
_BOOK_KEYS: Final = ("name", "currency", "credits_per_unit", "effective_from")
_RULE_KEYS: Final = (
    "id",
    "description",
    "scene",
    "provider",
    "model",
    "priority",
    "status",
    "currency",
    "credits_per_unit",
    "free",
    "input",
    "cached_input",
    "output",
    "reasoning",
    "per_call",
)
_LATER_KEYS: Final = frozenset(
    {
        "tiers",
        "hours",
        "service_tiers",
        "valid_from",
        "valid_until",
        "minimum_charge",
        "cache_write_5m",
        "cache_write_1h",
        "audio_input",
        "audio_output",
        "image_input",
        "per_image",
        "per_second",
        "per_character",
        "per_search",
    }
)
_AT_LINE: Final = re.compile(r"\(at line ([0-9]+), column [0-9]+\)")


class _Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The prices of a rule as written, None where left out."""

    input: str | None
    cached_input: str | None
    output: str | None
    reasoning: str | None
    per_call: str | None


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    currency: str
    credits_per_unit: str
    effective_from: int | None


def _read_head(top: Table) -> _Head | None:
    values = top.values.get("book")
    if not isinstance(values, dict):
        top.wrong(
            "book",
            "is missing; a price book begins with [book] and its name, currency and "
            "credits_per_unit"
            if values is None
            else "must be one table: write [book], in single brackets",
        )
        return None
    table = Table(values=values, lines=top.lines, path=("book",), problems=top.problems)
    table.refuse_unknown(_BOOK_KEYS)
    name, currency = table.name("name"), table.currency()
    credits_per_unit = table.credits_per_unit(currency)
    effective_from = table.moment("effective_from")
    table.require("name", 'name = "2026-12 list prices"')
    table.require("currency", 'currency = "USD"')
    table.require("credits_per_unit", 'credits_per_unit = "100"')
    if name is None or currency is None or credits_per_unit is None:
        return None
    return _Head(
        name=name,
        currency=currency,
        credits_per_unit=credits_per_unit,
        effective_from=effective_from,
    )


def _read_rules(top: Table, head: _Head | None) -> tuple[Rule, ...]:
    entries = top.values.get("rule", [])
    if not isinstance(entries, list):
        top.wrong("rule", "must be a list of tables: write [[rule]], in double brackets")
        return ()
    if not 0 < len(entries) <= RULES_MAX:
        top.wrong(
            "rule",
            f"there are {len(entries)} rules; at most {RULES_MAX} are allowed"
            if entries
            else "there is no rule, so that every call would be refused; add a [[rule]]",
        )
        return ()
    rules: list[Rule] = []
    for number, values in enumerate(entries):
        if not isinstance(values, dict):
            top.wrong("rule", f"entry {number + 1} must be a table: write [[rule]]")
            continue
        path = ("rule", number)
        table = Table(values=values, lines=top.lines, path=path, problems=top.problems)
        rule = _read_rule(table, head)
        if rule is not None:
            rules.append(rule)
    return tuple(rules)


def _read_rule(table: Table, head: _Head | None) -> Rule | None:
    table.refuse_unknown(_RULE_KEYS, later=_LATER_KEYS)
    table.require("id", 'id = "openai-gpt-4o"')
    table.require("provider", 'provider = "openai", its name in gateway.toml, or "*"')
    table.require("model", 'model = "gpt-4o", the name sent to the provider')
    rule_id = table.identifier("id")
    scene = table.name("scene") if "scene" in table.values else "*"
    provider, model = table.name("provider"), table.name("model")
    description = table.text("description", longest=DESCRIPTION_CHARACTERS_MAX)
    priority = table.integer("priority", limit=PRIORITY_MAX)
    is_disabled = table.choice("status", ("active", "disabled")) == "disabled"
    money = _read_money(table, head)
    is_free = table.flag("free")
    rates = _read_rates(table, is_free=is_free)
    if not table.sound or rule_id is None or scene is None or provider is None or model is None:
        return None
    if money is None:
        return None
    currency, credits_per_unit = money
    exact = _exact(rates, credits_per_unit)
    return Rule(
        id=rule_id,
        description=description or "",
        scene=scene,
        provider=provider,
        model=model,
        priority=priority,
        status="disabled" if is_disabled else "active",
        currency=currency,
        credits_per_unit=credits_per_unit,
        free=is_free,
        input=rates.input,
        cached_input=rates.cached_input,
        output=rates.output,
        reasoning=rates.reasoning,
        per_call=rates.per_call,
        input_rate=exact.input_rate,
        cached_input_rate=exact.cached_input_rate,
        output_rate=exact.output_rate,
        reasoning_rate=exact.reasoning_rate,
        fee=exact.fee,
        denominator=exact.denominator,
        line=table.lines.of(*table.path),
    )


def _read_money(table: Table, head: _Head | None) -> tuple[str, str] | None:
    """Currency and credits per unit of a rule, its own or the book's; None without a book."""
    currency = table.currency()
    credits_per_unit = table.credits_per_unit(currency)
    if head is None:
        return None
    if currency not in (None, head.currency) and "credits_per_unit" not in table.values:
        table.wrong(
            "currency",
            f"is {currency}, but the book's credits_per_unit is for {head.currency}: add "
            f'credits_per_unit = "..." to this rule, how many credits 1 {currency} is',
        )
    return currency or head.currency, credits_per_unit or head.credits_per_unit


def _read_rates(table: Table, *, is_free: bool) -> _Rates:
    rates = _Rates(
        input=table.decimal("input"),
        cached_input=table.decimal("cached_input"),
        output=table.decimal("output"),
        reasoning=table.decimal("reasoning"),
        per_call=table.decimal("per_call"),
    )
    above_zero = [
        key
        for key in _Rates.__struct_fields__
        if (text := getattr(rates, key)) is not None and Decimal(text) != 0
    ]
    if is_free:
        for key in above_zero:
            table.wrong(key, "is above 0 in a rule that says free = true: remove one of the two")
        return rates
    table.require("input", 'input = "2.50", the price of 1M tokens; or free = true')
    table.require("output", 'output = "10.00", the price of 1M tokens; or free = true')
    if table.sound and not above_zero:
        table.wrong(
            "input", "every price of this rule is 0: write the prices, or free = true if it is free"
        )
    return rates


class _Exact(msgspec.Struct, frozen=True, kw_only=True):
    input_rate: int
    cached_input_rate: int
    output_rate: int
    reasoning_rate: int
    fee: int
    denominator: int


def _exact(rates: _Rates, credits_per_unit: str) -> _Exact:
    """All rates in micro-credits over one power of ten.

    Micro-credits per token = price per 1M tokens / 1,000,000 x credits per unit x 1,000,000: the
    two millions cancel out. Micro-credits per call = price x credits per unit x 1,000,000.
    """
    input_rate = _micro_credits(rates.input, credits_per_unit)
    output_rate = _micro_credits(rates.output, credits_per_unit)
    # Left out is never free by accident: cached input costs what input does, reasoning as output.
    cached = input_rate
    if rates.cached_input is not None:
        cached = _micro_credits(rates.cached_input, credits_per_unit)
    reasoning = output_rate
    if rates.reasoning is not None:
        reasoning = _micro_credits(rates.reasoning, credits_per_unit)
    fee = _micro_credits(rates.per_call, credits_per_unit) * MICRO_CREDITS_PER_CREDIT
    # Fractions of decimals: every denominator divides the greatest power of ten among them.
    exact = (input_rate, cached, output_rate, reasoning, fee)
    denominator = 1
    while any(denominator % rate.denominator for rate in exact):
        denominator *= 10
    whole = [int(rate * denominator) for rate in exact]
    return _Exact(
        input_rate=whole[0],
        cached_input_rate=whole[1],
        output_rate=whole[2],
        reasoning_rate=whole[3],
        fee=whole[4],
        denominator=denominator,
    )


def _micro_credits(text: str | None, credits_per_unit: str) -> Fraction:
    return Fraction(text or "0") * Fraction(credits_per_unit)


def _repeated_ids(rules: tuple[Rule, ...]) -> list[Problem]:
    seen: dict[str, Rule] = {}
    problems: list[Problem] = []
    for rule in rules:
        first = seen.setdefault(rule.id, rule)
        if first is not rule:
            message = f"the rule at line {first.line} has the same id: choose another"
            problems.append(_error(rule, "id", message))
    return problems


def _ties(rules: tuple[Rule, ...]) -> list[Problem]:
    """Pairs of active rules of which neither wins for some call that both match."""
    # Exact fields are part of the key, so that a long list of plain models makes no long search.
    groups: dict[tuple[object, ...], list[Rule]] = {}
    for rule in rules:
        if rule.status == "active":
            fields = (rule.scene, rule.provider, rule.model)
            key = tuple(
                text if globs.is_exact(text) else globs.specificity(text) for text in fields
            )
            groups.setdefault((rule.priority, *key), []).append(rule)
    return [
        _error(
            later,
            "model",
            f'ties with rule "{earlier.id}" at line {earlier.line}: both can match one call and '
            "neither is more specific; give one of them a higher priority, or make its scene, "
            "provider or model narrower",
        )
        for group in groups.values()
        for earlier, later in combinations(group, 2)
        if globs.overlap(earlier.scene, later.scene)
        and globs.overlap(earlier.provider, later.provider)
        and globs.overlap(earlier.model, later.model)
    ]


def _error(rule: Rule, field: str, message: str) -> Problem:
    return Problem(level="error", line=rule.line, rule=rule.id, field=field, message=message)


def _unreadable(line: int, message: str) -> Reading:
    problem = Problem(level="error", line=line, rule="", field="", message=message)
    return Reading(book=None, rules=(), problems=(problem,), lines=None)


def _line_of(error: Exception, text: str) -> int:
    """The line that tomllib names in its message only; the last one for "at end of document"."""
    found = _AT_LINE.search(str(error))
    if found:
        return int(found[1])
    return text.count("\n") + 1 if "end of document" in str(error) else 0
