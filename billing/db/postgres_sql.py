"""What a turn does on PostgreSQL: few statements for many rows, by unnest, each one round trip.

Locks are taken in one order everywhere: outbox rows (never waited for), accounts in the order of
their ids, then holds. What is read to decide something is read in a statement after the one that
locked the account: in READ COMMITTED a statement's own snapshot may be older than its locks.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from billing.db.decide import (
    Credit,
    Grants,
    Settlement,
    final_ids_of,
    refused_ids,
    with_earlier_grants,
)
from billing.db.hot import EventConflictError
from billing.db.invariants import CANCELLED, ESTIMATES, FAILED, ROLLUP_KEY, ROLLUP_SUMS
from billing.db.outbox import EventKey, StrayMessage, WaitingEvent
from billing.db.postgres_url import Connection
from billing.db.rows import (
    ACCOUNT_COLUMNS,
    ENTRY_COLUMNS,
    HOLD_COLUMNS,
    IDENTITY_COLUMNS,
    OUTBOX_COLUMNS,
    QUARANTINE_COLUMNS,
    USAGE_COLUMNS,
    Row,
    Value,
    Waiting,
    account_of,
    digest_of,
    entry_of,
    orphan_estimate,
    outbox_row,
    record_conflict,
    usage_row,
)
from billing.events import Finish
from billing.failpoints import reach
from billing.holds import Granted, HoldBeat, HoldRequest, Refused
from billing.ledger import Account, Batch, Entry, LedgerEntry, PostResult, normalise
from billing.rollups import COLUMNS as ROLLUP_COLUMNS
from billing.rollups import Rollup, late_days

LEASE_MS: Final = 10_000  # a claim that is older belongs to a worker that is gone
ADOPT_AT_ONCE: Final = 500

_NOW: Final = "CAST(extract(epoch FROM statement_timestamp()) * 1000 AS bigint)"

_TYPES: Final = {
    "revision": "int",
    "cancelled": "boolean",
    "suspended": "boolean",
    "usage_revision": "int",
    "failed_attempts": "int",
    "payload": "bytea",
    "context": "bytea",
    "raw_usage": "bytea",
} | dict.fromkeys(
    (
        "account_seq", "amount", "balance", "balance_after", "balance_before", "book", "ceiling",
        "created_at", "finished_at", "posted_at", "progress", "seq", "started_at", "updated_at",
        "total_recharged", "total_rewarded", "total_consumed", "total_refunded", "total_expired",
        "total_adjusted", "day_at", "input", "cached_input", "cache_write_5m", "cache_write_1h",
        "audio_input", "image_input", "output", "reasoning", "audio_output", "held", "bucket_at",
        "calls", "errors",
    ),
    "bigint",
)  # fmt: skip


_KEY: Final = "event_id, revision"


class StolenError(Exception):
    """Some rows of the outbox that were claimed are gone: their lease ran out, others posted them."""


class Race(Exception):  # noqa: N818 - no error: the transaction is run once more
    """Another transaction did meanwhile what this one was about to do."""


def _names(columns: str) -> list[str]:
    return columns.split(", ")


def _mark(number: int, type_name: str) -> str:
    """The parameter that `_list` fills."""
    # Bytes would have to be written as hex, at twice the size.
    return f"${number}::bytea[]" if type_name == "bytea" else f"${number}::text::{type_name}[]"


def _unnest(columns: str, first: int = 1) -> str:
    """`unnest($1::text::text[], ...)`: one array for each column."""
    types = [_TYPES.get(name, "text") for name in _names(columns)]
    return f"unnest({', '.join(_mark(number, name) for number, name in enumerate(types, first))})"


def _list(values: Sequence[Value]) -> str | Sequence[Value]:
    """An array as PostgreSQL reads it; the driver's own way costs twenty times the CPU.

    JSON but for its brackets, as long as nothing in it is escaped: numbers, quoted strings, true,
    false, null. https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    """
    if values and isinstance(values[0], bytes):
        return values
    text = _encoder.encode(values).decode()
    if "\\" in text:
        text = f"[{','.join(map(_quoted, values))}]"
    return f"{{{text[1:-1]}}}"


def _quoted(value: Value) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'
    return "null" if value is None else str(value)


def _arrays(rows: Sequence[Sequence[Value]], columns: str) -> list[str | Sequence[Value]]:
    if not rows:
        return [[] if _TYPES.get(name) == "bytea" else "{}" for name in _names(columns)]
    return [
        column if _TYPES.get(name) == "bytea" else _list(column)
        for name, column in zip(_names(columns), zip(*rows, strict=True), strict=True)
    ]


_encoder: Final = msgspec.json.Encoder()


def _insert_sql(table: str, columns: str) -> str:
    return f"INSERT INTO {table} ({columns}) SELECT * FROM {_unnest(columns)}"  # noqa: S608


# --- holds ---------------------------------------------------------------------------------------

_LOCK_CREDITS: Final = (
    "SELECT account, balance, held, suspended FROM accounts WHERE account = ANY($1::text::text[])"
    " ORDER BY account FOR NO KEY UPDATE"
)
_KNOWN_HOLDS: Final = "SELECT hold_id, amount FROM holds WHERE hold_id = ANY($1::text::text[])"
_WRITE_HOLDS: Final = (
    "WITH written AS ("  # noqa: S608
    f"INSERT INTO holds ({HOLD_COLUMNS}) SELECT * FROM {_unnest(HOLD_COLUMNS)}"
    " ON CONFLICT DO NOTHING RETURNING 1"
    "), raised AS (UPDATE accounts a SET held = v.held"
    f" FROM {_unnest('account, held', 7)} AS v(account, held) WHERE a.account = v.account)"
    " SELECT count(*) FROM written"
)
# `gone` names deleted holds; their credit goes back. Not below 0: should `held` ever be wrong,
# settlement goes on, and R6 tells of it.
_FREED: Final = (
    "freed AS (SELECT account, CAST(sum(amount) AS bigint) AS amount FROM gone GROUP BY account)"
)
_LOWER_HELD: Final = (
    "UPDATE accounts a SET held = greatest(0, a.held - f.amount) FROM freed f"
    " WHERE a.account = f.account"
)
_RELEASE: Final = (
    "WITH gone AS (DELETE FROM holds WHERE hold_id = ANY($1::text::text[]) RETURNING account, amount),"  # noqa: S608
    f" {_FREED} {_LOWER_HELD}"
)
_ACCOUNTS_OF_HOLDS: Final = (
    "SELECT DISTINCT account FROM holds WHERE hold_id = ANY($1::text::text[]) AND state = 'live'"
)
_CHANGE_HOLD: Final = (
    "WITH changed AS (UPDATE holds SET amount = $2 WHERE hold_id = $1)"
    " UPDATE accounts SET held = $4 WHERE account = $3"
)
# A hold that is locked is being settled: it needs no beat, and nobody here waits for it.
_BEAT: Final = (
    "WITH beats AS (SELECT * FROM unnest($1::text::text[], $2::text::bigint[]) AS b(hold_id, progress)),"
    " free AS (SELECT h.hold_id, b.progress FROM holds h JOIN beats b USING (hold_id)"
    " WHERE h.state = 'live' ORDER BY h.hold_id FOR UPDATE OF h SKIP LOCKED)"
    " UPDATE holds h SET progress = greatest(h.progress, f.progress)"
    " FROM free f WHERE h.hold_id = f.hold_id"
    " RETURNING h.hold_id, h.account, h.amount"
)
_RAISE: Final = (
    "WITH wanted AS (SELECT * FROM unnest($1::text::text[], $2::text::bigint[]) AS w(hold_id, amount)),"  # noqa: S608
    " before AS (SELECT h.hold_id, h.account, w.amount - h.amount AS more, w.amount"
    " FROM holds h JOIN wanted w USING (hold_id) WHERE h.state = 'live' AND h.amount < w.amount),"
    " raised AS (UPDATE holds h SET amount = b.amount FROM before b WHERE h.hold_id = b.hold_id),"
    " gone AS (SELECT account, -more AS amount FROM before),"
    f" {_FREED} {_LOWER_HELD}"
)


async def reserve_all(
    connection: Connection, requests: Sequence[HoldRequest], *, careful: bool
) -> list[Granted | Refused]:
    """Grant in the order asked; raises Race if a hold stands already and `careful` did not look."""
    accounts = {request.account for request in requests}
    locked = await connection.fetch(_LOCK_CREDITS, _list([*accounts]))
    credits_by_account = {row[0]: Credit(row[1], row[2], row[3]) for row in locked}
    known: dict[str, int] = {}
    if careful:
        known = await _held(connection, [request.hold_id for request in requests])
    grants = Grants(requests, credits_by_account, known)
    if grants.holds:
        raised = grants.held()
        written = await connection.fetchval(
            _WRITE_HOLDS,
            *_arrays(grants.holds, HOLD_COLUMNS),
            *_arrays(raised, "account, held"),
        )
        if written != len(grants.holds):
            raise Race
    refused = refused_ids(requests, grants.answers)
    if not refused or careful:
        return grants.answers
    return with_earlier_grants(requests, grants.answers, await _held(connection, refused))


async def _held(connection: Connection, hold_ids: Sequence[str]) -> dict[str, int]:
    return {row[0]: row[1] for row in await connection.fetch(_KNOWN_HOLDS, _list(hold_ids))}


async def extend(connection: Connection, hold_id: str, new_total: int) -> Granted | Refused:
    """Raise a hold to `new_total`, whole or not at all; one that is gone or residual cannot grow."""
    account = await connection.fetchval(_ACCOUNTS_OF_HOLDS, _list([hold_id]))
    locked = await connection.fetch(_LOCK_CREDITS, _list([account] if account else []))
    amount = await connection.fetchval(
        "SELECT amount FROM holds WHERE hold_id = $1 AND state = 'live'", hold_id
    )
    if account is None or amount is None:
        return Refused(reason="insufficient", balance=0, held=0, needed=new_total)
    if new_total <= amount:
        return Granted(amount)
    more = new_total - amount
    credit = Credit(locked[0][1], locked[0][2], locked[0][3]) if locked else Credit(0, 0, 0)
    answer = credit.grant(more, more)
    if isinstance(answer, Refused):
        return answer
    await connection.execute(_CHANGE_HOLD, hold_id, new_total, account, credit.held)
    return Granted(new_total)


async def heartbeat(connection: Connection, beats: Iterable[HoldBeat]) -> list[HoldBeat]:
    """Note progress, which never goes back; gives the beats whose hold is smaller than they say."""
    merged: dict[str, HoldBeat] = {}
    for beat in beats:
        known = merged.get(beat.hold_id, beat)
        merged[beat.hold_id] = HoldBeat(
            beat.hold_id, max(known.amount, beat.amount), max(known.progress, beat.progress)
        )
    if not merged:
        return []
    beaten = [(beat.hold_id, beat.progress) for beat in merged.values()]
    rows = await connection.fetch(_BEAT, *_arrays(beaten, "hold_id, progress"))
    return [merged[row[0]] for row in rows if merged[row[0]].amount > row[2]]


async def raise_holds(connection: Connection, beats: Sequence[HoldBeat]) -> None:
    """Raise holds to what their owners say; the larger amount wins."""
    await _lock_accounts_of(connection, [beat.hold_id for beat in beats])
    raised = [(beat.hold_id, beat.amount) for beat in beats]
    await connection.execute(_RAISE, *_arrays(raised, "hold_id, amount"))


async def release(connection: Connection, hold_ids: Sequence[str]) -> None:
    """Drop holds, and what they held of their accounts."""
    await _lock_accounts_of(connection, hold_ids)
    await connection.execute(_RELEASE, _list(hold_ids))


async def _lock_accounts_of(connection: Connection, hold_ids: Sequence[str]) -> None:
    rows = await connection.fetch(_ACCOUNTS_OF_HOLDS, _list(hold_ids))
    await connection.execute(_LOCK_CREDITS, _list([row[0] for row in rows]))


# --- charge events -------------------------------------------------------------------------------

_GIVEN_COLUMNS: Final = f"{USAGE_COLUMNS}, payload"
_CREATED_AT: Final = f"${len(_names(_GIVEN_COLUMNS)) + 1}::bigint"
_GIVEN: Final = (
    f"given AS (SELECT * FROM {_unnest(_GIVEN_COLUMNS)} AS g({_GIVEN_COLUMNS})),"  # noqa: S608
    f" recorded AS (INSERT INTO usage ({USAGE_COLUMNS}) SELECT {USAGE_COLUMNS} FROM given"
    " ON CONFLICT DO NOTHING RETURNING event_id, revision)"
)
_OUTBOX_VALUES: Final = (
    f"g.event_id, g.revision, g.cancelled, g.account, g.payload, g.payload_hash, {_CREATED_AT}"
)
_RECORD: Final = (
    f"WITH {_GIVEN} INSERT INTO outbox ({OUTBOX_COLUMNS})"  # noqa: S608
    f" SELECT {_OUTBOX_VALUES} FROM given g"
    " JOIN recorded USING (event_id, revision) RETURNING 1"
)
_ADDED: Final = ", ".join(f"{name} = q.{name} + excluded.{name}" for name in ROLLUP_SUMS)
# Accounts without a row are not locked: the groups are taken in one order by all.
_COUNTED: Final = (
    f"counted AS (INSERT INTO usage_quarters AS q ({ROLLUP_COLUMNS})"  # noqa: S608
    f" SELECT {', '.join(ROLLUP_KEY)}, {', '.join(f'sum({name})' for name in ROLLUP_SUMS)}"
    f" FROM (SELECT account, {CANCELLED} FROM given JOIN recorded USING (event_id, revision))"
    f" AS c({ROLLUP_COLUMNS}) GROUP BY {', '.join(ROLLUP_KEY)} ORDER BY account, bucket_at, "
    + ", ".join(f'{name} COLLATE "C"' for name in ROLLUP_KEY[2:])
    + f" ON CONFLICT ({', '.join(ROLLUP_KEY)}) DO UPDATE SET {_ADDED})"
)
_CANCEL_WITH: Final = (
    f"WITH {_GIVEN}, {_COUNTED}, corrections AS (INSERT INTO outbox ({OUTBOX_COLUMNS})"  # noqa: S608
    f" SELECT {_OUTBOX_VALUES} FROM given g"
    " JOIN recorded USING (event_id, revision) WHERE EXISTS"
    " (SELECT 1 FROM usage u WHERE u.event_id = g.event_id AND u.revision = 1))"
)
_CANCEL: Final = (
    f"{_CANCEL_WITH}, gone AS (DELETE FROM holds h USING recorded r WHERE h.hold_id = r.event_id"  # noqa: S608
    f" RETURNING h.account, h.amount), {_FREED}, lowered AS ({_LOWER_HELD})"
    " SELECT 1 FROM recorded"
)
_CANCEL_ONLY: Final = f"{_CANCEL_WITH} SELECT 1 FROM recorded"  # noqa: S608
_RECORDED: Final = (
    f"SELECT event_id, revision, {', '.join(IDENTITY_COLUMNS)} FROM usage"  # noqa: S608
    " WHERE (event_id, revision) IN (SELECT * FROM unnest($1::text::text[], $2::text::int[]))"
)


async def record_all(
    connection: Connection, finishes: Sequence[Finish], now: int
) -> list[EventConflictError | None]:
    """Write usage and outbox row of each, in one statement; repeats are compared with what stands."""
    reach("usage_written")
    written = await connection.fetch(_RECORD, *_given(finishes, now))
    return await _compared(connection, finishes, len(written))


async def cancel_all(
    connection: Connection, finishes: Sequence[Finish], now: int, *, holds_here: bool
) -> list[EventConflictError | None]:
    """Note that nothing is charged and drop the holds; takes estimates back where there are any.

    The lock on the account orders this against the settlement of an estimate.
    """
    accounts = {finish.event.context.account for finish in finishes}
    await connection.execute(_LOCK_CREDITS, _list([*accounts]))
    calls = [(each.event.context.account, each.event.context.started_at) for each in finishes]
    await _unfold(connection, late_days(calls, now))
    statement = _CANCEL if holds_here else _CANCEL_ONLY
    written = await connection.fetch(statement, *_given(finishes, now))
    return await _compared(connection, finishes, len(written))


# The row is a lock too: it waits for a fold in flight, and makes a fold wait. So it comes before
# the rows of the rollup, and in one order for all; a fold takes no other lock.
_UNFOLD: Final = (
    "INSERT INTO folded_days (account, day_at, whole)"  # noqa: S608
    f" SELECT account, day_at, false FROM {_unnest('account, day_at')} AS late(account, day_at)"
    " ON CONFLICT (account, day_at) DO UPDATE SET whole = false"
)


async def _unfold(connection: Connection, days: Sequence[tuple[str, int]]) -> None:
    """Of an account's day there will be more than what may have been folded."""
    if days:
        await connection.execute(_UNFOLD, *_arrays(days, "account, day_at"))


