"""What a turn of the SQLite writer does in its transaction: plain SQL for many operations at once.

Every function runs inside a transaction of the caller. The functions named `*_all` assume that no
operation repeats an earlier one, which is so but for retries; sqlite3.IntegrityError says it was
not, and the caller then runs each operation by itself with `careful=True`, which looks first.
"""

import itertools
import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final

import msgspec

from billing.db.decide import (
    Credit,
    Grants,
    Settlement,
    final_ids_of,
    refused_ids,
    with_earlier_grants,
)
from billing.db.hot import EventConflictError, SettleReport
from billing.db.invariants import CANCELLED, ESTIMATES, FAILED, ROLLUP_KEY, ROLLUP_SUMS
from billing.db.rows import (
    ACCOUNT_COLUMNS,
    ENTRY_COLUMNS,
    HOLD_COLUMNS,
    IDENTITY_COLUMNS,
    OUTBOX_COLUMNS,
    QUARANTINE_COLUMNS,
    USAGE_COLUMNS,
    Row,
    Waiting,
    account_of,
    digest_of,
    entry_of,
    orphan_estimate,
    outbox_row,
    quarantine_row_of,
    record_conflict,
    usage_row,
)
from billing.events import Finish, Revision
from billing.failpoints import reach
from billing.holds import Applied, Granted, HoldBeat, HoldRequest, Refused
from billing.ledger import Account, Batch, Entry, LedgerEntry, Posted, PostResult, normalise
from billing.rollups import COLUMNS as ROLLUP_COLUMNS
from billing.rollups import late_days

# Rows per INSERT: one step of SQLite, and so one release of the interpreter lock, for many rows.
_CHUNKS: Final = (32, 8, 1)


@cache
def _insert_sql(table: str, columns: str, rows: int) -> str:
    width = columns.count(",") + 1
    row = f"({','.join('?' * width)})"
    return f"INSERT INTO {table} ({columns}) VALUES {','.join([row] * rows)}"  # noqa: S608


def _insert(connection: sqlite3.Connection, table: str, columns: str, rows: Sequence[Row]) -> None:
    done = 0
    for size in _CHUNKS:
        while len(rows) - done >= size:
            chunk = rows[done : done + size]
            values = chunk[0] if size == 1 else tuple(itertools.chain.from_iterable(chunk))
            connection.execute(_insert_sql(table, columns, size), values)
            done += size


def _ids(ids: Iterable[str]) -> str:
    """Ids as one parameter for json_each: the statement stays the same whatever their number."""
    return msgspec.json.encode(list(ids)).decode()


# --- holds ---------------------------------------------------------------------------------------


def reserve_all(
    connection: sqlite3.Connection, requests: list[HoldRequest], *, careful: bool
) -> list[Granted | Refused]:
    """Grant min(wanted, balance - held) if that is at least the minimum, in the order asked."""
    if careful:
        known = connection.execute(
            "SELECT amount FROM holds WHERE hold_id = ?", (requests[0].hold_id,)
        ).fetchone()
        if known is not None:
            return [Granted(known[0])]
    grants = Grants(requests, _credits(connection, {request.account for request in requests}))
    _insert(connection, "holds", HOLD_COLUMNS, grants.holds)
    for account, held in grants.held():
        connection.execute("UPDATE accounts SET held = ? WHERE account = ?", (held, account))
    # Repeats that are granted anew need no look: their second row is an IntegrityError.
    refused = refused_ids(requests, grants.answers)
    if not refused:
        return grants.answers
    found = connection.execute(
        "SELECT hold_id, amount FROM holds WHERE hold_id IN (SELECT value FROM json_each(?))",
        (_ids(refused),),
    )
    return with_earlier_grants(requests, grants.answers, dict(found.fetchall()))


def _credits(connection: sqlite3.Connection, accounts: set[str]) -> dict[str, Credit]:
    found: dict[str, Credit] = {}
    for account in accounts:
        row = connection.execute(
            "SELECT balance, held, suspended FROM accounts WHERE account = ?", (account,)
        ).fetchone()
        found[account] = Credit(*row) if row else Credit(0, 0, 0)
    return found


