"""Folds the rollup's past days: beside the sums by quarters those by UTC days, for long periods to be told quickly.

`usage_quarters` stays the truth. `folded_days` has a row for an account's day once it is folded
(`whole`: `usage_days` holds all of it) or once something was settled late in it (not `whole`: it is
to be folded anew). Without a row, or with one that is not whole, the quarters are read.

A late charge must never be missing from a day that is whole. So whoever settles or cancels a call of
a day that may be folded (billing.rollups) first writes that row as not whole, in the transaction that
adds to the rollup; and a fold first writes it as whole, then sums. Both write the same row, and of two
such writers one waits until the other has committed or rolled back:

- The late one first: the fold waits, and its sum, a statement of its own (READ COMMITTED), sees what
  the late one added.
- The fold first: the late one waits, then makes whole to not whole; whoever reads sees either both
  of its writes or none.

That holds for accounts without a row, too, which no lock on the account would cover. Nobody
deadlocks: a late writer takes accounts, then these rows, then those of the rollup, each in one
order for all; a fold takes these rows alone, in that order. On SQLite there is one writer at a time.
What is settled in time writes no such row: its day is out of reach of a fold for more than a day yet,
and clocks may differ by as much. A repair keeps folds out with a lock on `usage_days`, and then
makes not whole what differs. A fold that is killed leaves nothing, and two of the same day come one
after the other, and to the same.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy import bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.db.invariants import DAY_MS, ROLLUP_KEY, ROLLUP_SUMS
from billing.db.session import Database, insert_into
from billing.db.tables import folded_days
from billing.failpoints import reach
from billing.rollups import foldable_before

FOLDS_AT_ONCE: Final = 100  # in a run; each is a transaction of its own
ROWS_AT_ONCE: Final = 50_000  # quarters that a fold sums, unless one day has more: about 100 ms
# Of an account's day; fewer are read as quickly as the days' sums and the row that tells of them.
ROWS_MIN: Final = 32
WINDOW_MS: Final = 32 * DAY_MS  # the days that are looked through at a time,
ACCOUNTS_AT_ONCE: Final = 500  # and the accounts

# In `meta`: of what is before this time, only days that something came late to are to be folded.
FOLDED_TO: Final = "days_folded_to"


class Fold(msgspec.Struct, frozen=True, kw_only=True):
    """Some days (UTC) of an account that are folded together."""

    account: str
    days: tuple[int, ...]  # in their order


async def fold_days(
    database: Database, now: int, *, folds: int = FOLDS_AT_ONCE, rows_min: int = ROWS_MIN
) -> int:
    """Fold what is due, at most `folds` times; how many of an account's days. Raises what SQLAlchemy raises.

    At first what came late, then all that nobody has looked through yet, from the oldest on.
    """
    done = days = 0
    due = await _late(database, now, folds, rows_min)
    while True:
        for fold in due:
            async with database.write() as connection:
                await fold_in(connection, fold)
                reach("days_folded_uncommitted")
            done, days = done + 1, days + len(fold.days)
        if done >= folds or (window := await _next_window(database, now)) is None:
            return days
        due = await _unfolded(database, window, folds - done, rows_min)
        if not due:
            await _note_folded_to(database, window[1])


async def fold_in(connection: AsyncConnection, fold: Fold) -> None:
    """Sum the quarters of these days anew, in the caller's transaction."""
    if connection.dialect.name == "postgresql":
        # A repair is waited for with nothing in hand that a late charge would wait for.
        await connection.execute(text("LOCK TABLE usage_days IN ROW EXCLUSIVE MODE"))
    rows = [{"account": fold.account, "day_at": day, "whole": True} for day in fold.days]
    written = insert_into(connection, folded_days).values(rows)
    await connection.execute(
        written.on_conflict_do_update(index_elements=["account", "day_at"], set_={"whole": True})
    )
    values = {"account": fold.account, "days": list(fold.days)}
    await connection.execute(_CLEAR, values)
    span = {"from_at": fold.days[0], "to_at": fold.days[-1] + DAY_MS}
    await connection.execute(_SUM, values | span)


async def _late(database: Database, now: int, limit: int, rows_min: int) -> list[Fold]:
    """What was settled late, one by one; days that are too small for it are let go."""
    values = {"before": foldable_before(now), "limit": limit}
    async with database.read() as connection:
        found = (await connection.execute(text(_TO_FOLD), values)).all()
    small = [(account, day) for account, day, rows in found if rows < rows_min]
    if small:
        async with database.write() as connection:
            for account, day in small:
                # Without the row its quarters are read: right, whatever was added meanwhile.
                await connection.execute(text(_LET_GO), {"account": account, "day": day})
    return _folds([row for row in found if row[2] >= rows_min])


