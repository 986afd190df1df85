"""The only place of the gateway that asks the clock or makes an id; everything else is handed them."""

import os
import time
from typing import Final

RANDOM_BYTES: Final = 4096  # asked of the kernel at once; an id takes ten of them

_random = b""
_random_at = 0


def now_ms() -> int:
    """The wall clock, in milliseconds since the epoch (UTC)."""
    return time.time_ns() // 1_000_000


def monotonic() -> float:
    """Seconds on a clock that never steps back; for timeouts and durations only."""
    return time.monotonic()


def new_event_id(at_ms: int) -> str:
    """A UUIDv7 (RFC 9562, 5.7) as text: 48 bits of milliseconds, then 74 random bits.

    For the event loop's thread alone: two threads could take the same random bytes.
    """
    global _random, _random_at  # noqa: PLW0603 - an object in between would cost as much as the id
    if _random_at == len(_random):
        _random, _random_at = os.urandom(RANDOM_BYTES // 10 * 10), 0
    random = int.from_bytes(_random[_random_at : _random_at + 10], "big")
    _random_at += 10
    low = 0b10 << 62 | random & 0x3FFF_FFFF_FFFF_FFFF
    text = f"{at_ms & 0xFFFF_FFFF_FFFF:012x}7{random >> 68:03x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _forget_random() -> None:
    """A forked child must not make its parent's ids."""
    global _random, _random_at
    _random, _random_at = b"", 0


os.register_at_fork(after_in_child=_forget_random)