def extend(connection: sqlite3.Connection, hold_id: str, new_total: int) -> Granted | Refused:
    """Raise a hold to `new_total`, whole or not at all; a hold that is gone cannot grow."""
    row = connection.execute(
        "SELECT account, amount FROM holds WHERE hold_id = ? AND state = 'live'", (hold_id,)
    ).fetchone()
    if row is None:
        return Refused(reason="insufficient", balance=0, held=0, needed=new_total)
    account, amount = row
    if new_total <= amount:
        return Granted(amount)
    more = new_total - amount
    answer = _credits(connection, {account})[account].grant(more, more)
    if isinstance(answer, Refused):
        return answer
    _change_hold(connection, hold_id, account, more)
    return Granted(new_total)


def _change_hold(connection: sqlite3.Connection, hold_id: str, account: str, more: int) -> None:
    connection.execute("UPDATE holds SET amount = amount + ? WHERE hold_id = ?", (more, hold_id))
    _change_held(connection, account, more)


def _change_held(connection: sqlite3.Connection, account: str, more: int) -> None:
    # Not below 0: should `held` ever be wrong, settlement goes on, and R6 tells of it.
    connection.execute(
        "UPDATE accounts SET held = max(0, held + ?) WHERE account = ?", (more, account)
    )


def heartbeat(connection: sqlite3.Connection, beats: Iterable[HoldBeat]) -> None:
    """Progress never goes back, an amount never down; a hold that is gone stays gone."""
    for beat in beats:
        row = connection.execute(
            "UPDATE holds SET progress = max(progress, ?) WHERE hold_id = ? AND state = 'live'"
            " RETURNING account, amount",
            (beat.progress, beat.hold_id),
        ).fetchone()
        if row is not None and beat.amount > row[1]:
            _change_hold(connection, beat.hold_id, row[0], beat.amount - row[1])


def _lower(connection: sqlite3.Connection, charged: list[tuple[str, int]]) -> None:
    """Of an estimated call only the rest stays held; a rest of nothing goes."""
    for hold_id, amount in charged:
        row = connection.execute(
            "SELECT account, amount FROM holds WHERE hold_id = ? AND state = 'live'", (hold_id,)
        ).fetchone()
        if row is None:
            continue
        account, held = row
        if held <= amount:
            release(connection, [hold_id])
            continue
        connection.execute("UPDATE holds SET state = 'residual' WHERE hold_id = ?", (hold_id,))
        _change_hold(connection, hold_id, account, -amount)


def release(connection: sqlite3.Connection, hold_ids: list[str]) -> None:
    """Drop holds, and what they held of their accounts."""
    freed: dict[str, int] = {}
    gone = connection.execute(
        "DELETE FROM holds WHERE hold_id IN (SELECT value FROM json_each(?))"
        " RETURNING account, amount",
        (_ids(hold_ids),),
    ).fetchall()
    for account, amount in gone:
        freed[account] = freed.get(account, 0) + amount
    for account, amount in freed.items():
        if amount:
            _change_held(connection, account, -amount)


# --- charge events -------------------------------------------------------------------------------


def record_all(
    connection: sqlite3.Connection, finishes: list[Finish], now: int, *, careful: bool
) -> list[EventConflictError | None]:
    """Write usage and outbox row of each; a repeat is compared with what stands."""
    if careful and (row := _recorded(connection, finishes[0])) is not None:
        return [record_conflict(finishes[0], row)]
    usage_rows: list[Row] = []
    outbox_rows: list[Row] = []
    for finish in finishes:
        digest = digest_of(finish)
        usage_rows.append(usage_row(finish, digest))
        outbox_rows.append(outbox_row(finish, digest, now))
    _insert(connection, "usage", USAGE_COLUMNS, usage_rows)
    reach("usage_written")
    _insert(connection, "outbox", OUTBOX_COLUMNS, outbox_rows)
    return [None] * len(finishes)


