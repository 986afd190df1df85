"""What the store takes as input: rules for its fields, checked together so that all mistakes are told at once."""

import re
from typing import Final

import msgspec

from billing.ledger import AMOUNT_MAX

TEXT_MAX: Final = 200  # characters of a name, badge, reference or reason
DESCRIPTION_MAX: Final = 2_000
KEY_MAX: Final = 128  # characters of an idempotency key
SORT_ORDER_MAX: Final = 1_000_000

_SKU: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_SOURCE: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_REFERENCE: Final = re.compile(r"[\x21-\x7e]{1,128}")


class FieldProblem(msgspec.Struct, frozen=True, kw_only=True):
    """A field of an input and what is wrong with it."""

    field: str
    message: str


class InvalidFieldsError(ValueError):
    """The input breaks rules: every field concerned, in `problems`."""

    def __init__(self, problems: tuple[FieldProblem, ...]) -> None:
        super().__init__("; ".join(f"{each.field}: {each.message}" for each in problems))
        self.problems = problems


class Fields:
    """Collects what is wrong with an input; `done` raises if anything is."""

    def __init__(self) -> None:
        self._problems: list[FieldProblem] = []

    def wrong(self, field: str, message: str) -> None:
        self._problems.append(FieldProblem(field=field, message=message))

    def check(self, field: str, message: str, *, ok: bool) -> None:
        if not ok:
            self.wrong(field, message)

    def whole(self, field: str, value: int, low: int, high: int = AMOUNT_MAX) -> None:
        # A float or a bool slips through a type annotation, and must not slip into money.
        ok = type(value) is int and low <= value <= high
        self.check(field, f"must be a whole number from {low} to {high}", ok=ok)

    def limit(self, field: str, value: int | None) -> None:
        """A number above 0, or None for no limit."""
        if value is not None:
            self.whole(field, value, 1)

    def text(self, field: str, value: str, *, least: int = 0, most: int = TEXT_MAX) -> None:
        """Printable text on one line; spaces around it do not count."""
        length = len(value.strip())
        if not least <= length <= most:
            self.wrong(field, f"must have {least} to {most} characters")
        elif not value.isprintable():
            self.wrong(field, "holds characters that do not print")

    def prose(self, field: str, value: str) -> None:
        """Printable text that may have several lines."""
        if len(value) > DESCRIPTION_MAX:
            self.wrong(field, f"must have at most {DESCRIPTION_MAX} characters")
        elif not value.replace("\n", "").replace("\t", "").isprintable():
            self.wrong(field, "holds characters that do not print")

    def sku(self, field: str, value: str) -> None:
        rule = "1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit"
        self.check(field, rule, ok=_SKU.fullmatch(value) is not None)

    def currency(self, field: str, value: str) -> None:
        rule = "must be a code of three capital letters (ISO 4217), such as CNY"
        self.check(field, rule, ok=_CURRENCY.fullmatch(value) is not None)

    def source(self, field: str, value: str) -> None:
        rule = "1 to 32 of a-z 0-9 _, beginning with a letter"
        self.check(field, rule, ok=_SOURCE.fullmatch(value) is not None)

    def reference(self, field: str, value: str) -> None:
        """An id from outside: visible ASCII without spaces."""
        rule = "must have 1 to 128 visible ASCII characters, and no space"
        self.check(field, rule, ok=_REFERENCE.fullmatch(value) is not None)

    def one_of(self, field: str, value: str, known: tuple[str, ...]) -> None:
        self.check(field, f"must be one of {', '.join(known)}", ok=value in known)

    def done(self) -> None:
        """Raise InvalidFieldsError if anything is wrong."""
        if self._problems:
            raise InvalidFieldsError(tuple(self._problems))
