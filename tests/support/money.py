"""Holds, finished calls and entries for tests of the money path, and a hot database on a real file."""

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path

from billing.context import BillingContext, encode_context
from billing.db import engine as engines
from billing.db import migrate
from billing.db.invariants import check_invariants, check_invariants_on
from billing.events import (
    ChargeEvent,
    Finish,
    Revision,
    UsageNotes,
    UsageQuality,
    UsageSource,
)
from billing.holds import HoldRequest
from billing.ledger import Entry
from pricing_rules.usage import Usage
from tests.support.services import pg_rows

T0 = 1_790_000_000_000  # milliseconds since the epoch
PATIENT_SECONDS = 30.0  # for an answer of the database, where a slow machine is not the subject

Place = Path | str  # a SQLite file, or the address of a PostgreSQL database

_ids = count(1)


def new_id() -> str:
    """A fresh event id; later ones sort later, as those of the product do."""
    return f"01900000-0000-7000-8000-{next(_ids):012x}"


def context(event_id: str, account: str = "alice") -> BillingContext:
    return BillingContext(
        event_id=event_id,
        account=account,
        key_id="key-1",
        app="",
        scene="agent",
        provider="echo",
        model_requested="mini",
        model_sent="mini-1",
        run_id="",
        client_request_id="",
        book=1,
        rule="echo-mini",
        started_at=T0,
    )


def charge(
    event_id: str,
    amount: int,
    *,
    account: str = "alice",
    revision: int = Revision.FINAL,
    ceiling: int = 100,
) -> Finish:
    """A finished call that costs `amount`."""
    return Finish(
        event=ChargeEvent(
            revision=revision,
            context=context(event_id, account),
            usage=Usage(input=10, cached_input=2, output=5, reasoning=1),
            quality=UsageQuality.EXACT,
            usage_source=UsageSource.PROVIDER,
            amount=amount,
            ceiling=ceiling,
            finished_at=T0 + 5,
        ),
        notes=UsageNotes(raw_usage=b'{"prompt_tokens":12}'),
    )


def estimate(event_id: str, amount: int, *, account: str = "alice") -> Finish:
    """What a sweeper says of a call whose process died."""
    return charge(event_id, amount, account=account, revision=Revision.ESTIMATE)


def cancelled(event_id: str, *, account: str = "alice", reason: str = "not_reached") -> Finish:
    """A call of which the owner decided that nothing is charged."""
    finish = charge(event_id, 0, account=account)
    return Finish(event=finish.event, notes=UsageNotes(reason=reason), cancelled=True)


def hold(
    event_id: str,
    *,
    account: str = "alice",
    minimum: int = 100,
    wanted: int = 100,
    process: str = "p1",
) -> HoldRequest:
    return HoldRequest(
        hold_id=event_id,
        account=account,
        minimum=minimum,
        wanted=wanted,
        context=encode_context(context(event_id, account)),
        process=process,
        started_at=T0,
    )


def purchase(amount: int, *, account: str = "alice", event_id: str = "") -> Entry:
    return Entry(
        event_id=event_id or f"bought:{new_id()}",
        account=account,
        source="purchase",
        direction="income",
        amount=amount,
    )


@asynccontextmanager
async def hot_database(place: Place) -> AsyncIterator[engines.Engine]:
    """A started hot database whose clock stands still; its invariants are checked at the end."""
    hot = engines.hot_database(url_of(place), clock=lambda: T0, answer_seconds=PATIENT_SECONDS)
    await hot.start()
    try:
        yield hot
    finally:
        await hot.close()
    assert violations(place) == []


def url_of(place: Place) -> str:
    """The address of a database, as the configuration takes it."""
    return place if isinstance(place, str) else f"sqlite+aiosqlite:///{place}"


def violations(place: Place) -> list[str]:
    """What the invariants say."""
    if isinstance(place, str):
        return migrate.run_sync(place, check_invariants_on)
    with closing(sqlite3.connect(place)) as connection:
        return check_invariants(connection)


def rows(place: Place, query: str, *values: object) -> list[tuple[object, ...]]:
    """What a query finds, read from outside of the product; its marks are question marks."""
    if isinstance(place, str):
        return pg_rows(place, _numbered(query), *values)
    with closing(sqlite3.connect(place)) as connection:
        return connection.execute(query, values).fetchall()


def execute(place: Place, statement: str, *values: object) -> None:
    """Change the database from outside of the product."""
    if isinstance(place, str):
        pg_rows(place, _numbered(statement), *values)
        return
    with closing(sqlite3.connect(place)) as connection, connection:
        connection.execute(statement, values)


def _numbered(query: str) -> str:
    numbers = count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", query)


def outbox_payloads(place: Place) -> list[bytes]:
    """The events that wait in the outbox, oldest first."""
    found = [row[0] for row in rows(place, "SELECT payload FROM outbox ORDER BY event_id")]
    return [payload for payload in found if isinstance(payload, bytes)]
