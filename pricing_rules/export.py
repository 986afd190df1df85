"""A price book as TOML again, which gives the same book when read; and as rows of a table. Pure."""

from collections.abc import Iterator
from typing import Final

from pricing_rules.book import Book, Rule, Tier
from pricing_rules.match import show_moment
from pricing_rules.rates import FEES, MINIMUM, TOKEN_CLASSES

_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def dump_book(book: Book) -> str:
    """The TOML text of a book, without the comments that the uploaded one had."""
    head = [
        "[book]",
        f"name = {quoted(book.name)}",
        f"currency = {quoted(book.currency)}",
        f"credits_per_unit = {quoted(book.credits_per_unit)}",
    ]
    if book.effective_from is not None:
        head.append(f"effective_from = {show_moment(book.effective_from)}")
    return "\n\n".join(["\n".join(head), *(dump_rule(rule, book) for rule in book.rules)]) + "\n"


def dump_rule(rule: Rule, book: Book) -> str:
    """The [[rule]] of a rule; what it has from the book or by default is left out."""
    found = ["[[rule]]", f"id = {quoted(rule.id)}"]
    if rule.description:
        found.append(f"description = {quoted(rule.description)}")
    found += [f"{name} = {quoted(getattr(rule, name))}" for name in ("scene", "provider", "model")]
    if rule.priority:
        found.append(f"priority = {rule.priority}")
    if rule.status != "active":
        found.append(f"status = {quoted(rule.status)}")
    for name in ("valid_from", "valid_until"):
        at: int | None = getattr(rule, name)
        if at is not None:
            found.append(f"{name} = {show_moment(at)}")
    if rule.currency != book.currency:
        found.append(f"currency = {quoted(rule.currency)}")
    # Another currency needs its own credits_per_unit, even where the number is the book's.
    if (rule.currency, rule.credits_per_unit) != (book.currency, book.credits_per_unit):
        found.append(f"credits_per_unit = {quoted(rule.credits_per_unit)}")
    if rule.free:
        found.append("free = true")
    found += _prices(rule, (*TOKEN_CLASSES, *FEES, MINIMUM))
    return "\n".join(found + _conditions(rule))


def _conditions(rule: Rule) -> list[str]:
    """On what the prices depend beside the usage."""
    found: list[str] = []
    if rule.tiers:
        found.append(_list("tiers", [_tier(tier) for tier in rule.tiers]))
    if rule.hours:
        windows = [
            f"days = {quoted(each.days)}, tz = {quoted(each.tz)}, from = {quoted(each.start)}, "
            f"to = {quoted(each.end)}, multiply = {quoted(each.multiply.text)}"
            for each in rule.hours
        ]
        found.append(_list("hours", windows))
    if rule.service_tiers:
        factors = [f"{_key(t.name)} = {quoted(t.multiply.text)}" for t in rule.service_tiers]
        found.append(f"service_tiers = {{ {', '.join(factors)} }}")
    return found


TABLE_HEAD: Final = (
    "rule", "status", "description", "scene", "provider", "model", "priority", "valid_from",
    "valid_until", "currency", "credits_per_unit", "free", "from_input_tokens", *TOKEN_CLASSES,
    *FEES, MINIMUM, "hours", "service_tiers",
)  # fmt: skip


def table_rows(book: Book) -> Iterator[tuple[str, ...]]:
    """A row for each rule and each of its tiers, with the prices that hold there, in the rule's currency.

    What the book leaves out of the prices per token stands there with what it costs.
    """
    for rule in book.rules:
        windows = (rule.valid_from, rule.valid_until)
        for card in rule.cards:
            fees = (getattr(rule, name) or "" for name in (*FEES, MINIMUM))
            yield (
                rule.id, rule.status, rule.description, rule.scene, rule.provider, rule.model,
                str(rule.priority), *("" if at is None else show_moment(at) for at in windows),
                rule.currency, rule.credits_per_unit, "true" if rule.free else "false",
                str(card.from_input_tokens), *card.texts, *fees, show_hours(rule),
                "; ".join(f"{each.name} x {each.multiply.text}" for each in rule.service_tiers),
            )  # fmt: skip


def show_hours(rule: Rule) -> str:
    """The hours of a rule in a line."""
    return "; ".join(
        f"{each.days} {each.start}-{each.end} {each.tz} x {each.multiply.text}"
        for each in rule.hours
    )


def quoted(text: str) -> str:
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


def _prices(source: Rule | Tier, names: tuple[str, ...]) -> list[str]:
    texts = [(name, getattr(source, name)) for name in names]
    return [f"{name} = {quoted(text)}" for name, text in texts if text is not None]


def _tier(tier: Tier) -> str:
    start = (
        f"from_input_tokens = {tier.from_input_tokens}"
        if tier.over_input_tokens is None
        else f"over_input_tokens = {tier.over_input_tokens}"
    )
    return ", ".join([start, *_prices(tier, TOKEN_CLASSES)])


def _list(name: str, entries: list[str]) -> str:
    return "\n".join([f"{name} = [", *(f"    {{ {entry} }}," for entry in entries), "]"])


def _key(name: str) -> str:
    return name if set(name) <= _PLAIN else quoted(name)
