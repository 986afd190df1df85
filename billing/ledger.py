"""Pure: all that decides whether and how an entry is posted; the ledger's rules live here and nowhere else.

A `Batch` is given the accounts and entries that it may concern, decides posting after posting, and
hands back the rows to write. Refusals and repeats are values, never exceptions.
"""

import hashlib
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Final, Literal

import msgspec

from billing.events import EVENT_VERSION, ChargeEvent, Revision

AMOUNT_MAX: Final = 2**53 - 1  # micro-credits; beyond it Lua and JavaScript lose units
ACCOUNT_ID_LENGTH_MAX: Final = 64
EVENT_ID_LENGTH_MAX: Final = 255

APPLIED: Final = "applied"
INCOME: Final = "income"
EXPENSE: Final = "expense"
FINAL_SUFFIX: Final = ":final"

Language = Literal["zh", "en"]

_LABELS: Final[dict[str, dict[Language, str]]] = {
    "purchase": {"zh": "购买充值", "en": "Purchase"},
    "charge": {"zh": "AI 调用扣费", "en": "AI call"},
    "charge_refund": {"zh": "AI 调用退款", "en": "AI call refunded"},
    "charge_rerate": {"zh": "AI 调用重新计价", "en": "AI call re-rated"},
    "forum_like": {"zh": "计划被点赞", "en": "Plan liked"},
    "forum_import": {"zh": "计划被导入", "en": "Plan imported"},
    "manual": {"zh": "人工补发", "en": "Granted by hand"},
    "refund": {"zh": "订单退款", "en": "Order refund"},
    "expiry": {"zh": "Credit 过期", "en": "Expired"},
    "adjustment": {"zh": "人工调整", "en": "Adjustment"},
    "other": {"zh": "Credit 流水", "en": "Credit entry"},
}

TotalName = Literal["recharged", "rewarded", "consumed", "refunded", "expired", "adjusted"]

