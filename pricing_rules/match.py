"""Which rule prices a call: scene x provider x model, highest priority, then narrowest. Pure."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import msgspec

from pricing_rules import globs
from pricing_rules.book import Book, Rule
from pricing_rules.index import rank

# The model is the client's text: longer ones match no rule and must not fill the cache.
TEXT_CHARACTERS_MAX: Final = 256
_CALLS_CACHED_MAX: Final = 4096

_FIELDS: Final = ("scene", "provider", "model")


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that matched, or nearly, and why it won or lost."""

    rule: Rule
    won: bool
    why: str
    missed: str = ""  # "scene", "provider" or "model": what alone keeps it from matching


def match(book: Book, scene: str, provider: str, model: str, at: int | None = None) -> Rule | None:
    """The rule that prices the call, or None: then nothing does, which is not free.

    `at`: when the call was admitted, milliseconds since the epoch. None leaves out all rules that
    hold only for some time.
    """
    if len(model) + len(scene) + len(provider) > TEXT_CHARACTERS_MAX:
        return None
    for rule in _ranked(book, scene, provider, model):
        if (rule.valid_from is None and rule.valid_until is None) or holds(rule, at):
            return rule
    return None


def holds(rule: Rule, at: int | None) -> bool:
    """Whether a moment (milliseconds since the epoch) is in the rule's window, [from, until)."""
    if rule.valid_from is None and rule.valid_until is None:
        return True
    if at is None:
        return False
    if rule.valid_from is not None and at < rule.valid_from:
        return False
    return rule.valid_until is None or at < rule.valid_until


def explain(
    book: Book, scene: str, provider: str, model: str, at: int | None = None
) -> list[Candidate]:
    """The winner first, then each rule that matches or misses in one field, and why it lost."""
    winner = match(book, scene, provider, model, at)
    losers = [
        candidate
        for rule in book.rules
        if rule is not winner
        and (candidate := _loser(rule, winner, (scene, provider, model), at)) is not None
    ]
    losers.sort(key=lambda candidate: rank(candidate.rule), reverse=True)
    if winner is None:
        return losers
    return [Candidate(rule=winner, won=True, why=_why_won(winner)), *losers]


@lru_cache(maxsize=_CALLS_CACHED_MAX)
def _ranked(book: Book, scene: str, provider: str, model: str) -> tuple[Rule, ...]:
    """All active rules that match, the best first, up to the first that always holds."""
    found = book.index.matching((scene, provider, model))
    if len(found) > 1:
        found.sort(key=lambda entry: entry.rank, reverse=True)
    rules: list[Rule] = []
    for entry in found:
        rules.append(entry.rule)
        if entry.rule.valid_from is None and entry.rule.valid_until is None:
            break
    return tuple(rules)


def _why_won(rule: Rule) -> str:
    patterns = ", ".join(f"{field} {getattr(rule, field)!r}" for field in _FIELDS)
    return f"matches by {patterns}; priority {rule.priority}"


def _loser(
    rule: Rule, winner: Rule | None, texts: tuple[str, str, str], at: int | None
) -> Candidate | None:
    """None for a rule that has nothing to do with the call."""
    missed = [
        (field, text)
        for field, text in zip(_FIELDS, texts, strict=True)
        if not globs.matches(getattr(rule, field), text)
    ]
    if len(missed) > 1:
        return None
    if missed:
        field, text = missed[0]
        why = f"its {field} {getattr(rule, field)!r} does not match {text!r}"
        return Candidate(rule=rule, won=False, why=why, missed=field)
    return Candidate(rule=rule, won=False, why=_why_lost(rule, winner, at))


def _why_lost(rule: Rule, winner: Rule | None, at: int | None) -> str:
    if rule.status != "active":
        return "it is disabled"
    if not holds(rule, at):
        return _why_not_held(rule, at)
    if winner is None:
        return f"the call's texts are longer than {TEXT_CHARACTERS_MAX} characters"
    if rule.priority != winner.priority:
        return f"its priority {rule.priority} is below {winner.priority}"
    # No two rules that match one call are equal in all of these: parse_book refuses ties.
    field = next(
        field
        for field in _FIELDS
        if globs.specificity(getattr(rule, field)) != globs.specificity(getattr(winner, field))
    )
    return f"its {field} {getattr(rule, field)!r} is wider than {getattr(winner, field)!r}"


def _why_not_held(rule: Rule, at: int | None) -> str:
    if at is None:
        return "it holds only for some time, and it was not said when the call was"
    if rule.valid_from is not None and at < rule.valid_from:
        return f"it holds only from {show_moment(rule.valid_from)} on"
    assert rule.valid_until is not None
    return f"it held only until {show_moment(rule.valid_until)}"


def show_moment(at: int) -> str:
    """Milliseconds since the epoch as RFC 3339 in UTC, with no more digits than it takes."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at)
    text = moment.isoformat(timespec="milliseconds" if at % 1000 else "seconds")
    return text.replace("+00:00", "Z")
