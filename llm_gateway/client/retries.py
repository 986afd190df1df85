"""When a request is sent again, and after how long. Pure.

Whatever was not sent, or was refused with a 429, was not done. When no answer came, or a server
failed, only what may be repeated is: see `Ask.repeatable`.
"""

from typing import Any, Final

import msgspec

from llm_gateway.client.errors import (
    GatewayClientError,
    NoAnswerError,
    NotConnectedError,
    RateLimitedError,
    RefusedError,
    ServerError,
)
from llm_gateway.client.requests import Call

PASSING: Final = frozenset({502, 503, 504})  # of a proxy in front of a restarting gateway, too


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """How often, and how long to wait; asked by the gateway to wait longer, it is not tried again."""

    attempts_max: int = 3  # 1: never again
    first_wait_seconds: float = 0.25  # doubled each time, where the gateway does not say
    wait_seconds_max: float = 10.0

    def wait_seconds(
        self, asked: Call[Any], error: GatewayClientError, attempt: int
    ) -> float | None:
        """How long to wait after the attempt (from 1) that failed; None: give up."""
        if attempt >= self.attempts_max or not _may_repeat(asked, error):
            return None
        told = error.retry_after if isinstance(error, RefusedError) else None
        if told is not None:
            return told if told <= self.wait_seconds_max else None
        return min(self.first_wait_seconds * 2.0 ** (attempt - 1), self.wait_seconds_max)


def _may_repeat(asked: Call[Any], error: GatewayClientError) -> bool:
    match error:
        case NotConnectedError():
            return True
        case RefusedError(repeat_refused=True):
            return False
        case RateLimitedError():
            return True
        case NoAnswerError():
            return asked.repeatable
        case ServerError():
            return asked.repeatable and error.status in PASSING
        case _:
            return False
