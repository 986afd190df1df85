"""The outbox as a broker's publisher and subscriber see it: a second, smaller port beside HotDatabase."""

from asyncio import Future
from collections.abc import Sequence
from typing import Protocol

import msgspec

from billing.db.hot import SettleReport
from billing.ledger import LedgerEntry

EventKey = tuple[str, int]  # event id and revision: what names an outbox row


class WaitingEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An outbox row to be sent; `payload` is its charge event, as JSON."""

    event_id: str
    revision: int
    account: str
    payload: bytes

    @property
    def key(self) -> EventKey:
        """What names the row."""
        return self.event_id, self.revision


class StrayMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that names no row of ours and cannot be read: for a person to look at."""

    event_id: str = ""  # as far as it could be read
    revision: int = 0
    account: str = ""
    reason: str
    payload: bytes


class SettledKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What became of rows that were named: `entries` stand in the ledger, since now or before."""

    report: SettleReport
    entries: tuple[LedgerEntry, ...]


class OutboxDatabase(Protocol):
    """As in HotDatabase: a future at once, resolved after the commit; DatabaseUnavailableError.

    Everything may be repeated: a row that is gone was settled, and is answered with its entry.
    """

    def claim_unpublished(self, limit: int, *, sent_before: int) -> Future[list[WaitingEvent]]:
        """Mark as sent, and give, rows never sent or last sent before that time (milliseconds).

        Marked before they are sent: two publishers do not send one row twice, and what a dying one
        took is sent again later.
        """
        ...

    def unclaim(self, keys: Sequence[EventKey]) -> Future[None]:
        """Rows that could not be sent after all."""
        ...

    def settle_keys(self, keys: Sequence[EventKey]) -> Future[SettledKeys]:
        """Post the named rows, as far as they still wait."""
        ...

    def settle_overdue(self, limit: int, *, created_before: int) -> Future[SettledKeys]:
        """Post the oldest rows written before that time (milliseconds), sent or not.

        The report's `remaining` and `oldest_at` speak of the rows that are left.
        """
        ...

    def set_aside_messages(self, messages: Sequence[StrayMessage]) -> Future[None]:
        """Into quarantine, each once however often it comes."""
        ...