def _given(finishes: Sequence[Finish], now: int) -> list[object]:
    rows: list[Row] = []
    # Of two finishes of one key only the first is written; usage and outbox must not take different ones.
    for finish in _by_key(finishes).values():
        digest = digest_of(finish)
        payload = outbox_row(finish, digest, now)[4]
        rows.append((*usage_row(finish, digest), payload))
    return [*_arrays(rows, _GIVEN_COLUMNS), now]


def _by_key(finishes: Iterable[Finish]) -> dict[EventKey, Finish]:
    first: dict[EventKey, Finish] = {}
    for finish in finishes:
        first.setdefault((finish.event.context.event_id, finish.event.revision), finish)
    return first


async def _compared(
    connection: Connection, finishes: Sequence[Finish], written: int
) -> list[EventConflictError | None]:
    if written == len(finishes):
        return [None] * written
    keys = [(finish.event.context.event_id, finish.event.revision) for finish in finishes]
    rows = await connection.fetch(_RECORDED, *_arrays(keys, _KEY))
    recorded = {(row[0], row[1]): tuple(row)[2:] for row in rows}
    return [
        record_conflict(finish, recorded[finish.event.context.event_id, finish.event.revision])
        for finish in finishes
    ]


_ORPHANS: Final = (
    "SELECT hold_id, account, amount, progress, context FROM holds h WHERE process <> $1"  # noqa: S608
    " AND hold_id > $2 AND NOT EXISTS (SELECT 1 FROM usage u WHERE u.event_id = h.hold_id)"
    f" ORDER BY hold_id LIMIT {ADOPT_AT_ONCE}"
)
_LOWER: Final = (
    "WITH charged AS (SELECT * FROM unnest($1::text::text[], $2::text::bigint[]) AS c(hold_id, amount)),"  # noqa: S608
    " before AS (SELECT h.hold_id, h.account, h.amount, least(c.amount, h.amount) AS taken"
    " FROM holds h JOIN charged c USING (hold_id) WHERE h.state = 'live'),"
    " empty AS (DELETE FROM holds h USING before b WHERE h.hold_id = b.hold_id"
    " AND b.taken = b.amount),"
    " rest AS (UPDATE holds h SET amount = b.amount - b.taken, state = 'residual' FROM before b"
    " WHERE h.hold_id = b.hold_id AND b.taken < b.amount),"
    f" gone AS (SELECT account, taken AS amount FROM before), {_FREED} {_LOWER_HELD}"
)
# What an orphan holds beyond its progress nobody can spend any more; settling drops the rest.
_TO_PROGRESS: Final = (
    "WITH before AS (SELECT hold_id, account, amount - progress AS more FROM holds"  # noqa: S608
    " WHERE hold_id = ANY($1::text::text[]) AND state = 'live' AND amount > progress),"
    " cut AS (UPDATE holds h SET amount = h.progress FROM before b WHERE h.hold_id = b.hold_id),"
    f" gone AS (SELECT account, more AS amount FROM before), {_FREED} {_LOWER_HELD}"
)


