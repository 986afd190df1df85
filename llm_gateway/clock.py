"""The only place of the gateway that asks the clock or makes an id; everything else is handed them."""

import os
import time
from typing import Final

RANDOM_BYTES: Final = 4096  # asked of the kernel at once; an id takes ten of them

_DIGITS: Final = RANDOM_BYTES // 10 * 20
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}

_random = ""  # as hexadecimal digits, twenty for each id
_random_at = 0


def now_ms() -> int:
    """The wall clock, in milliseconds since the epoch (UTC)."""
    return time.time_ns() // 1_000_000


monotonic: Final = time.monotonic  # seconds, on a clock that never steps back: for durations


def new_event_id(at_ms: int) -> str:
    """A UUIDv7 (RFC 9562, 5.7) as text: 48 bits of milliseconds, then 74 random bits.

    For the event loop's thread alone: two threads could take the same random bytes.
    """
    global _random, _random_at  # noqa: PLW0603 - an object in between would cost as much as the id
    if _random_at == len(_random):
        _random, _random_at = os.urandom(_DIGITS // 2).hex(), 0
    digits = _random[_random_at : _random_at + 20]
    _random_at += 20
    time = f"{at_ms & 0xFFFF_FFFF_FFFF:012x}"
    group = _VARIANT[digits[3]]  # two bits of the digit stay random, two say which kind of UUID
    return f"{time[:8]}-{time[8:]}-7{digits[:3]}-{group}{digits[4:7]}-{digits[7:19]}"


def _forget_random() -> None:
    """A forked child must not make its parent's ids."""
    global _random, _random_at
    _random, _random_at = "", 0


os.register_at_fork(after_in_child=_forget_random)
