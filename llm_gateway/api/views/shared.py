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

Time = datetime
MicroCredits = Annotated[int, Meta(ge=-(2**53 - 1), le=2**53 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[!-~]+$")]
Text = Annotated[str, Meta(max_length=500)]


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


class Reason(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why somebody does what he does; it goes into the audit trail."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]
