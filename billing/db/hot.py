"""The port to the database on the hot path: holds, charge events and settlement, without a task per call."""

from asyncio import Future
from typing import Final, Protocol

import msgspec

from billing.events import Finish
from billing.holds import Applied, Granted, HoldBeat, HoldRequest, Refused
from billing.ledger import Entry, EventConflict, PostResult

ANSWER_SECONDS: Final = 2.0  # then whoever asked is told, whatever still becomes of it


class DatabaseUnavailableError(Exception):
    """The database did not answer, is locked, full or broken; what was asked may or may not stand."""


class EventConflictError(Exception):
    """The same event id came with other content; `conflict` names the field and both values."""

    def __init__(self, conflict: EventConflict) -> None:
        super().__init__(str(conflict))
        self.conflict = conflict


class SettleReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one round of settlement did."""

    settled: int  # outbox rows posted, or found posted before
    quarantined: int
    remaining: bool  # at least one more row waits
    oldest_at: int | None  # when about the oldest waiting row was written; None: nothing waits
    applied: tuple[Applied, ...] = ()  # by account, what holds elsewhere must be told of


class HotDatabase(Protocol):
    """Each method returns a future at once; its transaction commits before the future resolves.

    All raise DatabaseUnavailableError, at the latest after `answer_seconds` (two). Each is idempotent: by hold
    id, or by event id and revision.
    """

    async def start(self) -> None:
        """Open the database."""
        ...

    async def close(self) -> None:
        """Finish what is queued, then close."""
        ...

    def reserve(self, request: HoldRequest) -> Future[Granted | Refused]:
        """Hold min(wanted, balance - held) if that is at least the minimum."""
        ...

    def extend(self, hold_id: str, new_total: int) -> Future[Granted | Refused]:
        """Raise a hold to `new_total` micro-credits, whole or not at all."""
        ...

    def heartbeat(self, beats: list[HoldBeat]) -> Future[None]:
        """Note the progress of running calls."""
        ...

    def cancel(self, finish: Finish) -> Future[None]:
        """Note that nothing is charged and drop the hold; EventConflictError after a charge."""
        ...

    def release(self, hold_id: str) -> Future[None]:
        """Drop a hold that is no call's, noting nothing."""
        ...

    def record(self, finish: Finish) -> Future[None]:
        """Write usage and outbox row of a charge; EventConflictError if they say something else."""
        ...

    def settle_pending(self, limit: int) -> Future[SettleReport]:
        """Post up to `limit` waiting charge events."""
        ...

    def post(self, entries: list[Entry]) -> Future[list[PostResult]]:
        """Post entries that are no calls: purchases, grants, adjustments; one result for each."""
        ...

    def adopt_orphans(self, process: str, now: int) -> Future[int]:
        """Charge the holds of all other processes at their last progress; how many there were."""
        ...

    def quarantine(self, finish: Finish, *, origin: str, reason: str) -> Future[None]:
        """Set aside an event that cannot be recorded."""
        ...

    def ping(self) -> Future[None]:
        """Prove that the database takes writes."""
        ...