def _recorded(connection: sqlite3.Connection, finish: Finish) -> Row | None:
    """The IDENTITY_COLUMNS of the usage row that this event and revision have already."""
    row: Row | None = connection.execute(
        f"SELECT {', '.join(IDENTITY_COLUMNS)} FROM usage"  # noqa: S608
        " WHERE event_id = ? AND revision = ?",
        (finish.event.context.event_id, finish.event.revision),
    ).fetchone()
    return row


def cancel(
    connection: sqlite3.Connection, finish: Finish, now: int, *, holds_here: bool = True
) -> EventConflictError | None:
    """Note that nothing is charged and drop the hold; takes an estimate back if there is one."""
    context = finish.event.context
    event_id = context.event_id
    if (row := _recorded(connection, finish)) is not None:
        return record_conflict(finish, row)
    digest = digest_of(finish)
    _insert(connection, "usage", USAGE_COLUMNS, [usage_row(finish, digest)])
    connection.execute(_COUNT_CANCELLED, (event_id,))
    _unfold(connection, late_days([(context.account, context.started_at)], now))
    estimated = connection.execute(
        "SELECT 1 FROM usage WHERE event_id = ? AND revision = ?", (event_id, Revision.ESTIMATE)
    ).fetchone()
    if estimated:
        _insert(connection, "outbox", OUTBOX_COLUMNS, [outbox_row(finish, digest, now)])
    if holds_here:
        release(connection, [event_id])
    return None


def adopt_orphans(connection: sqlite3.Connection, process: str, now: int) -> int:
    """Charge the holds of every other process, as far as nothing is recorded, at their progress.

    Whoever calls this knows that those processes are gone. The estimate's settlement drops the hold.
    Holds of corrections and re-ratings are no calls': these are resumed.
    """
    orphans = connection.execute(
        "SELECT hold_id, account, amount, progress, context FROM holds"
        " WHERE process <> ? AND NOT EXISTS (SELECT 1 FROM usage WHERE event_id = hold_id)",
        (process,),
    ).fetchall()
    adopted = 0
    for hold_id, account, amount, progress, context in orphans:
        estimate = orphan_estimate(hold_id, account, amount, progress, context, now)
        if isinstance(estimate, Finish):
            record_all(connection, [estimate], now, careful=False)
            # Nobody who could still spend the rest is alive.
            _change_hold(connection, hold_id, account, min(0, progress - amount))
        elif estimate is not None:
            set_aside(connection, estimate)
        adopted += estimate is not None
    return adopted


def set_aside(connection: sqlite3.Connection, row: Row) -> None:
    """Put into quarantine what is not there yet."""
    connection.execute(
        f"INSERT INTO quarantine ({QUARANTINE_COLUMNS})"  # noqa: S608
        " SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE NOT EXISTS (SELECT 1 FROM quarantine"
        " WHERE event_id = ?1 AND revision = ?2 AND payload = ?6 AND resolved_at IS NULL)",
        row,
    )


# --- the ledger ----------------------------------------------------------------------------------


class Settled:
    """What became of rows of the outbox."""

    __slots__ = ("applied", "entries", "quarantined")

    def __init__(
        self,
        quarantined: int,
        applied: tuple[Applied, ...] = (),
        entries: Sequence[LedgerEntry] = (),
    ) -> None:
        self.quarantined = quarantined
        self.applied = applied
        self.entries = tuple(entries)  # that stand for the rows, since now or before

    def __add__(self, other: "Settled") -> "Settled":
        return Settled(
            self.quarantined + other.quarantined,
            self.applied + other.applied,
            self.entries + other.entries,
        )


