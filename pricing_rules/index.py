"""Finds the rules that can match a call by the literal parts of their patterns. Pure."""

from collections.abc import Callable, Iterable
from typing import Final, Generic, Protocol, TypeVar

from pricing_rules import globs
from pricing_rules.globs import Glob

INDEX_REST_MAX: Final = 1_000  # rules that no index helps to find

# Priority, then specificity of scene, provider and model: the greater rank wins.
Rank = tuple[int, int, int, int]
Texts = tuple[str, str, str]  # scene, provider and model of a call


class Patterns(Protocol):
    """What a rule says of the calls it is for."""

    @property
    def scene(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def priority(self) -> int: ...


R = TypeVar("R", bound=Patterns)


def rank(rule: Patterns) -> Rank:
    """What decides between two rules that match one call."""
    return (
        rule.priority,
        globs.specificity(rule.scene),
        globs.specificity(rule.provider),
        globs.specificity(rule.model),
    )


class Entry(Generic[R]):
    """A rule, its rank, and those of its fields that are globs."""

    __slots__ = ("globs", "rank", "rule")

    def __init__(self, rule: R) -> None:
        self.rule = rule
        self.rank = rank(rule)
        texts = (rule.scene, rule.provider, rule.model)
        self.globs = tuple((at, Glob(text)) for at, text in enumerate(texts) if _is_glob(text))


class _Drawer(Generic[R]):
    """Entries by the literal text that one of their globs begins or ends with."""

    __slots__ = ("by_prefix", "by_suffix", "prefix_lengths", "rest", "suffix_lengths")

    def __init__(self) -> None:
        self.by_prefix: dict[str, list[Entry[R]]] = {}
        self.by_suffix: dict[str, list[Entry[R]]] = {}
        self.rest: list[Entry[R]] = []
        self.prefix_lengths: tuple[int, ...] = ()
        self.suffix_lengths: tuple[int, ...] = ()

    def add(self, entry: Entry[R], pattern: str) -> bool:
        """Put an entry in its place; False if its pattern has no literal text at either end."""
        if start := globs.prefix(pattern):
            self.by_prefix.setdefault(start, []).append(entry)
            if len(start) not in self.prefix_lengths:
                self.prefix_lengths += (len(start),)
        elif end := globs.suffix(pattern):
            self.by_suffix.setdefault(end, []).append(entry)
            if len(end) not in self.suffix_lengths:
                self.suffix_lengths += (len(end),)
        else:
            self.rest.append(entry)
            return False
        return True

    def near(self, text: str) -> list[Entry[R]]:
        """All entries whose pattern may match the text."""
        found = list(self.rest)
        size = len(text)
        for length in self.prefix_lengths:
            if length <= size:
                found += self.by_prefix.get(text[:length], ())
        for length in self.suffix_lengths:
            if length <= size:
                found += self.by_suffix.get(text[-length:], ())
        return found


class _Shelf(Generic[R]):
    """Entries with the same fields exact, "*" and globs, by the texts of the exact ones."""

    __slots__ = ("anchor", "drawers", "exact", "plain")

    def __init__(self, exact: tuple[bool, bool, bool], anchor: int) -> None:
        self.exact = exact
        self.anchor = anchor  # the field whose globs the drawers go by; -1 if there are none
        self.plain: dict[Texts, list[Entry[R]]] = {}
        self.drawers: dict[Texts, _Drawer[R]] = {}


class Index(Generic[R]):
    """Rules by what a call must be for them to match."""

    def __init__(self, rules: Iterable[R]) -> None:
        self._shelves: dict[tuple[bool, ...], _Shelf[R]] = {}
        self.rest: list[R] = []  # those that have to be looked at for (almost) every call
        for rule in rules:
            self._add(Entry(rule))

    def _add(self, entry: Entry[R]) -> None:
        rule = entry.rule
        texts = (rule.scene, rule.provider, rule.model)
        scene, provider, model = (globs.is_exact(text) for text in texts)
        exact = (scene, provider, model)
        # The model says most, then the provider.
        anchor = max((at for at, _ in entry.globs), default=-1)
        kind = (*exact, *(at in dict(entry.globs) for at in range(3)))
        shelf = self._shelves.setdefault(kind, _Shelf(exact, anchor))
        key = _key(exact, texts)
        if anchor < 0:
            shelf.plain.setdefault(key, []).append(entry)
        elif not shelf.drawers.setdefault(key, _Drawer()).add(entry, texts[anchor]):
            self.rest.append(rule)

    def matching(self, texts: Texts) -> list[Entry[R]]:
        """All entries that match scene, provider and model of a call, in no order."""
        return self.near(texts, Glob.matches)

    def near(self, texts: Texts, fits: Callable[[Glob, str], bool]) -> list[Entry[R]]:
        """All entries whose exact fields are these texts and whose globs `fits` finds fitting."""
        scene, provider, model = texts
        found: list[Entry[R]] = []
        for shelf in self._shelves.values():
            exact = shelf.exact
            key = (
                scene if exact[0] else "",
                provider if exact[1] else "",
                model if exact[2] else "",
            )
            if shelf.anchor < 0:
                if key in shelf.plain:
                    found += shelf.plain[key]
            elif key in shelf.drawers:
                for entry in shelf.drawers[key].near(texts[shelf.anchor]):
                    for at, glob in entry.globs:
                        if not fits(glob, texts[at]):
                            break
                    else:
                        found.append(entry)
        return found


def _key(exact: tuple[bool, bool, bool], texts: Texts) -> Texts:
    return (
        texts[0] if exact[0] else "",
        texts[1] if exact[1] else "",
        texts[2] if exact[2] else "",
    )


def _is_glob(pattern: str) -> bool:
    return not globs.is_exact(pattern) and not globs.is_any(pattern)
