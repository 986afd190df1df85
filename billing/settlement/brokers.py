"""Brokers: a connection that is made, watched and made again; what travels over it is never the only copy.

The outbox row is the truth and a message only a pointer to it, so that a broker may lose, repeat and
reorder what it likes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Literal, Protocol

from billing.settlement.broker_address import check_redis, parse_kafka
from billing.settlement.messages import Outgoing

Handler = Callable[[list[bytes]], Awaitable[None]]

GROUP: Final = "llm-gateway-ledger"  # the workers share the messages between them
BATCH_MAX: Final = 500  # messages that a worker is handed at once
SEND_SECONDS: Final = 10.0  # then a message that nobody acknowledged counts as not sent
WATCH_SECONDS: Final = 2.0
RETRY_SECONDS_MIN: Final = 0.25
RETRY_SECONDS_MAX: Final = 5.0

_log: Final = logging.getLogger(__name__)


class BrokerUnavailableError(Exception):
    """The broker did not take the messages, as far as is known; the message names no secret."""


class Link(Protocol):
    """One connection to a broker; used once, from `open` to `close`."""

    async def open(self) -> None:
        """Connect, make the topics, start to receive; raises BrokerUnavailableError."""
        ...

    async def close(self) -> None:
        """Let the batch in work end, then disconnect; never raises."""
        ...

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """Returns when the broker has all of them; raises BrokerUnavailableError."""
        ...

    async def check(self) -> None:
        """Raises BrokerUnavailableError if nothing would be sent or received any more."""
        ...


LinkMaker = Callable[[Handler | None], Link]


class BrokerConnection:
    """Keeps a link open while it runs. `up` says whether one is; sending without one fails at once."""

    def __init__(self, make_link: Callable[[], Link]) -> None:
        self._make_link = make_link
        self._link: Link | None = None
        self._open = False
        self._broken = asyncio.Event()
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self.outages = 0

    @property
    def up(self) -> bool:
        """A link is open and was not seen to fail."""
        return self._open and not self._broken.is_set()

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """Returns when the broker has all messages; raises BrokerUnavailableError."""
        link = self._link
        if link is None or self._broken.is_set():
            raise BrokerUnavailableError("no broker is connected")
        try:
            await link.send(messages)
        except BrokerUnavailableError:
            self._broken.set()
            raise

    async def wait_up(self) -> None:
        """Return once a link is open."""
        while not self.up:
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Connect, and connect again whenever the link breaks, until stopped."""
        pause = RETRY_SECONDS_MIN
        told = False
        while not self._stopping.is_set():
            self._broken.clear()
            # From here on: a batch may be received, and settled, before `open` returns.
            link = self._link = self._make_link()
            try:
                await link.open()
                _log.info("the broker is connected")
                pause, told = RETRY_SECONDS_MIN, False
                await self._watch(link)
            except BrokerUnavailableError as error:
                if not told:
                    _log.warning("the broker is away; charges wait in the outbox: %s", error)
                    told = True
                await self._sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS_MAX)
            finally:
                self._open = False
                await link.close()  # the batch in work may still tell of what it settled
                self._link = None

    def stop(self) -> None:
        """Ask `run` to close the link and return."""
        self._stopping.set()

    async def _watch(self, link: Link) -> None:
        self._open = True
        self._changed.set()
        while not self._stopping.is_set() and not self._broken.is_set():
            if await _either(self._broken, self._stopping, WATCH_SECONDS):
                break
            try:
                await link.check()
            except BrokerUnavailableError as error:
                _log.warning("the broker is gone; it is tried again: %s", error)
                self._broken.set()
        if self._broken.is_set():
            self.outages += 1

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


async def _either(one: asyncio.Event, other: asyncio.Event, seconds: float) -> bool:
    """Wait for one of two events; False if neither came in time."""
    waits = [asyncio.create_task(event.wait()) for event in (one, other)]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return bool(done)


def link_maker(kind: Literal["kafka", "redis"], url: str, *, process: str) -> LinkMaker:
    """What makes links to this broker, given a handler; without one they only send.

    `process` names the connection to the broker. Raises BrokerAddressError.
    """
    # A client library is loaded only by those who use it.
    if kind == "kafka":
        from billing.settlement.kafka_link import KafkaLink

        address = parse_kafka(url)
        return lambda handler: KafkaLink(address, process=process, handler=handler)
    from billing.settlement.redis_link import RedisLink

    check_redis(url)
    return lambda handler: RedisLink(url, process=process, handler=handler)
