"""What an admin should know about a price book before it takes effect. Pure."""

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Final

import msgspec

from pricing_rules import globs
from pricing_rules.book import Book, Problem, Rule, Tier, read_book
from pricing_rules.export import quoted
from pricing_rules.globs import Glob
from pricing_rules.index import Index, rank
from pricing_rules.lines import Lines, Path
from pricing_rules.match import match, show_moment
from pricing_rules.rates import FEES, TOKEN_CLASSES
from pricing_rules.reader import PROBLEMS_MAX, make_problem

# The cheapest list price known is near 0.003 (cached input, USD); per token it would be 1e-9.
_PER_TOKEN_BELOW: Final = Decimal("0.001")
# The dearest list price known is 600 USD, some 4,300 CNY.
_DEAR_ABOVE: Final = Decimal(5000)
# By key: the most that one is believed to cost, and what the number was probably meant for.
_DEAR_FEES: Final = {
    "per_call": (Decimal(10), "for one call, not for a thousand"),
    "per_image": (Decimal(50), "for one image, not for a thousand"),
    "per_second": (Decimal(10), "for one second, not for an hour"),
    "per_character": (Decimal("0.01"), "for one character, not for a million"),
    "per_search": (Decimal(1), "for one search, not for a thousand"),
}
_TEXTS_CACHED_MAX: Final = 4096  # the rules of a book have few different prices
_FAR: Final = 10  # times the price in effect
_SERVED_MAX: Final = 100  # models without a rule that are named one by one

# Class, the one it is compared with, and how it should not be.
_ODD: Final = (
    ("cached_input", "input", "dearer"),
    ("output", "input", "cheaper"),
    ("reasoning", "output", "cheaper"),
    ("cache_write_1h", "cache_write_5m", "cheaper"),
)
_NOT_IN_ID: Final = re.compile(r"[^A-Za-z0-9._:/@+-]+")

Call = tuple[str, str, str]  # scene, provider, model


class Review(msgspec.Struct, frozen=True, kw_only=True):
    """What came of reading a text: the book if it has no error, and all there is to say."""

    book: Book | None
    problems: tuple[Problem, ...]


def lint(
    text: str | bytes,
    *,
    active: Book | None = None,
    served: Iterable[Call] = (),
    now: int | None = None,
) -> list[Problem]:
    """Every error that `parse_book` would raise, and warnings, in the order of lines.

    `active`: the book in effect, to find prices far from its own. `served`: the calls of late, to
    find those that no rule prices any more. `now`: milliseconds since the epoch, to find rules
    whose time is over.
    """
    return list(review(text, active=active, served=served, now=now).problems)


def review(
    text: str | bytes,
    *,
    active: Book | None = None,
    served: Iterable[Call] = (),
    now: int | None = None,
) -> Review:
    """Read and lint a text at once; the arguments are those of `lint`."""
    reading = read_book(text)
    if reading.lines is None:
        return Review(book=None, problems=reading.problems)
    warnings = _Warnings(reading.lines)
    index = (
        Index(rule for rule in reading.rules if rule.status == "active")
        if reading.book is None
        else reading.book.index
    )
    for rule in reading.rules:
        warnings.note(rule, _prices(rule))
        warnings.note(rule, _unused(rule))
        warnings.note(rule, _time(rule, reading.book, now))
        warnings.note(rule, _unreachable(rule, index))
        if not rule.description:
            warnings.add(
                rule,
                "description",
                "says nothing: name the price list and its date, so that the price can be "
                "checked later",
            )
    if active is not None:
        former = {rule.id: rule for rule in active.rules}
        for rule in reading.rules:
            old = former.get(rule.id) or match(active, rule.scene, rule.provider, rule.model)
            if old is not None:
                warnings.note(rule, _against_active(rule, old))
    if reading.rules and all(rule.status == "disabled" for rule in reading.rules):
        warnings.add(reading.rules[0], "status", "every rule is disabled: every call is refused")
    if reading.book is not None:
        warnings.found += _unpriced(reading.book, served, now)
    problems = sorted(
        [*reading.problems, *warnings.found], key=lambda problem: (problem.line, problem.column)
    )
    return Review(book=reading.book, problems=tuple(problems))


