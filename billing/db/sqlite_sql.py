"""What a turn of the SQLite writer does in its transaction: plain SQL for many operations at once.

Every function runs inside a transaction of the caller. The functions named `*_all` assume that no
operation repeats an earlier one, which is so but for retries; sqlite3.IntegrityError says it was
not, and the caller then runs each operation by itself with `careful=True`, which looks first.
"""

import itertools
import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final, Literal

import msgspec

from billing.context import decode_context
from billing.db.hot import EventConflictError, SettleReport
from billing.events import (
    ChargeEvent,
    Finish,
    Revision,
    UsageNotes,
    UsageQuality,
    UsageSource,
    payload_hash,
)
from billing.failpoints import reach
from billing.holds import Granted, HoldBeat, HoldRequest, Refused
from billing.ledger import (
    FINAL_SUFFIX,
    Account,
    Batch,
    Dropped,
    Entry,
    EntryRefused,
    EventConflict,
    LedgerEntry,
    PendingCharge,
    Posted,
    PostResult,
    normalise,
)
from pricing_rules.usage import Usage

Value = str | int | bytes | None
Row = tuple[Value, ...]
RefusalReason = Literal["insufficient", "held", "suspended"]

_USAGE_COLUMNS: Final = (
    "event_id, revision, cancelled, account, key_id, app, scene, provider, model_requested,"
    " model_sent, run_id, client_request_id, book, rule, input, cached_input, cache_write_5m,"
    " cache_write_1h, audio_input, image_input, output, reasoning, audio_output, quality,"
    " usage_source, amount, ceiling, reason, raw_usage, upstream_request_id, failed_attempts,"
    " payload_hash, started_at, finished_at"
)
_OUTBOX_COLUMNS: Final = "event_id, revision, cancelled, account, payload, payload_hash, created_at"
_HOLD_COLUMNS: Final = "hold_id, account, amount, process, started_at, context"
_ENTRY_COLUMNS: Final = ", ".join(LedgerEntry.__struct_fields__)
_ACCOUNT_COLUMNS: Final = ", ".join(Account.__struct_fields__)

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


class _Credit:
    """What an account can still hold while a turn grants one request after the other."""

    __slots__ = ("balance", "changed", "held", "suspended")

    def __init__(self, balance: int, held: int, suspended: int) -> None:
        self.balance = balance
        self.held = held
        self.suspended = bool(suspended)
        self.changed = False

    def grant(self, minimum: int, wanted: int) -> Granted | Refused:
        if self.suspended:
            return self._refused("suspended", minimum)
        available = self.balance - self.held
        if available < minimum:
            return self._refused("held" if self.balance >= minimum else "insufficient", minimum)
        amount = min(wanted, available)
        self.held += amount
        self.changed = self.changed or amount != 0
        return Granted(amount)

    def _refused(self, reason: RefusalReason, needed: int) -> Refused:
        return Refused(reason=reason, balance=self.balance, held=self.held, needed=needed)


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
    credits_by_account = _credits(connection, {request.account for request in requests})
    answers: list[Granted | Refused] = []
    rows: list[Row] = []
    for request in requests:
        credit = credits_by_account[request.account]
        answer = credit.grant(request.minimum, request.wanted)
        answers.append(answer)
        if isinstance(answer, Granted):
            rows.append(
                (
                    request.hold_id,
                    request.account,
                    answer.amount,
                    request.process,
                    request.started_at,
                    request.context,
                )
            )
    _insert(connection, "holds", _HOLD_COLUMNS, rows)
    for account, credit in credits_by_account.items():
        if credit.changed:
            connection.execute(
                "UPDATE accounts SET held = ? WHERE account = ?", (credit.held, account)
            )
    return _with_earlier_grants(connection, requests, answers)


def _with_earlier_grants(
    connection: sqlite3.Connection,
    requests: list[HoldRequest],
    answers: list[Granted | Refused],
) -> list[Granted | Refused]:
    """A repeat may find no credit left, because its own first try took it: that one was granted.

    Repeats that are granted anew need no look here: their second row is an IntegrityError.
    """
    refused = [
        request.hold_id
        for request, answer in zip(requests, answers, strict=True)
        if isinstance(answer, Refused)
    ]
    if not refused:
        return answers
    found = connection.execute(
        "SELECT hold_id, amount FROM holds WHERE hold_id IN (SELECT value FROM json_each(?))",
        (_ids(refused),),
    ).fetchall()
    if not found:
        return answers
    granted = {hold_id: Granted(amount) for hold_id, amount in found}
    return [
        granted.get(request.hold_id, answer)
        for request, answer in zip(requests, answers, strict=True)
    ]


