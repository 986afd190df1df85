"""What each script of a hold store does to its state: the oracle of every store, and the protocol model's guard."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from billing.holds import Granted, Refused
from tests.model.protections import ALL, Protection


class Answer(Enum):
    """What a script says when it can neither grant nor refuse."""

    MISS = "the account is not loaded in the caller's epoch"
    STALE = "the caller's epoch is over"


@dataclass(slots=True)
class Hold:
    """Micro-credits set aside for a call, and what is known to be spent of them."""

    amount: int
    process: str
    progress: int = 0


@dataclass(frozen=True, slots=True)
class Beat:
    """What a process says of one of its running calls."""

    hold_id: str
    amount: int
    progress: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What settlement tells the guard after its commit."""

    account: str
    balance: int
    seq: int
    final_ids: tuple[str, ...] = ()
    estimates: tuple[tuple[str, int], ...] = ()  # (hold id, residual)


@dataclass(slots=True)
class Slot:
    """All that the guard keeps of an account. `held` is the sum of the holds, kept beside them."""

    epoch: int
    token: int = 0  # of whoever loads it; 0: nobody
    loaded: bool = False
    suspended: bool = False
    balance: int = 0
    seq: int = 0
    held: int = 0
    holds: dict[str, Hold] = field(default_factory=dict)

    def copy(self) -> Slot:
        return replace(self, holds={name: replace(hold) for name, hold in self.holds.items()})

    def put(self, hold_id: str, amount: int, process: str) -> Hold:
        """Hold at least `amount`."""
        hold = self.holds.setdefault(hold_id, Hold(0, process))
        if amount > hold.amount:
            self.resize(hold, amount)
        return hold

    def resize(self, hold: Hold, amount: int) -> None:
        self.held += amount - hold.amount
        hold.amount = amount

    def drop(self, hold_id: str) -> None:
        hold = self.holds.pop(hold_id, None)
        if hold is not None:
            self.held -= hold.amount