async def _next_window(database: Database, now: int) -> tuple[int, int] | None:
    before = foldable_before(now)
    async with database.read() as connection:
        marked = await connection.scalar(text(_READ_MARK), {"key": FOLDED_TO})
        begin = int(marked) if marked else await connection.scalar(text(_FIRST))
    if begin is None or begin >= before:
        return None
    begin -= begin % DAY_MS
    return begin, min(begin + WINDOW_MS, before)


async def _unfolded(
    database: Database, window: tuple[int, int], limit: int, rows_min: int
) -> list[Fold]:
    """Up to `limit` folds of days that nobody has folded yet; none: all are."""
    folds: list[Fold] = []
    after: str | None = ""
    while after is not None and len(folds) < limit:
        values = {"from_at": window[0], "to_at": window[1], "rows_min": rows_min}
        async with database.read() as connection:
            accounts = (await connection.scalars(text(_ACCOUNTS), {"after": after})).all()
            rows = (await connection.execute(_UNFOLDED, values | {"accounts": accounts})).all()
        folds += _folds(rows)
        after = accounts[-1] if len(accounts) == ACCOUNTS_AT_ONCE else None
    return folds[:limit]


def _folds(found: Sequence[Sequence[object]]) -> list[Fold]:
    """Account, day and number of quarters, in this order, put together as far as ROWS_AT_ONCE goes."""
    folds: list[Fold] = []
    room = first = 0
    for account, day, rows in found:
        assert isinstance(account, str)
        assert isinstance(day, int)
        assert isinstance(rows, int)
        room -= rows
        near = room >= 0 and day < first + WINDOW_MS
        if folds and folds[-1].account == account and near:
            folds[-1] = Fold(account=account, days=(*folds[-1].days, day))
        else:
            folds.append(Fold(account=account, days=(day,)))
            room, first = ROWS_AT_ONCE - rows, day
    return folds


async def _note_folded_to(database: Database, at: int) -> None:
    # Another process may be further on already; then its days are looked through once more.
    async with database.write() as connection:
        await connection.execute(text(_WRITE_MARK), {"key": FOLDED_TO, "value": str(at)})


_DAY: Final = f"bucket_at - bucket_at % {DAY_MS}"
_CLEAR: Final = text(
    "DELETE FROM usage_days WHERE account = :account AND bucket_at IN :days"
).bindparams(bindparam("days", expanding=True))
_SUM: Final = text(
    f"INSERT INTO usage_days ({', '.join((*ROLLUP_KEY, *ROLLUP_SUMS))})"  # noqa: S608 - constants
    f" SELECT account, {_DAY}, {', '.join(ROLLUP_KEY[2:])},"
    f" {', '.join(f'SUM({name})' for name in ROLLUP_SUMS)} FROM usage_quarters"
    " WHERE account = :account AND bucket_at >= :from_at AND bucket_at < :to_at"
    f" AND {_DAY} IN :days GROUP BY account, {_DAY}, {', '.join(ROLLUP_KEY[2:])}"
).bindparams(bindparam("days", expanding=True))
_TO_FOLD: Final = f"""
    SELECT account, day_at, (SELECT COUNT(*) FROM usage_quarters q WHERE q.account = f.account
        AND q.bucket_at >= f.day_at AND q.bucket_at < f.day_at + {DAY_MS})
    FROM folded_days f WHERE NOT whole AND day_at < :before ORDER BY account, day_at LIMIT :limit
"""  # noqa: S608 - constants
_LET_GO: Final = "DELETE FROM folded_days WHERE account = :account AND day_at = :day AND NOT whole"
_READ_MARK: Final = "SELECT value FROM meta WHERE key = :key"
_WRITE_MARK: Final = (
    "INSERT INTO meta (key, value) VALUES (:key, :value)"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
# A look into the key for each account. Those without a row were charged for nothing: few calls.
_FIRST: Final = (
    "SELECT MIN((SELECT MIN(bucket_at) FROM usage_quarters q WHERE q.account = a.account))"
    " FROM accounts a"
)
_ACCOUNTS: Final = (
    f"SELECT account FROM accounts WHERE account > :after ORDER BY account LIMIT {ACCOUNTS_AT_ONCE}"  # noqa: S608
)
_UNFOLDED: Final = text(f"""
    SELECT account, day_at, quarters FROM (
        SELECT account, {_DAY} AS day_at, COUNT(*) AS quarters FROM usage_quarters
        WHERE account IN :accounts AND bucket_at >= :from_at AND bucket_at < :to_at
        GROUP BY account, {_DAY} HAVING COUNT(*) >= :rows_min
    ) AS large WHERE NOT EXISTS (SELECT 1 FROM folded_days f
        WHERE f.account = large.account AND f.day_at = large.day_at)
    ORDER BY account, day_at
""").bindparams(bindparam("accounts", expanding=True))  # noqa: S608 - constants