def settle(
    connection: sqlite3.Connection, limit: int, now: int, *, holds_here: bool = True
) -> SettleReport:
    """Post the first `limit` rows of the outbox; what cannot be posted goes to quarantine."""
    rows = [
        Waiting(*row)
        for row in connection.execute(
            "SELECT event_id, revision, cancelled, account, payload, payload_hash FROM outbox"
            " ORDER BY event_id, revision LIMIT ?",
            (limit,),
        )
    ]
    settled = Settled(0)
    if rows:
        settled = settle_or_split(connection, rows, now, holds_here=holds_here)
        # They are exactly the head of the outbox: nobody else writes during this transaction.
        connection.execute(
            "DELETE FROM outbox WHERE (event_id, revision) <= (?, ?)",
            (rows[-1].event_id, rows[-1].revision),
        )
        reach("settled_uncommitted")
    oldest = None
    if len(rows) == limit:
        oldest = connection.execute("SELECT created_at FROM outbox LIMIT 1").fetchone()
    return SettleReport(
        settled=len(rows) - settled.quarantined,
        quarantined=settled.quarantined,
        remaining=oldest is not None,
        oldest_at=oldest[0] if oldest else None,
        applied=settled.applied,
    )


def settle_or_split(
    connection: sqlite3.Connection, rows: list[Waiting], now: int, *, holds_here: bool = True
) -> Settled:
    """Settle rows; halve them until a row that breaks stands alone, and set that one aside."""
    connection.execute("SAVEPOINT part")
    try:
        settled = _settle_rows(connection, rows, now, holds_here=holds_here)
    except (sqlite3.IntegrityError, ArithmeticError, ValueError, AssertionError) as error:
        connection.execute("ROLLBACK TO part")
        if len(rows) == 1:
            reason = f"{type(error).__name__}: cannot be posted"
            set_aside(connection, quarantine_row_of(rows[0], reason, now))
            settled = Settled(1)
        else:
            half = len(rows) // 2
            settled = settle_or_split(connection, rows[:half], now, holds_here=holds_here)
            settled += settle_or_split(connection, rows[half:], now, holds_here=holds_here)
    connection.execute("RELEASE part")
    return settled


def _settle_rows(
    connection: sqlite3.Connection, rows: list[Waiting], now: int, *, holds_here: bool
) -> Settled:
    settlement = Settlement(rows, now)
    batch = settlement.decide(
        _accounts(connection, settlement.accounts),
        entries_of_calls(connection, settlement.event_ids),
        _finals(connection, settlement.estimates),
        _failed(connection, settlement.doubtful),
    )
    for row in settlement.set_aside:
        set_aside(connection, row)
    _write(connection, batch)
    _write_rollup(connection, settlement)
    if holds_here:
        _lower(connection, settlement.estimated())
        release(connection, settlement.finished())
    return Settled(len(settlement.set_aside), settlement.applied(), settlement.entries)


def post(connection: sqlite3.Connection, entries: list[Entry], now: int) -> list[PostResult]:
    """Post entries that are no calls; each has its own outcome."""
    tidy = [e for e in (normalise(entry, now) for entry in entries) if isinstance(e, Entry)]
    batch = Batch(
        accounts=_accounts(connection, {entry.account for entry in tidy}),
        entries=_entries(connection, [entry.event_id for entry in tidy]),
        now=now,
    )
    results = [batch.post(entry) for entry in entries]
    _write(connection, batch)
    assert sum(isinstance(result, Posted) for result in results) == len(batch.written)
    return results


def _write(connection: sqlite3.Connection, batch: Batch) -> None:
    rows = [_fields_of_entry(entry) for entry in batch.written]
    _insert(connection, "ledger_entries", ENTRY_COLUMNS, rows)
    for account in batch.changed():
        connection.execute(_WRITE_ACCOUNT, _fields_of_account(account))


def _write_rollup(connection: sqlite3.Connection, settlement: Settlement) -> None:
    if settlement.superseded:
        estimates = f"{ESTIMATES} (SELECT value FROM json_each(?))"  # noqa: S608 - constants
        for row in connection.execute(estimates, (_ids(settlement.superseded),)):
            settlement.rollup.take_back(row)
    connection.executemany(_ADD_TO_ROLLUP, settlement.rollup.rows())
    _unfold(connection, settlement.late_days())


