"""Limits of a key on requests, tokens and concurrency: values, and the port that every store implements.

They bound what one key may do in a minute, for all processes together. They guard budgets and
neighbours, not money: what a call may cost is held apart (billing.holds), and nothing here is ever
charged.
"""

from enum import StrEnum
from typing import Protocol

import msgspec


class Kind(StrEnum):
    """Which limit stood in the way."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CALLS = "concurrency"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may do; None: no limit of that kind. 0: nothing at all."""

    requests: int | None = None  # per minute
    tokens: int | None = None  # per minute
    calls: int | None = None  # at once


class TakeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a limited key asks to begin."""

    key_id: str
    event_id: str
    limits: Limits
    tokens: int  # what the call may come to: its input, estimated, and the output it asks for
    process: str  # the registry's id of the process that runs the call


class Standing(msgspec.Struct, frozen=True):
    """How a limit stands after a decision."""

    limit: int
    remaining: int
    reset_ms: int  # until all of the limit is there again, if nobody takes anything


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """The call may begin; `settle` or `release` must follow."""

    requests: Standing | None
    tokens: Standing | None
    at: int  # when that was decided, milliseconds by the store's clock


class Limited(msgspec.Struct, frozen=True, kw_only=True):
    """The call may not begin, and nothing was taken for it."""

    kind: Kind  # of several, the one that takes longest
    limit: int
    retry_ms: int  # then it would be allowed, if nobody takes anything meanwhile
    requests: Standing | None
    tokens: Standing | None
    at: int


class LimitsUnavailableError(Exception):
    """The store did not answer in time; what was taken, if anything, is given back."""


class LimitStore(Protocol):
    """Where levels and leases live. What is asked is bound to an event id and done once.

    A lease says that a call runs. It ends with the call; or when the registry says that the process
    of the call is over; or, at the latest, after `call_seconds_max`.
    """

    async def start(self) -> None:
        """Begin to serve; that the store is away for now is no hindrance."""
        ...

    async def close(self) -> None:
        """Tell what is still to be told, for a moment, and let go of what is open."""
        ...

    async def take(self, request: TakeRequest) -> Allowed | Limited:
        """Count a call, or refuse it and count nothing; LimitsUnavailableError within 2 seconds."""
        ...

    def settle(self, request: TakeRequest, tokens: int) -> None:
        """The call that was allowed ends, having used so many tokens.

        Does not wait; what cannot be told now is told again until it can. Ending it twice, or after
        its lease is over, changes nothing.
        """
        ...

    def release(self, request: TakeRequest) -> None:
        """The call that was allowed, or may have been, does not begin: as if it had never asked.

        Does not wait, as `settle`.
        """
        ...
