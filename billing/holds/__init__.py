"""Holds: credit set aside for a call before it is forwarded; the port that every hold store implements."""

from typing import Literal, Protocol

import msgspec

from billing.events import Finish


class HoldRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Ask to hold `wanted` micro-credits, or at least `minimum`, for one call of an account."""

    hold_id: str
    account: str
    minimum: int
    wanted: int
    context: bytes  # billing.context.encode_context
    process: str  # the gateway process that owns the call
    started_at: int  # milliseconds since the epoch


class Granted(msgspec.Struct, frozen=True):
    """The hold stands: `amount` micro-credits, between minimum and wanted."""

    amount: int


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """No hold. `held`: the balance would do, but other calls hold it now; a retry may succeed."""

    reason: Literal["insufficient", "held", "suspended"]
    balance: int
    held: int
    needed: int


class HoldBeat(msgspec.Struct, frozen=True):
    """A running call's hold id, what it holds, and what it has cost so far (micro-credits)."""

    hold_id: str
    amount: int
    progress: int


class GuardUnavailableError(Exception):
    """The hold store did not answer; nobody was admitted and nobody pays."""


class HoldStore(Protocol):
    """Where holds live. Every method is idempotent by hold id.

    All raise GuardUnavailableError when the store cannot be reached.
    """

    async def reserve(self, request: HoldRequest) -> Granted | Refused:
        """Grant min(wanted, balance - held) if that is at least the minimum."""
        ...

    async def extend(self, hold_id: str, new_total: int) -> Granted | Refused:
        """Raise a hold to `new_total` micro-credits, whole or not at all; never lowers it."""
        ...

    async def heartbeat(self, beats: list[HoldBeat]) -> None:
        """Note the progress of running calls; the larger amount wins."""
        ...

    async def cancel(self, finish: Finish) -> None:
        """The owner decided that nothing is charged: note it (revision 2, amount 0), drop the hold."""
        ...