def _unfold(connection: sqlite3.Connection, days: list[tuple[str, int]]) -> None:
    """Of an account's day there is more now than what may have been folded."""
    for day in days:
        connection.execute(_UNFOLD, day)


def _fields_of_entry(entry: LedgerEntry) -> Row:
    return msgspec.structs.astuple(entry)


def _fields_of_account(account: Account) -> Row:
    return msgspec.structs.astuple(account)


def _accounts(connection: sqlite3.Connection, accounts: set[str]) -> list[Account]:
    rows = connection.execute(
        f"SELECT {ACCOUNT_COLUMNS} FROM accounts"  # noqa: S608
        " WHERE account IN (SELECT value FROM json_each(?))",
        (_ids(accounts),),
    )
    return [account_of(row) for row in rows]


def _entries(connection: sqlite3.Connection, event_ids: list[str]) -> list[LedgerEntry]:
    rows = connection.execute(
        f"SELECT {ENTRY_COLUMNS} FROM ledger_entries"  # noqa: S608
        " WHERE event_id IN (SELECT value FROM json_each(?))",
        (_ids(event_ids),),
    )
    return [entry_of(row) for row in rows]


def entries_of_calls(connection: sqlite3.Connection, event_ids: list[str]) -> list[LedgerEntry]:
    """Their entries, and where one is an estimate, the `:final` that may have followed it."""
    found = _entries(connection, event_ids)
    estimated = final_ids_of(found)
    return found + _entries(connection, estimated) if estimated else found


def _finals(connection: sqlite3.Connection, event_ids: list[str]) -> set[str]:
    if not event_ids:
        return set()
    rows = connection.execute(
        "SELECT event_id FROM usage WHERE revision = 2"
        " AND event_id IN (SELECT value FROM json_each(?))",
        (_ids(event_ids),),
    )
    return {row[0] for row in rows}


def _failed(connection: sqlite3.Connection, event_ids: list[str]) -> set[tuple[str, int]]:
    if not event_ids:
        return set()
    query = f"{FAILED} (SELECT value FROM json_each(?))"  # noqa: S608 - constants
    return set(connection.execute(query, (_ids(event_ids),)))


def _write_account_sql() -> str:
    fields = Account.__struct_fields__
    fixed = ("account", "created_at", "suspended")  # an admin's act is no matter of the ledger's
    changes = ", ".join(f"{field} = excluded.{field}" for field in fields if field not in fixed)
    marks = ", ".join("?" * len(fields))
    return (
        f"INSERT INTO accounts ({ACCOUNT_COLUMNS}) VALUES ({marks})"  # noqa: S608
        f" ON CONFLICT (account) DO UPDATE SET {changes}"
    )


_WRITE_ACCOUNT: Final = _write_account_sql()
_ADDED: Final = f"ON CONFLICT ({', '.join(ROLLUP_KEY)}) DO UPDATE SET " + ", ".join(
    f"{name} = {name} + excluded.{name}" for name in ROLLUP_SUMS
)
_ADD_TO_ROLLUP: Final = (
    f"INSERT INTO usage_quarters ({ROLLUP_COLUMNS})"  # noqa: S608
    f" VALUES ({', '.join('?' * (ROLLUP_COLUMNS.count(',') + 1))}) {_ADDED}"
)
_UNFOLD: Final = (
    "INSERT INTO folded_days (account, day_at, whole) VALUES (?, ?, false)"
    " ON CONFLICT (account, day_at) DO UPDATE SET whole = false"
)
_COUNT_CANCELLED: Final = (
    f"INSERT INTO usage_quarters ({ROLLUP_COLUMNS}) SELECT account, {CANCELLED} FROM usage"  # noqa: S608
    f" WHERE event_id = ? AND revision = {Revision.FINAL} {_ADDED}"
)
