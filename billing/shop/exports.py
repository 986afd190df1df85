"""An account's ledger as CSV (RFC 4180), a piece at a time, oldest entry first.

https://www.rfc-editor.org/rfc/rfc4180. Times are ISO 8601 in UTC; every amount stands twice, as
decimal credits for people and as integer micro-credits. Spreadsheets take a cell for a formula that
begins with one of a few characters: texts that do so get an apostrophe in front, numbers do not. So
do parts of a text behind a semicolon or tab, at which spreadsheets of many countries cut cells.
"""

import csv
import datetime as dt
import io
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from pricing_rules.money import format_credits

if TYPE_CHECKING:  # commands write CSV as well, and need no database for that
    from billing.accounts import Accounts, EntryFilter, Transaction

ROWS_AT_ONCE: Final = 1_000

COLUMNS: Final = (
    "number", "event_id", "created_at", "source", "source_label", "direction", "status",
    "amount_credits", "amount_micro_credits", "balance_after_credits",
    "balance_after_micro_credits", "description", "order_id", "source_ref_id",
)  # fmt: skip

# The last ones are what keyboards of East Asia write.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NEXT_CELL: Final = re.compile(r"([;\t]\s*)(?=[=+\-@＝＋－＠])")
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND: Final = dt.timedelta(milliseconds=1)


async def transactions_csv(
    accounts: "Accounts", account: str, wanted: "EntryFilter"
) -> AsyncIterator[bytes]:
    """The header and every entry that is there when it is its turn, in pieces of ROWS_AT_ONCE.

    Entries are only ever added at the end, so what is told is without gap or repeat whatever is
    posted meanwhile; each piece is a transaction of its own. Raises what SQLAlchemy raises.
    """
    # The first rows come with the header: should the database be away, nothing was sent yet.
    rows = await accounts.entries_from(account, wanted, after=0, limit=ROWS_AT_ONCE)
    yield _lines([COLUMNS, *map(_cells, rows)])
    while len(rows) == ROWS_AT_ONCE:
        after = rows[-1].account_seq or 0
        rows = await accounts.entries_from(account, wanted, after=after, limit=ROWS_AT_ONCE)
        if rows:
            yield _lines([_cells(row) for row in rows])


def _cells(entry: "Transaction") -> tuple[str, ...]:
    return (
        str(entry.account_seq),
        safe_text(entry.event_id),
        _time(entry.created_at),
        safe_text(entry.source),
        safe_text(entry.source_label),
        entry.direction,
        safe_text(entry.status),
        format_credits(entry.amount),
        str(entry.amount),
        format_credits(entry.balance_after),
        str(entry.balance_after),
        safe_text(entry.description),
        safe_text(entry.order_id or ""),
        safe_text(entry.source_ref_id or ""),
    )


def safe_text(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    # Some of them overlook spaces in front.
    if text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA):
        text = f"'{text}"
    return _NEXT_CELL.sub(r"\1'", text)


def _time(at_ms: int) -> str:
    moment = _EPOCH + at_ms * _MILLISECOND
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _lines(rows: list[tuple[str, ...]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()