async def adopt_some(
    connection: Connection, process: str, after: str, now: int
) -> tuple[int, str | None]:
    """Estimate up to ADOPT_AT_ONCE holds of all other processes; how many, and after which to go on."""
    orphans = await connection.fetch(_ORPHANS, process, after)
    finishes: list[Finish] = []
    unreadable: list[Row] = []
    for hold_id, account, amount, progress, context in orphans:
        estimate = orphan_estimate(hold_id, account, amount, progress, context, now)
        if isinstance(estimate, Finish):
            finishes.append(estimate)
        elif estimate is not None:
            unreadable.append(estimate)
    if finishes:
        hold_ids = [finish.event.context.event_id for finish in finishes]
        await _lock_accounts_of(connection, hold_ids)
        await record_all(connection, finishes, now)
        await connection.execute(_TO_PROGRESS, _list(hold_ids))
    await set_aside(connection, unreadable)
    last = orphans[-1][0] if len(orphans) == ADOPT_AT_ONCE else None
    return len(finishes) + len(unreadable), last


_SET_ASIDE: Final = (
    f"INSERT INTO quarantine ({QUARANTINE_COLUMNS}) SELECT * FROM"  # noqa: S608
    f" {_unnest(QUARANTINE_COLUMNS)} AS g({QUARANTINE_COLUMNS}) WHERE NOT EXISTS"
    " (SELECT 1 FROM quarantine q WHERE q.event_id = g.event_id AND q.revision = g.revision"
    " AND q.payload = g.payload AND q.resolved_at IS NULL)"
)
_SET_ASIDE_ONCE: Final = _SET_ASIDE.replace(" AND q.resolved_at IS NULL", "")


