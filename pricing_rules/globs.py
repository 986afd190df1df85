"""Patterns of scenes, providers and models: exact text, "*", or a glob of "*" and "?". Pure."""

import re
from functools import lru_cache
from typing import Final

EXACT: Final = 1_000_000  # more than any pattern has characters
ANY: Final = -1

_WILDCARDS: Final = re.compile(r"[*?]+")
_PATTERNS_CACHED_MAX: Final = 4096


def tidy(pattern: str) -> str:
    """The same pattern with each run of wildcards as its "?"s and then at most one "*"."""
    return _WILDCARDS.sub(
        lambda run: "?" * run[0].count("?") + ("*" if "*" in run[0] else ""), pattern
    )


def is_exact(pattern: str) -> bool:
    """Whether the pattern matches one text only."""
    return "*" not in pattern and "?" not in pattern


def is_any(pattern: str) -> bool:
    """Whether the pattern matches every text."""
    return not pattern.strip("*") and pattern != ""


def wildcards(pattern: str) -> int:
    """How many wildcards a pattern has."""
    return pattern.count("*") + pattern.count("?")


def specificity(pattern: str) -> int:
    """How narrow a pattern is: exact, then globs by their literal characters, then "*"."""
    if is_exact(pattern):
        return EXACT
    if is_any(pattern):
        return ANY
    return len(pattern) - wildcards(pattern)


def prefix(pattern: str) -> str:
    """The literal text that all it matches begins with."""
    first = _WILDCARDS.search(pattern)
    return pattern if first is None else pattern[: first.start()]


def suffix(pattern: str) -> str:
    """The literal text that all it matches ends with."""
    return pattern[max(pattern.rfind("*"), pattern.rfind("?")) + 1 :]


class Glob:
    """A pattern made ready to be matched often."""

    __slots__ = ("_ends", "_middle", "_regex", "_starts", "least", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.least = len(pattern) - pattern.count("*")  # characters of the shortest match
        self._regex: re.Pattern[str] | None = None
        pieces = pattern.split("*")
        self._starts, self._ends = pieces[0], pieces[-1]
        self._middle = tuple(piece for piece in pieces[1:-1] if piece)

    def matches(self, text: str) -> bool:
        """Whether the pattern matches the whole text; letter case counts.

        Each piece between stars is taken where it is found first, and never again elsewhere: a
        plain regular expression could be made to backtrack for minutes by the model name that a
        client sends.
        """
        if "?" in self.pattern:
            return self._expression().fullmatch(text) is not None
        if "*" not in self.pattern:
            return text == self.pattern
        if len(text) < self.least or not text.startswith(self._starts):
            return False
        if not text.endswith(self._ends):
            return False
        at, end = len(self._starts), len(text) - len(self._ends)
        for piece in self._middle:
            found = text.find(piece, at, end)
            if found < 0:
                return False
            at = found + len(piece)
        return True

    def _expression(self) -> re.Pattern[str]:
        """Pieces between stars as atomic groups, which give nothing back once matched."""
        if self._regex is None:
            pieces = [re.escape(piece).replace(r"\?", ".") for piece in self.pattern.split("*")]
            middle = "".join(f"(?>.*?{piece})" for piece in pieces[1:-1] if piece)
            end = f".*{pieces[-1]}" if len(pieces) > 1 else ""
            self._regex = re.compile(f"(?s:{pieces[0]}{middle}{end})")
        return self._regex


@lru_cache(maxsize=_PATTERNS_CACHED_MAX)
def _glob(pattern: str) -> Glob:
    return Glob(pattern)


def matches(pattern: str, text: str) -> bool:
    """Whether the pattern matches the whole text; letter case counts."""
    if is_exact(pattern):  # most are, and are not to fill the cache
        return pattern == text
    return _glob(pattern).matches(text)


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
    if "*" in one and "*" in other:
        # Between its first and last star each pattern can let pass all that the other asks for.
        starts = one.partition("*")[0], other.partition("*")[0]
        ends = one.rpartition("*")[2], other.rpartition("*")[2]
        return _agree(*starts) and _agree(ends[0][::-1], ends[1][::-1])
    if "*" not in one and "*" not in other:
        return len(one) == len(other) and _agree(one, other)
    return _overlap(one, other)


def _agree(one: str, other: str) -> bool:
    """Whether one can go on where the other ends, letter by letter."""
    if "?" not in one and "?" not in other:
        return one.startswith(other) or other.startswith(one)
    return all(a == b or "?" in (a, b) for a, b in zip(one, other, strict=False))


def _overlap(one: str, other: str) -> bool:
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
