"""Which rule prices a call: scene x provider x model, highest priority, then narrowest. Pure."""

from functools import lru_cache
from typing import Final

import msgspec

from pricing_rules import globs
from pricing_rules.book import Book, Rule

# The model is the client's text: longer ones match no rule and must not fill the cache.
TEXT_CHARACTERS_MAX: Final = 256
_CALLS_CACHED_MAX: Final = 4096
_BOOKS_CACHED_MAX: Final = 8

_FIELDS: Final = ("scene", "provider", "model")
# Priority, then specificity of scene, provider and model: the greater rank wins.
_Rank = tuple[int, int, int, int]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that matched, or nearly, and why it won or lost."""

    rule: Rule
    won: bool
    why: str


def match(book: Book, scene: str, provider: str, model: str) -> Rule | None:
    """The rule that prices the call, or None: then nothing does, which is not free."""
    if len(model) + len(scene) + len(provider) > TEXT_CHARACTERS_MAX:
        return None
    return _match(book, scene, provider, model)


def explain(book: Book, scene: str, provider: str, model: str) -> list[Candidate]:
    """The winner first, then each rule that matches or misses in one field, and why it lost."""
    winner = match(book, scene, provider, model)
    candidates: list[Candidate] = []
    for rule in sorted(book.rules, key=_rank, reverse=True):
        if rule is winner:
            candidates.insert(0, Candidate(rule=rule, won=True, why=_why_won(rule)))
            continue
        why = _why_lost(rule, winner, scene=scene, provider=provider, model=model)
        if why:
            candidates.append(Candidate(rule=rule, won=False, why=why))
    return candidates


@lru_cache(maxsize=_CALLS_CACHED_MAX)
def _match(book: Book, scene: str, provider: str, model: str) -> Rule | None:
    index = _index(book)
    named = index.exact.get(model, ())
    found = _first(named, scene, provider)
    for rank, rule in index.globs:
        if found is not None and found[0] > rank:
            break
        if globs.matches(rule.model, model) and _fits(rule, scene, provider):
            return rule
    return found[1] if found is not None else None


class _Index(msgspec.Struct, frozen=True):
    """The active rules in order of rank, those with an exact model by that model."""

    exact: dict[str, list[tuple[_Rank, Rule]]]
    globs: list[tuple[_Rank, Rule]]


@lru_cache(maxsize=_BOOKS_CACHED_MAX)
def _index(book: Book) -> _Index:
    index = _Index({}, [])
    for rule in sorted(book.rules, key=_rank, reverse=True):
        if rule.status != "active":
            continue
        if globs.is_exact(rule.model):
            index.exact.setdefault(rule.model, []).append((_rank(rule), rule))
        else:
            index.globs.append((_rank(rule), rule))
    return index


def _rank(rule: Rule) -> _Rank:
    return (
        rule.priority,
        globs.specificity(rule.scene),
        globs.specificity(rule.provider),
        globs.specificity(rule.model),
    )


def _first(
    ranked: list[tuple[_Rank, Rule]] | tuple[()], scene: str, provider: str
) -> tuple[_Rank, Rule] | None:
    for rank, rule in ranked:
        if _fits(rule, scene, provider):
            return rank, rule
    return None


def _fits(rule: Rule, scene: str, provider: str) -> bool:
    return globs.matches(rule.scene, scene) and globs.matches(rule.provider, provider)


def _why_won(rule: Rule) -> str:
    patterns = ", ".join(f"{field} {getattr(rule, field)!r}" for field in _FIELDS)
    return f"matches by {patterns}; priority {rule.priority}"


def _why_lost(rule: Rule, winner: Rule | None, *, scene: str, provider: str, model: str) -> str:
    """Empty for a rule that has nothing to do with the call."""
    asked = {"scene": scene, "provider": provider, "model": model}
    missed = [field for field in _FIELDS if not globs.matches(getattr(rule, field), asked[field])]
    if len(missed) > 1:
        return ""
    if missed:
        field = missed[0]
        return f"its {field} {getattr(rule, field)!r} does not match {asked[field]!r}"
    if rule.status != "active":
        return "it is disabled"
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
