"""Pure: whom a turn grants holds, and what a batch of waiting charges comes to; both engines share it."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Literal

import msgspec

from billing.db import rows
from billing.db.rows import Row, Waiting
from billing.events import ChargeEvent, Revision, UsageQuality
from billing.holds import Applied, Granted, HoldRequest, Refused
from billing.ledger import (
    FINAL_SUFFIX,
    Account,
    Batch,
    ChargeResult,
    Dropped,
    EntryRefused,
    EventConflict,
    LedgerEntry,
    PendingCharge,
)
from billing.rollups import Rollup

RefusalReason = Literal["insufficient", "held", "suspended"]


# --- holds ---------------------------------------------------------------------------------------


class Credit:
    """What an account can still hold while a turn grants one request after the other."""

    __slots__ = ("balance", "changed", "held", "suspended")

    def __init__(self, balance: int, held: int, suspended: int) -> None:
        self.balance = balance
        self.held = held
        self.suspended = bool(suspended)
        self.changed = False

    def grant(
        self, minimum: int, wanted: int, *, while_suspended: bool = False
    ) -> Granted | Refused:
        """Hold min(wanted, balance - held) if that is at least the minimum."""
        if self.suspended and not while_suspended:
            return self._refused("suspended", minimum)
        available = self.balance - self.held
        if available < minimum:
            return self._refused("held" if self.balance >= minimum else "insufficient", minimum)
        amount = min(wanted, available)
        self.held += amount
        self.changed = self.changed or amount != 0
        return Granted(amount)

    def _refused(self, reason: RefusalReason, needed: int) -> Refused:
        return Refused(reason=reason, balance=self.balance, held=self.held, needed=needed)


class Grants:
    """The requests of a turn, decided one after the other in the order asked.

    credits_by_account: every account that is named, as far as it exists. known: what holds with
    these ids hold already; a repeat gets its first grant, whatever became of the account since.
    """

    def __init__(
        self,
        requests: Iterable[HoldRequest],
        credits_by_account: Mapping[str, Credit],
        known: Mapping[str, int] | None = None,
    ) -> None:
        self.answers: list[Granted | Refused] = []
        self.holds: list[Row] = []  # to be written
        self._credits = dict(credits_by_account)
        known = known or {}
        for request in requests:
            if (amount := known.get(request.hold_id)) is not None:
                self.answers.append(Granted(amount))
                continue
            credit = self._credits.setdefault(request.account, Credit(0, 0, 0))
            answer = credit.grant(
                request.minimum, request.wanted, while_suspended=request.while_suspended
            )
            self.answers.append(answer)
            if isinstance(answer, Granted):
                self.holds.append(rows.hold_row(request, answer.amount))

    def held(self) -> list[tuple[str, int]]:
        """The accounts whose held credit rose, and to what."""
        return [(account, c.held) for account, c in self._credits.items() if c.changed]


def refused_ids(requests: Sequence[HoldRequest], answers: Sequence[Granted | Refused]) -> list[str]:
    """The holds that may have been granted at a first try, which then took the credit."""
    return [
        request.hold_id
        for request, answer in zip(requests, answers, strict=True)
        if isinstance(answer, Refused)
    ]


def with_earlier_grants(
    requests: Sequence[HoldRequest],
    answers: Sequence[Granted | Refused],
    amounts: Mapping[str, int],
) -> list[Granted | Refused]:
    """A repeat may find no credit left, because its own first try took it: that one was granted."""
    return [
        Granted(amounts[request.hold_id])
        if isinstance(answer, Refused) and request.hold_id in amounts
        else answer
        for request, answer in zip(requests, answers, strict=True)
    ]


# --- settlement ----------------------------------------------------------------------------------


class Settlement:
    """A batch of outbox rows: which entries and accounts to read, what to write, what to tell.

    Given the rows; then `decide` with what the database holds, under locks on `accounts`. What
    cannot be posted is in `set_aside`, as rows of the quarantine; nothing raises for its sake.
    """

    def __init__(self, waiting: Sequence[Waiting], now: int) -> None:
        self._now = now
        self.set_aside: list[Row] = []
        self.batch: Batch | None = None
        self.entries: list[LedgerEntry] = []  # that stand for the rows, since now or before
        self.rollup = Rollup()  # of what is posted now
        self.superseded: list[str] = []  # calls whose estimates are to be taken back from it
        self._failed: AbstractSet[tuple[str, int]] = frozenset()
        self._pending: list[tuple[Waiting, PendingCharge]] = []
        self._finished: dict[str, list[str]] = {}  # by account
        self._estimated: dict[str, list[tuple[str, int]]] = {}
        for row in waiting:
            try:
                event = _event_decoder.decode(row.payload)
            except msgspec.MsgspecError:
                self._refuse(row, "the event cannot be read")
                continue
            charge = PendingCharge(event, row.payload_hash, bool(row.cancelled))
            self._pending.append((row, charge))

    @property
    def accounts(self) -> set[str]:
        """The accounts to lock and read."""
        return {charge.event.context.account for _, charge in self._pending}

    @property
    def event_ids(self) -> list[str]:
        """Whose entries to read, with those of the same ids and FINAL_SUFFIX."""
        return [row.event_id for row, _ in self._pending]

    @property
    def estimates(self) -> list[str]:
        """The ids of which must be known whether the owner has spoken."""
        return [row.event_id for row, _ in self._pending if row.revision == Revision.ESTIMATE]

    @property
    def doubtful(self) -> list[str]:
        """The ids of which must be known whether their calls failed: few, the rest ended well."""
        return [
            row.event_id
            for row, charge in self._pending
            if charge.event.quality in _MAY_HAVE_FAILED and not charge.cancelled
        ]

    def decide(
        self,
        accounts: Iterable[Account],
        entries: Iterable[LedgerEntry],
        finals: AbstractSet[str],
        failed: AbstractSet[tuple[str, int]] = frozenset(),
    ) -> Batch:
        """Settle one row after the other; the batch says what to write.

        `failed`: event id and revision of the words that the record knows as failures.
        """
        self._failed = failed
        batch = Batch(accounts=accounts, entries=entries, finals=finals, now=self._now)
        self.batch = batch
        for row, charge in self._pending:
            self._note(row, charge, batch.settle(charge))
        return batch

    def _note(self, row: Waiting, charge: PendingCharge, result: ChargeResult) -> None:
        account = charge.event.context.account
        match result:
            case LedgerEntry():
                self.entries.append(result)
                self._count(charge, result)
                self._resolve(account, charge)
            case Dropped(reason="cancelled" | "estimate_after_estimate"):
                self._resolve(account, charge)
            case Dropped():
                pass  # the hold belongs to the word that holds
            case EventConflict():
                self._refuse(row, str(result))
            case EntryRefused(field=field, message=message):
                self._refuse(row, f"{field}: {message}")

    def _resolve(self, account: str, charge: PendingCharge) -> None:
        event = charge.event
        if event.revision == Revision.ESTIMATE:
            residual = max(0, event.ceiling - event.amount)
            self._estimated.setdefault(account, []).append((event.context.event_id, residual))
        else:
            self._finished.setdefault(account, []).append(event.context.event_id)

    def _count(self, charge: PendingCharge, entry: LedgerEntry) -> None:
        written = self.batch.written if self.batch else None
        if not written or written[-1] is not entry:
            return  # it was posted before
        if not charge.cancelled:
            key = charge.event.context.event_id, charge.event.revision
            self.rollup.add(charge.event, failed=key in self._failed)
        if entry.event_id != charge.event.context.event_id:
            self.superseded.append(charge.event.context.event_id)

    def late_days(self) -> list[tuple[str, int]]:
        """Account and day, where the rollup changes a day that may be folded: almost always none."""
        return self.rollup.late_days(self._now)

    def _refuse(self, row: Waiting, reason: str) -> None:
        self.set_aside.append(rows.quarantine_row_of(row, reason, self._now))

    def finished(self) -> list[str]:
        """The holds to drop."""
        return [hold_id for ids in self._finished.values() for hold_id in ids]

    def estimated(self) -> list[tuple[str, int]]:
        """The holds to lower by what was charged of them: id and charge."""
        finished = set(self.finished())
        return [
            (row.event_id, charge.event.amount)
            for row, charge in self._pending
            if row.revision == Revision.ESTIMATE
            and row.event_id not in finished
            and row.event_id in self._residuals()
        ]

    def _residuals(self) -> set[str]:
        return {hold_id for pairs in self._estimated.values() for hold_id, _ in pairs}

    def applied(self) -> tuple[Applied, ...]:
        """What a hold store elsewhere must be told once this is committed."""
        if self.batch is None:
            return ()
        told = []
        for account in sorted(self._finished.keys() | self._estimated.keys()):
            balance, seq = self.batch.standing(account)
            final_ids = tuple(self._finished.get(account, ()))
            told.append(
                Applied(
                    account=account,
                    balance=balance,
                    seq=seq,
                    final_ids=final_ids,
                    estimates=tuple(
                        pair
                        for pair in self._estimated.get(account, ())
                        if pair[0] not in final_ids
                    ),
                )
            )
        return tuple(told)


def final_ids_of(entries: Iterable[LedgerEntry]) -> list[str]:
    """The ids of the `:final` that may have followed these entries, where they are estimates."""
    return [e.event_id + FINAL_SUFFIX for e in entries if e.usage_revision == Revision.ESTIMATE]


# An answer that came whole has a usage that is exact, or counted.
_MAY_HAVE_FAILED: Final = (UsageQuality.PARTIAL, UsageQuality.SUSPICIOUS)

_event_decoder: Final = msgspec.json.Decoder(ChargeEvent)
