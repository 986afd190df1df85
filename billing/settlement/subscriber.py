"""The ledger worker behind a broker: settles the rows that messages name, and in time those that none names."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from billing.db.hot import DatabaseUnavailableError, SettleReport
from billing.db.outbox import OutboxDatabase, SettledKeys
from billing.failpoints import reach
from billing.ledger import LedgerEntry
from billing.settlement.brokers import BrokerConnection, BrokerUnavailableError
from billing.settlement.messages import Outgoing, Sorted, settled_message, sort_out

BATCH_MAX: Final = 500
RETRY_SECONDS: Final = 0.5
LOOK_SECONDS: Final = 1.0  # how often rows that wait too long are looked for
OVERDUE_SECONDS: Final = 90  # longer than a message takes to be sent, and sent again
OVERDUE_SECONDS_AWAY: Final = 10  # while the broker is away, which holds up everybody's credit
UNTOLD_MAX: Final = 10_000  # settled charges that are kept to be told while the broker is away

T = TypeVar("T")
OnSettled = Callable[[SettleReport], Awaitable[None]]

_log: Final = logging.getLogger(__name__)


async def _nothing(_report: SettleReport) -> None:
    """The default of `on_settled`."""


class BrokerWorker:
    """`receive` is the subscriber's handler; `run` settles what waits too long, until `stop`.

    `on_settled` is told of each round after its commit, before the messages are acknowledged.
    `clock`: milliseconds since the epoch. The counts are for metrics.
    """

    def __init__(
        self,
        database: OutboxDatabase,
        *,
        clock: Callable[[], int],
        on_settled: OnSettled = _nothing,
        batch_max: int = BATCH_MAX,
        overdue_seconds: float = OVERDUE_SECONDS,
        overdue_seconds_away: float = OVERDUE_SECONDS_AWAY,
    ) -> None:
        self._database = database
        self._clock = clock
        self._on_settled = on_settled
        self._batch_max = batch_max
        self._overdue_ms = int(overdue_seconds * 1000)
        self._overdue_ms_away = int(overdue_seconds_away * 1000)
        self._connection: BrokerConnection | None = None
        self._stopping = asyncio.Event()
        self._untold: list[Outgoing] = []
        self._waiting_since: int | None = None
        self.settled = 0
        self.settled_overdue = 0  # without a message: the broker was away, or lost it
        self.quarantined = 0
        self.strays = 0
        self.untold_dropped = 0
        self.failures = 0

    def use(self, connection: BrokerConnection) -> None:
        """Over which connection others are told of settled charges."""
        self._connection = connection

    def unsettled_age_ms(self) -> int:
        """How long the oldest event in the outbox waits, as of the last look; 0: none does."""
        since = self._waiting_since
        return 0 if since is None else max(0, self._clock() - since)

    async def receive(self, payloads: list[bytes]) -> None:
        """Settle what a batch of messages names; they may be acknowledged when this returns.

        Raises BrokerUnavailableError, or DatabaseUnavailableError once it is stopping: then nothing
        may be acknowledged, and what comes again does no harm.
        """
        try:
            await self._receive(sort_out(payloads))
        except Exception as error:
            self.failures += 1
            _log.warning("a batch of charges comes again: %s: %s", type(error).__name__, error)
            await self._pause(RETRY_SECONDS)  # it comes again at once
            raise
        reach("settled_unacknowledged")

    async def _receive(self, wanted: Sorted) -> None:
        for first in range(0, len(wanted.keys), self._batch_max):
            keys = wanted.keys[first : first + self._batch_max]
            done = await self._insist(partial(self._database.settle_keys, keys))
            await self._note(done)
            await self._tell(done.entries)
        if wanted.strays:
            await self._insist(partial(self._database.set_aside_messages, wanted.strays))
            self.strays += len(wanted.strays)
            first_reason = wanted.strays[0].reason
            _log.error("%d messages are in quarantine: %s", len(wanted.strays), first_reason)

    def stop(self) -> None:
        """Ask `run` to return, and `receive` not to wait for the database any longer."""
        self._stopping.set()

    async def run(self) -> None:
        """Once a second, settle rows that wait too long; tell what could not be told before."""
        while not self._stopping.is_set():
            await self._pause(LOOK_SECONDS)
            try:
                await self.settle_overdue()
                await self._tell_untold()
            except (DatabaseUnavailableError, BrokerUnavailableError) as error:
                self.failures += 1
                _log.warning("settlement waits: %s", error)

    async def settle_overdue(self) -> int:
        """Settle, straight from the database, rows that wait too long; how many those were."""
        away = self._connection is None or not self._connection.up
        waited = self._overdue_ms_away if away else self._overdue_ms
        before, count = self._clock() - waited, 0
        while True:
            done = await self._database.settle_overdue(self._batch_max, created_before=before)
            self._waiting_since = done.report.oldest_at
            if found := done.report.settled + done.report.quarantined:
                await self._note(done)
                self._keep_untold(_messages_of(done.entries))
            count += found
            if not done.report.remaining or self._stopping.is_set():
                break
        if count:
            self.settled_overdue += count
            _log.warning("%d charges were settled without the broker", count)
        return count

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the database until it answers: to hand back a batch would only bring it again."""
        while True:
            try:
                return await ask()
            except DatabaseUnavailableError as error:
                self.failures += 1
                _log.warning("settlement waits for the database: %s", error)
                if self._stopping.is_set():
                    raise
                await self._pause(RETRY_SECONDS)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _note(self, done: SettledKeys) -> None:
        self.settled += done.report.settled
        self.quarantined += done.report.quarantined
        if done.report.quarantined:
            _log.error("%d charge events went into quarantine", done.report.quarantined)
        await self._on_settled(done.report)

    async def _tell(self, entries: Sequence[LedgerEntry]) -> None:
        """Tell others; a failure keeps the batch unacknowledged, so that even a crash loses nothing."""
        messages = _messages_of(entries)
        if not messages or self._connection is None:
            return
        try:
            await self._connection.send(messages)
        except BrokerUnavailableError:
            self._keep_untold(messages)  # the broker may have lost what it would bring again
            raise

    def _keep_untold(self, messages: Sequence[Outgoing]) -> None:
        self._untold += messages
        if (surplus := len(self._untold) - UNTOLD_MAX) > 0:
            # Readers see the gap in account_seq.
            del self._untold[:surplus]
            self.untold_dropped += surplus

    async def _tell_untold(self) -> None:
        if self._untold and self._connection is not None and self._connection.up:
            told = self._untold[:]
            await self._connection.send(told)
            del self._untold[: len(told)]


def _messages_of(entries: Sequence[LedgerEntry]) -> list[Outgoing]:
    return [message for entry in entries if (message := settled_message(entry))]
