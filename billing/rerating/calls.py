"""Reads recorded calls page by page, in the order of their ids; each page is a short transaction of its own.

Of a call only its last word counts. What is cancelled was not charged and is left out, and so are
holds of corrections that a crash left behind. Nothing but the columns that pricing needs is read.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import text
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import ledger
from billing.db.invariants import STALE_MS, first_id
from billing.db.session import Database
from billing.events import Revision
from pricing_rules.rates import TOKEN_CLASSES
from pricing_rules.usage import Usage

RERATE: Final = "rerate"  # in the ids of entries: {event_id}:rerate:{run_id}


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Calls that began in [from_at, to_at), milliseconds since the epoch."""

    from_at: int
    to_at: int


class Call(msgspec.Struct, frozen=True):
    """A call as it was last recorded; the fields are what the query selects, in its order."""

    event_id: str
    revision: int
    cancelled: bool | int
    account: str
    scene: str
    provider: str
    model: str  # as sent to the provider
    book: int
    rule: str
    quality: str
    usage_source: str
    amount: int  # micro-credits
    started_at: int
    usage: Usage


class Charged(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger says of a call, in micro-credits; costs are above 0."""

    first: int | None  # charge and final together; None: there is no charge
    rerated: int  # what other runs have added
    refunded: int  # given back, or promised to be

    @property
    def total(self) -> int:
        """What the call is charged now, refunds apart."""
        return (self.first or 0) + self.rerated


class CallPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some calls; `last` is where the next page begins behind, "" at the end."""

    calls: list[Call]
    charged: dict[str, Charged]  # empty unless it was asked for
    last: str


async def read_calls(
    database: Database,
    window: Window,
    *,
    after: str,
    limit: int,
    without_run: str | None = None,
) -> CallPage:
    """Up to `limit` words on calls whose ids follow `after`. Raises what SQLAlchemy raises.

    `without_run`: read also what the ledger says of each, leaving out the entries of this run ("":
    of none).
    """
    values = {
        # An id is as old as its call, but for the clock of the process that made it.
        "after": max(after, first_id(max(0, window.from_at - STALE_MS))),
        "end": first_id(window.to_at + STALE_MS),
        "from_at": window.from_at,
        "to_at": window.to_at,
        "limit": limit,
    }
    async with database.read() as connection:
        rows = (await connection.execute(_CALLS, values)).all()
        full = len(rows) == limit
        if full and rows[-1][1] == Revision.ESTIMATE:
            rows = rows[:-1]  # the final may be on the next page
        calls = _last_words(rows)
        charged: dict[str, Charged] = {}
        if without_run is not None and calls:
            ids = [call.event_id for call in calls]
            charged = await _charged(connection, ids, without_run)
    return CallPage(calls=calls, charged=charged, last=rows[-1][0] if full else "")


def _last_words(rows: Sequence[Row[*tuple[Any, ...]]]) -> list[Call]:
    words: dict[str, Call] = {}
    for row in rows:
        # Each by name, in the order of TOKEN_CLASSES: of millions of rows, a dict each would be dear.
        plain, cached, write_5m, write_1h, audio, image, output, reasoning, spoken = row[_TOKENS:]
        usage = Usage(
            input=plain,
            cached_input=cached,
            cache_write_5m=write_5m,
            cache_write_1h=write_1h,
            audio_input=audio,
            image_input=image,
            output=output,
            reasoning=reasoning,
            audio_output=spoken,
        )
        words[row[0]] = Call(*row[:_TOKENS], usage)  # type: ignore[call-arg]  # mypy counts the star as one more
    return [call for call in words.values() if not call.cancelled]


async def _charged(
    connection: AsyncConnection, ids: list[str], without_run: str
) -> dict[str, Charged]:
    """What the ledger says of calls, which are given in the order of their ids."""
    ends = {"first": ids[0], "last": ids[-1], "end": f"{ids[-1]};"}  # ";" follows ":" in ASCII
    first: dict[str, int] = {}
    rerated: dict[str, int] = {}
    for event_id, amount in await connection.execute(_ENTRIES, ends):
        call, _, suffix = event_id.partition(":")
        kind, _, run_id = suffix.partition(":")
        if kind == RERATE:
            if run_id != without_run:
                rerated[call] = rerated.get(call, 0) - amount
        elif not suffix or f":{suffix}" == ledger.FINAL_SUFFIX:
            first[call] = first.get(call, 0) - amount
    refunds = (await connection.execute(_REFUNDS, ends)).all()
    refunded: dict[str, int] = {ref_id: amount for ref_id, amount in refunds}  # noqa: C416 - rows are no pairs to mypy
    return {
        event_id: Charged(
            first=first.get(event_id),
            rerated=rerated.get(event_id, 0),
            refunded=refunded.get(event_id, 0),
        )
        for event_id in ids
    }


_COLUMNS: Final = tuple(
    {"model": "model_sent"}.get(name, name) for name in Call.__struct_fields__ if name != "usage"
)
_TOKENS: Final = len(_COLUMNS)
_CALLS: Final = text(
    f"SELECT {', '.join((*_COLUMNS, *TOKEN_CLASSES))} FROM usage"  # noqa: S608 - constants
    " WHERE event_id > :after AND event_id < :end"
    " AND started_at >= :from_at AND started_at < :to_at AND book > 0"
    " ORDER BY event_id, revision LIMIT :limit"
)
_ENTRIES: Final = text(
    "SELECT event_id, amount FROM ledger_entries"
    " WHERE event_id >= :first AND event_id < :end AND status = 'applied' AND source = 'charge'"
)
_REFUNDS: Final = text(
    "SELECT ref_id, CAST(SUM(COALESCE(amount, wanted)) AS BIGINT) FROM corrections"
    " WHERE kind = 'charge_refund' AND ref_id >= :first AND ref_id <= :last GROUP BY ref_id"
)
