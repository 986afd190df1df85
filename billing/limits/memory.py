"""Limits of the only process that serves a database: nothing to ask, nothing to wait for.

A restart begins with full buckets and without leases: nothing of the former process runs any more.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from billing.limits import Allowed, Limited, TakeRequest
from billing.limits.bucket import FULL, Levels, counted_tokens, decide, released, settled

PRUNE_KEYS: Final = 10_000  # with more keys than these, those are forgotten whose buckets are full
FULL_AGAIN_MS: Final = 60_000  # after so long without a call a bucket without debt is full


class _Key(msgspec.Struct):
    levels: Levels = Levels()
    leases: dict[str, int] = msgspec.field(default_factory=dict)  # event id -> tokens taken


class MemoryLimitStore:
    """The LimitStore port in this process's memory; `now_ms` never goes back, from any start."""

    def __init__(self, *, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._keys: dict[str, _Key] = {}
        self._prune_at = PRUNE_KEYS

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def take(self, request: TakeRequest) -> Allowed | Limited:
        key = self._keys.get(request.key_id)
        if key is None:
            self._prune()
            key = self._keys[request.key_id] = _Key()
        key.levels, answer = decide(key.levels, request, len(key.leases), self._now_ms())
        if isinstance(answer, Allowed):
            key.leases[request.event_id] = counted_tokens(request)
        return answer

    def settle(self, request: TakeRequest, tokens: int) -> None:
        if (found := self._end(request)) is not None:
            key, held = found
            key.levels = settled(key.levels, request.limits, held, tokens, self._now_ms())

    def release(self, request: TakeRequest) -> None:
        if (found := self._end(request)) is not None:
            key, held = found
            key.levels = released(key.levels, request.limits, held, self._now_ms())

    def _end(self, request: TakeRequest) -> tuple[_Key, int] | None:
        key = self._keys.get(request.key_id)
        held = None if key is None else key.leases.pop(request.event_id, None)
        return None if key is None or held is None else (key, held)

    def _prune(self) -> None:
        if len(self._keys) < self._prune_at:
            return
        now = self._now_ms()
        self._keys = {
            key_id: key for key_id, key in self._keys.items() if key.leases or _matters(key, now)
        }
        self._prune_at = max(PRUNE_KEYS, 2 * len(self._keys))


def _matters(key: _Key, now: int) -> bool:
    """Whether a bucket may not be full, which alone is worth remembering."""
    levels = (key.levels.requests, key.levels.tokens)
    return any(
        level.parts < 0 or now - level.at < FULL_AGAIN_MS for level in levels if level != FULL
    )