def near_rule_toml(scene: str, provider: str, model: str) -> str:
    """The rule to add for a call that none matches, its prices left at 0 to be filled in.

    A book with such a rule is refused until prices are filled in.
    """
    name = _NOT_IN_ID.sub("-", f"{provider}-{model}").lstrip("._:/@+-")[:100] or "rule"
    return "\n".join(
        [
            "[[rule]]",
            f"id = {quoted(name)}",
            'description = ""  # the price list this is from, and its date',
            f'scene = {quoted(scene)}  # or "*" for every scene',
            f"provider = {quoted(provider)}",
            f"model = {quoted(model)}",
            'input = "0"  # price of 1M tokens, in the currency of [book]',
            'output = "0"',
            "",
        ]
    )


_Finding = tuple[Path, str]  # where in the rule, and what


class _Warnings:
    """Warnings with their places; of a book that is odd all over, the first thousand."""

    def __init__(self, lines: Lines) -> None:
        self.found: list[Problem] = []
        self._lines = lines

    def note(self, rule: Rule, findings: Iterator[_Finding]) -> None:
        for path, message in findings:
            self.add(rule, path, message)

    def add(self, rule: Rule, path: str | Path, message: str) -> None:
        if len(self.found) < PROBLEMS_MAX:
            inside = (path,) if isinstance(path, str) else path
            place: Path = ("rule", rule.number, *inside)
            self.found.append(make_problem(self._lines, place, "warning", rule.id, message))


def _prices(rule: Rule) -> Iterator[_Finding]:
    if rule.free:
        return
    yield from _rates((), rule, is_by_piece=any(getattr(rule, name) for name in FEES))
    for number, tier in enumerate(rule.tiers):
        yield from _rates(("tiers", number), tier, is_by_piece=False)
    for field, (most, meant) in _DEAR_FEES.items():
        rate = _rate(rule, field)
        if rate is not None and rate > most:
            yield (field,), f"is {rate:f} {meant}; is that meant?"
    yield from _cheaper_tiers(rule)


def _rates(path: Path, source: Rule | Tier, *, is_by_piece: bool) -> Iterator[_Finding]:
    for field in TOKEN_CLASSES:
        rate = _rate(source, field)
        if rate is None:
            continue
        if rate == 0:
            if not is_by_piece:
                yield (*path, field), "is 0: these tokens are given away; is that meant?"
        elif rate < _PER_TOKEN_BELOW:
            message = f"per token; per 1M tokens it would be {rate * 1_000_000:f}"
            message = f"is {rate:f} for 1M tokens, which looks like a price {message}"
            yield (*path, field), message
        elif rate > _DEAR_ABOVE:
            message = f"is {rate:f} for 1M tokens, dearer than any price list known"
            yield (*path, field), message
    yield from _against_each_other(path, source)


def _against_each_other(path: Path, source: Rule | Tier) -> Iterator[_Finding]:
    """Prices that are usually the other way round: a sign of swapped or mistyped numbers."""
    for field, other, odd in _ODD:
        rate, reference = _rate(source, field), _rate(source, other)
        if rate is None or reference is None or not rate:
            continue
        if rate > reference if odd == "dearer" else rate < reference:
            yield (*path, field), f"is {odd} than {other}; are the two swapped?"


def _cheaper_tiers(rule: Rule) -> Iterator[_Finding]:
    numbers = {tier.first_tokens: number for number, tier in enumerate(rule.tiers)}
    for below, card in zip(rule.cards, rule.cards[1:], strict=False):
        for name in TOKEN_CLASSES:
            if getattr(card.rates, name) < getattr(below.rates, name):
                message = "is cheaper than below: a call could cost less for a longer prompt"
                yield ("tiers", numbers[card.from_input_tokens], name), message
                break


def _unused(rule: Rule) -> Iterator[_Finding]:
    """What is written and changes nothing."""
    _, dearest_input, dearest_output = rule.worst[-1]
    if rule.service_tiers and not (dearest_input or dearest_output):
        yield ("service_tiers",), "multiplies prices per token, and this rule has none above 0"
    if rule.free and rule.hours:
        yield ("hours",), "changes nothing in a free rule"
    if rule.free and rule.tiers:
        yield ("tiers",), "changes nothing in a free rule"
    if rule.cache_write_1h is not None and rule.cache_write_5m is None and not rule.free:
        yield (
            ("cache_write_1h",),
            "stands without cache_write_5m: cache writes whose time is not told cost as input",
        )


