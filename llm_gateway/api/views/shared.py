"""What the shapes of all resources share: times, texts, the frame of a list.

Amounts are integers in fields ending `_micro_credits`, prices are decimal text per 1M tokens in a
rule's currency, times are ISO 8601 in UTC.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec
from msgspec import Meta

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

# What does not print has no place in a name, nor NUL in a database.
_LINE: Final = r"^[^\x00-\x1f\x7f-\x9f]*$(?!\n)"
_REASON: Final = r"^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0][^\x00-\x1f\x7f-\x9f]*$(?!\n)"
_PROSE: Final = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"

Time = datetime
MicroCredits = Annotated[int, Meta(ge=-(2**53 - 1), le=2**53 - 1)]
Amount = Annotated[int, Meta(ge=1, le=2**53 - 1)]  # micro-credits or cents, above 0
Limit = Annotated[int, Meta(ge=1, le=2**53 - 1)]
# The end of a pattern: "$" alone lets a line feed pass behind it.
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[!-~]+$(?!\n)")]
Reference = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[!-~]+$(?!\n)")]
Source = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$(?!\n)")]
AccountName = Annotated[
    str, Meta(max_length=64, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._:@|+=~-]{0,63}$(?!\n)")
]
AccountNameOrNone = Annotated[
    str, Meta(max_length=64, pattern=r"^([A-Za-z0-9_][A-Za-z0-9._:@|+=~-]{0,63})?$(?!\n)")
]
Line = Annotated[str, Meta(max_length=200, pattern=_LINE)]
Text = Annotated[str, Meta(max_length=500, pattern=_PROSE)]
Prose = Annotated[str, Meta(max_length=2000, pattern=_PROSE)]


def moment(at_ms: int) -> Time:
    """Milliseconds since the epoch as a time in UTC, exactly."""
    return _EPOCH + at_ms * _MILLISECOND


def moment_or_none(at_ms: int | None) -> Time | None:
    """As `moment`; None stays None."""
    return None if at_ms is None else moment(at_ms)


def milliseconds(time: Time) -> int:
    """A time with a zone as milliseconds since the epoch, rounded down."""
    return (time - _EPOCH) // _MILLISECOND


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The frame of a list. `next_after` is what to send as `after` for what follows."""

    page: int
    page_size: int
    total: int
    has_more: bool
    next_after: str | None = None


def cursor(after: int | None) -> str | None:
    """A cursor as clients pass it around; its meaning is ours."""
    return None if after is None else str(after)


ReasonText = Annotated[str, Meta(min_length=1, max_length=500, pattern=_REASON)]


class Reason(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why somebody does what he does; it goes into the audit trail."""

    reason: ReasonText