async def set_aside(connection: Connection, rows: Sequence[Row]) -> None:
    """Put into quarantine what is not there yet."""
    if rows:
        await connection.execute(_SET_ASIDE, *_arrays(_printable(rows), QUARANTINE_COLUMNS))


async def set_aside_messages(
    connection: Connection, messages: Sequence[StrayMessage], now: int
) -> None:
    """Into quarantine, unless the same message was there before, resolved or not."""
    rows: list[Row] = [
        (each.event_id, each.revision, each.account, "broker", each.reason, each.payload, now)
        for each in dict.fromkeys(messages)
    ]
    await connection.execute(_SET_ASIDE_ONCE, *_arrays(_printable(rows), QUARANTINE_COLUMNS))


def _printable(rows: Iterable[Row]) -> list[Row]:
    # PostgreSQL has no text with NUL in it, and what is set aside must not break once more.
    return [
        tuple(
            value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
            for value in row
        )
        for row in rows
    ]


# --- the ledger ----------------------------------------------------------------------------------

_CLAIMED: Final = "event_id, revision, cancelled, account, payload, payload_hash"
_KEYS: Final = "(SELECT * FROM unnest({}::text::text[], {}::text::int[]))"


def _claim_sql(wanted: str) -> str:
    # A claim that a crash takes back harms nobody, so nobody waits for the disk.
    return (
        "WITH free AS (SELECT event_id, revision FROM outbox"  # noqa: S608
        " WHERE (SELECT set_config('synchronous_commit', 'off', true)) = 'off'"
        f" AND (claimed_at IS NULL OR claimed_by = $1 OR claimed_at < {_NOW} - {LEASE_MS})"
        f" {wanted} FOR UPDATE SKIP LOCKED)"
        f" UPDATE outbox o SET attempts = o.attempts + 1, claimed_by = $1, claimed_at = {_NOW}"
        " FROM free f WHERE o.event_id = f.event_id AND o.revision = f.revision"
        " RETURNING o.event_id, o.revision, o.cancelled, o.account, o.payload, o.payload_hash,"
        " o.attempts"
    )


