"""The ledger service: whoever settles charges, and the chores that belong to it, started and stopped as one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import msgspec

from billing.settlement.election import Election

CANCEL_AGAIN_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 2.0  # between two looks whether this process is elected

_log: Final = logging.getLogger(__name__)


class Runnable(Protocol):
    """Something that runs until it is told to stop, and is woken when an event was written."""

    async def run(self) -> None: ...
    def stop(self) -> None: ...
    def notify(self) -> None: ...


class Endless(Protocol):
    """Something that runs until it is cancelled."""

    async def run(self) -> None: ...


async def end_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel until they have ended.

    Once is not enough: what cleans up after a cancellation (a driver that closes its connection) may
    fail in its place, and whoever goes on after any failure then goes on for ever.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)


class Chore(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be done again and again; a failure is logged, and it is tried again in time."""

    name: str
    seconds: float  # between two times
    act: Callable[[], Awaitable[object]]

    async def run(self) -> None:
        """Do it until cancelled."""
        while True:
            await asyncio.sleep(self.seconds)
            try:
                await self.act()
            except Exception:  # noqa: BLE001 - the next time may be better
                _log.exception("the chore %s failed; it is tried again", self.name)


class LedgerService:
    """Settles, and does its chores meanwhile."""

    def __init__(self, settling: Runnable, chores: Sequence[Endless] = ()) -> None:
        self._settling = settling
        self._chores = chores

    def notify(self) -> None:
        """An event was written."""
        self._settling.notify()

    def stop(self) -> None:
        """Ask `run` to settle what waits and return."""
        self._settling.stop()

    async def run(self) -> None:
        """Run until stopped."""
        chores = [asyncio.create_task(each.run()) for each in self._chores]
        try:
            await self._settling.run()
        finally:
            await end_tasks(chores)
            await asyncio.gather(*chores, return_exceptions=True)


class ElectedService:
    """A service that runs in the one process that is elected; the others stand by.

    `make` gives a new service for each time this process wins.
    """

    def __init__(
        self,
        election: Election,
        make: Callable[[], Runnable],
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._election = election
        self._make = make
        self._look_seconds = look_seconds
        self._stopping = asyncio.Event()
        self._service: Runnable | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def elected(self) -> bool:
        """Whether the service runs here."""
        return self._service is not None

    def notify(self) -> None:
        """An event was written; whoever is elected in another process finds it by itself."""
        if self._service is not None:
            self._service.notify()

    def stop(self) -> None:
        """Ask `run` to end the service, to resign, and to return."""
        self._stopping.set()

    async def run(self) -> None:
        """Stand for election until stopped."""
        try:
            while not self._stopping.is_set():
                await self._follow(await self._election.stand())
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._look_seconds)
        finally:
            await self._follow(False)
            await self._election.resign()

    async def _follow(self, elected: bool) -> None:  # noqa: FBT001 - the answer of a vote
        if self._running is not None and self._running.done():
            # It ended by itself, which only a fault can make it do: the next look starts another.
            if (error := self._running.exception()) is not None:
                _log.error("the ledger service failed", exc_info=error)
            self._service = self._running = None
        if elected and self._service is None:
            self._service = self._make()
            self._running = asyncio.create_task(self._service.run(), name="ledger-service")
        elif not elected and self._service is not None:
            self._service.stop()
            assert self._running is not None
            await asyncio.wait([self._running])
            self._service = self._running = None
