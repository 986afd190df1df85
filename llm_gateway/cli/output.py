"""What commands print: JSON for machines, plain aligned text for people."""

import json
from collections.abc import Sequence
from typing import Final

import msgspec
import rich_click as click

from llm_gateway.cli.failure import CommandError
from pricing_rules.money import format_credits, parse_credits

_GAP: Final = "  "


def print_json(value: object) -> None:
    """One indented JSON document."""
    text = msgspec.json.encode(value).decode()
    click.echo(json.dumps(json.loads(text), indent=2, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as they need; numbers to the right."""
    cells = [list(head), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    numeric = [bool(rows) and all(_is_number(row[c]) for row in rows) for c in range(len(head))]
    for row in cells:
        columns = zip(row, widths, numeric, strict=True)
        line = _GAP.join(t.rjust(w) if right else t.ljust(w) for t, w, right in columns)
        click.echo(line.rstrip())


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Name and value, one a line; what is empty is left out."""
    shown = [(name, _text(value)) for name, value in facts]
    width = max((len(name) for name, value in shown if value), default=0)
    for name, value in shown:
        if value:
            click.echo(f"{name.ljust(width)}{_GAP}{value}")


def print_rest(shown: int, total: int) -> None:
    """Say that a list goes on."""
    if shown < total:
        click.echo(f"({shown} of {total}; --page and --page-size show others)")


class Credits(int):
    """Micro-credits that are printed as credits."""

    def __str__(self) -> str:
        return format_credits(int(self))


def micro_credits(text: str) -> int:
    """Decimal credits of the command line as micro-credits; raises CommandError."""
    try:
        return parse_credits(text)
    except ValueError as error:
        raise CommandError(f"{text!r} is no amount of credits: {error}") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(_text(item) for item in value)
        case _:
            # What a server or a user wrote must not steer the terminal.
            return "".join(char if char.isprintable() else "\ufffd" for char in str(value))
