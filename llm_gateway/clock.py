"""The only place of the gateway that asks the clock or makes an id; everything else is handed them."""

import os
import time
import uuid


def now_ms() -> int:
    """The wall clock, in milliseconds since the epoch (UTC)."""
    return time.time_ns() // 1_000_000


def monotonic() -> float:
    """Seconds on a clock that never steps back; for timeouts and durations only."""
    return time.monotonic()


def new_event_id(at_ms: int) -> str:
    """A UUIDv7 (RFC 9562, 5.7) as text: 48 bits of milliseconds, then 74 random bits."""
    random = int.from_bytes(os.urandom(10), "big")
    value = (at_ms & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64
    value |= 0b10 << 62 | random & 0x3FFF_FFFF_FFFF_FFFF
    return str(uuid.UUID(int=value))
