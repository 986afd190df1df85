"""What one price book changes against another, for people: all of it, or in a line."""

from collections.abc import Iterator
from decimal import Decimal

import rich_click as click

from llm_gateway.api.views.price_books import ChangeView, DiffView
from llm_gateway.api.views.prices import PriceRuleView
from llm_gateway.cli.output import print_table


def print_changes(found: DiffView) -> None:
    """Every change, and a line that sums them up."""
    for change in found.book:
        click.echo(f"book: {change.field}: {_change(change)}")
    rows = [("+", rule.rule_id, "", _new(rule)) for rule in found.added]
    rows += [("-", rule.rule_id, "", _new(rule)) for rule in found.gone]
    for changed in found.changed:
        for number, change in enumerate(changed.changes):
            rule = "" if number else changed.rule_id
            rows.append(("" if number else "~", rule, change.field, _change(change)))
    if rows:
        print_table(("", "rule", "what", "change"), rows)
    click.echo(summary(found))


def summary(found: DiffView) -> str:
    """How many rules are what they were, and between what the prices change."""
    parts = [
        f"{len(found.added)} rules added",
        f"{len(found.gone)} gone",
        f"{len(found.changed)} changed",
        f"{found.unchanged} unchanged",
    ]
    percents = sorted(_percents(found))
    if percents:
        parts.append(f"prices change by {percents[0]:+f}% to {percents[-1]:+f}%")
    return ", ".join(parts)


def _percents(found: DiffView) -> Iterator[Decimal]:
    for changed in found.changed:
        for change in changed.changes:
            if change.percent and not change.field.startswith("service_tiers"):
                yield Decimal(change.percent)


def _change(change: ChangeView) -> str:
    percent = f" ({change.percent}%)" if change.percent else ""
    return f"{change.before or 'none'} -> {change.after or 'none'}{percent}"


def _new(rule: PriceRuleView) -> str:
    """Whose calls a rule is for, and what they cost in the first place."""
    price = "free" if rule.free else f"{rule.input_price} / {rule.output_price} {rule.currency}"
    return f"{rule.scene} {rule.provider_name} {rule.model_name}: {price}"
