"""Finds pairs of rules of which neither wins for some call that both match, in bounded time. Pure."""

from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

from pricing_rules import globs

# About as long as it takes to compare one letter with another, a million of which take 0.1 s. To
# look at a pair costs as much as a few letters, to compare its patterns some more.
WORK_MAX: Final = 4_000_000
_PAIR_WORK: Final = 8
_MEET_WORK: Final = 24


class Rival(Protocol):
    """What decides whether two rules can meet."""

    @property
    def scene(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def valid_from(self) -> int | None: ...
    @property
    def valid_until(self) -> int | None: ...
    @property
    def number(self) -> int: ...


R = TypeVar("R", bound=Rival)
_FIELDS: Final = ("scene", "provider", "model")


def find_ties(rules: list[R]) -> tuple[list[tuple[R, R]], R | None]:
    """For each rule the first before it that it ties with: (earlier, later).

    And, where there are too many patterns alike to compare, the rule at which it was given up.
    """
    # Exact fields are part of the key, so that a long list of plain models makes no long search.
    groups: dict[tuple[object, ...], list[R]] = {}
    for rule in rules:
        key = tuple(
            text if globs.is_exact(text) else globs.specificity(text)
            for text in (rule.scene, rule.provider, rule.model)
        )
        groups.setdefault((rule.priority, *key), []).append(rule)
    ties: dict[int, tuple[R, R]] = {}
    work = 0
    for group in groups.values():
        if len(group) == 1:
            continue
        for one, other in _near_pairs(group):
            work += _PAIR_WORK
            earlier, later = (one, other) if one.number < other.number else (other, one)
            known = ties.get(later.number)
            if known is None or known[0].number > earlier.number:
                cost, met = _meet(one, other)
                work += cost
                if met:
                    ties[later.number] = (earlier, later)
            if work > WORK_MAX:
                return _in_order(ties), later
    return _in_order(ties), None


def _in_order(ties: dict[int, tuple[R, R]]) -> list[tuple[R, R]]:
    return [ties[number] for number in sorted(ties)]


def _meet(one: Rival, other: Rival) -> tuple[int, bool]:
    """The work it took to tell, and whether one call can match both."""
    work = _MEET_WORK
    if not _windows_overlap(one, other):
        return work, False
    for field in _FIELDS:
        first, second = getattr(one, field), getattr(other, field)
        if first == second:
            continue
        if ("*" in first) != ("*" in second):
            work += len(first) * len(second)
        elif "?" in first or "?" in second:
            work += len(first) + len(second)
        if not globs.overlap(first, second):
            return work, False
    return work, True


def _windows_overlap(one: Rival, other: Rival) -> bool:
    return _begins_before_end(one, other) and _begins_before_end(other, one)


def _begins_before_end(one: Rival, other: Rival) -> bool:
    return one.valid_from is None or other.valid_until is None or one.valid_from < other.valid_until


def _near_pairs(group: list[R]) -> Iterator[tuple[R, R]]:
    """The pairs whose patterns agree in how they begin (or end), each pair once."""
    anchor = _best_anchor(group)
    by_anchor: dict[str, list[R]] = {}
    lengths: set[int] = set()
    for rule in sorted(group, key=lambda rule: len(anchor(rule))):
        text = anchor(rule)
        for length in lengths:
            if length <= len(text):
                for other in by_anchor.get(text[:length], ()):
                    yield other, rule
        by_anchor.setdefault(text, []).append(rule)
        lengths.add(len(text))


def _best_anchor(group: list[R]) -> Callable[[Rival], str]:
    """The end of the field that tells most of the rules apart."""
    anchors = [_anchor(field, at_end=at_end) for field in _FIELDS for at_end in (False, True)]
    return max(anchors, key=lambda anchor: len({anchor(rule) for rule in group}))


def _anchor(field: str, *, at_end: bool) -> Callable[[Rival], str]:
    def anchor(rule: Rival) -> str:
        pattern: str = getattr(rule, field)
        return globs.suffix(pattern)[::-1] if at_end else globs.prefix(pattern)

    return anchor
