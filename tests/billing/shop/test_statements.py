"""Statements and outstanding credit: every month begins where the last one ended, and stays as it was."""

import datetime as dt

import pytest

from billing.ledger import Entry
from billing.shop.statements import (
    Month,
    Outstanding,
    StatementLine,
    UnknownMonthError,
    month_of,
    outstanding,
    statement,
)
from tests.support.money import charge, purchase
from tests.support.shop import Shop


def at(month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    """A moment of 2026 in UTC, in milliseconds."""
    return round(dt.datetime(2026, month, day, hour, minute, tzinfo=dt.UTC).timestamp()) * 1000


def reward(amount: int, account: str) -> Entry:
    return Entry(
        event_id=f"liked:{account}:{amount}",
        account=account,
        source="forum_like",
        direction="income",
        amount=amount,
    )


async def three_months(shop: Shop) -> None:
    """Entries of ada's in July, August and October, one of bob's, and eve who has none.

    ada: 1000 and a reward of 50 in July; in August a call of 300 that began in July; in October one
    of 900, which takes her below 0. bob: 70 in August.
    """
    shop.now = at(7, 31, 23, 59)
    await shop.hot.post([purchase(1000, account="ada"), reward(50, "ada")])
    call = charge(shop.new_id(), 300, account="ada")
    shop.now = at(8, 1)
    await shop.settled(call)
    await shop.hot.post([purchase(70, account="bob")])
    shop.now = at(10, 9)
    await shop.accounts.create("eve", actor="ops")
    await shop.call(900, account="ada")


async def test_a_month_is_what_was_posted_in_it(shop: Shop) -> None:
    await three_months(shop)
    told = await statement(shop.database, "ada", month_of("2026-07"), shop.now)
    assert (told.opening, told.closing, told.entries) == (0, 1050, 2)
    assert (told.first_seq, told.last_seq, told.closed) == (1, 2, True)
    assert told.lines == (
        StatementLine(source="forum_like", direction="income", amount=50, entries=1),
        StatementLine(source="purchase", direction="income", amount=1000, entries=1),
    )
    told = await statement(shop.database, "ada", month_of("2026-08"), shop.now)
    assert (told.opening, told.closing, told.first_seq, told.last_seq) == (1050, 750, 3, 3)
    assert told.lines == (
        StatementLine(source="charge", direction="expense", amount=-300, entries=1),
    )


async def test_each_month_begins_where_the_last_one_ended(shop: Shop) -> None:
    await three_months(shop)
    names = [f"2026-{number:02d}" for number in range(6, 13)]
    for account in ("ada", "bob", "eve", "nobody"):
        told = [await statement(shop.database, account, month_of(n), shop.now) for n in names]
        closings = [each.closing for each in told]
        assert [each.opening for each in told] == [0, *closings[:-1]]
        for each in told:
            assert each.opening + sum(line.amount for line in each.lines) == each.closing
            assert sum(line.entries for line in each.lines) == each.entries
        assert closings[-1] == {"ada": -150, "bob": 70}.get(account, 0)


async def test_a_month_without_entries_has_no_numbers(shop: Shop) -> None:
    await three_months(shop)
    told = await statement(shop.database, "ada", month_of("2026-09"), shop.now)
    assert (told.opening, told.closing, told.lines) == (750, 750, ())
    assert (told.first_seq, told.last_seq, told.entries) == (None, None, 0)


async def test_what_moves_nothing_is_counted_and_adds_nothing(shop: Shop) -> None:
    shop.now = at(7, 1)
    entry = Entry(
        event_id="e1", account="ada", source="manual", direction="income", amount=5, status="failed"
    )
    await shop.hot.post([purchase(10, account="ada"), entry])
    told = await statement(shop.database, "ada", month_of("2026-07"), shop.now)
    assert (told.closing, told.entries) == (10, 2)
    assert told.lines[0] == StatementLine(source="manual", direction="income", amount=0, entries=1)


async def test_a_month_is_closed_when_no_slow_clock_can_reach_it(shop: Shop) -> None:
    month = month_of("2026-07")
    for now, closed in ((at(8, 1, 0, 4), False), (at(8, 1, 0, 5), True)):
        assert (await statement(shop.database, "ada", month, now)).closed is closed


async def test_a_clock_that_is_behind_adds_nothing_to_a_month_that_has_ended(shop: Shop) -> None:
    """One process posts at 00:01 of August, then another whose clock shows 23:59 of July."""
    shop.now = at(7, 10)
    await shop.hot.post([purchase(10, account="ada")])
    shop.now = at(8, 1, 0, 1)
    await shop.hot.post([purchase(20, account="ada")])
    july = await statement(shop.database, "ada", month_of("2026-07"), shop.now)
    shop.now = at(7, 31, 23, 59)
    for _ in range(3):  # so many that halving comes upon one of them
        await shop.hot.post([purchase(40, account="ada")])
    assert await statement(shop.database, "ada", month_of("2026-07"), at(8, 1, 0, 1)) == july
    august = await statement(shop.database, "ada", month_of("2026-08"), shop.now)
    assert (august.opening, august.closing, august.entries) == (10, 150, 4)


async def test_a_suspension_by_a_slow_clock_takes_no_entry_back_in_time(shop: Shop) -> None:
    shop.now = at(8, 1, 0, 1)
    await shop.hot.post([purchase(20, account="ada")])
    shop.now = at(7, 31, 23, 59)
    await shop.accounts.suspend("ada", "test", actor="ops")
    for _ in range(3):
        await shop.hot.post([purchase(40, account="ada")])
    july = await statement(shop.database, "ada", month_of("2026-07"), shop.now)
    assert (july.closing, july.entries) == (0, 0)


async def test_every_boundary_is_found(shop: Shop) -> None:
    """Ten entries, three to a minute but for the last: halving finds each, from any number."""
    begin = at(7, 31, 23, 58)
    for number in range(10):
        shop.now = begin + number // 3 * 60_000
        await shop.hot.post([purchase(2**number, account="ada")])
    for minute in range(5):
        told = await outstanding(shop.database, begin + minute * 60_000)
        assert told.positive == 2 ** min(10, 3 * minute) - 1
    july = await statement(shop.database, "ada", month_of("2026-07"), shop.now)
    assert (july.last_seq, july.closing) == (6, 63)


async def test_outstanding_never_nets_what_is_owed_against_what_is_overdrawn(shop: Shop) -> None:
    await three_months(shop)
    july, august, end = at(8, 1), at(8, 1, 0, 1), at(10, 9) + 1
    assert await outstanding(shop.database, at(7, 1)) == Outstanding(
        at=at(7, 1), positive=0, negative=0, accounts_positive=0, accounts_negative=0
    )
    for moment, expected in (
        (july, (1050, 0, 1, 0)),
        (august, (820, 0, 2, 0)),
        (at(10, 9), (820, 0, 2, 0)),
        (end, (70, -150, 1, 1)),
    ):
        told = await outstanding(shop.database, moment)
        assert (
            told.positive, told.negative, told.accounts_positive, told.accounts_negative
        ) == expected  # fmt: skip


async def test_outstanding_is_the_sum_of_what_statements_close_with(shop: Shop) -> None:
    await three_months(shop)
    for name in ("2026-07", "2026-08", "2026-10"):
        month = month_of(name)
        closings = [
            (await statement(shop.database, account, month, shop.now)).closing
            for account in ("ada", "bob", "eve")
        ]
        told = await outstanding(shop.database, month.to_at)
        assert told.positive == sum(each for each in closings if each > 0)
        assert told.negative == sum(each for each in closings if each < 0)


@pytest.mark.parametrize(
    "name",
    ["", "2026", "2026-00", "2026-13", "2026-7", "1969-12", "9999-12", "２０２６-07", "2026-07\n"],
)
def test_what_is_no_month(name: str) -> None:
    with pytest.raises(UnknownMonthError):
        month_of(name)


def test_a_month_ends_where_the_next_begins() -> None:
    assert month_of("2026-12").to_at == month_of("2027-01").from_at
    assert month_of("2028-02").to_at - month_of("2028-02").from_at == 29 * 86_400_000
    assert Month(year=2026, number=7).name == "2026-07"
