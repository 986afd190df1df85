"""The publisher: sends outbox rows over the broker, and sends again what stays unsettled."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from billing.db.hot import DatabaseUnavailableError
from billing.db.outbox import OutboxDatabase, WaitingEvent
from billing.failpoints import reach
from billing.settlement.brokers import BrokerConnection, BrokerUnavailableError
from billing.settlement.messages import REQUESTED_TOPIC, Outgoing

BATCH_MAX: Final = 500
GATHER_SECONDS: Final = 0.01  # lets a few events gather: a batch costs less than its parts
POLL_SECONDS: Final = 1.0  # for events that nobody told of, and those to be sent again
RESEND_SECONDS: Final = 60  # a row that is sent and still there after so long is sent again
RETRY_SECONDS: Final = 0.5

_log: Final = logging.getLogger(__name__)


class ChargePublisher:
    """`run` sends until `stop`; several may run on one database. The counts are for metrics.

    `clock`: milliseconds since the epoch.
    """

    def __init__(
        self,
        database: OutboxDatabase,
        connection: BrokerConnection,
        *,
        clock: Callable[[], int],
        resend_seconds: float = RESEND_SECONDS,
    ) -> None:
        self._database = database
        self._connection = connection
        self._clock = clock
        self._resend_ms = int(resend_seconds * 1000)
        self._woken = asyncio.Event()
        self._stopping = False
        self.published = 0
        self.failures = 0

    def notify(self) -> None:
        """An event waits."""
        self._woken.set()

    def stop(self) -> None:
        """Ask `run` to send what waits, if the broker is there, and return."""
        self._stopping = True
        self._woken.set()

    async def run(self) -> None:
        """Send what waits, until stopped. While the broker is away the outbox grows."""
        while not self._stopping:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL_SECONDS)
            if not self._stopping:
                await asyncio.sleep(GATHER_SECONDS)
            await self.drain()

    async def drain(self) -> None:
        """Send until nothing is unsent, or until it fails; a failure is tried again by `run`."""
        self._woken.clear()
        try:
            while self._connection.up and await self._round():
                pass
        except (BrokerUnavailableError, DatabaseUnavailableError) as error:
            self.failures += 1
            _log.warning("charges wait in the outbox: %s", error)
            if not self._stopping:
                await asyncio.sleep(RETRY_SECONDS)

    async def _round(self) -> bool:
        sent_before = self._clock() - self._resend_ms
        events = await self._database.claim_unpublished(BATCH_MAX, sent_before=sent_before)
        if events:
            reach("claimed_unsent")
            await self._send(events)
        return len(events) == BATCH_MAX

    async def _send(self, events: list[WaitingEvent]) -> None:
        messages = [
            Outgoing(topic=REQUESTED_TOPIC, key=event.account, payload=event.payload)
            for event in events
        ]
        try:
            await self._connection.send(messages)
        except BrokerUnavailableError:
            # Some may have arrived: those are settled twice as little as any other.
            await self._database.unclaim([event.key for event in events])
            raise
        self.published += len(events)
