"""Pure: the periods that consumption is told for, cut into steps by the caller's own clock.

A period is made of whole quarters of an hour, and ends with the one that `now` lies in:

- 24h: 24 hours back from that end.
- 7d, 30d: today and the 6 or 29 days before it, from the caller's midnight.
- all: from the caller's midnight before the first call.

Its steps begin where a clock on the caller's wall shows a full hour, 0, 6, 12 or 18 o'clock,
midnight, a Monday or a first of the month; the first and the last step are cut to fit.
"""

import datetime as dt
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from billing.db.invariants import QUARTER_MS

DAY_MS: Final = 86_400_000
DAYS_SHOWN_MAX: Final = 92  # a longer history is told by weeks,
WEEKS_SHOWN_MAX: Final = 106  # and a still longer one by months

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND: Final = dt.timedelta(milliseconds=1)
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z0-9_+-]{1,31}){0,2}")


class Period(StrEnum):
    """How far back."""

    DAY = "24h"
    WEEK = "7d"
    MONTH = "30d"
    ALL = "all"


class Step(StrEnum):
    """How long a step of a series is, as the caller's clock and calendar have it."""

    HOUR = "hour"
    SIX_HOURS = "6h"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A time from (with) and to (without), and the begins of its steps; milliseconds since the epoch."""

    from_at: int
    to_at: int
    step: Step
    edges: tuple[
        int, ...
    ]  # the first is from_at; each step ends where the next begins, or at to_at


class Piece(msgspec.Struct, frozen=True):
    """A part of one step, by the step's number."""

    step: int
    from_at: int
    to_at: int


class UnknownZoneError(ValueError):
    """No time zone has this name."""


def zone_of(name: str) -> ZoneInfo:
    """A time zone by its IANA name; raises UnknownZoneError."""
    if _ZONE.fullmatch(name) is None:
        raise UnknownZoneError
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:
        raise UnknownZoneError from error


def span_of(period: Period, zone: ZoneInfo, now: int, *, first_at: int | None = None) -> Span:
    """The steps of a period. `first_at`: of `all`, when the first call began; None: there is none."""
    to_at = now - now % QUARTER_MS + QUARTER_MS
    today = _date(to_at - 1, zone)
    match period:
        case Period.DAY:
            return _cut(to_at - DAY_MS, to_at, Step.HOUR, zone)
        case Period.WEEK:
            return _cut(_midnight(today - dt.timedelta(days=6), zone), to_at, Step.SIX_HOURS, zone)
        case Period.MONTH:
            return _cut(_midnight(today - dt.timedelta(days=29), zone), to_at, Step.DAY, zone)
        case Period.ALL:
            first = today if first_at is None else min(today, _date(first_at, zone))
            return _cut(_midnight(first, zone), to_at, _step_for((today - first).days), zone)


def span_between(first_at: int, last_at: int, zone: ZoneInfo) -> Span:
    """From the quarter of a first call to that of a last one: hours within two days, then as `all`."""
    from_at = first_at - first_at % QUARTER_MS
    to_at = last_at - last_at % QUARTER_MS + QUARTER_MS
    days = (to_at - from_at) // DAY_MS
    return _cut(from_at, to_at, Step.HOUR if days <= 1 else _step_for(days), zone)


def pieces(span: Span, days: Iterable[int]) -> tuple[list[Piece], list[Piece]]:
    """A span as what lies outside of some UTC days, and those days, as far as they lie in one step.

    `days`: their begins, in order. A day that a step begins or ends in is outside of it.
    """
    outside: list[Piece] = []
    inside: list[Piece] = []
    left = iter(days)
    day = next(left, span.to_at)
    ends = (*span.edges[1:], span.to_at)
    for step, (at, end) in enumerate(zip(span.edges, ends, strict=True)):
        done = at
        while day + DAY_MS <= end:
            if day >= done:
                _add(outside, Piece(step, done, day))
                _add(inside, Piece(step, day, day + DAY_MS))
                done = day + DAY_MS
            day = next(left, span.to_at)
        _add(outside, Piece(step, done, end))
    return outside, inside


def _add(found: list[Piece], piece: Piece) -> None:
    """Put together what is one after the other."""
    if piece.from_at == piece.to_at:
        return
    if found and (found[-1].step, found[-1].to_at) == (piece.step, piece.from_at):
        piece = Piece(piece.step, found.pop().from_at, piece.to_at)
    found.append(piece)


def _step_for(days: int) -> Step:
    if days < DAYS_SHOWN_MAX:
        return Step.DAY
    return Step.WEEK if days < 7 * WEEKS_SHOWN_MAX else Step.MONTH


def _cut(from_at: int, to_at: int, step: Step, zone: ZoneInfo) -> Span:
    begins = _hours(from_at, to_at, zone) if step is Step.HOUR else _begins(from_at, step, zone)
    edges = [from_at]
    for at in begins:
        if at >= to_at:
            break
        # A day that a zone left out (a change of date line) is no step.
        if at > edges[-1]:
            edges.append(at)
    return Span(from_at=from_at, to_at=to_at, step=step, edges=tuple(edges))


def _hours(from_at: int, to_at: int, zone: ZoneInfo) -> Iterator[int]:
    """Full hours, and an hour that is shown twice is two; all lie on quarters, in any zone."""
    shown = _hour(from_at, zone)
    for at in range(from_at, to_at, QUARTER_MS):
        if (now_shown := _hour(at, zone)) != shown:
            shown = now_shown
            yield at


def _hour(at: int, zone: ZoneInfo) -> tuple[dt.date, int, dt.timedelta | None]:
    local = _local(at, zone)
    return local.date(), local.hour, local.utcoffset()


def _begins(from_at: int, step: Step, zone: ZoneInfo) -> Iterator[int]:
    """Begins of days and parts or multiples of them, from the one on that `from_at` lies in; endless."""
    date = _date(from_at, zone)
    while True:
        match step:
            case Step.WEEK:
                date -= dt.timedelta(days=date.weekday())
                following = date + dt.timedelta(days=7)
            case Step.MONTH:
                date = date.replace(day=1)
                following = (date + dt.timedelta(days=31)).replace(day=1)
            case _:
                following = date + dt.timedelta(days=1)
        for hour in (0, 6, 12, 18) if step is Step.SIX_HOURS else (0,):
            yield _midnight(date, zone, hour)
        date = following


def _midnight(date: dt.date, zone: ZoneInfo, hour: int = 0) -> int:
    """When a date's hour first began; where the clocks left it out, the moment they were put on."""
    at = dt.datetime.combine(date, dt.time(hour), tzinfo=zone)
    milliseconds = (at - _EPOCH) // _MILLISECOND
    return milliseconds - milliseconds % QUARTER_MS  # zones of today lie on quarters


def _date(at: int, zone: ZoneInfo) -> dt.date:
    return _local(at, zone).date()


def _local(at: int, zone: ZoneInfo) -> dt.datetime:
    return (_EPOCH + at * _MILLISECOND).astimezone(zone)