class Guard:
    """The scripts. `server` is the identity that a client sees when it connects."""

    def __init__(self, protections: frozenset[Protection] = ALL) -> None:
        self.slots: dict[str, Slot] = {}
        self.server = 0
        self._on = protections

    def copy(self) -> dict[str, Slot]:
        """The state as a replica has it."""
        return {account: slot.copy() for account, slot in self.slots.items()}

    def amount(self, account: str, hold_id: str) -> int:
        """What is held for a call; -1: there is no hold."""
        slot = self.slots.get(account)
        hold = slot.holds.get(hold_id) if slot is not None else None
        return hold.amount if hold is not None else -1

    def progress(self, account: str, hold_id: str) -> int:
        """What is known to be spent by a call."""
        slot = self.slots.get(account)
        hold = slot.holds.get(hold_id) if slot is not None else None
        return hold.progress if hold is not None else 0

    def _find(self, account: str, epoch: int) -> Slot | Answer:
        slot = self.slots.get(account)
        if slot is None or slot.epoch < epoch:
            return Answer.MISS
        return Answer.STALE if slot.epoch > epoch else slot

    def reserve(
        self, epoch: int, account: str, hold_id: str, minimum: int, wanted: int, process: str
    ) -> Granted | Refused | Answer:
        """Grant min(wanted, balance - held) if that is at least the minimum."""
        slot = self._find(account, epoch)
        if isinstance(slot, Answer):
            return slot
        if not slot.loaded:
            return Answer.MISS
        if hold_id in slot.holds:
            amount = slot.holds[hold_id].amount
            if Protection.IDEMPOTENT_RESERVE not in self._on:
                slot.held += amount
            return Granted(amount)
        available = slot.balance - slot.held
        if refused := _refusal(slot, available, minimum):
            return refused
        return Granted(slot.put(hold_id, min(wanted, available), process).amount)

    def extend(
        self, epoch: int, account: str, hold_id: str, new_total: int
    ) -> Granted | Refused | Answer:
        """Raise a hold to `new_total`, whole or not at all; a hold that is gone cannot grow."""
        slot = self._find(account, epoch)
        if isinstance(slot, Answer):
            return slot
        hold = slot.holds.get(hold_id)
        if hold is None:
            return Refused(reason="insufficient", balance=0, held=0, needed=new_total)
        if new_total <= hold.amount:
            return Granted(hold.amount)
        if not slot.loaded:
            return Answer.MISS
        more = new_total - hold.amount
        if Protection.EXTEND_ASKS in self._on and (
            refused := _refusal(slot, slot.balance - slot.held, more)
        ):
            return refused
        slot.resize(hold, new_total)
        return Granted(new_total)

    def beat(
        self, epoch: int, account: str, process: str, beats: list[Beat], *, register: bool
    ) -> Answer | None:
        """Note progress; the larger amount wins. `register`: a hold that is gone comes back."""
        slot = self._find(account, epoch)
        if isinstance(slot, Answer):
            return slot
        for beat in beats:
            if register:
                slot.put(beat.hold_id, 0, process)
            hold = slot.holds.get(beat.hold_id)
            if hold is None:
                continue
            hold.progress = max(hold.progress, beat.progress)
            if beat.amount > hold.amount or Protection.LARGER_AMOUNT_WINS not in self._on:
                slot.resize(hold, beat.amount)
        return None

    def cancel(self, account: str, hold_id: str) -> None:
        """Drop a hold of which nothing is charged."""
        slot = self.slots.get(account)
        if slot is not None:
            slot.drop(hold_id)

    def apply(self, applied: Applied) -> None:
        """Balance and seq only if newer, ids always; never creates an account."""
        slot = self.slots.get(applied.account)
        if slot is None:
            return
        newer = applied.seq > slot.seq or Protection.NEWER_BALANCE_WINS not in self._on
        if slot.loaded and newer:
            slot.balance, slot.seq = applied.balance, applied.seq
        elif newer and Protection.LOAD_NOT_OLDER in self._on:
            slot.seq = applied.seq  # whoever loads it must have read at least this
        for hold_id in applied.final_ids:
            slot.drop(hold_id)
        for hold_id, residual in applied.estimates:
            hold = slot.holds.get(hold_id)
            if hold is not None:
                slot.resize(hold, residual)

    def mark(self, epoch: int, account: str, token: int, *, may_make: bool) -> bool | None:
        """Leave a mark on an account that is not loaded yet; holds that are there stay.

        Whether it had to be made in this epoch; None: it is not here, and may not be made.
        """
        slot = self.slots.get(account)
        made = slot is None or slot.epoch < epoch
        if made and not may_make:
            return None
        if slot is None:
            slot = self.slots[account] = Slot(epoch)
        if slot.epoch < epoch:
            slot.epoch, slot.loaded = epoch, False
        slot.token = token
        return made

    def load(
        self, epoch: int, token: int, read: Applied, unsettled: list[tuple[str, int, str]]
    ) -> bool:
        """Write what was read of an account, in one step; False: it has to be read again."""
        slot = self.slots.get(read.account)
        if Protection.LOAD_TOKEN not in self._on:
            slot = self.slots.setdefault(read.account, Slot(epoch, token))
        elif slot is None or slot.token != token:
            return False
        if slot.epoch != epoch or slot.loaded:
            return False
        if read.seq < slot.seq and Protection.LOAD_NOT_OLDER in self._on:
            return False
        slot.loaded, slot.balance, slot.seq = True, read.balance, read.seq
        for hold_id, amount, process in unsettled:
            slot.put(hold_id, amount, process)
        return True


def _refusal(slot: Slot, available: int, needed: int) -> Refused | None:
    if slot.suspended:
        reason = "suspended"
    elif available >= needed:
        return None
    else:
        reason = "held" if slot.balance >= needed else "insufficient"
    return Refused(reason=reason, balance=slot.balance, held=slot.held, needed=needed)  # type: ignore[arg-type]