_CLAIM_FIRST: Final = _claim_sql("ORDER BY event_id, revision LIMIT $2")
_CLAIM_OLD: Final = _claim_sql("AND created_at < $3 ORDER BY event_id, revision LIMIT $2")
_CLAIM_KEYS: Final = _claim_sql(
    f"AND (event_id, revision) IN {_KEYS.format('$2', '$3')} ORDER BY event_id, revision"
)
_STILL_THERE: Final = (
    "SELECT event_id, revision FROM outbox WHERE (event_id, revision) IN"  # noqa: S608
    f" {_KEYS.format('$1', '$2')}"
)
_LOCK_ACCOUNTS: Final = (
    f"SELECT {ACCOUNT_COLUMNS} FROM accounts WHERE account = ANY($1::text::text[])"  # noqa: S608
    " ORDER BY account FOR NO KEY UPDATE"
)
_ENTRIES: Final = (
    f"SELECT {ENTRY_COLUMNS} FROM ledger_entries WHERE event_id = ANY($1::text::text[])"  # noqa: S608
)
_FINALS: Final = (
    "SELECT event_id FROM usage WHERE revision = 2 AND event_id = ANY($1::text::text[])"
)
_NEW_ACCOUNT_COLUMNS: Final = "account, created_at, updated_at"
_NEW_ACCOUNTS: Final = (
    "INSERT INTO accounts (account, created_at, updated_at)"  # noqa: S608
    f" SELECT * FROM {_unnest(_NEW_ACCOUNT_COLUMNS)} ORDER BY 1"
    " ON CONFLICT DO NOTHING RETURNING 1"
)
_KEPT: Final = ("account", "created_at", "suspended")  # an admin's act is no matter of the ledger's
_CHANGES: Final = ", ".join(
    f"{field} = v.{field}" for field in Account.__struct_fields__ if field not in _KEPT
)


