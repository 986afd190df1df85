"""Times and time zones in queries, all that is wrong with them told at once."""

from datetime import datetime
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec
from litestar.params import QueryParameter

from billing.shop.fields import FieldProblem
from billing.shop.periods import UnknownZoneError, zone_of
from llm_gateway.api.problems import wrong_fields
from llm_gateway.api.views.shared import milliseconds

NO_ZONE = "must be a time with its zone, as 2026-09-21T00:00:00Z"

FromTime = Annotated[datetime | None, QueryParameter(name="from", description="Included.")]
ToTime = Annotated[datetime | None, QueryParameter(name="to", description="Not included.")]
ZoneName = Annotated[
    str, QueryParameter(max_length=64, description="An IANA name, as Europe/Berlin.")
]
RunId = Annotated[str, QueryParameter(max_length=128, pattern=r"^[ -~]*$")]


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """From (with) and to (without), in milliseconds since the epoch; None: open."""

    from_at: int | None
    to_at: int | None


def provide_range(from_time: FromTime = None, to_time: ToTime = None) -> Range:
    """The times `from` and `to`; raises InvalidRequestError."""
    named = {"from": from_time, "to": to_time}
    problems = [
        FieldProblem(field=name, message=NO_ZONE)
        for name, time in named.items()
        if time is not None and time.tzinfo is None
    ]
    if not problems and from_time and to_time and to_time <= from_time:
        problems.append(FieldProblem(field="to", message="must be later than from"))
    if problems:
        raise wrong_fields(problems)
    return Range(
        from_at=None if from_time is None else milliseconds(from_time),
        to_at=None if to_time is None else milliseconds(to_time),
    )


def zone_named(name: str) -> ZoneInfo:
    """A time zone; raises InvalidRequestError."""
    try:
        return zone_of(name)
    except UnknownZoneError:
        message = "is the name of no time zone, as Europe/Berlin or UTC"
        raise wrong_fields([FieldProblem(field="time_zone", message=message)]) from None
