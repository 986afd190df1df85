"""Typed values out of one TOML table, with every mistake noted by line. Pure."""

import difflib
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Literal

import msgspec

from pricing_rules.lines import Lines

NAME_CHARACTERS_MAX: Final = 200
_KEY_SHOWN_MAX: Final = 60

Level = Literal["error", "warning"]

# ASCII only: \d alone would take digits of every script.
_DECIMAL: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,12})?")
_CURRENCY: Final = re.compile(r"[A-Z]{3,8}")
_ID: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"
)  # goes into the X-Price-Rule header


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a book, and what to do about it."""

    level: Level
    line: int  # counted from 1; 0 if it has none
    rule: str  # its id, "" outside of a rule or where it has none
    field: str  # "" if it concerns no single field
    message: str

    def __str__(self) -> str:
        """One line for a terminal: `line 12: error: rule "x": output: ...`."""
        parts = [
            f"line {self.line}" if self.line else "",
            self.level,
            f'rule "{self.rule}"' if self.rule else "",
            self.field,
            self.message,
        ]
        return ": ".join(part for part in parts if part)


class Table:
    """One table of the document: hands out checked values and notes what is wrong with them."""

    def __init__(
        self,
        *,
        values: dict[str, object],
        lines: Lines,
        path: tuple[str | int, ...],
        problems: list[Problem],
    ) -> None:
        self.values = values
        self.lines = lines
        self.path = path
        self.problems = problems
        self.sound = True
        name = values.get("id") if path[:1] == ("rule",) else None
        self.rule = name if isinstance(name, str) and _ID.fullmatch(name) else ""

    def wrong(self, field: str, message: str) -> None:
        """Note an error at the line of the field."""
        self.sound = False
        line = self.lines.of(*self.path, *((field,) if field in self.values else ()))
        shown = field if len(field) <= _KEY_SHOWN_MAX and field.isprintable() else ascii(field[:40])
        self.problems.append(
            Problem(level="error", line=line, rule=self.rule, field=shown, message=message)
        )

    def refuse_unknown(self, known: tuple[str, ...], later: frozenset[str] = frozenset()) -> None:
        """A key that nobody reads would be a price the admin believes in and nobody pays."""
        for key in self.values:
            if key in known:
                continue
            if key in later:
                message = (
                    "is not supported yet: leave the key out, or the whole rule if its price "
                    "would be wrong without it"
                )
            elif near := difflib.get_close_matches(key.lower(), known, n=1):
                message = f"unknown key; did you mean {near[0]}?"
            else:
                message = f"unknown key; known here are {', '.join(known)}"
            self.wrong(key, message)

    def require(self, key: str, example: str) -> None:
        """Note a key that has to be there and is not."""
        if key not in self.values:
            self.wrong(key, f"is missing; write for example {example}")

    def text(self, key: str, *, longest: int = NAME_CHARACTERS_MAX) -> str | None:
        """A text without control characters; None if it is not there or wrong."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            self.wrong(key, f'must be a text in quotes, like {key} = "...", not {_kind(value)}')
        elif len(value) > longest:
            self.wrong(key, f"has {len(value)} characters; at most {longest} are allowed")
        elif any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in value):
            self.wrong(key, "must be one line without control characters")
        else:
            return value
        return None

    def identifier(self, key: str) -> str | None:
        """A text that can stand in a header; None if it is not there or wrong."""
        value = self.name(key)
        if value is None or _ID.fullmatch(value):
            return value
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

    def decimal(self, key: str) -> str | None:
        """The text of a decimal number; None if it is not there or wrong."""
        value = self.values.get(key)
        if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
            # Shown only where plain: str() of a huge number would not end, or raise.
            shown = value if _DECIMAL.fullmatch(_short(value)) else "2.50"
            self.wrong(key, f'must be in quotes, to stay exact, like {key} = "{shown}"')
            return None
        text = self.name(key)
        if text is None or _DECIMAL.fullmatch(text):
            return text
        self.wrong(
            key,
            f'"{text[:40]}" is not a price: write plain digits like "2.50", without sign, '
            "exponent, currency or thousands separator, at most 9 digits before and 12 after the "
            "point",
        )
        return None

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
            )
            return None
        since = value - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000

    def choice(self, key: str, allowed: tuple[str, ...]) -> str | None:
        """One of a few words, the first if it is not there; None if wrong."""
        value = self.values.get(key, allowed[0])
        if isinstance(value, str) and value in allowed:
            return value
        self.wrong(key, "must be " + " or ".join(f'"{word}"' for word in allowed))
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