def _write_sql() -> str:
    entries = len(_names(ENTRY_COLUMNS))
    accounts = entries + 1
    rollup = accounts + len(_names(ACCOUNT_COLUMNS))
    after = rollup + len(_names(ROLLUP_COLUMNS))
    return (
        f"WITH written AS ({_insert_sql('ledger_entries', ENTRY_COLUMNS)}),"  # noqa: S608
        f" gone AS (DELETE FROM holds WHERE hold_id = ANY(${after}::text::text[])"
        " RETURNING account, amount),"
        # A map, not a join: it would compare each account with each.
        " freed AS (SELECT jsonb_object_agg(account, amount) AS by_account FROM"
        " (SELECT account, sum(amount) AS amount FROM gone GROUP BY account) AS sums),"
        f" changed AS (UPDATE accounts a SET {_CHANGES},"
        " held = greatest(0, a.held - coalesce("
        "CAST((SELECT by_account FROM freed) ->> a.account AS bigint), 0))"
        f" FROM {_unnest(ACCOUNT_COLUMNS, accounts)} AS v({ACCOUNT_COLUMNS})"
        " WHERE a.account = v.account),"
        # A group belongs to one account, which is locked: two writers never meet here.
        f" rolled AS (INSERT INTO usage_quarters AS q ({ROLLUP_COLUMNS})"
        f" SELECT * FROM {_unnest(ROLLUP_COLUMNS, rollup)}"
        f" ON CONFLICT ({', '.join(ROLLUP_KEY)}) DO UPDATE SET {_ADDED}),"
        " settled AS (DELETE FROM outbox o USING"
        f" unnest(${after + 1}::text::text[], ${after + 2}::text::int[]) AS k(event_id, revision)"
        " WHERE o.event_id = k.event_id AND o.revision = k.revision RETURNING 1)"
        " SELECT (SELECT count(*) FROM settled),"
        f" (SELECT created_at FROM outbox WHERE (event_id, revision) > (${after + 3}::text,"
        f" ${after + 4}::int) ORDER BY event_id, revision LIMIT 1)"
    )