def _time(rule: Rule, book: Book | None, now: int | None) -> Iterator[_Finding]:
    """Windows that never apply (a window that ends before it begins is an error)."""
    if rule.valid_until is None or rule.status != "active":
        return
    begin = book.effective_from if book is not None else None
    if begin is not None and rule.valid_until <= begin:
        shown = show_moment(begin)
        yield ("valid_until",), f"is before the book takes effect ({shown}): it never applies"
    elif now is not None and rule.valid_until <= now:
        yield ("valid_until",), "is over: the rule applies to no further call"


def _unreachable(rule: Rule, index: Index[Rule]) -> Iterator[_Finding]:
    """A rule whose every call goes to one other rule.

    Only a higher priority can do that: what covers a rule is never narrower than it.
    """
    if rule.status != "active":
        return
    texts = (rule.scene, rule.provider, rule.model)
    winners = [
        entry.rule
        for entry in index.near(texts, _covers)
        if entry.rule.priority > rule.priority and _outlasts(entry.rule, rule)
    ]
    if winners:
        winner = max(winners, key=lambda other: (rank(other), -other.number))
        message = (
            f'is never reached: rule "{winner.id}" at line {winner.line} has priority '
            f"{winner.priority} and matches all that this rule does"
        )
        yield ("priority",), message


def _covers(wider: Glob, narrower: str) -> bool:
    return globs.covers(wider.pattern, narrower)


def _outlasts(other: Rule, rule: Rule) -> bool:
    """Whether a rule holds whenever another does."""
    begins = other.valid_from is None or (
        rule.valid_from is not None and other.valid_from <= rule.valid_from
    )
    ends = other.valid_until is None or (
        rule.valid_until is not None and other.valid_until >= rule.valid_until
    )
    return begins and ends


def _against_active(rule: Rule, old: Rule) -> Iterator[_Finding]:
    """Prices far from those in effect: per token for per million, cents for dollars."""
    for field, after, before in _priced(rule, old):
        new, former = after * old.denominator, before * rule.denominator
        if not new or not former or former <= new * _FAR <= former * _FAR * _FAR:
            continue
        times = new // former if new > former else former // new
        trap = times >= 100_000
        yield (
            (field,),
            f"is {times} times {'dearer' if new > former else 'cheaper'} than in the book in "
            f'effect (rule "{old.id}")'
            + ("; is one a price per token, the other per 1M tokens?" if trap else ""),
        )


def _priced(rule: Rule, old: Rule) -> Iterator[tuple[str, int, int]]:
    """Each price written in a rule, with its rate and the other rule's for the same."""
    for field in TOKEN_CLASSES:
        if getattr(rule, field) is not None:
            yield field, getattr(rule.rates, field), getattr(old.rates, field)
    for field in FEES:
        if getattr(rule, field) is not None:
            name = field.removeprefix("per_")
            yield field, getattr(rule.fees, name), getattr(old.fees, name)


def _unpriced(book: Book, served: Iterable[Call], now: int | None) -> Iterator[Problem]:
    """Calls as there were of late, and that the book would refuse."""
    at = max(now or 0, book.effective_from or 0) or None
    missing = sorted({call for call in served if match(book, *call, at) is None})
    for scene, provider, model in missing[:_SERVED_MAX]:
        yield Problem(
            level="warning",
            line=0,
            rule="",
            field="",
            message=f"no rule prices the model {model!r} of provider {provider!r} in scene "
            f"{scene!r}, which was called of late: such calls would be refused",
            example=near_rule_toml(scene, provider, model),
        )
    if len(missing) > _SERVED_MAX:
        message = f"no rule prices {len(missing) - _SERVED_MAX} more that were called of late"
        yield Problem(level="warning", line=0, rule="", field="", message=message)


def _rate(source: Rule | Tier, field: str) -> Decimal | None:
    text: str | None = getattr(source, field)
    return None if text is None else _decimal(text)


@lru_cache(maxsize=_TEXTS_CACHED_MAX)
def _decimal(text: str) -> Decimal:
    return Decimal(text)
