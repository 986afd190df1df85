"""Hours of the week in which a price is multiplied, by the clock on the wall of a time zone. Pure."""

import re
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
EVERY_DAY: Final = "Mon-Sun"
MINUTES_OF_A_DAY: Final = 24 * 60

TIME: Final = "([01][0-9]|2[0-3]):([0-5][0-9])|(24):(00)"
SPAN: Final = f"({'|'.join(DAYS)})(?:-({'|'.join(DAYS)}))?"
ZONE: Final = "[A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z0-9_+-]{1,31}){0,2}"
_TIME: Final = re.compile(TIME)
_SPAN: Final = re.compile(SPAN)
_ZONE: Final = re.compile(ZONE)
_CLOCK_MAX: Final = 200_000_000_000_000  # milliseconds; the year 8307


class Multiplier(msgspec.Struct, frozen=True, kw_only=True):
    """A factor as written and as a fraction whose denominator is a power of ten."""

    text: str
    numerator: int
    denominator: int


ONE: Final = Multiplier(text="1", numerator=1, denominator=1)


class Hours(msgspec.Struct, frozen=True, kw_only=True):
    """From a minute of some days on, up to another minute, of the same day or of the next.

    What crosses midnight belongs to the day on which it began. Clocks put forward or back are
    followed: what counts is the time that they show.
    """

    days: str
    tz: str
    start: str  # "HH:MM"
    end: str
    multiply: Multiplier

    weekdays: frozenset[int]  # 0 is Monday
    start_minute: int
    end_minute: int


def multiplier(text: str) -> Multiplier:
    """The factor that a decimal text stands for."""
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0")
    return Multiplier(text=text, numerator=int(whole + decimals), denominator=10 ** len(decimals))


def dearer(one: Multiplier, other: Multiplier) -> Multiplier:
    """The larger factor, the first of two that are equal."""
    greater = one.numerator * other.denominator >= other.numerator * one.denominator
    return one if greater else other


def dearest(multipliers: tuple[Multiplier, ...], least: Multiplier = ONE) -> Multiplier:
    """The largest of all and `least`."""
    found = least
    for each in multipliers:
        found = dearer(found, each)
    return found


def read_days(text: str) -> frozenset[int] | None:
    """The weekdays of "Mon-Fri", "Sat, Sun" or "Fri-Mon,Wed"; None if it is no such list."""
    days: set[int] = set()
    for part in text.split(","):
        span = _SPAN.fullmatch(part.strip(" "))
        if span is None:
            return None
        first, last = DAYS.index(span[1]), DAYS.index(span[2] or span[1])
        days |= {(first + number) % 7 for number in range((last - first) % 7 + 1)}
    return frozenset(days)


def read_time(text: str) -> int | None:
    """The minute of the day of "HH:MM", up to "24:00"; None if it is no time."""
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    return int(found[1] or found[3]) * 60 + int(found[2] or found[4])


@lru_cache(maxsize=1024)
def zone(name: str) -> tzinfo | None:
    """The time zone of a name of the IANA database; None if there is none by that name."""
    if name == "UTC":
        return UTC
    if not _ZONE.fullmatch(name):
        return None
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):  # LookupError: not found; OSError: a directory
        return None


def holds(hours: Hours, at: int) -> bool:
    """Whether a moment (milliseconds since the epoch) is within the hours."""
    tz = zone(hours.tz)
    assert tz is not None, "the parser has found it"
    local = datetime.fromtimestamp(min(max(at, 0), _CLOCK_MAX) // 1000, tz=tz)
    minute, day = local.hour * 60 + local.minute, local.weekday()
    if hours.start_minute < hours.end_minute:
        return hours.start_minute <= minute < hours.end_minute and day in hours.weekdays
    if minute >= hours.start_minute:
        return day in hours.weekdays
    return minute < hours.end_minute and (day - 1) % 7 in hours.weekdays


def multiplier_at(hours: tuple[Hours, ...], at: int) -> Multiplier:
    """The factor of the hours that hold at a moment; the largest, if several do; 1 if none does."""
    found: Multiplier | None = None
    for each in hours:
        if holds(each, at):
            found = each.multiply if found is None else dearer(found, each.multiply)
    return found or ONE
