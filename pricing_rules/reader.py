"""Typed values out of one TOML table, with every mistake noted by line. Pure."""

import difflib
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Literal

import msgspec

from pricing_rules import globs, hours
from pricing_rules.lines import Lines, Path

NAME_CHARACTERS_MAX: Final = 200
PROBLEMS_MAX: Final = 1_000
MULTIPLIER_MAX: Final = 1_000
_KEY_SHOWN_MAX: Final = 60

Level = Literal["error", "warning"]

# ASCII only: \d alone would take digits of every script.
DECIMAL: Final = r"[0-9]{1,9}(?:\.[0-9]{1,12})?"
CURRENCY: Final = "[A-Z]{3,8}"
ID: Final = "[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"  # goes into the X-Price-Rule header
SERVICE_TIER: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,31}"
_DECIMAL: Final = re.compile(DECIMAL)
_CURRENCY: Final = re.compile(CURRENCY)
_ID: Final = re.compile(ID)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
DECIMAL_EXPECTED: Final = "a decimal number in quotes, without sign or exponent"
WILDCARDS_MAX: Final = 16
ENTRIES_MAX: Final = 50
MOMENT_MAX: Final = 221_845_392_000_000  # the year 9000, in milliseconds


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a book, and what to do about it.

    `message` says it all in a sentence; `expected` and `example` repeat parts of it where a page
    shows them apart.
    """

    level: Level
    line: int  # counted from 1; 0 if it has none
    rule: str  # its id, "" outside of a rule or where it has none
    field: str  # "" if it concerns no single field; "tiers[0].input" inside of another
    message: str
    column: int = 0  # counted from 1, in characters; 0 if it has none
    expected: str = ""  # "a decimal number in quotes"
    example: str = ""  # TOML that would do

    def __str__(self) -> str:
        """One line for a terminal: `line 12, column 1: error: rule "x": output: ...`."""
        column = f", column {self.column}" if self.column else ""
        parts = [
            f"line {self.line}{column}" if self.line else "",
            self.level,
            f'rule "{self.rule}"' if self.rule else "",
            self.field,
            self.message,
        ]
        return ": ".join(part for part in parts if part)

    def in_file(self, file: str) -> str:
        """One line as compilers write it: `prices.toml:12:1: error: rule "x": output: ...`."""
        place = f"{file}:{self.line}:{self.column}" if self.line else file
        unplaced = msgspec.structs.replace(self, line=0, column=0)
        return f"{place}: {unplaced}"

    def hints(self) -> list[tuple[str, str]]:
        """What was expected, and an example, as far as the message does not say it."""
        told = (("expected", self.expected), ("example", self.example))
        return [(name, text) for name, text in told if text and text not in self.message]


class Problems:
    """The errors found so far; of a text that is wrong all over, the first thousand."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.found: list[Problem] = []
        self.left_out = 0

    @property
    def full(self) -> bool:
        """Whether further problems are only counted."""
        return len(self.found) >= PROBLEMS_MAX

    def add(
        self, path: Path, *, rule: str, message: str, expected: str = "", example: str = ""
    ) -> None:
        """Note an error at a path, or at what contains it where there is no such key."""
        if self.full:
            self.left_out += 1
            return
        self.found.append(make_problem(self.lines, path, "error", rule, message, expected, example))

    def in_order(self) -> tuple[Problem, ...]:
        """All problems in the order of the text."""
        found = sorted(self.found, key=lambda problem: (problem.line, problem.column))
        if self.left_out:
            message = f"there are {self.left_out} more errors"
            found.append(Problem(level="error", line=0, rule="", field="", message=message))
        return tuple(found)


def make_problem(  # noqa: PLR0913, PLR0917 - its fields
    lines: Lines,
    path: Path,
    level: Level,
    rule: str,
    message: str,
    expected: str = "",
    example: str = "",
) -> Problem:
    """A problem at the place of a path in the text."""
    spot = lines.spot(*path)
    return Problem(
        level=level,
        line=spot.line,
        column=spot.column,
        rule=rule,
        field=field_of(path),
        message=message,
        expected=expected,
        example=example,
    )


def field_of(path: Path) -> str:
    """How a path is shown: without the table it starts in, like "tiers[0].input"."""
    inside = path[2:] if path[:1] == ("rule",) else path[1:] if path[:1] == ("book",) else path
    shown = ""
    for part in inside:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            shown += ("." if shown else "") + show_key(part)
    return shown if shown or len(path) != 1 else show_key(str(path[0]))


