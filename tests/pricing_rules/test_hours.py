"""Hours go by the clock on the wall: across midnight, by their first day, and through clock changes."""

from datetime import datetime

import pytest

from pricing_rules import hours
from pricing_rules.book import parse_book
from pricing_rules.hours import Hours, Multiplier, dearest, multiplier, multiplier_at


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def windows(*entries: str) -> tuple[Hours, ...]:
    return (
        parse_book(
            '[book]\nname = "t"\ncurrency = "USD"\ncredits_per_unit = "100"\n[[rule]]\nid = "r"\n'
            f'provider = "p"\nmodel = "m"\ninput = "1"\noutput = "1"\nhours = [{", ".join(entries)}]\n'
        )
        .rules[0]
        .hours
    )


def window(days: str, tz: str, start: str, end: str, by: str = "2") -> str:
    return f'{{ days = "{days}", tz = "{tz}", from = "{start}", to = "{end}", multiply = "{by}" }}'


def test_the_night_from_sunday_ends_on_monday() -> None:
    (night,) = windows(window("Sun", "UTC", "22:00", "06:00"))
    assert hours.holds(night, ms("2026-11-30T01:00:00Z"))
    assert not hours.holds(night, ms("2026-11-29T01:00:00Z"))


@pytest.mark.parametrize(
    ("at", "holds"),
    [
        ("2026-11-27T21:59:59Z", False),
        ("2026-11-27T22:00:00Z", True),  # Friday night
        ("2026-11-28T00:00:00Z", True),  # is still Friday's
        ("2026-11-28T05:59:59Z", True),
        ("2026-11-28T06:00:00Z", False),
        ("2026-11-28T23:00:00Z", False),  # Saturday night
        ("2026-11-29T01:00:00Z", False),
        ("2026-11-23T01:00:00Z", False),  # Monday morning belongs to Sunday
        ("2026-11-23T22:30:00Z", True),
    ],
)
def test_what_crosses_midnight_belongs_to_its_first_day(at: str, holds: bool) -> None:
    (night,) = windows(window("Mon-Fri", "UTC", "22:00", "06:00"))
    assert hours.holds(night, ms(at)) is holds


@pytest.mark.parametrize(
    ("at", "holds"),
    [
        ("2026-11-23T15:59:59Z", True),
        ("2026-11-23T16:00:00Z", False),  # Tuesday 00:00 in Shanghai
        ("2026-11-22T16:00:00Z", True),
    ],
)
def test_days_are_those_of_the_time_zone(at: str, holds: bool) -> None:
    (monday,) = windows(window("Mon", "Asia/Shanghai", "00:00", "24:00"))
    assert hours.holds(monday, ms(at)) is holds


@pytest.mark.parametrize(
    ("at", "holds"),
    [
        ("2026-03-28T08:30:00Z", False),  # Saturday, 08:30 GMT
        ("2026-03-28T09:00:00Z", True),
        ("2026-03-29T08:00:00Z", True),  # Sunday, the clocks went forward: 09:00 BST
        ("2026-03-29T10:00:00Z", False),
        ("2026-10-24T08:00:00Z", True),
        ("2026-10-25T08:59:59Z", False),  # they went back
        ("2026-10-25T09:00:00Z", True),
    ],
)
def test_hours_follow_the_clock_through_its_changes(at: str, holds: bool) -> None:
    (morning,) = windows(window("Mon-Sun", "Europe/London", "09:00", "11:00"))
    assert hours.holds(morning, ms(at)) is holds


def test_an_hour_that_comes_twice_counts_twice_and_one_that_is_skipped_never() -> None:
    (night,) = windows(window("Mon-Sun", "Europe/London", "01:00", "02:00"))
    # 2026-10-25: 01:30 BST is 00:30Z, 01:30 GMT is 01:30Z.
    assert hours.holds(night, ms("2026-10-25T00:30:00Z"))
    assert hours.holds(night, ms("2026-10-25T01:30:00Z"))
    assert not hours.holds(night, ms("2026-10-25T02:00:00Z"))
    # 2026-03-29: after 00:59:59Z comes 02:00 BST.
    assert not any(hours.holds(night, ms("2026-03-29T00:00:00Z") + m * 60_000) for m in range(240))


def test_a_window_up_to_midnight_ends_there() -> None:
    late, early = windows(
        window("Wed", "UTC", "20:00", "24:00"), window("Wed", "UTC", "20:00", "00:00")
    )
    for each in (late, early):
        assert hours.holds(each, ms("2026-11-25T23:59:59.999Z"))
        assert not hours.holds(each, ms("2026-11-26T00:00:00Z"))
        assert not hours.holds(each, ms("2026-11-25T00:00:00Z"))


def test_where_several_hold_the_dearest_counts() -> None:
    rules = windows(
        window("Mon-Sun", "UTC", "00:00", "12:00", "0.5"),
        window("Mon", "UTC", "10:00", "14:00", "1.25"),
        window("Mon", "UTC", "11:00", "12:00", "0.8"),
    )
    found = {
        hour: multiplier_at(rules, ms(f"2026-11-23T{hour:02d}:30:00Z")).text for hour in range(24)
    }
    assert found == {
        **dict.fromkeys(range(10), "0.5"),
        **dict.fromkeys(range(10, 14), "1.25"),
        **dict.fromkeys(range(14, 24), "1"),
    }


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("Mon", {0}),
        ("Mon-Fri", {0, 1, 2, 3, 4}),
        ("Sat,Sun", {5, 6}),
        ("Fri-Mon", {4, 5, 6, 0}),
        ("Mon-Mon", {0}),
        ("Mon-Sun", set(range(7))),
        ("Tue-Wed, Sun", {1, 2, 6}),
    ],
)
def test_days_are_read(text: str, days: set[int]) -> None:
    assert set(hours.read_days(text) or ()) == days


@pytest.mark.parametrize(
    "text", ["", "Monday", "mon", "Mon-", "-Mon", "Mon,,Tue", "Mon Tue", "Mon\t", "*"]
)
def test_what_names_no_days_is_refused(text: str) -> None:
    assert hours.read_days(text) is None


@pytest.mark.parametrize(
    ("text", "minute"), [("00:00", 0), ("09:05", 545), ("23:59", 1439), ("24:00", 1440)]
)
def test_times_are_read(text: str, minute: int) -> None:
    assert hours.read_time(text) == minute


@pytest.mark.parametrize("text", ["", "9:00", "24:01", "25:00", "12:60", "12", "12:00:00", "٠٠:٠٠"])
def test_what_is_no_time_is_refused(text: str) -> None:
    assert hours.read_time(text) is None


@pytest.mark.parametrize(
    "name", ["", "Europe", "europe/nowhere", "../zone", "/etc/localtime", "A" * 99, "UTC\n", "Ä/B"]
)
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    assert hours.zone(name) is None


def test_a_factor_is_exact() -> None:
    assert multiplier("1.70") == Multiplier(text="1.70", numerator=17, denominator=10)
    assert multiplier("0.5") == Multiplier(text="0.5", numerator=5, denominator=10)
    assert multiplier("2") == Multiplier(text="2", numerator=2, denominator=1)
    assert dearest((multiplier("0.5"), multiplier("0.9"))).text == "1"
    assert dearest((multiplier("0.5"), multiplier("1.5"), multiplier("1.50"))).text == "1.5"