_WRITE: Final = _write_sql()
_SUPERSEDED: Final = f"{ESTIMATES} (SELECT unnest($1::text::text[]))"
_FAILED: Final = f"{FAILED} (SELECT unnest($1::text::text[]))"


class Claimed(msgspec.Struct, frozen=True):
    """An outbox row that is ours to post, and how often it was claimed."""

    row: Waiting
    attempts: int

    @property
    def key(self) -> EventKey:
        """What names the row."""
        return self.row.event_id, self.row.revision


def _claimed(rows: Iterable[Sequence[Any]]) -> list[Claimed]:
    claimed = [Claimed(Waiting(*tuple(row)[:6]), row[6]) for row in rows]
    return sorted(claimed, key=lambda each: each.key)


async def claim(
    connection: Connection, worker: str, limit: int, *, created_before: int | None = None
) -> list[Claimed]:
    """Take the oldest rows that nobody else has; counts the attempt before anything is tried."""
    if created_before is None:
        return _claimed(await connection.fetch(_CLAIM_FIRST, worker, limit))
    return _claimed(await connection.fetch(_CLAIM_OLD, worker, limit, created_before))


async def claim_keys(
    connection: Connection, worker: str, keys: Sequence[EventKey]
) -> list[Claimed]:
    """Take the named rows, as far as they wait and nobody else has them."""
    return _claimed(await connection.fetch(_CLAIM_KEYS, worker, *_arrays(keys, _KEY)))


async def still_there(connection: Connection, claimed: Sequence[Claimed]) -> list[Claimed]:
    """Those that have not been posted by others."""
    keys = [each.key for each in claimed]
    rows = await connection.fetch(_STILL_THERE, *_arrays(keys, _KEY))
    there = {(row[0], row[1]) for row in rows}
    return [each for each in claimed if each.key in there]


async def settle(
    connection: Connection, waiting: Sequence[Waiting], now: int, *, holds_here: bool
) -> tuple[Settlement, int | None]:
    """Post claimed rows, delete them, lower holds; and when about the next row was written.

    Raises StolenError or Race, and what PostgreSQL raises if a row cannot be posted.
    """
    settlement = Settlement(waiting, now)
    locked = await connection.fetch(_LOCK_ACCOUNTS, _list([*settlement.accounts]))
    accounts = [account_of(tuple(row)) for row in locked]
    entries = await entries_of_calls(connection, settlement.event_ids)
    finals: set[str] = set()
    if estimates := settlement.estimates:
        finals = {row[0] for row in await connection.fetch(_FINALS, _list(estimates))}
    failed: set[tuple[str, int]] = set()
    if doubtful := settlement.doubtful:
        failed = {(row[0], row[1]) for row in await connection.fetch(_FAILED, _list(doubtful))}
    batch = settlement.decide(accounts, entries, finals, failed)
    await set_aside(connection, settlement.set_aside)
    if holds_here and (lowered := settlement.estimated()):
        await connection.execute(_LOWER, *_arrays(lowered, "hold_id, amount"))
    rollup = await _rollup_of(connection, settlement)
    await _unfold(connection, settlement.late_days())
    settled, oldest = await _write(
        connection,
        batch,
        {account.account for account in accounts},
        rollup=rollup,
        hold_ids=settlement.finished() if holds_here else [],
        keys=[(row.event_id, row.revision) for row in waiting],
        now=now,
    )
    if settled != len(waiting):
        raise StolenError
    reach("settled_uncommitted")
    return settlement, oldest


async def _rollup_of(connection: Connection, settlement: Settlement) -> Rollup:
    if settlement.superseded:
        for row in await connection.fetch(_SUPERSEDED, _list(settlement.superseded)):
            settlement.rollup.take_back(tuple(row))
    return settlement.rollup


async def bury(connection: Connection, key: EventKey, row: Row) -> None:
    """Move an outbox row to the quarantine."""
    await set_aside(connection, [row])
    await connection.execute(
        "DELETE FROM outbox WHERE event_id = $1 AND revision = $2", key[0], key[1]
    )