# These sources have a total of their own whichever way the entry goes: a charge given back makes
# the consumption smaller, it is no reward.
_TOTAL_OF_SOURCE: Final[dict[str, TotalName]] = {
    "charge": "consumed",
    "refund": "refunded",
    "expiry": "expired",
    "adjustment": "adjusted",
}
SOURCES_OF_THEIR_OWN: Final = frozenset(_TOTAL_OF_SOURCE)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked to be posted. Amounts are micro-credits: income >= 0, expense <= 0."""

    event_id: str
    account: str
    source: str
    direction: str
    amount: int
    source_label: str = ""
    order_id: str | None = None
    source_ref_id: str | None = None
    status: str = APPLIED
    description: str = ""
    metadata_json: str = "{}"
    created_at: int | None = None  # milliseconds since the epoch; None: the time of posting


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as it stands in the ledger, for ever; the fields are the table's columns."""

    event_id: str
    account: str
    account_seq: int | None  # gapless within the account; None: the account had no row
    source: str
    source_label: str
    direction: str
    order_id: str | None
    source_ref_id: str | None
    amount: int
    status: str
    description: str
    metadata_json: str
    balance_before: int
    balance_after: int
    payload_hash: str
    usage_event_id: str | None
    usage_revision: int | None
    created_at: int
    posted_at: int


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger knows of an account: balance = the signed sum of its totals."""

    account: str
    balance: int = 0
    seq: int = 0
    total_recharged: int = 0
    total_rewarded: int = 0
    total_consumed: int = 0
    total_refunded: int = 0
    total_expired: int = 0
    total_adjusted: int = 0
    suspended: bool = False
    last_ledger_event_id: str | None = None
    created_at: int
    updated_at: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """An account after an entry, as it is shown and cached; `seq` tells the newer of two."""

    account: str
    balance: int
    seq: int
    total_recharged: int
    total_rewarded: int
    total_consumed: int
    total_refunded: int
    total_expired: int
    total_adjusted: int
    blocked: bool  # no credit left; `suspended` is an admin's act and another thing
    suspended: bool
    updated_at: int


class Posted(msgspec.Struct, frozen=True, kw_only=True):
    """The entry was written. `account` is None if it moved no money and there is no such account."""

    entry: LedgerEntry
    account: Snapshot | None


class Repeated(msgspec.Struct, frozen=True, kw_only=True):
    """The same entry stands already; `account` is as it is now, not as it was then."""

    entry: LedgerEntry
    account: Snapshot | None


class EventConflict(msgspec.Struct, frozen=True, kw_only=True):
    """The event id is taken by other content: the first field that differs, and both values."""

    event_id: str
    field: str
    existing: str
    given: str

    def __str__(self) -> str:
        return (
            f"event {self.event_id} conflicts in {self.field}: "
            f"recorded {self.existing!r}, given {self.given!r}"
        )


class EntryRefused(msgspec.Struct, frozen=True, kw_only=True):
    """The entry breaks a rule, whatever the ledger holds: the field and why."""

    field: str
    message: str


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """A charge event that has nothing to say any more; its outbox row may go."""

    event_id: str
    reason: Literal["estimate_after_estimate", "estimate_after_final", "cancelled"]


PostResult = Posted | Repeated | EventConflict | EntryRefused
ChargeResult = LedgerEntry | Dropped | EventConflict | EntryRefused


class PendingCharge(msgspec.Struct, frozen=True):
    """A charge event on its way into the ledger."""

    event: ChargeEvent
    payload_hash: str
    cancelled: bool = False  # a final that takes back an estimate: nothing is charged


def default_label(source: str, language: Language = "zh") -> str:
    """The label of an entry that brings none."""
    return _LABELS.get(source, _LABELS["other"])[language]


def label_in(language: Language, source: str, label: str) -> str:
    """A stored label for a reader of `language`: default labels are translated, own ones stay."""
    if label in _LABELS.get(source, _LABELS["other"]).values():
        return default_label(source, language)
    if source == "charge" and (kind := _CORRECTIONS.get(label)):
        return default_label(kind, language)
    return label


def total_of(source: str, direction: str) -> TotalName:
    """The total that an applied entry goes to."""
    if own := _TOTAL_OF_SOURCE.get(source):
        return own
    if direction == EXPENSE:
        return "consumed"
    return "recharged" if source == "purchase" else "rewarded"


def snapshot_of(account: Account) -> Snapshot:
    """The account as it is shown and cached."""
    return Snapshot(
        account=account.account,
        balance=account.balance,
        seq=account.seq,
        total_recharged=account.total_recharged,
        total_rewarded=account.total_rewarded,
        total_consumed=account.total_consumed,
        total_refunded=account.total_refunded,
        total_expired=account.total_expired,
        total_adjusted=account.total_adjusted,
        blocked=account.balance <= 0,
        suspended=account.suspended,
        updated_at=account.updated_at,
    )


def normalise(entry: Entry, now: int) -> Entry | EntryRefused:
    """Text trimmed, source, direction and status lower-cased, label and time filled in; or why not."""
    source = entry.source.strip().lower()
    tidy = Entry(
        event_id=entry.event_id.strip(),
        account=entry.account.strip(),
        source=source,
        direction=entry.direction.strip().lower(),
        amount=entry.amount,
        source_label=entry.source_label.strip() or default_label(source),
        order_id=_or_none(entry.order_id),
        source_ref_id=_or_none(entry.source_ref_id),
        status=entry.status.strip().lower(),
        description=entry.description.strip(),
        metadata_json=entry.metadata_json.strip() or "{}",
        created_at=now if entry.created_at is None else entry.created_at,
    )
    return _refusal(tidy) or tidy


def _or_none(text: str | None) -> str | None:
    return (text.strip() or None) if text is not None else None


def _refusal(entry: Entry) -> EntryRefused | None:
    for field in ("event_id", "account", "source", "status"):
        value: str = getattr(entry, field)
        if not value:
            return EntryRefused(field=field, message=f"{field} must not be empty")
        if not value.isprintable():
            return EntryRefused(field=field, message=f"{field} holds characters that do not print")
    if len(entry.event_id) > EVENT_ID_LENGTH_MAX:
        return EntryRefused(
            field="event_id", message=f"event_id is longer than {EVENT_ID_LENGTH_MAX}"
        )
    if len(entry.account) > ACCOUNT_ID_LENGTH_MAX:
        return EntryRefused(
            field="account", message=f"account is longer than {ACCOUNT_ID_LENGTH_MAX}"
        )
    if entry.direction not in (INCOME, EXPENSE):
        return EntryRefused(
            field="direction", message=f"direction is income or expense, not {entry.direction!r}"
        )
    return _amount_refusal(entry) or _metadata_refusal(entry)


def _amount_refusal(entry: Entry) -> EntryRefused | None:
    # A float or a bool slips through a type annotation, and must not slip into money.
    if type(entry.amount) is not int:
        return EntryRefused(field="amount", message="amount must be an integer (micro-credits)")
    if abs(entry.amount) > AMOUNT_MAX:
        return EntryRefused(field="amount", message=f"amount is beyond {AMOUNT_MAX} micro-credits")
    if entry.direction == INCOME and entry.amount < 0:
        return EntryRefused(field="amount", message="income must not be negative")
    if entry.direction == EXPENSE and entry.amount > 0:
        return EntryRefused(field="amount", message="expense must not be positive")
    return None


def _metadata_refusal(entry: Entry) -> EntryRefused | None:
    try:
        msgspec.json.decode(entry.metadata_json, type=dict[str, object])
    except msgspec.MsgspecError:
        return EntryRefused(field="metadata_json", message="metadata_json must be a JSON object")
    return None


def entry_hash(entry: Entry) -> str:
    """SHA-256 over the fields that two entries of one event id must agree on."""
    told = (
        entry.event_id,
        entry.account,
        entry.source,
        entry.direction,
        entry.amount,
        entry.status,
    )
    return hashlib.sha256(_encoder.encode(told)).hexdigest()


class _Running:
    """An account while a batch runs over it; `exists` turns true with its first moved amount."""

    __slots__ = (
        "account",
        "balance",
        "created_at",
        "exists",
        "last_event_id",
        "seq",
        "suspended",
        "totals",
        "updated_at",
    )

    def __init__(self, account: str, stored: Account | None, now: int) -> None:
        self.account = account
        self.exists = stored is not None
        self.balance = stored.balance if stored else 0
        self.seq = stored.seq if stored else 0
        self.totals: dict[TotalName, int] = {
            "recharged": stored.total_recharged if stored else 0,
            "rewarded": stored.total_rewarded if stored else 0,
            "consumed": stored.total_consumed if stored else 0,
            "refunded": stored.total_refunded if stored else 0,
            "expired": stored.total_expired if stored else 0,
            "adjusted": stored.total_adjusted if stored else 0,
        }
        self.suspended = stored.suspended if stored else False
        self.last_event_id = stored.last_ledger_event_id if stored else None
        self.created_at = stored.created_at if stored else now
        self.updated_at = stored.updated_at if stored else now

    def freeze(self) -> Account:
        totals = self.totals
        account = Account(
            account=self.account,
            balance=self.balance,
            seq=self.seq,
            total_recharged=totals["recharged"],
            total_rewarded=totals["rewarded"],
            total_consumed=totals["consumed"],
            total_refunded=totals["refunded"],
            total_expired=totals["expired"],
            total_adjusted=totals["adjusted"],
            suspended=self.suspended,
            last_ledger_event_id=self.last_event_id,
            created_at=self.created_at,
            updated_at=self.updated_at,
        )
        assert account.balance == (
            account.total_recharged
            + account.total_rewarded
            - account.total_consumed
            - account.total_refunded
            - account.total_expired
            + account.total_adjusted
        ), "balance must be the signed sum of the totals"
        return account


class Batch:
    """Decides postings one after the other; afterwards `written` and `changed()` are to be stored.

    accounts: the rows of every account that the batch names, as far as they exist.
    entries: the entries already in the ledger under any event id that the batch may write.
    finals: ids of calls whose owner has already spoken (a final or a cancellation is recorded).
    """

    def __init__(
        self,
        *,
        accounts: Iterable[Account],
        entries: Iterable[LedgerEntry],
        now: int,
        finals: AbstractSet[str] = frozenset(),
    ) -> None:
        self._accounts = {a.account: _Running(a.account, a, now) for a in accounts}
        self._entries = {e.event_id: e for e in entries}
        self._finals = finals
        self._now = now
        self._changed: dict[str, _Running] = {}
        self.written: list[LedgerEntry] = []

    def changed(self) -> list[Account]:
        """The accounts that were made or moved on, in the order of their ids."""
        return [self._changed[account].freeze() for account in sorted(self._changed)]

    def account(self, account: str) -> Account | None:
        """The account as it stands after what was posted so far; None: it has no row."""
        running = self._accounts.get(account)
        return running.freeze() if running is not None and running.exists else None

    def standing(self, account: str) -> tuple[int, int]:
        """Balance and seq of an account after what was posted so far; zeros: it has no row."""
        running = self._accounts.get(account)
        return (running.balance, running.seq) if running and running.exists else (0, 0)

    def post(self, entry: Entry) -> PostResult:
        """Post an entry that is no call of its own; see the outcomes' docstrings."""
        tidy = normalise(entry, self._now)
        if isinstance(tidy, EntryRefused):
            return tidy
        if existing := self._entries.get(tidy.event_id):
            conflict = _conflict(existing, tidy)
            return conflict or Repeated(entry=existing, account=self._snapshot(tidy.account))
        if passed := self._out_of_range(tidy):
            return EntryRefused(
                field="amount", message=f"{passed} would pass {AMOUNT_MAX} micro-credits"
            )
        # After this point it must succeed.
        written = self._append(tidy, entry_hash(tidy), None, None)
        return Posted(entry=written, account=self._snapshot(tidy.account))

    def settle(self, charge: PendingCharge) -> ChargeResult:
        """Post the charge of a call. Never refuses for want of credit."""
        if refused := _charge_refusal(charge):
            return refused
        event_id = charge.event.context.event_id
        first = self._entries.get(event_id)
        if charge.event.revision == Revision.ESTIMATE:
            return self._settle_estimate(charge, first)
        if first is None:
            if charge.cancelled:
                return Dropped(event_id=event_id, reason="cancelled")
            return self._append_charge(charge, event_id, -charge.event.amount)
        if first.usage_revision == Revision.ESTIMATE:
            return self._settle_difference(charge, first)
        wanted = _charge_entry(charge, event_id, -charge.event.amount)
        return _conflict(first, wanted) or first

    def _settle_estimate(self, charge: PendingCharge, first: LedgerEntry | None) -> ChargeResult:
        event_id = charge.event.context.event_id
        if event_id in self._finals:
            return Dropped(event_id=event_id, reason="estimate_after_final")
        if first is None:
            return self._append_charge(charge, event_id, -charge.event.amount)
        if first.usage_revision is None:  # the id belongs to something that is no call
            return _taken(first)
        if first.usage_revision == Revision.FINAL:
            return Dropped(event_id=event_id, reason="estimate_after_final")
        return Dropped(event_id=event_id, reason="estimate_after_estimate")

    def _settle_difference(self, charge: PendingCharge, estimate: LedgerEntry) -> ChargeResult:
        """The owner's word on a call that was charged by estimate: the difference, in either direction.

        Less than the estimate is an income of source `charge`, which lowers total_consumed.
        """
        account = charge.event.context.account
        if account != estimate.account:
            return _differs(estimate, "account", estimate.account, account)
        final = self._entries.get(estimate.event_id + FINAL_SUFFIX)
        if final is not None:
            total = estimate.amount + final.amount
            if total != -charge.event.amount:
                return _differs(final, "amount", str(total), str(-charge.event.amount))
            return final
        difference = -charge.event.amount - estimate.amount
        return self._append_charge(charge, estimate.event_id + FINAL_SUFFIX, difference)

    def _append_charge(self, charge: PendingCharge, event_id: str, amount: int) -> LedgerEntry:
        return self._append(
            _charge_entry(charge, event_id, amount),
            charge.payload_hash,
            charge.event.context.event_id,
            charge.event.revision,
        )

    def _append(
        self, entry: Entry, payload_hash: str, usage_event_id: str | None, revision: int | None
    ) -> LedgerEntry:
        moved = entry.amount if entry.status == APPLIED else 0
        running = self._accounts.get(entry.account)
        if running is None:
            running = _Running(entry.account, None, self._now)
            self._accounts[entry.account] = running
        before = running.balance
        if moved:
            running.exists = True
            self._move(running, entry, moved)
        if running.exists:
            running.seq += 1
            running.last_event_id = entry.event_id
            # Another process's clock may be ahead: an account's entries never go back in time, so a
            # month that has ended is a range of numbers that nothing is added to.
            running.updated_at = max(self._now, running.updated_at)
            self._changed[entry.account] = running
        written = LedgerEntry(
            event_id=entry.event_id,
            account=entry.account,
            account_seq=running.seq if running.exists else None,
            source=entry.source,
            source_label=entry.source_label,
            direction=entry.direction,
            order_id=entry.order_id,
            source_ref_id=entry.source_ref_id,
            amount=entry.amount,
            status=entry.status,
            description=entry.description,
            metadata_json=entry.metadata_json,
            balance_before=before,
            balance_after=running.balance,
            payload_hash=payload_hash,
            usage_event_id=usage_event_id,
            usage_revision=revision,
            created_at=self._now if entry.created_at is None else entry.created_at,
            posted_at=running.updated_at if running.exists else self._now,
        )
        self._entries[entry.event_id] = written
        self.written.append(written)
        return written

    @staticmethod
    def _move(running: _Running, entry: Entry, moved: int) -> None:
        running.balance += moved
        total, change = _change_of_total(entry, moved)
        running.totals[total] += change

    def _out_of_range(self, entry: Entry) -> str:
        """What the entry would carry too far; "": nothing. Back and forth, totals alone may grow."""
        if entry.status != APPLIED:
            return ""
        running = self._accounts.get(entry.account)
        if abs((running.balance if running else 0) + entry.amount) > AMOUNT_MAX:
            return "the balance"
        total, change = _change_of_total(entry, entry.amount)
        if abs((running.totals[total] if running else 0) + change) > AMOUNT_MAX:
            return f"total_{total}"
        return ""

    def _snapshot(self, account: str) -> Snapshot | None:
        running = self._accounts.get(account)
        return snapshot_of(running.freeze()) if running is not None and running.exists else None


