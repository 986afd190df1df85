"""Periods by the clock on the caller's wall: whole steps, no gap, no overlap, in every zone."""

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.db.invariants import QUARTER_MS
from billing.shop.periods import (
    Period,
    Span,
    Step,
    UnknownZoneError,
    span_between,
    span_of,
    zone_of,
)

HOUR = 3_600_000
DAY = 24 * HOUR
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu",
    "Pacific/Chatham", "Australia/Lord_Howe", "America/St_Johns", "Africa/Cairo", "America/Santiago",
    "Pacific/Kiritimati", "America/Havana",
)  # fmt: skip


def at(text: str) -> int:
    """ISO 8601 with an offset, as milliseconds."""
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


def shown(span: Span, zone: str) -> list[str]:
    """The begins of the steps as the caller's clock has them."""
    return [
        dt.datetime.fromtimestamp(edge / 1000, ZoneInfo(zone)).strftime("%m-%d %H:%M")
        for edge in span.edges
    ]


def cut(period: Period, zone: str, now: str, first: str | None = None) -> Span:
    return span_of(period, zone_of(zone), at(now), first_at=at(first) if first else None)


def test_a_day_is_24_hours_back_from_the_end_of_this_quarter() -> None:
    span = cut(Period.DAY, "UTC", "2026-09-21T14:13:20Z")
    assert (span.from_at, span.to_at) == (at("2026-09-20T14:15Z"), at("2026-09-21T14:15Z"))
    assert span.step is Step.HOUR
    assert shown(span, "UTC")[:3] == ["09-20 14:15", "09-20 15:00", "09-20 16:00"]
    assert len(span.edges) == 25
    assert len(cut(Period.DAY, "UTC", "2026-09-21T13:59:59.999Z").edges) == 24


def test_hours_begin_where_the_callers_clock_shows_them() -> None:
    now = "2026-09-21T14:13:20Z"
    assert shown(cut(Period.DAY, "Asia/Kolkata", now), "Asia/Kolkata")[1] == "09-20 20:00"
    assert cut(Period.DAY, "Asia/Kathmandu", now).edges[0:2] == (
        at("2026-09-20T20:00+05:45"), at("2026-09-20T21:00+05:45"),
    )  # fmt: skip


def test_an_hour_that_is_shown_twice_is_two() -> None:
    """In Berlin 25 October 2026 has 25 hours."""
    span = cut(Period.DAY, "Europe/Berlin", "2026-10-25T11:59+01:00")
    hours = shown(span, "Europe/Berlin")
    assert hours.count("10-25 02:00") == 2
    assert (hours[0], len(hours)) == ("10-24 13:00", 24)


def test_half_an_hour_put_back_on_lord_howe_is_a_step_of_its_own() -> None:
    """5 April 2026, 02:00 at +11:00 becomes 01:30 at +10:30."""
    span = cut(Period.DAY, "Australia/Lord_Howe", "2026-04-05T12:00Z")
    edges = [edge for edge in span.edges if abs(edge - at("2026-04-05T02:00+11:00")) <= HOUR]
    assert edges == [
        at("2026-04-05T01:00+11:00"), at("2026-04-05T01:30+10:30"), at("2026-04-05T02:00+10:30"),
    ]  # fmt: skip


def test_seven_days_are_today_and_six_before_in_parts_of_six_hours() -> None:
    span = cut(Period.WEEK, "America/New_York", "2026-09-21T14:13:20Z")
    assert (span.from_at, span.step) == (at("2026-09-15T00:00-04:00"), Step.SIX_HOURS)
    hours = shown(span, "America/New_York")
    assert hours[:5] == ["09-15 00:00", "09-15 06:00", "09-15 12:00", "09-15 18:00", "09-16 00:00"]
    assert (hours[-1], len(hours)) == ("09-21 06:00", 26)


def test_days_begin_at_midnight_whatever_their_length() -> None:
    """30 days that hold the 25-hour day of Berlin."""
    span = cut(Period.MONTH, "Europe/Berlin", "2026-11-10T12:00Z")
    assert len(span.edges) == 30
    assert all(each.endswith("00:00") for each in shown(span, "Europe/Berlin"))
    lengths = {later - before for before, later in zip(span.edges, span.edges[1:], strict=False)}
    assert lengths == {DAY, 25 * HOUR}