async def post(connection: Connection, entries: Sequence[Entry], now: int) -> list[PostResult]:
    """Post entries that are no calls; each has its own outcome. Raises Race."""
    tidy = [e for e in (normalise(entry, now) for entry in entries) if isinstance(e, Entry)]
    locked = await connection.fetch(_LOCK_ACCOUNTS, _list([*{entry.account for entry in tidy}]))
    accounts = [account_of(tuple(row)) for row in locked]
    batch = Batch(
        accounts=accounts,
        entries=await _entries(connection, [entry.event_id for entry in tidy]),
        now=now,
    )
    results = [batch.post(entry) for entry in entries]
    known = {account.account for account in accounts}
    await _write(connection, batch, known, rollup=Rollup(), hold_ids=[], keys=[], now=now)
    return results


async def _write(  # noqa: PLR0913 - what one statement writes
    connection: Connection,
    batch: Batch,
    known: set[str],
    *,
    rollup: Rollup,
    hold_ids: Sequence[str],
    keys: Sequence[EventKey],
    now: int,
) -> tuple[int, int | None]:
    changed = {account.account: account for account in batch.changed()}
    if new := sorted(changed.keys() - known):
        fresh = [(account, now, now) for account in new]
        made = await connection.fetch(_NEW_ACCOUNTS, *_arrays(fresh, _NEW_ACCOUNT_COLUMNS))
        if len(made) != len(new):
            raise Race  # somebody else made one of them: its row is to be locked and read
    # The others too: their holds may go, in this same update.
    for account in known - changed.keys():
        if stands := batch.account(account):
            changed[account] = stands
    row = await connection.fetchrow(
        _WRITE,
        *_arrays([msgspec.structs.astuple(entry) for entry in batch.written], ENTRY_COLUMNS),
        *_arrays([msgspec.structs.astuple(a) for a in changed.values()], ACCOUNT_COLUMNS),
        *_arrays(rollup.rows(), ROLLUP_COLUMNS),
        _list(hold_ids),
        *_arrays(keys, _KEY),
        *(keys[-1] if keys else ("", 0)),
    )
    assert row is not None, "a SELECT without FROM gives a row"
    return row[0], row[1]


async def _entries(connection: Connection, event_ids: Sequence[str]) -> list[LedgerEntry]:
    return [entry_of(tuple(row)) for row in await connection.fetch(_ENTRIES, _list(event_ids))]


async def entries_of_calls(connection: Connection, event_ids: Sequence[str]) -> list[LedgerEntry]:
    """Their entries, and where one is an estimate, the `:final` that may have followed it."""
    found = await _entries(connection, event_ids)
    estimated = final_ids_of(found)
    return found + await _entries(connection, estimated) if estimated else found


# --- the outbox for a broker ---------------------------------------------------------------------

_CLAIM_UNPUBLISHED: Final = (
    "WITH free AS (SELECT event_id, revision FROM outbox"
    " WHERE published_at IS NULL OR published_at < $1 ORDER BY event_id, revision LIMIT $2"
    " FOR UPDATE SKIP LOCKED)"
    " UPDATE outbox o SET published_at = $3 FROM free f"
    " WHERE o.event_id = f.event_id AND o.revision = f.revision"
    " RETURNING o.event_id, o.revision, o.account, o.payload"
)
_UNCLAIM: Final = (
    "UPDATE outbox SET published_at = NULL WHERE (event_id, revision) IN"  # noqa: S608
    f" {_KEYS.format('$1', '$2')}"
)


async def claim_unpublished(
    connection: Connection, limit: int, sent_before: int, now: int
) -> list[WaitingEvent]:
    """Mark rows as sent and give them, oldest first."""
    rows = await connection.fetch(_CLAIM_UNPUBLISHED, sent_before, limit, now)
    events = [
        WaitingEvent(event_id=row[0], revision=row[1], account=row[2], payload=row[3])
        for row in rows
    ]
    return sorted(events, key=lambda event: event.key)


async def unclaim(connection: Connection, keys: Sequence[EventKey]) -> None:
    """Forget that rows were sent."""
    await connection.execute(_UNCLAIM, *_arrays(keys, _KEY))


_PING: Final = (
    "INSERT INTO meta (key, value) VALUES ('ping', $1)"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)


async def ping(connection: Connection, now: int) -> None:
    """Write something."""
    await connection.execute(_PING, str(now))


async def oldest_at(connection: Connection) -> int | None:
    """When the oldest row of the outbox was written; None: it is empty."""
    written_at: int | None = await connection.fetchval(
        "SELECT created_at FROM outbox ORDER BY event_id, revision LIMIT 1"
    )
    return written_at