def _change_of_total(entry: Entry, moved: int) -> tuple[TotalName, int]:
    total = total_of(entry.source, entry.direction)
    return total, -moved if total in ("consumed", "refunded", "expired") else moved


def _charge_entry(charge: PendingCharge, event_id: str, amount: int) -> Entry:
    return Entry(
        event_id=event_id,
        account=charge.event.context.account,
        source="charge",
        source_label=_CHARGE_LABEL,
        direction=INCOME if amount > 0 else EXPENSE,
        amount=amount,
        source_ref_id=charge.event.context.event_id if event_id.endswith(FINAL_SUFFIX) else None,
        description=charge.event.context.model_requested,
        created_at=charge.event.finished_at,
    )


def _charge_refusal(charge: PendingCharge) -> EntryRefused | None:
    event = charge.event
    if event.version != EVENT_VERSION:
        return EntryRefused(field="version", message=f"unknown version {event.version}")
    if event.revision not in (Revision.ESTIMATE, Revision.FINAL):
        return EntryRefused(field="revision", message=f"unknown revision {event.revision}")
    if not 0 <= event.amount <= AMOUNT_MAX:
        return EntryRefused(field="amount", message=f"a charge of {event.amount} micro-credits")
    if charge.cancelled and event.amount != 0:
        return EntryRefused(field="amount", message="a cancelled call costs nothing")
    if not event.context.event_id:
        return EntryRefused(field="event_id", message="event_id must not be empty")
    if not 0 < len(event.context.account) <= ACCOUNT_ID_LENGTH_MAX:
        return EntryRefused(field="account", message="account is empty or too long")
    return None


def _conflict(existing: LedgerEntry, entry: Entry) -> EventConflict | None:
    """The first money field in which the two differ; labels, times and metadata never count."""
    for field in ("account", "source", "direction", "amount", "status"):
        was, given = getattr(existing, field), getattr(entry, field)
        if was != given:
            return _differs(existing, field, str(was), str(given))
    return None


def _taken(existing: LedgerEntry) -> EventConflict:
    return _differs(existing, "source", existing.source, "charge")


def _differs(existing: LedgerEntry, field: str, was: str, given: str) -> EventConflict:
    return EventConflict(event_id=existing.event_id, field=field, existing=was, given=given)


_CHARGE_LABEL: Final = default_label("charge")
CHARGE_REFUND_LABEL: Final = default_label("charge_refund")  # an income of source `charge`
CHARGE_RERATE_LABEL: Final = default_label("charge_rerate")  # of the same source, either way
_CORRECTIONS: Final = {default_label(kind): kind for kind in ("charge_refund", "charge_rerate")}
_encoder: Final = msgspec.json.Encoder()