def _credits(connection: sqlite3.Connection, accounts: set[str]) -> dict[str, _Credit]:
    found: dict[str, _Credit] = {}
    for account in accounts:
        row = connection.execute(
            "SELECT balance, held, suspended FROM accounts WHERE account = ?", (account,)
        ).fetchone()
        found[account] = _Credit(*row) if row else _Credit(0, 0, 0)
    return found


def extend(connection: sqlite3.Connection, hold_id: str, new_total: int) -> Granted | Refused:
    """Raise a hold to `new_total`, whole or not at all; a hold that is gone cannot grow."""
    row = connection.execute(
        "SELECT account, amount FROM holds WHERE hold_id = ?", (hold_id,)
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
            "UPDATE holds SET progress = max(progress, ?) WHERE hold_id = ?"
            " RETURNING account, amount",
            (beat.progress, beat.hold_id),
        ).fetchone()
        if row is not None and beat.amount > row[1]:
            _change_hold(connection, beat.hold_id, row[0], beat.amount - row[1])


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
    if careful and (answer := _recorded(connection, finishes[0])) is not None:
        return [answer.conflict]
    usage_rows: list[Row] = []
    outbox_rows: list[Row] = []
    for finish in finishes:
        digest = payload_hash(finish.event)
        usage_rows.append(_usage_row(finish, digest))
        outbox_rows.append(_outbox_row(finish, digest, now))
    _insert(connection, "usage", _USAGE_COLUMNS, usage_rows)
    reach("usage_written")
    _insert(connection, "outbox", _OUTBOX_COLUMNS, outbox_rows)
    return [None] * len(finishes)


class _Recorded:
    """The usage row of this id and revision stands already, with equal content or not."""

    __slots__ = ("conflict",)

    def __init__(self, conflict: EventConflictError | None) -> None:
        self.conflict = conflict


def _recorded(connection: sqlite3.Connection, finish: Finish) -> _Recorded | None:
    event = finish.event
    row = connection.execute(
        "SELECT account, book, rule, amount, cancelled FROM usage"
        " WHERE event_id = ? AND revision = ?",
        (event.context.event_id, event.revision),
    ).fetchone()
    if row is None:
        return None
    context = event.context
    given = (context.account, context.book, context.rule, event.amount, int(finish.cancelled))
    fields = ("account", "book", "rule", "amount", "cancelled")
    for field, was, new in zip(fields, row, given, strict=True):
        if was != new:
            return _Recorded(
                EventConflictError(
                    EventConflict(
                        event_id=context.event_id, field=field, existing=str(was), given=str(new)
                    )
                )
            )
    return _Recorded(None)


def cancel(connection: sqlite3.Connection, finish: Finish, now: int) -> EventConflictError | None:
    """Note that nothing is charged and drop the hold; takes an estimate back if there is one."""
    event_id = finish.event.context.event_id
    if recorded := _recorded(connection, finish):
        return recorded.conflict
    digest = payload_hash(finish.event)
    _insert(connection, "usage", _USAGE_COLUMNS, [_usage_row(finish, digest)])
    estimated = connection.execute(
        "SELECT 1 FROM usage WHERE event_id = ? AND revision = ?", (event_id, Revision.ESTIMATE)
    ).fetchone()
    if estimated:
        _insert(connection, "outbox", _OUTBOX_COLUMNS, [_outbox_row(finish, digest, now)])
    release(connection, [event_id])
    return None


def _usage_row(finish: Finish, digest: str) -> Row:
    event, notes = finish.event, finish.notes
    context, used = event.context, event.usage
    return (
        context.event_id,
        event.revision,
        finish.cancelled,
        context.account,
        context.key_id,
        context.app,
        context.scene,
        context.provider,
        context.model_requested,
        context.model_sent,
        context.run_id,
        context.client_request_id,
        context.book,
        context.rule,
        used.input,
        used.cached_input,
        used.cache_write_5m,
        used.cache_write_1h,
        used.audio_input,
        used.image_input,
        used.output,
        used.reasoning,
        used.audio_output,
        event.quality,
        event.usage_source,
        event.amount,
        event.ceiling,
        notes.reason,
        notes.raw_usage or None,
        notes.upstream_request_id,
        notes.failed_attempts,
        digest,
        context.started_at,
        event.finished_at,
    )


