"""Losing Redis: how processes notice it, agree on it, and bring the holds back before anyone is admitted.

The epoch stands in the database, and every script carries it. Redis was lost if its server is not
the one of the epoch (a restart or a promotion changes run_id or replication id), or if an account is
absent that was brought in during this very epoch (FLUSHALL changes neither). Then the epoch is
raised, and admission waits until every live process has written its holds into Redis and seen,
after the last of them did, that they are still there. Only then accounts are loaded again, each at
its first use, with what the ledger knows to be unsettled.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final, Protocol

from sqlalchemy.exc import SQLAlchemyError

from billing.holds.ledger_view import GuardState, LedgerView, Phase, step
from billing.holds.redis_connection import RedisUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_SECONDS: Final = 1.0
RECOVERY_POLL_SECONDS: Final = 0.1
DATABASE_SECONDS: Final = 5.0
LATE_SECONDS: Final = 5.0  # after which the log names who is waited for
ABSENT_SECONDS: Final = 1.0  # within which whoever is first to bring an account in makes it
OPEN_SECONDS: Final = 2.0  # how long a call waits for a recovery to end
AWAY: Final = (SQLAlchemyError, OSError, TimeoutError)  # what a database that is away raises

_log: Final = logging.getLogger(__name__)


class Registrar(Protocol):
    """The hold store, as its recovery sees it.

    All raise RedisUnavailableError, or what a database that is away raises.
    """

    async def register(self, epoch: int) -> int:
        """Write this process's holds into Redis; how many of their accounts are not there."""
        ...

    async def verify(self, epoch: int) -> int:
        """Of how many accounts holds are gone that this process registered."""
        ...


