"""Re-rates the calls of a time by a book and sums up what comes of it; nothing is written.

`charged`: against what the ledger charges now, as a posting run would; else against what was recorded.
"""

from collections.abc import AsyncIterator
from typing import Final

import msgspec

from billing.books import PriceBooks
from billing.db.invariants import time_of
from billing.db.session import Database
from billing.kinds import LeftOut
from billing.rerating.calls import Call, CallPage, Charged, Window, read_calls
from billing.rerating.pricing import Rerater
from billing.rerating.tally import Simulation, Tally

CALLS_AT_ONCE: Final = 5_000


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a simulation has come: calls looked at, and the part of the time in percent."""

    calls: int
    percent: int


async def simulate(
    database: Database,
    books: PriceBooks,
    rerater: Rerater,
    window: Window,
    *,
    charged: bool,
    calls_at_once: int = CALLS_AT_ONCE,
) -> AsyncIterator[Progress | Simulation]:
    """Progress after each page, the result at last. Raises what SQLAlchemy raises."""
    tally = Tally()
    after, more = "", True
    while more:
        page = await read_calls(
            database,
            window,
            after=after,
            limit=calls_at_once,
            without_run="" if charged else None,
        )
        await rerater.learn(page.calls, books)
        _count(tally, rerater, page, charged=charged)
        after, more = page.last, bool(page.last)
        if more:
            yield Progress(calls=tally.calls, percent=percent_of(window, time_of(after)))
    yield Progress(calls=tally.calls, percent=100)
    yield tally.report()


def _count(tally: Tally, rerater: Rerater, page: CallPage, *, charged: bool) -> None:
    for call in page.calls:
        new = rerater.price(call)
        if charged:
            stands = page.charged[call.event_id]
            tally.add(call, stands.total, target(call, stands, new))
        else:
            tally.add(call, call.amount, new)


def target(call: Call, charged: Charged, new: int | LeftOut) -> int | LeftOut:
    """What a call is to be charged in the end, refunds apart; or why it keeps what it is charged.

    Never less than was given back: nobody gains by a call. One that was given back whole was free
    by somebody's decision, and stays it.
    """
    if isinstance(new, LeftOut):
        return new
    if charged.first != call.amount:
        return LeftOut.NOT_SETTLED
    if 0 < charged.first <= charged.refunded:
        return LeftOut.REFUNDED
    return max(new, charged.refunded)


def percent_of(window: Window, at: int) -> int:
    """Which part of a time has passed."""
    passed = min(max(0, at - window.from_at), window.to_at - window.from_at)
    return passed * 100 // (window.to_at - window.from_at)