def _outbox_row(finish: Finish, digest: str, now: int) -> Row:
    event = finish.event
    return (
        event.context.event_id,
        event.revision,
        finish.cancelled,
        event.context.account,
        _encoder.encode(event),
        digest,
        now,
    )


def adopt_orphans(connection: sqlite3.Connection, process: str, now: int) -> int:
    """Charge the holds of every other process, as far as nothing is recorded, at their progress.

    Whoever calls this knows that those processes are gone. The estimate's settlement drops the hold.
    """
    orphans = connection.execute(
        "SELECT hold_id, account, amount, progress, context FROM holds"
        " WHERE process <> ? AND NOT EXISTS (SELECT 1 FROM usage WHERE event_id = hold_id)",
        (process,),
    ).fetchall()
    for hold_id, account, amount, progress, context in orphans:
        try:
            event = ChargeEvent(
                revision=Revision.ESTIMATE,
                context=decode_context(context),
                usage=Usage(),
                quality=UsageQuality.PARTIAL,
                usage_source=UsageSource.HOLD,
                amount=progress,
                ceiling=amount,
                finished_at=now,
            )
        except msgspec.MsgspecError:
            reason = "the hold's context cannot be read"
            set_aside(connection, (hold_id, 1, account, "hold", reason, context, now))
            continue
        finish = Finish(event=event, notes=UsageNotes(reason="orphaned"))
        record_all(connection, [finish], now, careful=False)
    return len(orphans)


def set_aside(connection: sqlite3.Connection, row: Row) -> None:
    """Put into quarantine what is not there yet."""
    connection.execute(
        "INSERT INTO quarantine (event_id, revision, account, origin, reason, payload, created_at)"
        " SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE NOT EXISTS (SELECT 1 FROM quarantine"
        " WHERE event_id = ?1 AND revision = ?2 AND payload = ?6 AND resolved_at IS NULL)",
        row,
    )


def quarantine_row(finish: Finish, origin: str, reason: str, now: int) -> Row:
    """A finished call as a row of the quarantine."""
    context = finish.event.context
    payload = _encoder.encode(finish.event)
    return (
        context.event_id,
        finish.event.revision,
        context.account,
        origin,
        reason,
        payload,
        now,
    )


# --- the ledger ----------------------------------------------------------------------------------


class _Waiting(msgspec.Struct, frozen=True):
    """An outbox row."""

    event_id: str
    revision: int
    cancelled: int
    account: str
    payload: bytes
    payload_hash: str


def settle(connection: sqlite3.Connection, limit: int, now: int) -> SettleReport:
    """Post the first `limit` rows of the outbox; what cannot be posted goes to quarantine."""
    rows = [
        _Waiting(*row)
        for row in connection.execute(
            "SELECT event_id, revision, cancelled, account, payload, payload_hash FROM outbox"
            " ORDER BY event_id, revision LIMIT ?",
            (limit,),
        )
    ]
    quarantined = 0
    if rows:
        quarantined = _settle_or_split(connection, rows, now)
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
        settled=len(rows) - quarantined,
        quarantined=quarantined,
        remaining=oldest is not None,
        oldest_at=oldest[0] if oldest else None,
    )


def _settle_or_split(connection: sqlite3.Connection, rows: list[_Waiting], now: int) -> int:
    """Settle rows; halve them until a row that breaks stands alone, and set that one aside."""
    connection.execute("SAVEPOINT part")
    try:
        quarantined = _settle_rows(connection, rows, now)
    except (sqlite3.IntegrityError, ArithmeticError, ValueError, AssertionError) as error:
        connection.execute("ROLLBACK TO part")
        if len(rows) == 1:
            _set_aside_row(connection, rows[0], f"{type(error).__name__}: cannot be posted", now)
            quarantined = 1
        else:
            half = len(rows) // 2
            quarantined = _settle_or_split(connection, rows[:half], now)
            quarantined += _settle_or_split(connection, rows[half:], now)
    connection.execute("RELEASE part")
    return quarantined