class Recovery:
    """This process's part in keeping to the epoch; `run` minds it."""

    def __init__(
        self,
        ledger: LedgerView,
        registrar: Registrar,
        *,
        process: str,
        identity: Callable[[], str | None],
        reconnect: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._registrar = registrar
        self._identity = identity
        self._reconnect = reconnect
        self._process = process
        self._state: GuardState | None = None
        self._highest = 0  # the latest epoch heard of
        self._doubted = 0  # the epoch of another server that made us connect anew
        self._done = -1  # the step that this process has noted
        self._waits = (-1, 0.0)  # for which step of others, and when to say so
        self._absent = (0, 0.0)  # in which epoch accounts are not there, and since when
        self._wake = asyncio.Event()
        self._opened = asyncio.Event()
        self._looking = asyncio.Lock()
        self._unregistered_said = False
        # What the hot path asks: the epoch as scripts take it; None: nobody may be admitted.
        self.word: bytes | None = None
        self.suspended: frozenset[str] = frozenset()
        self.recoveries = 0  # for metrics

    @property
    def process(self) -> str:
        """The id under which the registry knows this process."""
        return self._process

    @process.setter
    def process(self, process: str) -> None:
        self._process = process
        self._done = -1
        self._wake.set()

    @property
    def epoch(self) -> int:
        """The epoch that this process follows; 0: none yet."""
        return 0 if self._state is None else self._state.epoch

    @property
    def phase(self) -> Phase | None:
        """How far the recovery is, as far as this process knows."""
        return None if self._state is None else self._state.phase

    def wake(self) -> None:
        """Something changed: look now. Another server closes admission at once."""
        state, identity = self._state, self._identity()
        if identity is not None and (state is None or identity != state.server):
            self._close()
        self._wake.set()

    async def opened(self) -> bytes:
        """The epoch, once admission is open; RedisUnavailableError if that takes too long."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                while self.word is None:
                    await self._opened.wait()
        except TimeoutError:
            raise RedisUnavailableError("holds are being brought back into Redis") from None
        return self.word

    async def run(self) -> None:
        """Follow the epoch until cancelled."""
        while True:
            pause = POLL_SECONDS if self.word is not None else RECOVERY_POLL_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                async with asyncio.timeout(DATABASE_SECONDS):
                    self.suspended = await self._ledger.suspended()
                await self.look()
            except AWAY as error:
                _log.warning("the guard cannot ask the database: %s", type(error).__name__)
            except RedisUnavailableError as error:
                _log.warning("holds cannot be brought back: %s", error)

    async def look(self) -> None:
        """Go on with a recovery as far as it goes now; opens or closes admission."""
        async with self._looking:
            while await self._advance():
                pass

    async def fence(self, reason: str) -> None:
        """Declare what Redis holds lost: everything is brought back before anyone is admitted.

        Raises RedisUnavailableError, and what a database that is away raises: nothing is declared.
        """
        async with self._looking:
            async with asyncio.timeout(DATABASE_SECONDS):
                state = await self._ledger.guard()
                if self._identity() is None:
                    raise RedisUnavailableError("Redis is away")
                await self._raise_epoch(state, reason)
        self._wake.set()

    async def lost(self, epoch: int, reason: str) -> None:
        """As `fence`, unless a later epoch than `epoch` has begun by now."""
        async with self._looking, asyncio.timeout(DATABASE_SECONDS):
            state = await self._ledger.guard()
            if state is not None and state.epoch == epoch and state.phase is Phase.OPEN:
                await self._raise_epoch(state, reason)
        self._wake.set()

    def heard(self, seen: int) -> None:
        """Redis knows epoch `seen`."""
        self._highest = max(self._highest, seen)

    async def behind(self, seen: int) -> None:
        """Redis knows epoch `seen`: follow, or raise ours beyond it if the database went back."""
        self._highest = max(self._highest, seen)
        await self.look()

    async def _advance(self) -> bool:
        """One step; whether there may be another at once."""
        identity = self._identity()
        if identity is None:
            return False
        async with asyncio.timeout(DATABASE_SECONDS):
            state = await self._ledger.guard()
        if state is None and self._highest == 0:
            first = GuardState(epoch=1, phase=Phase.REGISTER, server=identity)
            await self._ledger.change_guard(None, first)
            return True
        if state is None or state.epoch < self._highest:
            await self._raise_epoch(state, "the database knows an earlier epoch than Redis")
            return True
        if state.server != identity:
            self._close()
            if state.epoch not in (self.epoch, self._doubted):
                # Somebody went over to another server: perhaps the address leads there by now.
                self._doubted = state.epoch
                self._reconnect()
                return False
            await self._raise_epoch(state, "this is another Redis server, or it was restarted")
            return True
        self._adopt(state)
        return await self._do_part(state)

    def _adopt(self, state: GuardState) -> None:
        if state.epoch != self.epoch or state.phase is not Phase.OPEN:
            self._close()
        self._state = state
        self._highest = max(self._highest, state.epoch)

    async def _do_part(self, state: GuardState) -> bool:
        """This process's part of a phase, then the next phase if it was the last one waited for."""
        needed = step(state.epoch, state.phase)
        if self._done < needed:
            is_second = state.phase is Phase.VERIFY and self._done == needed - 1
            look = self._registrar.verify if is_second else self._registrar.register
            if gone := await look(state.epoch):
                if not is_second and not self._is_overdue(state.epoch):
                    return False
                reason = f"holds of {gone} accounts were lost while they came back"
                await self._raise_epoch(state, reason)
                return True
            if not await self._note(needed):
                return False
        if state.phase is Phase.OPEN:
            self._open(state)
            return False
        if late := await self._ledger.waiting_for(needed):
            self._name(late, needed)
            return False
        following = Phase.VERIFY if state.phase is Phase.REGISTER else Phase.OPEN
        to = GuardState(epoch=state.epoch, phase=following, server=state.server)
        await self._ledger.change_guard(state, to)
        return True

    def _is_overdue(self, epoch: int) -> bool:
        """Whether accounts that somebody else was to make have not been there for too long."""
        now = asyncio.get_running_loop().time()
        if self._absent[0] != epoch:
            self._absent = (epoch, now)
        return now - self._absent[1] >= ABSENT_SECONDS

    def _name(self, late: list[str], needed: int) -> None:
        """Say once who is waited for, if it takes long: perhaps it reaches the database alone."""
        now = asyncio.get_running_loop().time()
        if self._waits[0] != needed:
            self._waits = (needed, now + LATE_SECONDS)
        if now >= self._waits[1]:
            self._waits = (needed, math.inf)
            _log.error("nobody is admitted before these processes reach Redis: %s", ", ".join(late))

    async def _note(self, done: int) -> bool:
        if await self._ledger.note_step(self._process, done):
            self._done, self._unregistered_said = done, False
            return True
        if not self._unregistered_said:
            _log.error("the registry does not know this process: it admits nobody")
            self._unregistered_said = True
        return False

    async def _raise_epoch(self, state: GuardState | None, reason: str) -> None:
        self._close()
        identity = self._identity()
        if identity is None:
            return  # whoever is connected next finds the same
        epoch = max(self._highest, 0 if state is None else state.epoch) + 1
        to = GuardState(epoch=epoch, phase=Phase.REGISTER, server=identity)
        if await self._ledger.change_guard(state, to):
            self.recoveries += 1
            _log.error("holds in Redis are brought back, epoch %d: %s", epoch, reason)

    def _open(self, state: GuardState) -> None:
        if self._identity() == state.server:
            self.word = str(state.epoch).encode()
            self._opened.set()

    def _close(self) -> None:
        self.word = None
        self._opened.clear()
