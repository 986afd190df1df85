"""Outbox: makes a finished call durable, in the database or, while that is away, in the spool."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from billing.db.hot import DatabaseUnavailableError, EventConflictError, HotDatabase
from billing.events import Finish
from billing.failpoints import reach
from billing.settlement.spool import Spool, SpoolError, nobody

PROBE_SECONDS: Final = 0.5
_REPLAY_GROUP: Final = 64

_log: Final = logging.getLogger(__name__)


class NotDurableError(Exception):
    """Neither database nor spool took the event: the client must not see the end of its answer."""


class Outbox:
    """`write` returns when the event is durable; `on_written` then wakes the ledger worker.

    `on_recorded` is told of each event once it stands in the database; what is spooled comes when
    it is replayed, and what went into quarantine never.
    """

    def __init__(
        self,
        hot: HotDatabase,
        spool: Spool,
        *,
        on_written: Callable[[], None] = lambda: None,
        on_recorded: Callable[[Finish], None] = lambda _: None,
    ) -> None:
        self._hot = hot
        self._spool = spool
        self._on_written = on_written
        self._on_recorded = on_recorded
        self._away = asyncio.Event()  # the database did not answer last time
        self._lost = False
        # What neither took; nobody is admitted meanwhile, so these are at most the calls under way.
        self._unsaved: list[Finish] = []
        self._replaying = asyncio.Lock()  # one at a time
        self._mending: asyncio.Task[None] | None = None
        self._unattended: set[asyncio.Task[None]] = set()

    @property
    def durable(self) -> bool:
        """False once neither took an event, until one of them does: nobody may be admitted."""
        return not self._lost

    @property
    def database_away(self) -> bool:
        """Events go to the spool."""
        return self._away.is_set()

    def spool_bytes(self) -> int:
        """Bytes that wait in the spool."""
        return self._spool.bytes_waiting()

    async def start(self) -> None:
        """Watch from now on for the database's return after an outage."""
        self._mending = asyncio.create_task(self._mend(), name="outbox")

    async def close(self) -> None:
        """Let writes whose callers are gone end; close the spool."""
        if self._unattended:
            await asyncio.wait(self._unattended)
        if self._mending is not None:
            self._mending.cancel()
            with suppress(asyncio.CancelledError):
                await self._mending
        await self._save_again()
        for finish in self._unsaved:
            _log.critical("event %s is recorded nowhere", finish.event.context.event_id)
        await asyncio.to_thread(self._spool.close)

    async def write(self, finish: Finish) -> None:
        """Make a charge, or a cancellation, durable.

        Raises NotDurableError if that cannot be done now: the event is kept in memory and written as
        soon as one of them takes it, if the process lives so long. Raises EventConflictError (the event is quarantined
        then) if something else is recorded for this call. What the database refuses for any other
        reason is quarantined as well. A caller that is cancelled meanwhile leaves the event to be
        written all the same.
        """
        try:
            if self._away.is_set():
                await self._write_spool(finish)
            else:
                await self._write_database(finish)
        except asyncio.CancelledError:
            task = asyncio.create_task(self._write_unattended(finish))
            self._unattended.add(task)
            task.add_done_callback(self._unattended.discard)
            raise

    async def replay(self, gone: Callable[[str], bool] = nobody) -> int:
        """Bring what was spooled into the database; how many events that were.

        `gone` says whose files are taken beside our own. Raises DatabaseUnavailableError; repeating
        is harmless.
        """
        replayed = 0
        async with self._replaying:
            for path in await self._spool.seal(gone):
                replayed += await self._replay_file(path)
        if replayed:
            self._on_written()
        return replayed

    def spool_owners(self) -> set[str]:
        """The other processes whose files lie in the same directory."""
        return self._spool.owners()

    async def _write_database(self, finish: Finish) -> None:
        try:
            await self._hot.record(finish)
        except DatabaseUnavailableError:
            self._away.set()
            await self._write_spool(finish)
        except EventConflictError as error:
            await self._set_aside(finish, str(error))
            raise
        except Exception as error:  # noqa: BLE001 - a charge must not be lost to a mistake of ours
            await self._set_aside(finish, f"{type(error).__name__}: cannot be recorded")
        else:
            self._lost = False
            self._on_recorded(finish)
            self._on_written()

    async def _set_aside(self, finish: Finish, reason: str) -> None:
        """Into quarantine, durably; its hold stays."""
        _log.error("event %s is set aside: %s", finish.event.context.event_id, reason)
        try:
            await self._hot.quarantine(finish, origin="owner", reason=reason)
        except DatabaseUnavailableError:
            self._away.set()
            await self._write_spool(finish)

    async def _write_spool(self, finish: Finish) -> None:
        reach("before_spool")
        try:
            await self._spool.append(finish)
        except SpoolError as error:
            self._lost = True
            self._unsaved.append(finish)
            raise NotDurableError(str(error)) from error
        self._lost = False

    async def _write_unattended(self, finish: Finish) -> None:
        try:
            await self._write_database(finish)
        except (NotDurableError, EventConflictError, DatabaseUnavailableError) as error:
            event_id = finish.event.context.event_id
            _log.error("event %s of a call whose client is gone: %s", event_id, error)

    async def _mend(self) -> None:
        while True:
            await self._away.wait()
            await asyncio.sleep(PROBE_SECONDS)
            try:
                await self._hot.ping()
                self._away.clear()
                self._lost = False
                await self._save_again()
                await self.replay()
            except DatabaseUnavailableError:
                self._away.set()
                if self._lost:
                    await self._probe_spool()
            except Exception as error:  # noqa: BLE001 - mending goes on as long as there is need
                self._away.set()
                _log.error("the spool cannot be replayed: %s", error)

    async def _probe_spool(self) -> None:
        with suppress(SpoolError):
            await self._spool.probe()
            self._lost = False
            await self._save_again()

    async def _save_again(self) -> None:
        """Write what neither took before; what is refused again is kept again."""
        unsaved, self._unsaved = self._unsaved, []
        for finish in unsaved:
            with suppress(NotDurableError, EventConflictError):
                await self.write(finish)

    async def _replay_file(self, path: Path) -> int:
        content = await self._spool.read(path)
        finishes = content.finishes
        for first in range(0, len(finishes), _REPLAY_GROUP):
            group = finishes[first : first + _REPLAY_GROUP]
            answers = await asyncio.gather(
                *(self._hot.record(finish) for finish in group), return_exceptions=True
            )
            for finish, answer in zip(group, answers, strict=True):
                await self._judge(finish, answer)
        if content.damaged:
            _log.error("spool file %s is damaged; kept under another name", path.name)
        reach("spool_replayed")
        await self._spool.done(path, damaged=content.damaged)
        return len(finishes)

    async def _judge(self, finish: Finish, answer: BaseException | None) -> None:
        match answer:
            case None:
                self._on_recorded(finish)
            case DatabaseUnavailableError():
                raise answer
            case EventConflictError():
                await self._hot.quarantine(finish, origin="spool", reason=str(answer))
            case Exception():
                reason = f"{type(answer).__name__}: cannot be recorded"
                await self._hot.quarantine(finish, origin="spool", reason=reason)
            case BaseException():
                raise answer
