"""Holds: credit set aside for a call before it is forwarded; the port that every hold store implements."""

from collections.abc import Sequence
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
    while_suspended: bool = False  # an administrator's debit: a suspended account pays it too


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


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What a settlement did to an account, for a store whose holds live outside of the database.

    `balance` at `seq` contains the charges of all ids named here, those posted before included.
    """

    account: str
    balance: int  # micro-credits
    seq: int
    final_ids: tuple[str, ...]  # holds to drop
    estimates: tuple[tuple[str, int], ...]  # holds to lower: id, and what stays held of it


class GuardUnavailableError(Exception):
    """The hold store did not answer; nobody was admitted and nobody pays."""


class HoldStore(Protocol):
    """Where holds live. Every method is idempotent by hold id.

    All but `start` and `close` raise GuardUnavailableError when the store cannot be reached.
    """

    async def start(self) -> None:
        """Begin to serve; that the store is away for now is no hindrance."""
        ...

    async def close(self) -> None:
        """Let go of what is kept open; the holds stay."""
        ...

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

    async def release(self, account: str, hold_id: str) -> None:
        """Drop a hold that is no call's: its debit stands in the ledger, or was given up.

        Nobody may admit on a balance from before the debit: such a hold stays until the store has
        seen a balance from after it.
        """
        ...

    async def apply(self, applied: Sequence[Applied]) -> None:
        """The word of a settlement, after its commit; balances only if newer, ids always."""
        ...

    async def resend(self) -> int:
        """Apply what was lost on its way, for holds older than five seconds; how many are done with.

        Part of the protocol: whoever settles calls it every five seconds.
        """
        ...
