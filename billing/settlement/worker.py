"""The ledger worker: posts waiting charge events in batches, woken by whoever writes one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from billing.db.hot import DatabaseUnavailableError, HotDatabase, SettleReport
from billing.settlement.hold_updates import HoldUpdates

BATCH_MAX: Final = 128  # more costs hardly less per event, and holds up the calls behind it
BATCH_MAX_BESIDE: Final = 500  # where calls have connections of their own, as on PostgreSQL
# A batch costs less than its parts (on PostgreSQL 54 us an event by the hundred, 22 by five hundred),
# and no call waits for the ledger: so events gather for as long as more keep coming, within limits.
GATHER_SECONDS: Final = 0.02  # of quiet after which what came is posted
GATHERED_TIMES_MAX: Final = 5  # however many come
POLL_SECONDS: Final = 1.0  # for events that another process wrote
RETRY_SECONDS: Final = 0.5

_log: Final = logging.getLogger(__name__)


class LedgerWorker:
    """`run` posts until `stop`; the counts are for metrics.

    `clock`: milliseconds since the epoch. `holds` are told of each round after its commit, if they
    do not live in the database.
    """

    def __init__(
        self,
        hot: HotDatabase,
        *,
        clock: Callable[[], int],
        holds: HoldUpdates | None = None,
        batch_max: int = BATCH_MAX,
        gather_seconds: float = GATHER_SECONDS,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._hot = hot
        self._clock = clock
        self._holds = holds
        self._batch_max = batch_max
        self._gather_seconds = gather_seconds
        self._pause = pause
        self._noted = 0  # events since the last drain
        self._woken = asyncio.Event()
        self._stopping = False
        self._waiting_since: int | None = None
        self.settled = 0
        self.quarantined = 0
        self.failures = 0

    def notify(self) -> None:
        """An event waits."""
        self._noted += 1
        if not self._woken.is_set():
            self._woken.set()
        if self._waiting_since is None:
            self._waiting_since = self._clock()

    def unsettled_age_ms(self) -> int:
        """How long about the oldest event known to this worker waits; 0: none does."""
        since = self._waiting_since
        return 0 if since is None else max(0, self._clock() - since)

    async def run(self) -> None:
        """Post what waits, until stopped; the last round leaves nothing behind."""
        while not self._stopping:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL_SECONDS)
            await self._gather()
            await self.drain()

    def stop(self) -> None:
        """Ask `run` to post what waits and return."""
        self._stopping = True
        self._woken.set()

    async def _gather(self) -> None:
        seen = -1
        for _ in range(GATHERED_TIMES_MAX):
            if self._stopping or self._noted == seen or self._noted >= self._batch_max:
                return
            seen = self._noted
            await self._pause(self._gather_seconds)

    async def drain(self) -> None:
        """Post until nothing waits, or until it fails; a failure is tried again by `run`."""
        self._woken.clear()
        self._noted = 0
        try:
            while await self._round():
                pass
        except DatabaseUnavailableError as error:
            self.failures += 1
            _log.warning("settlement waits for the database: %s", error)
            if not self._stopping:
                await asyncio.sleep(RETRY_SECONDS)

    async def _round(self) -> bool:
        asked_at = self._waiting_since
        self._waiting_since = None
        try:
            report = await self._hot.settle_pending(self._batch_max)
        except BaseException:
            self._waiting_since = asked_at or self._waiting_since
            raise
        self._note(report)
        if self._holds is not None:
            await self._holds.tell(report.applied)
        return report.remaining

    def _note(self, report: SettleReport) -> None:
        self.settled += report.settled
        self.quarantined += report.quarantined
        if report.oldest_at is not None:
            self._waiting_since = report.oldest_at
        if report.quarantined:
            _log.error("%d charge events went into quarantine", report.quarantined)
