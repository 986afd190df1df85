"""What the database knows: charge events, the outbox, the ledger, quarantine and the registry."""

from dataclasses import dataclass
from enum import Enum

from tests.model.guard_model import Applied
from tests.model.protections import ALL, Protection

ESTIMATE, FINAL = 1, 2


@dataclass(frozen=True, slots=True)
class Event:
    """What a call costs, by the word of a sweeper (estimate) or of its owner (final)."""

    event_id: str
    account: str
    process: str
    revision: int
    amount: int
    ceiling: int
    started_at: int
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Charged:
    """What the ledger holds of a call."""

    event: Event  # the last word that counted
    amount: int  # all its entries together


class Recorded(Enum):
    NEW = "written"
    SAME = "stood already"
    CONFLICT = "stands already, and says something else"


class Ledger:
    """The tables, and the transactions on them. `up` is False while the database is away."""

    def __init__(
        self,
        accounts: tuple[str, ...],
        *,
        age_max: int = 0,
        replay_max: int = 0,
        protections: frozenset[Protection] = ALL,
    ) -> None:
        self._on = protections
        self._age_max = age_max  # steps: no call is older
        self._replay_max = replay_max  # steps: by then all spools are replayed
        self.up = True
        self.up_since = 0
        self.balance = dict.fromkeys(accounts, 0)
        self.seq = dict.fromkeys(accounts, 0)
        self.bought = dict.fromkeys(accounts, 0)
        self.entries: list[tuple[str, str, int]] = []  # event id, account, amount
        self.charged: dict[str, Charged] = {}
        self.usage: dict[tuple[str, int], Event] = {}
        self.outbox: dict[tuple[str, int], Event] = {}
        self.quarantine: dict[tuple[str, int], Event] = {}
        # The guard's side: its epoch and server, who must still register, what was put there.
        self.epoch = 1
        self.server = 0
        self.waiting: set[str] = set()
        self.marks: dict[str, int] = {}
        self.loading: dict[str, str] = {}  # the lock of each account: who loads it
        self.dead: set[str] = set()

    # --- writing ---------------------------------------------------------------------------------

    def buy(self, account: str, amount: int) -> Applied:
        self.bought[account] += amount
        self._post(f"bought-{len(self.entries)}", account, amount)
        return self.read(account)

    def record(self, event: Event) -> Recorded:
        """Write usage and outbox row; the first word of a revision stands."""
        key = event.event_id, event.revision
        if (known := self.usage.get(key)) is not None:
            if known == event:
                return Recorded.SAME
            if Protection.FIRST_WORD_STANDS in self._on:
                return Recorded.CONFLICT
        self.usage[key] = event
        if not event.cancelled or (event.event_id, ESTIMATE) in self.usage:
            self.outbox[key] = event
        return Recorded.NEW

    def estimate(self, event: Event) -> None:
        """What a sweeper records: only of calls of which nobody has said anything."""
        if (event.event_id, ESTIMATE) in self.usage:
            return
        final = self.usage.get((event.event_id, FINAL))
        blocks = final is not None and (
            not final.cancelled or Protection.CANCEL_BLOCKS_ESTIMATE in self._on
        )
        if not blocks:
            self.record(event)

    def settle(self, events: list[Event], poisonous: set[str]) -> list[Applied]:
        """Post events in one transaction; what the guard is to be told of each account."""
        finals: dict[str, list[str]] = {}
        estimates: dict[str, list[tuple[str, int]]] = {}
        for event in events:
            self.outbox.pop((event.event_id, event.revision), None)
            done = finals.setdefault(event.account, [])
            if event.event_id in poisonous:
                if Protection.QUARANTINE_KEEPS_EVENT in self._on:
                    self.quarantine[event.event_id, event.revision] = event
                if Protection.QUARANTINE_KEEPS_HOLD not in self._on:
                    done.append(event.event_id)
                continue
            residual = self._settle_one(event)
            if residual is None:
                done.append(event.event_id)
            elif residual >= 0:
                estimates.setdefault(event.account, []).append((event.event_id, residual))
        return [
            self.read(account, tuple(ids), tuple(estimates.get(account, ())))
            for account, ids in finals.items()
        ]

    def _settle_one(self, event: Event) -> int | None:
        """Post one; None: its hold goes; else what stays held, -1: as it is."""
        before = self.charged.get(event.event_id)
        if event.revision == ESTIMATE:
            return self._settle_estimate(event, before)
        if before is None:
            if not event.cancelled:
                self._charge(event, event.amount)
        elif Protection.DEDUPE not in self._on:
            self._charge(event, before.amount + event.amount)
        elif before.event.revision == ESTIMATE:
            correct = Protection.FINAL_BEATS_ESTIMATE in self._on
            self._charge(event, event.amount if correct else before.amount)
        return None

    def _settle_estimate(self, event: Event, before: Charged | None) -> int | None:
        final = self.usage.get((event.event_id, FINAL))
        if final is not None and (
            (final.cancelled and Protection.CANCEL_BLOCKS_ESTIMATE in self._on)
            or (not final.cancelled and Protection.ESTIMATE_NEVER_BEATS_FINAL in self._on)
        ):
            return -1
        if before is not None and before.event.revision == FINAL:
            self._charge(before.event, event.amount)  # only without the protection above
            return None
        if before is None or Protection.DEDUPE not in self._on:
            self._charge(event, event.amount + (before.amount if before else 0))
        return self.residual(self.charged[event.event_id])

    def _charge(self, event: Event, total: int) -> None:
        before = self.charged.get(event.event_id)
        self._post(event.event_id, event.account, (before.amount if before else 0) - total)
        self.charged[event.event_id] = Charged(event, total)

    def _post(self, event_id: str, account: str, amount: int) -> None:
        self.balance[account] += amount
        self.seq[account] += 1
        self.entries.append((event_id, account, amount))

    # --- reading ---------------------------------------------------------------------------------

    def read(
        self,
        account: str,
        final_ids: tuple[str, ...] = (),
        estimates: tuple[tuple[str, int], ...] = (),
    ) -> Applied:
        """The account's balance at its sequence number."""
        return Applied(account, self.balance[account], self.seq[account], final_ids, estimates)

    def residual(self, charged: Charged) -> int | None:
        """What stays held after an estimate; None: nothing."""
        if charged.event.revision == FINAL or Protection.RESIDUAL_HELD not in self._on:
            return None
        return max(0, charged.event.ceiling - charged.amount)

    def is_past(self, estimate: Event, now: int) -> bool:
        """No other word on this call can come any more."""
        if now - estimate.started_at <= self._age_max:
            return False
        if Protection.RESIDUAL_WAITS_FOR_FINAL in self._on:
            final = estimate.event_id, FINAL
            if final in self.outbox or final in self.quarantine:
                return False
        if Protection.RESIDUAL_WAITS_FOR_SPOOLS in self._on:
            return now - self.up_since > self._replay_max
        return True

    def unsettled(self, account: str, now: int) -> list[tuple[str, int, str]]:
        """What the guard must hold besides the holds of live processes: id, amount, process."""
        found: dict[str, tuple[int, str]] = {}

        def note(event: Event, amount: int) -> None:
            if event.account == account and amount > 0:
                known = found.get(event.event_id, (0, ""))[0]
                found[event.event_id] = max(known, amount), event.process

        sources: list[Event] = []
        if Protection.REBUILD_READS_OUTBOX in self._on:
            sources += self.outbox.values()
        if Protection.REBUILD_READS_QUARANTINE in self._on:
            sources += self.quarantine.values()
        for event in sources:
            open_end = event.revision == ESTIMATE and not self.is_past(event, now)
            worst = event.ceiling if open_end else event.amount
            before = self.charged.get(event.event_id)
            if before is None or before.event.revision == ESTIMATE:
                note(event, worst - (before.amount if before else 0))
        if Protection.REBUILD_READS_RESIDUALS in self._on:
            for charged in self.charged.values():
                if not self.is_past(charged.event, now):
                    note(charged.event, self.residual(charged) or 0)
        return [(event_id, amount, process) for event_id, (amount, process) in found.items()]

    def verdict(self, event_id: str, now: int) -> int | None:
        """What a hold of this id should be by what is known: -1 all of it, None gone, else residual."""
        charged = self.charged.get(event_id)
        if charged is not None:
            return None if self.is_past(charged.event, now) else self.residual(charged)
        final = self.usage.get((event_id, FINAL))
        return None if final is not None and final.cancelled else -1