def test_a_midnight_that_the_clocks_left_out_is_when_they_were_put_on() -> None:
    """In Cairo 24 April 2026 began at 01:00."""
    span = cut(Period.MONTH, "Africa/Cairo", "2026-05-01T12:00Z")
    assert at("2026-04-24T00:00+02:00") in span.edges
    assert len(span.edges) == 30


def test_a_midnight_is_the_callers_not_that_of_utc() -> None:
    span = cut(Period.MONTH, "Pacific/Kiritimati", "2026-09-21T10:00Z")
    assert shown(span, "Pacific/Kiritimati")[-1] == "09-22 00:00"


@pytest.mark.parametrize(
    ("first", "step", "begin", "number"),
    [
        (None, Step.DAY, "09-21 00:00", 1),
        ("2026-09-20T23:00Z", Step.DAY, "09-21 00:00", 1),  # 01:00 in Berlin
        ("2026-06-22T12:00Z", Step.DAY, "06-22 00:00", 92),
        ("2026-06-21T12:00Z", Step.WEEK, "06-21 00:00", 15),
        ("2024-09-09T12:00Z", Step.MONTH, "09-09 00:00", 25),
    ],
)
def test_all_is_told_by_days_weeks_or_months(
    first: str | None, step: Step, begin: str, number: int
) -> None:
    span = cut(Period.ALL, "Europe/Berlin", "2026-09-21T14:13:20Z", first)
    assert span.step is step
    assert (shown(span, "Europe/Berlin")[0], len(span.edges)) == (begin, number)


def test_weeks_begin_on_mondays_and_months_on_their_first() -> None:
    weeks = cut(Period.ALL, "Europe/Berlin", "2026-09-21T14:13:20Z", "2026-01-01T12:00Z")
    zone = ZoneInfo("Europe/Berlin")
    assert {dt.datetime.fromtimestamp(e / 1000, zone).weekday() for e in weeks.edges[1:]} == {0}
    months = cut(Period.ALL, "Europe/Berlin", "2026-09-21T14:13:20Z", "2020-01-31T12:00Z")
    assert {dt.datetime.fromtimestamp(e / 1000, zone).day for e in months.edges[1:]} == {1}
    assert shown(months, "Europe/Berlin")[:3] == ["01-31 00:00", "02-01 00:00", "03-01 00:00"]


def test_a_run_is_told_from_its_first_quarter_to_its_last() -> None:
    span = span_between(at("2026-09-21T14:13:20Z"), at("2026-09-21T15:01Z"), zone_of("UTC"))
    assert (span.from_at, span.to_at) == (at("2026-09-21T14:00Z"), at("2026-09-21T15:15Z"))
    assert (span.step, len(span.edges)) == (Step.HOUR, 2)


@given(
    period=st.sampled_from(Period),
    zone=st.sampled_from(ZONES),
    now=st.integers(at("2015-01-01T00:00Z"), at("2035-01-01T00:00Z")),
    age=st.integers(0, 2_000 * DAY),
)
def test_steps_are_in_order_within_the_period_and_on_quarters(
    period: Period, zone: str, now: int, age: int
) -> None:
    span = span_of(period, zone_of(zone), now, first_at=now - age)
    assert span.from_at <= now < span.to_at
    assert span.edges[0] == span.from_at
    assert list(span.edges) == sorted(set(span.edges))
    assert span.edges[-1] < span.to_at
    assert len(span.edges) <= 120 + age // (28 * DAY)
    assert not [each for each in (*span.edges, span.to_at) if each % QUARTER_MS]
    if period is Period.ALL:
        assert span.from_at <= now - age


@pytest.mark.parametrize(
    "name",
    ["", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "UTC\n", "utc/", "Europe", "x" * 99],
)
def test_what_is_no_zone(name: str) -> None:
    with pytest.raises(UnknownZoneError):
        zone_of(name)