def _settle_rows(connection: sqlite3.Connection, rows: list[_Waiting], now: int) -> int:
    quarantined = 0
    pending: list[tuple[_Waiting, PendingCharge]] = []
    for row in rows:
        try:
            event = _event_decoder.decode(row.payload)
        except msgspec.MsgspecError:
            _set_aside_row(connection, row, "the event cannot be read", now)
            quarantined += 1
            continue
        pending.append((row, PendingCharge(event, row.payload_hash, bool(row.cancelled))))
    batch = Batch(
        accounts=_accounts(connection, {charge.event.context.account for _, charge in pending}),
        entries=_entries_of_calls(connection, [row.event_id for row, _ in pending]),
        finals=_finals(connection, [r.event_id for r, _ in pending if r.revision == 1]),
        now=now,
    )
    done: list[str] = []
    for row, charge in pending:
        match batch.settle(charge):
            case LedgerEntry() | Dropped(reason="cancelled"):
                done.append(row.event_id)
            case Dropped():
                pass  # the hold belongs to the word that holds
            case EventConflict() as conflict:
                _set_aside_row(connection, row, str(conflict), now)
                quarantined += 1
            case EntryRefused(field=field, message=message):
                _set_aside_row(connection, row, f"{field}: {message}", now)
                quarantined += 1
    _write(connection, batch)
    release(connection, done)
    return quarantined


def _set_aside_row(connection: sqlite3.Connection, row: _Waiting, reason: str, now: int) -> None:
    set_aside(
        connection,
        (row.event_id, row.revision, row.account, "outbox", reason, row.payload, now),
    )


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
    _insert(connection, "ledger_entries", _ENTRY_COLUMNS, rows)
    for account in batch.changed():
        connection.execute(_WRITE_ACCOUNT, _fields_of_account(account))


def _fields_of_entry(entry: LedgerEntry) -> Row:
    return msgspec.structs.astuple(entry)


def _fields_of_account(account: Account) -> Row:
    return msgspec.structs.astuple(account)


def _accounts(connection: sqlite3.Connection, accounts: set[str]) -> list[Account]:
    rows = connection.execute(
        f"SELECT {_ACCOUNT_COLUMNS} FROM accounts"  # noqa: S608
        " WHERE account IN (SELECT value FROM json_each(?))",
        (_ids(accounts),),
    )
    return [_account(row) for row in rows]


def _account(row: Row) -> Account:
    return msgspec.convert(
        dict(zip(Account.__struct_fields__, row, strict=True)), Account, strict=False
    )


def _entries(connection: sqlite3.Connection, event_ids: list[str]) -> list[LedgerEntry]:
    rows = connection.execute(
        f"SELECT {_ENTRY_COLUMNS} FROM ledger_entries"  # noqa: S608
        " WHERE event_id IN (SELECT value FROM json_each(?))",
        (_ids(event_ids),),
    )
    return [
        msgspec.convert(dict(zip(LedgerEntry.__struct_fields__, row, strict=True)), LedgerEntry)
        for row in rows
    ]


def _entries_of_calls(connection: sqlite3.Connection, event_ids: list[str]) -> list[LedgerEntry]:
    """Their entries, and where one is an estimate, the `:final` that may have followed it."""
    found = _entries(connection, event_ids)
    estimated = [e.event_id + FINAL_SUFFIX for e in found if e.usage_revision == Revision.ESTIMATE]
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


def _write_account_sql() -> str:
    fields = Account.__struct_fields__
    fixed = ("account", "created_at", "suspended")  # an admin's act is no matter of the ledger's
    changes = ", ".join(f"{field} = excluded.{field}" for field in fields if field not in fixed)
    marks = ", ".join("?" * len(fields))
    return (
        f"INSERT INTO accounts ({_ACCOUNT_COLUMNS}) VALUES ({marks})"  # noqa: S608
        f" ON CONFLICT (account) DO UPDATE SET {changes}"
    )


_WRITE_ACCOUNT: Final = _write_account_sql()
_encoder: Final = msgspec.json.Encoder()
_event_decoder: Final = msgspec.json.Decoder(ChargeEvent)
