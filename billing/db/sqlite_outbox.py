"""The outbox on SQLite for publisher and subscriber: plain SQL inside the writer's transaction."""

import json
import sqlite3
from collections.abc import Sequence

import msgspec

from billing.db import sqlite_sql
from billing.db.hot import SettleReport
from billing.db.outbox import EventKey, SettledKeys, StrayMessage, WaitingEvent
from billing.db.rows import Waiting
from billing.failpoints import reach

# Named rows, from a JSON array of [event_id, revision].
_NAMED = (
    "(event_id, revision) IN"
    " (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"
)
_WAITING = "event_id, revision, cancelled, account, payload, payload_hash"


def claim_unpublished(
    connection: sqlite3.Connection, limit: int, sent_before: int, now: int
) -> list[WaitingEvent]:
    """Mark rows as sent and give them, oldest first."""
    rows = connection.execute(
        "SELECT event_id, revision, account, payload FROM outbox"
        " WHERE published_at IS NULL OR published_at < ? ORDER BY event_id, revision LIMIT ?",
        (sent_before, limit),
    ).fetchall()
    claimed = [
        WaitingEvent(event_id=row[0], revision=row[1], account=row[2], payload=row[3])
        for row in rows
    ]
    if claimed:
        connection.execute(
            f"UPDATE outbox SET published_at = ? WHERE {_NAMED}",  # noqa: S608 - a constant
            (now, _names([event.key for event in claimed])),
        )
    return claimed


def unclaim(connection: sqlite3.Connection, keys: Sequence[EventKey]) -> None:
    """Forget that rows were sent."""
    connection.execute(
        f"UPDATE outbox SET published_at = NULL WHERE {_NAMED}",  # noqa: S608 - a constant
        (_names(keys),),
    )


def settle_keys(
    connection: sqlite3.Connection, keys: Sequence[EventKey], now: int, *, holds_here: bool = True
) -> SettledKeys:
    """Post the named rows that still wait, and say what the ledger holds for all of them."""
    rows = [
        Waiting(*row)
        for row in connection.execute(
            f"SELECT {_WAITING} FROM outbox WHERE {_NAMED} ORDER BY event_id, revision",  # noqa: S608
            (_names(keys),),
        )
    ]
    settled = sqlite_sql.Settled(0)
    if rows:
        settled = sqlite_sql.settle_or_split(connection, rows, now, holds_here=holds_here)
        connection.execute(
            f"DELETE FROM outbox WHERE {_NAMED}",  # noqa: S608 - a constant
            (_names([(row.event_id, row.revision) for row in rows]),),
        )
        reach("settled_uncommitted")
    gone = set(keys) - {(row.event_id, row.revision) for row in rows}
    posted_before = sqlite_sql.entries_of_calls(connection, [event_id for event_id, _ in gone])
    return SettledKeys(
        report=SettleReport(
            settled=len(rows) - settled.quarantined,
            quarantined=settled.quarantined,
            remaining=False,
            oldest_at=None,
            applied=settled.applied,
        ),
        entries=(
            *settled.entries,
            *(e for e in posted_before if (e.usage_event_id, e.usage_revision) in gone),
        ),
    )


def settle_overdue(
    connection: sqlite3.Connection,
    limit: int,
    created_before: int,
    now: int,
    *,
    holds_here: bool = True,
) -> SettledKeys:
    """Post the oldest rows written before that time."""
    keys: list[EventKey] = connection.execute(
        "SELECT event_id, revision FROM outbox WHERE created_at < ?"
        " ORDER BY event_id, revision LIMIT ?",
        (created_before, limit),
    ).fetchall()
    settled = settle_keys(connection, keys, now, holds_here=holds_here)
    oldest = connection.execute("SELECT created_at FROM outbox LIMIT 1").fetchone()
    report = msgspec.structs.replace(
        settled.report, remaining=len(keys) == limit, oldest_at=oldest[0] if oldest else None
    )
    return msgspec.structs.replace(settled, report=report)


def set_aside_messages(
    connection: sqlite3.Connection, messages: Sequence[StrayMessage], now: int
) -> None:
    """Into quarantine, unless the same message was there before, resolved or not."""
    connection.executemany(
        "INSERT INTO quarantine (event_id, revision, account, origin, reason, payload, created_at)"
        " SELECT ?1, ?2, ?3, 'broker', ?4, ?5, ?6 WHERE NOT EXISTS (SELECT 1 FROM quarantine"
        " WHERE event_id = ?1 AND revision = ?2 AND payload = ?5)",
        [
            (each.event_id, each.revision, each.account, each.reason, each.payload, now)
            for each in messages
        ],
    )


def _names(keys: Sequence[EventKey]) -> str:
    return json.dumps(list(keys))
