"""Patterns of scenes, providers and models: exact text, "*", or a glob of "*" and "?". Pure."""

import re
from typing import Final

EXACT: Final = 1_000_000  # more than any pattern has characters
ANY: Final = -1

_WILDCARDS: Final = re.compile(r"[*?]+")


def tidy(pattern: str) -> str:
    """The same pattern with each run of wildcards as its "?"s and then at most one "*"."""
    return _WILDCARDS.sub(
        lambda run: "?" * run[0].count("?") + ("*" if "*" in run[0] else ""), pattern
    )


def is_exact(pattern: str) -> bool:
    """Whether the pattern matches one text only."""
    return "*" not in pattern and "?" not in pattern


def specificity(pattern: str) -> int:
    """How narrow a pattern is: exact, then globs by their literal characters, then "*"."""
    if is_exact(pattern):
        return EXACT
    if tidy(pattern) == "*":
        return ANY
    return len(pattern) - pattern.count("*") - pattern.count("?")


def matches(pattern: str, text: str) -> bool:
    """Whether the pattern matches the whole text; letter case counts.

    Greedy with one point to fall back to, O(len(pattern) x len(text)) at worst: a regular
    expression could be made to backtrack for minutes by the model name that a client sends.
    """
    at = position = 0
    star = resume = -1
    while position < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, position
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[position]):
            at += 1
            position += 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return pattern[at:].strip("*") == ""


def covers(wider: str, narrower: str) -> bool:
    """Whether `wider` matches all that `narrower` matches.

    The narrower pattern is read as a text in which each wildcard is a letter of its own: "*" is
    matched only by "*", "?" only by "?" or "*". A yes is certain; a no may be wrong where `wider`
    has a "?" ("?*" covers "*a", and is said not to).
    """
    wider, narrower = tidy(wider), tidy(narrower)
    reached = _past_star(wider, {0})  # how far `wider` can have been read
    for letter in narrower:
        taken = {at for at in reached if _takes(wider, at, letter)}
        reached = _past_star(wider, {at if wider[at] == "*" else at + 1 for at in taken})
    return len(wider) in reached


def _past_star(wider: str, places: set[int]) -> set[int]:
    """The same places, and behind each "*" that stands there: it may match nothing."""
    return places | {at + 1 for at in places if wider[at : at + 1] == "*"}


def _takes(wider: str, at: int, letter: str) -> bool:
    if at == len(wider):
        return False
    return wider[at] in ("*", letter) or (wider[at] == "?" and letter != "*")


def overlap(one: str, other: str) -> bool:
    """Whether there is a text that both patterns match."""
    row = [False] * len(other) + [True]  # do "" and other[at:] overlap?
    for at in range(len(other) - 1, -1, -1):
        row[at] = other[at] == "*" and row[at + 1]
    for letter in reversed(one):
        below = row
        row = [False] * len(other) + [letter == "*" and below[len(other)]]
        for at in range(len(other) - 1, -1, -1):
            if "*" in (letter, other[at]):
                row[at] = below[at] or row[at + 1]
            elif "?" in (letter, other[at]) or letter == other[at]:
                row[at] = below[at + 1]
    return row[0]
