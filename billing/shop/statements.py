"""What finance asks of the ledger: an account's statement of a month, and what is owed to all at a date.

A month is one of UTC, and an entry belongs to that in which it was posted (`posted_at`), not to the
one its call or order was made in (`created_at`): what is posted late is in the next statement, and a
month that is over never changes. Within an account `posted_at` never falls as the numbers rise
(billing.ledger sees to it), so a month is a range of numbers, found by halving: no index on times
is needed, and a charge pays for none.
"""

import datetime as dt
import re
from typing import Final

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.db.session import Database

SETTLED_MS: Final = (
    300_000  # a process whose clock is slow may post into a month for so long after its end
)

_MONTH: Final = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")
_YEAR_MIN: Final = 1970


class Month(msgspec.Struct, frozen=True, kw_only=True):
    """A calendar month, UTC."""

    year: int
    number: int

    @property
    def name(self) -> str:
        """As 2026-09."""
        return f"{self.year:04d}-{self.number:02d}"

    @property
    def from_at(self) -> int:
        """Its first millisecond."""
        return _first_ms(self.year, self.number)

    @property
    def to_at(self) -> int:
        """The first millisecond after it."""
        return _first_ms(self.year + self.number // 12, self.number % 12 + 1)


class UnknownMonthError(ValueError):
    """No month is written like this: yyyy-mm, from 1970-01 on."""


class StatementLine(msgspec.Struct, frozen=True, kw_only=True):
    """The entries of one source and direction that moved money; micro-credits, signed."""

    source: str
    direction: str
    amount: int
    entries: int


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """A month of an account: `opening` + the sum of `lines` = `closing` = the next month's opening.

    Micro-credits. `first_seq`, `last_seq`: the numbers of its entries; None: there are none.
    `entries` counts all of them, those that moved nothing too. `closed`: it will never change.
    """

    account: str
    month: Month
    opening: int
    closing: int
    lines: tuple[StatementLine, ...]
    entries: int
    first_seq: int | None
    last_seq: int | None
    closed: bool


class Outstanding(msgspec.Struct, frozen=True, kw_only=True):
    """What accounts had at a moment: entries posted before `at` (milliseconds since the epoch) count.

    positive: credit that may yet be consumed, owed to its owners. negative: what was consumed
    beyond the balance (a sum below 0). Micro-credits; never netted against each other.
    """

    at: int
    positive: int
    negative: int
    accounts_positive: int
    accounts_negative: int


def month_of(name: str) -> Month:
    """A month by its name, as 2026-09; raises UnknownMonthError."""
    found = _MONTH.fullmatch(name)
    if found is None or not name.isascii() or not _YEAR_MIN <= int(found[1]) <= dt.MAXYEAR - 1:
        raise UnknownMonthError
    return Month(year=int(found[1]), number=int(found[2]))


async def statement(database: Database, account: str, month: Month, now: int) -> Statement:
    """The statement of a month, as of `now`; zeros of an account that was never posted to."""
    async with database.read() as connection:
        before, opening = await _last(connection, account, month.from_at)
        last, closing = await _last(connection, account, month.to_at)
        rows = await connection.execute(
            text(_LINES), {"account": account, "before": before, "last": last}
        )
        lines = tuple(
            StatementLine(source=row[0], direction=row[1], amount=row[2], entries=row[3])
            for row in rows
        )
    return Statement(
        account=account,
        month=month,
        opening=opening,
        closing=closing,
        lines=lines,
        entries=last - before,  # the numbers have no gap
        first_seq=before + 1 if last > before else None,
        last_seq=last if last > before else None,
        closed=now >= month.to_at + SETTLED_MS,
    )


async def outstanding(database: Database, at: int) -> Outstanding:
    """What all accounts had at a moment, from the last entry of each before it."""
    async with database.read() as connection:
        row = (await connection.execute(text(_OUTSTANDING), {"at": at})).one()
    return Outstanding(
        at=at,
        positive=row[0],
        negative=row[1],
        accounts_positive=row[2],
        accounts_negative=row[3],
    )


async def _last(connection: AsyncConnection, account: str, at: int) -> tuple[int, int]:
    """Number and balance of an account's last entry before a moment; 0 and 0: there is none."""
    found = await connection.execute(text(_LAST), {"account": account, "at": at})
    row = found.one_or_none()
    return (row[0], row[1]) if row else (0, 0)


def _first_ms(year: int, month: int) -> int:
    return round(dt.datetime(year, month, 1, tzinfo=dt.UTC).timestamp()) * 1000


def _search(accounts: str) -> str:
    """The number of the last entry before :at, of some accounts: halving what lies between.

    A subquery and no join, so that it is the index that answers, however many accounts there are.
    """
    middle = "(s.low + s.high + 1) / 2"
    early = (
        "(SELECT e.posted_at FROM ledger_entries e WHERE e.account = s.account"  # noqa: S608
        f" AND e.account_seq = {middle}) < :at"
    )
    return f"""
        WITH RECURSIVE search(account, low, high) AS (
            SELECT account, CAST(0 AS BIGINT), seq FROM accounts WHERE {accounts}
            UNION ALL
            SELECT s.account, CASE WHEN {early} THEN {middle} ELSE s.low END,
                CASE WHEN {early} THEN s.high ELSE {middle} - 1 END
            FROM search s WHERE s.low < s.high
        ), entries AS (
            SELECT s.account, s.low AS account_seq, (SELECT e.balance_after FROM ledger_entries e
                WHERE e.account = s.account AND e.account_seq = s.low) AS balance
            FROM search s WHERE s.low = s.high AND s.low > 0
        )
    """  # noqa: S608 - constants


_LAST: Final = f"{_search('account = :account')} SELECT account_seq, balance FROM entries"  # noqa: S608
_LINES: Final = """
    SELECT source, direction,
        CAST(SUM(CASE WHEN status = 'applied' THEN amount ELSE 0 END) AS BIGINT), COUNT(*)
    FROM ledger_entries
    WHERE account = :account AND account_seq > :before AND account_seq <= :last
    GROUP BY source, direction ORDER BY source, direction
"""
# Nothing was posted since to an account that has not changed since.
_OUTSTANDING: Final = f"""
    {_search("updated_at >= :at AND created_at < :at")}
    SELECT CAST(COALESCE(SUM(CASE WHEN balance > 0 THEN balance END), 0) AS BIGINT),
        CAST(COALESCE(SUM(CASE WHEN balance < 0 THEN balance END), 0) AS BIGINT),
        COUNT(CASE WHEN balance > 0 THEN 1 END), COUNT(CASE WHEN balance < 0 THEN 1 END)
    FROM (
        SELECT balance FROM accounts WHERE updated_at < :at
        UNION ALL
        SELECT balance FROM entries
    ) AS balances
"""  # noqa: S608 - constants
