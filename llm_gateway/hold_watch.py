"""Keeps a stream's hold ahead of its cost, where the provider does not keep to an output limit.

At 80 % of the hold more is asked for. A stream that uses up its hold before the answer is there waits
for it. When no more is to be had, the scene's policy decides: `cut` ends the stream with a proper last
chunk, `finish` lets it run, `grace` lets it run so much further. What the provider had under way, at
most one read and what passed between two looks, is the bound of an overspend.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from billing.holds import Granted, GuardUnavailableError, HoldStore, Refused
from billing.ledger import AMOUNT_MAX

if TYPE_CHECKING:
    from llm_gateway.config import SceneConfig
    from llm_gateway.meter import StreamMeter

LOOK_BYTES: Final = 256  # of delivered text between two looks: some 60 tokens

_log = logging.getLogger(__name__)


class WatchedCall(Protocol):
    """The call whose hold is watched; `grant` in micro-credits."""

    event_id: str
    grant: int

    def progress(self) -> int: ...
    def await_credit(self) -> None: ...
    def go_on(self) -> None: ...
    def stop(self, reason: str) -> None: ...


class HoldWatch:
    """Called for every piece of a stream; nearly always returns at once."""

    def __init__(
        self, call: WatchedCall, meter: StreamMeter, holds: HoldStore, scene: SceneConfig
    ) -> None:
        self._call = call
        self._meter = meter
        self._holds = holds
        self._policy = scene.exhausted_policy
        self._grace = scene.grace_micro_credits
        self._next_look = LOOK_BYTES
        self._refused = False  # for good
        self._waiting = False  # the stream is stopped until the answer comes
        self._ended = False
        self._asking: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        """Look at the cost now and then."""
        delivered = self._meter.delivered_bytes
        if delivered >= self._next_look:
            self._next_look = delivered + LOOK_BYTES
            self._look()

    def end(self) -> None:
        """The stream is over: an answer that is still on its way decides nothing any more."""
        self._ended = True

    @property
    def lent(self) -> int:
        """Micro-credits by which the stream may cost more than its hold, as the scene wants it."""
        return AMOUNT_MAX if self._policy == "finish" else self._grace

    def _look(self) -> None:
        call = self._call
        spent = call.progress()
        if spent * 5 < call.grant * 4:
            return
        if self._asking is None and not self._refused:
            self._asking = asyncio.get_running_loop().create_task(self._ask(spent))
        if not self._is_used_up(spent):
            return
        if self._asking is None:
            call.stop("exhausted")
        elif not self._waiting:
            self._waiting = True
            call.await_credit()

    def _is_used_up(self, spent: int) -> bool:
        return spent >= self._call.grant + self.lent

    async def _ask(self, spent: int) -> None:
        """Ask for more, and let the answer decide about a stream that waits for it.

        An unreachable store is asked again at the next look, and so is one that other calls' holds
        stood in the way of, for as long as the hold lasts.
        """
        answer: Granted | Refused | None = None
        try:
            answer = await self._raise(spent)
            self._refused = isinstance(answer, Refused) and answer.reason != "held"
        except GuardUnavailableError:
            pass
        except Exception:  # noqa: BLE001 - a stream that waits must be told either way
            _log.exception("the hold of call %s could not be raised", self._call.event_id)
        finally:
            self._asking = None
        if self._ended:
            return
        call = self._call
        if isinstance(answer, Granted):
            call.grant = max(call.grant, answer.amount)
        if not self._waiting:
            return
        if not self._is_used_up(call.progress()):
            self._waiting = False
            call.go_on()
        elif isinstance(answer, Granted):
            self._look()
        else:
            call.stop("exhausted")

    async def _raise(self, spent: int) -> Granted | Refused:
        """Half as much again, or a quarter beyond the cost; if that is too much, what there is."""
        call = self._call
        wanted = max(call.grant + call.grant // 2, spent + spent // 4) + 1
        answer = await self._holds.extend(call.event_id, wanted)
        if isinstance(answer, Refused) and answer.reason != "suspended":
            left = answer.balance - answer.held
            if left > 0:
                return await self._holds.extend(call.event_id, call.grant + left)
        return answer
