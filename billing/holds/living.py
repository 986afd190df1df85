"""A hold store for a process among several: what it holds counts only while nobody thinks it dead."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from billing.events import Finish
from billing.holds import (
    Applied,
    Granted,
    GuardUnavailableError,
    HoldBeat,
    HoldRequest,
    HoldStore,
    Refused,
)


class Life(Protocol):
    """What the registry knows of this process; billing.settlement.registry.Registration is one."""

    @property
    def alive(self) -> bool:
        """Whether nobody can have declared it dead yet."""
        ...


class LivingHoldStore:
    """The HoldStore port in front of another: nothing new for a process that may be thought dead.

    The holds of an id that was declared dead belong to the sweeper, who charges an estimate and
    keeps the rest held: they are neither raised nor refreshed, and their calls end with finals.
    """

    def __init__(self, store: HoldStore, life: Life) -> None:
        self._store = store
        self._life = life
        self._disowned: frozenset[str] = frozenset()

    def disown(self, hold_ids: Iterable[str]) -> None:
        """The process goes on under a new id: these, of the calls now running, are not its own."""
        self._disowned = frozenset(hold_ids)

    async def start(self) -> None:
        await self._store.start()

    async def close(self) -> None:
        await self._store.close()

    async def reserve(self, request: HoldRequest) -> Granted | Refused:
        self._check_alive()
        return await self._store.reserve(request)

    async def extend(self, hold_id: str, new_total: int) -> Granted | Refused:
        if hold_id in self._disowned:
            return Refused(reason="insufficient", balance=0, held=0, needed=new_total)
        self._check_alive()
        return await self._store.extend(hold_id, new_total)

    async def heartbeat(self, beats: list[HoldBeat]) -> None:
        own = [beat for beat in beats if beat.hold_id not in self._disowned]
        if own:
            await self._store.heartbeat(own)

    async def cancel(self, finish: Finish) -> None:
        await self._store.cancel(finish)

    async def release(self, account: str, hold_id: str) -> None:
        await self._store.release(account, hold_id)

    async def apply(self, applied: Sequence[Applied]) -> None:
        await self._store.apply(applied)

    async def resend(self) -> int:
        return await self._store.resend()

    def _check_alive(self) -> None:
        if not self._life.alive:
            raise GuardUnavailableError("this process could not tell the registry that it lives")