def show_key(key: str) -> str:
    """A key as it may be shown."""
    return key if len(key) <= _KEY_SHOWN_MAX and key.isprintable() else ascii(key[:40])


class Table:
    """One table of the document: hands out checked values and notes what is wrong with them."""

    def __init__(
        self, *, values: dict[str, object], path: Path, problems: Problems, rule: str | None = None
    ) -> None:
        self.values = values
        self.path = path
        self.problems = problems
        self.sound = True
        if rule is None:
            name = values.get("id") if path[:1] == ("rule",) else None
            rule = name if isinstance(name, str) and _ID.fullmatch(name) else ""
        self.rule = rule

    def below(self, values: dict[str, object], *path: str | int) -> "Table":
        """A table within this one."""
        return Table(
            values=values, path=(*self.path, *path), problems=self.problems, rule=self.rule
        )

    def wrong(self, field: str, message: str, *, expected: str = "", example: str = "") -> None:
        """Note an error at the place of the field."""
        self.sound = False
        self.problems.add(
            (*self.path, field) if field else self.path,
            rule=self.rule,
            message=message,
            expected=expected,
            example=example,
        )

    def refuse_unknown(self, known: tuple[str, ...]) -> None:
        """A key that nobody reads would be a price the admin believes in and nobody pays."""
        for key in self.values:
            if key in known:
                continue
            if self.problems.full:
                self.sound = False
                self.problems.left_out += 1
                continue
            message = f"unknown key; known here are {', '.join(known)}"
            if near := difflib.get_close_matches(key[:_KEY_SHOWN_MAX].lower(), known, n=1):
                message = f"unknown key; did you mean {near[0]}?"
            self.wrong(key, message, expected=f"one of {', '.join(known)}")

    def require(self, key: str, example: str) -> None:
        """Note a key that has to be there and is not."""
        if key not in self.values:
            self.wrong(
                key, f"is missing; write for example {example}", example=example.partition(",")[0]
            )

    def text(self, key: str, *, longest: int = NAME_CHARACTERS_MAX) -> str | None:
        """A text without control characters; None if it is not there or wrong."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            self.wrong(
                key,
                f'must be a text in quotes, like {key} = "...", not {_kind(value)}',
                expected="a text in quotes",
                example=f'{key} = "..."',
            )
        elif len(value) > longest:
            self.wrong(key, f"has {len(value)} characters; at most {longest} are allowed")
        elif _CONTROL.search(value):
            self.wrong(key, "must be one line without control characters")
        else:
            return value
        return None

    def identifier(self, key: str) -> str | None:
        """A text that can stand in a header; None if it is not there or wrong."""
        value = self.values.get(key)
        if isinstance(value, str) and _ID.fullmatch(value):
            return value
        if self.name(key) is None:
            return None
        self.wrong(
            key,
            "may have at most 128 characters: letters, digits and . _ : / @ + - , "
            "the first of them a letter or digit",
        )
        return None

    def name(self, key: str) -> str | None:
        """A text that is neither empty nor has spaces around it; None if not there or wrong."""
        value = self.text(key)
        if value is not None and (not value or value != value.strip()):
            self.wrong(
                key, "is empty" if not value.strip() else "has spaces around it: remove them"
            )
            return None
        return value

    def pattern(self, key: str) -> str | None:
        """A name or a pattern of names; None if it is not there or wrong."""
        value = self.name(key)
        if value is not None and (count := globs.wildcards(value)) > WILDCARDS_MAX:
            self.wrong(
                key,
                f"has {count} wildcards; at most {WILDCARDS_MAX} are allowed",
                expected=f'a name, or a pattern with at most {WILDCARDS_MAX} "*" and "?"',
                example=f'{key} = "gpt-*"',
            )
            return None
        return value

    def decimal(self, key: str) -> str | None:
        """The text of a decimal number; None if it is not there or wrong."""
        value = self.values.get(key)
        if isinstance(value, str) and _DECIMAL.fullmatch(value):
            return value
        if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
            # Shown only where plain: str() of a huge number would not end, or raise.
            shown = value if _DECIMAL.fullmatch(_short(value)) else "2.50"
            self.wrong(
                key,
                f'must be in quotes, to stay exact, like {key} = "{shown}"',
                expected=DECIMAL_EXPECTED,
                example=f'{key} = "{shown}"',
            )
            return None
        text = self.name(key)
        if text is None:
            return None
        self.wrong(
            key,
            f'"{text[:40]}" is not a price: write plain digits like "2.50", without sign, '
            "exponent, currency or thousands separator, at most 9 digits before and 12 after the "
            "point",
            expected=DECIMAL_EXPECTED,
            example=f'{key} = "2.50"',
        )
        return None

    def multiplier(self, key: str) -> hours.Multiplier | None:
        """A factor above 0; None if it is not there or wrong."""
        value = self.decimal(key)
        if value is None:
            return None
        if not 0 < Decimal(value) <= MULTIPLIER_MAX:
            self.wrong(
                key,
                f'"{value}" is no factor: write how many times the price counts, above 0 and at '
                f'most {MULTIPLIER_MAX}, like "2" or "0.5"; a price of nothing is free = true',
                expected=f"a decimal number in quotes, above 0 and at most {MULTIPLIER_MAX}",
                example=f'{key} = "2"',
            )
            return None
        return hours.multiplier(value)

    def tables(self, key: str, example: str) -> list["Table"]:
        """The tables of a list; none if it is not there, or where it is wrong."""
        entries = self.values.get(key, [])
        shown = f"{key} = [{{ {example} }}]"
        if not isinstance(entries, list) or (not entries and key in self.values):
            self.wrong(
                key,
                f"must be a list of tables, like {shown}",
                expected="a list of tables",
                example=shown,
            )
            return []
        if len(entries) > ENTRIES_MAX:
            self.wrong(key, f"has {len(entries)} entries; at most {ENTRIES_MAX} are allowed")
            return []
        found: list[Table] = []
        for number, values in enumerate(entries):
            if isinstance(values, dict):
                found.append(self.below(values, key, number))
            else:
                self.wrong(
                    key,
                    f"entry {number + 1} must be a table, like {{ {example} }}",
                    expected="a table",
                    example=shown,
                )
        return found

    def currency(self) -> str | None:
        """A currency's code; None if it is not there or wrong."""
        value = self.text("currency")
        if value is None or _CURRENCY.fullmatch(value):
            return value
        self.wrong("currency", f'"{value[:40]}" is not a currency code like USD, EUR or CNY')
        return None

    def credits_per_unit(self, currency: str | None) -> str | None:
        """Credits that one unit of the currency buys: above zero; None if not there or wrong."""
        value = self.decimal("credits_per_unit")
        if value is not None and Decimal(value) == 0:
            self.wrong(
                "credits_per_unit",
                f"is 0, which makes all free: write how many credits 1 {currency or 'unit'} is",
            )
            return None
        return value

    def moment(self, key: str) -> int | None:
        """Milliseconds since the epoch; None if it is not there or wrong."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, datetime) or value.tzinfo is None:
            self.wrong(
                key,
                "must be a date and time with its zone, without quotes, like "
                f"{key} = 2026-12-01T00:00:00Z",
                expected="a date and time with its zone, without quotes",
                example=f"{key} = 2026-12-01T00:00:00Z",
            )
            return None
        since = value - datetime(1970, 1, 1, tzinfo=UTC)
        moment = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
        if 0 <= moment <= MOMENT_MAX:
            return moment
        self.wrong(key, "must lie between the years 1970 and 9000", expected="a date to come")
        return None

    def choice(self, key: str, allowed: tuple[str, ...]) -> str | None:
        """One of a few words, the first if it is not there; None if wrong."""
        value = self.values.get(key, allowed[0])
        if isinstance(value, str) and value in allowed:
            return value
        words = " or ".join(f'"{word}"' for word in allowed)
        self.wrong(key, f"must be {words}", expected=words, example=f'{key} = "{allowed[0]}"')
        return None

    def flag(self, key: str) -> bool:
        """True or false, false if it is not there."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            self.wrong(key, f"must be true or false, without quotes, not {_kind(value)}")
            return False
        return value

    def integer(self, key: str, *, limit: int) -> int:
        """A whole number within +-limit, 0 if it is not there."""
        value = self.values.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int):
            self.wrong(
                key, f"must be a whole number without quotes, like {key} = 100, not {_kind(value)}"
            )
            return 0
        if abs(value) > limit:
            self.wrong(key, f"must be from -{limit} to {limit}")
        return value


def _short(value: int | Decimal) -> str:
    if isinstance(value, int) and abs(value) >= 10**9:
        return ""
    return str(value)


def _kind(value: object) -> str:
    """What a value is called in TOML."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, Decimal)):
        return "a number"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else "a date or time"
