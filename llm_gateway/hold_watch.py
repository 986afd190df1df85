"""Keeps a stream's hold ahead of its cost, where the provider does not keep to an output limit.

At 80 % of the hold more is asked for; when no more is to be had and the hold is used up, the scene's
policy decides: `cut` ends the stream with a proper last chunk, `finish` lets it run, `grace` lets it
run so much further. What was delivered between two looks is the bound of an overspend.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from billing.holds import Granted, GuardUnavailableError, HoldStore

if TYPE_CHECKING:
    from llm_gateway.config import SceneConfig
    from llm_gateway.meter import StreamMeter

LOOK_BYTES: Final = 256  # of delivered text between two looks: some 60 tokens


class WatchedCall(Protocol):
    """The call whose hold is watched; `grant` in micro-credits."""

    event_id: str
    grant: int

    def progress(self) -> int: ...
    def stop(self, reason: str) -> None: ...


class HoldWatch:
    """Called for every piece of a stream; nearly always returns at once."""

    def __init__(
        self, call: WatchedCall, meter: StreamMeter, holds: HoldStore, scene: SceneConfig
    ) -> None:
        self._call = call
        self._meter = meter
        self._holds = holds
        self._scene = scene
        self._next_look = LOOK_BYTES
        self._refused = False
        self._asking: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        """Look at the cost now and then."""
        delivered = self._meter.delivered_bytes
        if delivered >= self._next_look:
            self._next_look = delivered + LOOK_BYTES
            self._look()

    def _look(self) -> None:
        call = self._call
        spent = call.progress()
        if spent * 5 < call.grant * 4:
            return
        if not self._refused and self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        policy = self._scene.exhausted_policy
        if policy != "finish" and spent >= call.grant + self._scene.grace_micro_credits:
            call.stop("exhausted")

    async def _ask(self) -> None:
        """Ask for half as much again; an unreachable store is asked again at the next look."""
        call = self._call
        try:
            result = await self._holds.extend(call.event_id, call.grant + max(call.grant // 2, 1))
        except GuardUnavailableError:
            return
        else:
            if isinstance(result, Granted):
                call.grant = result.amount
            else:
                self._refused = True
        finally:
            self._asking = None
