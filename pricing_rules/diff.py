"""What one price book changes against another, by rule and by price. Pure."""

from collections.abc import Iterator
from typing import Final

import msgspec

from pricing_rules.book import Book, Rule
from pricing_rules.export import show_hours
from pricing_rules.match import show_moment
from pricing_rules.rates import FEES, MINIMUM, TOKEN_CLASSES, Rates


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is no longer what it was."""

    field: str  # "input", "tiers[from 200001].input", "scene" ...
    before: str  # as written; "" where it was not
    after: str
    # Of the price in credits, "+25" or "-33.33"; "" where it is no price, or was 0 before.
    percent: str = ""


class ChangedRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that both books have, by its id, and that is not the same in both."""

    before: Rule
    after: Rule
    changes: tuple[Change, ...]


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """All that is different; rules in the order of their book."""

    book: tuple[Change, ...]
    added: tuple[Rule, ...]
    gone: tuple[Rule, ...]
    changed: tuple[ChangedRule, ...]
    unchanged: int

    @property
    def is_empty(self) -> bool:
        """Whether every call costs what it did, under the same rules."""
        return not (self.book or self.added or self.gone or self.changed)


def diff(before: Book, after: Book) -> Diff:
    """Compare two books, their rules by id."""
    former = {rule.id: rule for rule in before.rules}
    kept = {rule.id for rule in after.rules}
    changed = [
        ChangedRule(before=former[rule.id], after=rule, changes=changes)
        for rule in after.rules
        if rule.id in former and (changes := tuple(_rule_changes(former[rule.id], rule)))
    ]
    added = tuple(rule for rule in after.rules if rule.id not in former)
    return Diff(
        book=tuple(_book_changes(before, after)),
        added=added,
        gone=tuple(rule for rule in before.rules if rule.id not in kept),
        changed=tuple(changed),
        unchanged=len(after.rules) - len(added) - len(changed),
    )


_WORDS: Final = (
    "description",
    "scene",
    "provider",
    "model",
    "priority",
    "status",
    "currency",
    "credits_per_unit",
    "free",
)
_Rated = tuple[int, int]  # a price in micro-credits as a fraction


def _book_changes(before: Book, after: Book) -> Iterator[Change]:
    for field in ("name", "currency", "credits_per_unit"):
        yield from _word(field, getattr(before, field), getattr(after, field))
    yield from _moment("effective_from", before.effective_from, after.effective_from)


def _rule_changes(before: Rule, after: Rule) -> Iterator[Change]:
    for field in _WORDS:
        yield from _word(field, getattr(before, field), getattr(after, field))
    for field in ("valid_from", "valid_until"):
        yield from _moment(field, getattr(before, field), getattr(after, field))
    for field in TOKEN_CLASSES:
        old, new = getattr(before.rates, field), getattr(after.rates, field)
        yield from _price(before, after, field, (old, new))
    for field in FEES:
        name = field.removeprefix("per_")
        old, new = getattr(before.fees, name), getattr(after.fees, name)
        yield from _price(before, after, field, (old, new))
    yield from _price(before, after, MINIMUM, (before.minimum, after.minimum))
    yield from _tiers(before, after)
    yield from _word("hours", show_hours(before), show_hours(after))
    yield from _service_tiers(before, after)


def _word(field: str, before: object, after: object) -> Iterator[Change]:
    if before != after:
        yield Change(field=field, before=_shown(before), after=_shown(after))


def _moment(field: str, before: int | None, after: int | None) -> Iterator[Change]:
    if before != after:
        yield Change(
            field=field,
            before="" if before is None else show_moment(before),
            after="" if after is None else show_moment(after),
        )


def _price(before: Rule, after: Rule, field: str, rates: tuple[int, int]) -> Iterator[Change]:
    """A price that either rule names; what neither names changes with the one it falls back to."""
    texts = (getattr(before, field), getattr(after, field))
    old, new = (rates[0], before.denominator), (rates[1], after.denominator)
    if texts != (None, None) and (_differ(old, new) or texts[0] != texts[1]):
        yield Change(
            field=field, before=texts[0] or "", after=texts[1] or "", percent=_percent(old, new)
        )


def _tiers(before: Rule, after: Rule) -> Iterator[Change]:
    """Compared by where they begin; one that only one rule has, with what held there without it."""
    starts = sorted({card.from_input_tokens for card in (*before.cards[1:], *after.cards[1:])})
    for start in starts:
        old, new = _rates_at(before, start), _rates_at(after, start)
        texts = [_texts_at(rule, start) for rule in (before, after)]
        for field in TOKEN_CLASSES:
            if field not in texts[0] and field not in texts[1]:
                continue
            rates = (
                (getattr(old, field), before.denominator),
                (getattr(new, field), after.denominator),
            )
            was, now = texts[0].get(field, ""), texts[1].get(field, "")
            if was != now or _differ(*rates):
                yield Change(
                    field=f"tiers[from {start}].{field}",
                    before=was,
                    after=now,
                    percent=_percent(*rates),
                )


def _rates_at(rule: Rule, tokens: int) -> Rates:
    return [card for card in rule.cards if card.from_input_tokens <= tokens][-1].rates


def _texts_at(rule: Rule, start: int) -> dict[str, str]:
    """The prices written in the tier that begins there."""
    for tier in rule.tiers:
        if tier.first_tokens == start:
            texts = {field: getattr(tier, field) for field in TOKEN_CLASSES}
            return {field: text for field, text in texts.items() if text is not None}
    return {}


def _service_tiers(before: Rule, after: Rule) -> Iterator[Change]:
    old = {tier.name: tier.multiply for tier in before.service_tiers}
    new = {tier.name: tier.multiply for tier in after.service_tiers}
    for name in sorted({*old, *new}):
        was, now = old.get(name), new.get(name)
        if was != now:
            rates = [(each.numerator, each.denominator) for each in (was, now) if each is not None]
            yield Change(
                field=f"service_tiers.{name}",
                before="" if was is None else was.text,
                after="" if now is None else now.text,
                percent=_percent(*rates) if len(rates) == 2 else "",
            )


def _differ(before: _Rated, after: _Rated) -> bool:
    return before[0] * after[1] != after[0] * before[1]


def _percent(before: _Rated, after: _Rated) -> str:
    """By how much a price changes, to two decimals, halves away from zero; "" from 0."""
    old, new = before[0] * after[1], after[0] * before[1]
    if not old or old == new:
        return ""
    hundredths = (abs(new - old) * 20_000 + old) // (2 * old)
    whole, rest = divmod(hundredths, 100)
    decimals = f".{rest:02d}".rstrip("0") if rest else ""
    return f"{'+' if new > old else '-'}{whole}{decimals}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
