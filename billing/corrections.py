"""Corrections of the ledger by administrators: adjustments, refunds of one charge, refunds of an order.

Each has a reason and is an entry of its own; nothing that was posted changes. Its row is written
first, one at a time, so that refunds together never pass what was paid; its entry follows. A debit
holds credit before it is posted, like a call: what runs meanwhile cannot spend the same credit.
Whoever asks again with the same key, after a crash or at the same time, ends with the same entry.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final, assert_never

import msgspec
from sqlalchemy import (
    Select,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import ledger
from billing.accounts import (
    ACCOUNT_ID_RULE,
    EntryConflictError,
    EntryRefusedError,
    Transaction,
    is_account_id,
)
from billing.audit import Act, Detail, note
from billing.context import BillingContext, encode_context
from billing.db.hot import HotDatabase
from billing.db.pages import each_row, read_page
from billing.db.session import Database
from billing.db.tables import (
    corrections,
    ledger_entries,
    orders,
    outbox,
    quarantine,
    rerating_runs,
    usage,
)
from billing.events import Revision
from billing.failpoints import reach
from billing.holds import Granted, HoldRequest, HoldStore, Refused
from billing.kinds import CorrectionKind, OrderStatus
from billing.lists import Page, PageRequest
from billing.settlement.late_finals import complete_before, oldest_late_final
from billing.shop.fields import KEY_MAX, Fields
from billing.shop.orders import UnknownOrderError
from billing.shop.postings import OnPosted, post_one
from billing.shop.rows import of_row

REASON_MAX: Final = 500
REF_ID_MAX: Final = 64  # with a key it must fit into an event id

_ACTIONS: Final[dict[CorrectionKind, str]] = {
    "adjustment": "account.adjust",
    "charge_refund": "charge.refund",
    "order_refund": "order.refund",
}


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """Credit given or taken by hand; it is taken whole, below zero if need be."""

    account: str
    amount: int  # micro-credits, signed, not 0
    reason: str
    idempotency_key: str | None = None


class ChargeRefund(msgspec.Struct, frozen=True, kw_only=True):
    """Give back what a call was charged: it goes back to consumed."""

    charge_id: str  # the call's event id
    amount: int | None = None  # micro-credits; None: all that was not given back yet
    reason: str
    idempotency_key: str | None = None


class OrderRefund(msgspec.Struct, frozen=True, kw_only=True):
    """Take back the credit of an order, as far as it is still there: spent or held credit stays."""

    order_id: str
    amount: int | None = None  # micro-credits; None: all that was not taken back yet
    reason: str
    idempotency_key: str | None = None


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """A correction as it stands; amounts in micro-credits, signed as the entry's."""

    event_id: str
    kind: CorrectionKind
    account: str
    ref_id: str | None  # the charge or order
    wanted: int
    amount: int | None  # as granted; None: not decided yet
    hold_id: str | None
    reason: str
    actor: str
    created_at: int  # milliseconds since the epoch
    posted_at: int | None  # None: its entry is still to be posted


class CorrectionDone(msgspec.Struct, frozen=True, kw_only=True):
    """A correction and its entry; of an order refund, `entry.amount` may be less than was wanted."""

    correction: Correction
    entry: Transaction
    repeated: bool  # it was asked for before


class UnknownChargeError(Exception):
    """The ledger has no charge of a call by this id."""


class ChargeNotFinalError(Exception):
    """The call was charged by estimate, and its final may still come."""


class ChargeBeingReratedError(Exception):
    """A run of re-rating is under way that the charge belongs to."""


class OrderNotCreditedError(Exception):
    """The order has given no credit that could be taken back."""


class RefundTooLargeError(Exception):
    """More than is left: `remaining` micro-credits were not refunded yet."""

    def __init__(self, wanted: int | None, remaining: int) -> None:
        asked = "a refund" if wanted is None else f"a refund of {wanted} micro-credits"
        super().__init__(f"{asked} is refused: {remaining} are left to refund")
        self.wanted = wanted
        self.remaining = remaining


class CreditSpentError(Exception):
    """Nothing of the order's credit is available: it was spent, or calls hold it."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(
            f"no credit is available: balance {refused.balance}, held {refused.held} micro-credits"
        )
        self.refused = refused


class CorrectionConflictError(Exception):
    """The idempotency key stands for another correction: which field differs, and how."""

    def __init__(self, field: str, existing: object, given: object) -> None:
        super().__init__(f"the key was used with {field} {existing!r}, given {given!r}")
        self.field = field


class Corrections:
    """All corrections of one database.

    `holds` and `process` are those of admission: where credit is held, and who holds it.
    """

    def __init__(  # noqa: PLR0913 - its parts, each by name
        self,
        database: Database,
        hot: HotDatabase,
        *,
        holds: HoldStore,
        process: Callable[[], str],
        now_ms: Callable[[], int],
        new_id: Callable[[int], str],
        on_posted: OnPosted | None = None,
        call_seconds_max: float = 3600,
    ) -> None:
        """`call_seconds_max`: how long a call may run, and so how late its final may be made."""
        self._database = database
        self._hot = hot
        self._holds = holds
        self._process = process
        self._now_ms = now_ms
        self._new_id = new_id
        self._on_posted = on_posted
        self._call_ms_max = round(call_seconds_max * 1000)

    # All three raise InvalidFieldsError, CorrectionConflictError, EntryRefusedError,
    # EntryConflictError; GuardUnavailableError and DatabaseUnavailableError: then ask again with
    # the same key.

    async def adjust(self, asked: Adjustment, *, actor: str) -> CorrectionDone:
        """Give or take credit by hand; makes the account if there is none."""
        _check_adjustment(asked)
        now_ms, key = self._begin(asked.idempotency_key)
        wanted = Correction(
            event_id=f"adjustment:{key}",
            kind="adjustment",
            account=asked.account,
            ref_id=None,
            wanted=asked.amount,
            amount=asked.amount,
            hold_id=self._new_id(now_ms) if asked.amount < 0 else None,
            reason=asked.reason.strip(),
            actor=actor,
            created_at=now_ms,
            posted_at=None,
        )
        async with self._database.write(alone=True) as connection:
            known = await _known(connection, wanted, asked.amount)
            if known is None:
                await _promise(connection, wanted)
        return await self._carry_out(known or wanted, repeated=known is not None)

    async def refund_charge(self, asked: ChargeRefund, *, actor: str) -> CorrectionDone:
        """Give back a call's charge, in whole or in part; never more than it came to in all.

        Raises UnknownChargeError, ChargeNotFinalError, ChargeBeingReratedError,
        RefundTooLargeError.
        """
        _check_refund(
            asked.charge_id, "charge_id", asked.amount, asked.reason, asked.idempotency_key
        )
        now_ms, key = self._begin(asked.idempotency_key)
        async with self._database.write(alone=True) as connection:
            account, charged = await self._charged(connection, asked.charge_id, now_ms)
            wanted = Correction(
                event_id=f"refund:{asked.charge_id}:{key}",
                kind="charge_refund",
                account=account,
                ref_id=asked.charge_id,
                wanted=asked.amount or charged,
                amount=None,
                hold_id=None,
                reason=asked.reason.strip(),
                actor=actor,
                created_at=now_ms,
                posted_at=None,
            )
            known = await _known(connection, wanted, asked.amount)
            if known is None:
                await _refuse_if_being_rerated(connection, asked.charge_id)
                left = charged - abs(await _promised(connection, "charge_refund", asked.charge_id))
                amount = _within(asked.amount, left)
                wanted = msgspec.structs.replace(wanted, wanted=amount, amount=amount)
                await _promise(connection, wanted)
        return await self._carry_out(known or wanted, repeated=known is not None)

    async def refund_order(self, asked: OrderRefund, *, actor: str) -> CorrectionDone:
        """Take back an order's credit, at most what is available; the rest stays as it is.

        Raises UnknownOrderError, OrderNotCreditedError, RefundTooLargeError, CreditSpentError.
        """
        _check_refund(asked.order_id, "order_id", asked.amount, asked.reason, asked.idempotency_key)
        now_ms, key = self._begin(asked.idempotency_key)
        async with self._database.write(alone=True) as connection:
            account, credited = await _credited(connection, asked.order_id)
            wanted = Correction(
                event_id=f"order-refund:{asked.order_id}:{key}",
                kind="order_refund",
                account=account,
                ref_id=asked.order_id,
                wanted=-(asked.amount or credited),
                amount=None,
                hold_id=self._new_id(now_ms),
                reason=asked.reason.strip(),
                actor=actor,
                created_at=now_ms,
                posted_at=None,
            )
            known = await _known(connection, wanted, asked.amount and -asked.amount)
            if known is None:
                left = credited - abs(await _promised(connection, "order_refund", asked.order_id))
                wanted = msgspec.structs.replace(wanted, wanted=-_within(asked.amount, left))
                await _promise(connection, wanted)
        return await self._carry_out(known or wanted, repeated=known is not None)

    async def page(
        self, request: PageRequest, *, account: str = "", kind: str = "", ref_id: str = ""
    ) -> Page[Correction]:
        """Corrections, newest first. By page number only."""
        table = corrections
        wanted = {table.c.account: account, table.c.kind: kind, table.c.ref_id: ref_id}
        conditions = [column == value for column, value in wanted.items() if value]
        ordered = (
            select(table)
            .where(*conditions)
            .order_by(table.c.created_at.desc(), table.c.event_id.desc())
        )
        return await read_page(self._database, ordered, request, _correction)

    async def resume(self) -> int:
        """Carry out what was promised and, after a crash, not posted; how many."""
        waiting = select(corrections).where(corrections.c.posted_at.is_(None))
        done = 0
        async for row in each_row(self._database, waiting, corrections.c.event_id):
            with suppress(EntryRefusedError, EntryConflictError, CreditSpentError):
                await self._carry_out(_correction(row), repeated=True)
                done += 1
        return done

    # -- one correction ----------------------------------------------------------------------

    def _begin(self, key: str | None) -> tuple[int, str]:
        now_ms = self._now_ms()
        return now_ms, (key or self._new_id(now_ms)).strip()

    async def _carry_out(self, correction: Correction, *, repeated: bool) -> CorrectionDone:
        """Hold, post, release; each step may have been done before."""
        reach("correction_promised")
        if correction.posted_at is None:
            correction = await self._hold(correction)
            reach("correction_held")
            try:
                await post_one(self._hot, _entry(correction), self._on_posted)
            except (EntryRefusedError, EntryConflictError):
                # It never will be: it must not count as refunded. The hold goes first, for without
                # its row nobody would know whose it is.
                await self._release(correction)
                await self._forget(correction)
                raise
            reach("correction_posted")
            await self._release(correction)
        posted_at = self._now_ms()
        async with self._database.write() as connection:
            mine = update(corrections).where(
                corrections.c.event_id == correction.event_id, corrections.c.posted_at.is_(None)
            )
            await connection.execute(mine.values(posted_at=posted_at))
            row = (await connection.execute(_by_id(correction.event_id))).one()
            entry = await _posted_entry(connection, correction.event_id)
        return CorrectionDone(correction=_correction(row), entry=entry, repeated=repeated)

    async def _hold(self, correction: Correction) -> Correction:
        """Set credit aside for a debit; of an order refund, what is held is what is taken.

        Raises CreditSpentError (an order refund), GuardUnavailableError.
        """
        if correction.hold_id is None:
            return correction
        answer = await self._holds.reserve(
            HoldRequest(
                hold_id=correction.hold_id,
                account=correction.account,
                minimum=1 if correction.amount is None else 0,
                wanted=-correction.wanted,
                context=encode_context(_context(correction, correction.hold_id)),
                process=self._process(),
                started_at=self._now_ms(),
                while_suspended=True,
            )
        )
        if correction.amount is not None:
            return correction  # in full, whatever could be held of it
        match answer:
            case Granted(amount):
                taken = amount
            case Refused():
                taken = 0
            case _:
                assert_never(answer)
        return await self._decide(correction, taken, answer)

    async def _decide(
        self, correction: Correction, taken: int, answer: Granted | Refused
    ) -> Correction:
        """Note what an order refund takes; who came first decides."""
        undecided = and_(
            corrections.c.event_id == correction.event_id, corrections.c.amount.is_(None)
        )
        async with self._database.write() as connection:
            if taken > 0:
                await connection.execute(update(corrections).where(undecided).values(amount=-taken))
            else:
                await connection.execute(delete(corrections).where(undecided))
            row = (await connection.execute(_by_id(correction.event_id))).one_or_none()
        if row is None:
            await self._release(correction)
            assert isinstance(answer, Refused), "who is granted something takes it"
            raise CreditSpentError(answer)
        return _correction(row)

    async def _release(self, correction: Correction) -> None:
        if correction.hold_id is not None:
            # It can wait: `resume` comes again as long as the row is not marked.
            await self._holds.release(correction.account, correction.hold_id)

    async def _forget(self, correction: Correction) -> None:
        async with self._database.write() as connection:
            await connection.execute(
                delete(corrections).where(
                    corrections.c.event_id == correction.event_id,
                    corrections.c.posted_at.is_(None),
                )
            )

    async def _charged(
        self, connection: AsyncConnection, charge_id: str, now_ms: int
    ) -> tuple[str, int]:
        """Whose a call was, and what it was charged in all."""
        table = ledger_entries
        # ";" follows ":" in ASCII: its final and its re-ratings.
        derived = and_(table.c.event_id > f"{charge_id}:", table.c.event_id < f"{charge_id};")
        wanted = select(
            table.c.event_id, table.c.account, table.c.amount, table.c.status, table.c.usage_revision,
            table.c.usage_event_id,
        ).where(or_(table.c.event_id == charge_id, derived))  # fmt: skip
        rows = {row.event_id: row for row in (await connection.execute(wanted)).all()}
        first = rows.get(charge_id)
        if first is None or first.usage_event_id != charge_id:
            raise UnknownChargeError
        if (
            first.usage_revision == Revision.ESTIMATE
            and charge_id + ledger.FINAL_SUFFIX not in rows
        ):
            await self._refuse_if_final_may_come(connection, charge_id, now_ms)
        moved = sum(row.amount for row in rows.values() if row.status == ledger.APPLIED)
        return str(first.account), -moved

    async def _refuse_if_final_may_come(
        self, connection: AsyncConnection, charge_id: str, now_ms: int
    ) -> None:
        """Given back first and then corrected downwards, a call would give back more than it took."""
        since = now_ms - self._call_ms_max + 1
        if connection.dialect.name == "postgresql":
            # It may lie in the spool of a process that cannot reach the database, or is dead.
            given_up = oldest_late_final(now_ms, self._call_ms_max)
            since = max(await complete_before(connection), given_up)
        recent = exists().where(usage.c.event_id == charge_id, usage.c.started_at >= since)
        waits = exists().where(outbox.c.event_id == charge_id)
        aside = exists().where(
            quarantine.c.event_id == charge_id, quarantine.c.resolved_at.is_(None)
        )
        if await connection.scalar(select(or_(recent, waits, aside))):
            raise ChargeNotFinalError("charged by estimate, and the final word may still come")


async def _known(
    connection: AsyncConnection, wanted: Correction, asked: int | None
) -> Correction | None:
    """The correction of this key, if there is one; raises CorrectionConflictError."""
    row = (await connection.execute(_by_id(wanted.event_id))).one_or_none()
    if row is None:
        return None
    known = _correction(row)
    if known.account != wanted.account:
        raise CorrectionConflictError("account", known.account, wanted.account)
    if asked is not None and known.wanted != asked:
        raise CorrectionConflictError("amount", abs(known.wanted), abs(asked))
    return known


async def _promise(connection: AsyncConnection, correction: Correction) -> None:
    """Write a correction's row and its line of the audit trail."""
    await connection.execute(insert(corrections).values(**msgspec.structs.asdict(correction)))
    detail: Detail = {
        "event_id": correction.event_id,
        "account": correction.account,
        "amount_micro_credits": correction.wanted,
        "reason": correction.reason,
    }
    act = Act(
        actor=correction.actor,
        action=_ACTIONS[correction.kind],
        target=correction.ref_id or correction.account,
        detail=detail,
    )
    await note(connection, act, correction.created_at)


async def _promised(connection: AsyncConnection, kind: CorrectionKind, ref_id: str) -> int:
    """What was refunded of a charge or order, or is about to be, at the most."""
    amounts = func.coalesce(corrections.c.amount, corrections.c.wanted)
    total = select(func.coalesce(func.sum(amounts), 0)).where(
        corrections.c.ref_id == ref_id, corrections.c.kind == kind
    )
    return int(await connection.scalar(total) or 0)


async def _refuse_if_being_rerated(connection: AsyncConnection, charge_id: str) -> None:
    """What a run makes of a charge must not pass what a refund gives back of it."""
    covering = select(rerating_runs.c.run_id).where(
        rerating_runs.c.state == "posting",
        exists().where(
            usage.c.event_id == charge_id,
            usage.c.started_at >= rerating_runs.c.from_at,
            usage.c.started_at < rerating_runs.c.to_at,
        ),
    )
    if run_id := await connection.scalar(covering):
        raise ChargeBeingReratedError(
            f"the re-rating {run_id} is under way; ask again when it is done"
        )


async def _credited(connection: AsyncConnection, order_id: str) -> tuple[str, int]:
    """Whose an order was, and what it gave."""
    wanted = select(orders.c.account, orders.c.credit_amount, orders.c.status)
    row = (await connection.execute(wanted.where(orders.c.order_id == order_id))).one_or_none()
    if row is None:
        raise UnknownOrderError
    if row.status != OrderStatus.CREDITED:
        raise OrderNotCreditedError(f"the order is {row.status}")
    return str(row.account), int(row.credit_amount)


def _within(asked: int | None, left: int) -> int:
    amount = left if asked is None else asked
    if left <= 0 or amount > left:
        raise RefundTooLargeError(asked, max(0, left))
    return amount


def _entry(correction: Correction) -> ledger.Entry:
    amount = correction.amount
    assert amount is not None, "decided before it is posted"
    sources = {"adjustment": "adjustment", "charge_refund": "charge", "order_refund": "refund"}
    is_order = correction.kind == "order_refund"
    return ledger.Entry(
        event_id=correction.event_id,
        account=correction.account,
        source=sources[correction.kind],
        source_label=ledger.CHARGE_REFUND_LABEL if correction.kind == "charge_refund" else "",
        direction=ledger.INCOME if amount > 0 else ledger.EXPENSE,
        amount=amount,
        order_id=correction.ref_id if is_order else None,
        source_ref_id=correction.ref_id,
        description=correction.reason,
    )


def _context(correction: Correction, hold_id: str) -> BillingContext:
    """Whose hold it is, for whoever finds it after a crash."""
    return BillingContext(
        event_id=hold_id,
        account=correction.account,
        key_id="",
        app="",
        scene="correction",
        provider="ledger",
        model_requested=correction.kind,
        model_sent=correction.kind,
        run_id="",
        client_request_id="",
        book=0,
        rule="",
        started_at=correction.created_at,
    )


def _check_adjustment(asked: Adjustment) -> None:
    fields = Fields()
    fields.check("account", f"must be {ACCOUNT_ID_RULE}", ok=is_account_id(asked.account))
    fields.whole("amount", asked.amount, -ledger.AMOUNT_MAX)
    fields.check("amount", "must not be 0", ok=asked.amount != 0)
    _check_words(fields, asked.reason, asked.idempotency_key)


def _check_refund(
    ref_id: str, field: str, amount: int | None, reason: str, key: str | None
) -> None:
    fields = Fields()
    fields.reference(field, ref_id)
    fields.text(field, ref_id, most=REF_ID_MAX)
    fields.limit("amount", amount)
    _check_words(fields, reason, key)


def _check_words(fields: Fields, reason: str, key: str | None) -> None:
    fields.text("reason", reason, least=1, most=REASON_MAX)
    if key is not None:
        fields.text("idempotency_key", key, least=1, most=KEY_MAX)
    fields.done()


async def _posted_entry(connection: AsyncConnection, event_id: str) -> Transaction:
    columns = [ledger_entries.c[name] for name in Transaction.__struct_fields__]
    wanted = select(*columns).where(ledger_entries.c.event_id == event_id)
    row = (await connection.execute(wanted)).one()
    return of_row(row, Transaction)


def _by_id(event_id: str) -> Select[*tuple[object, ...]]:
    return select(corrections).where(corrections.c.event_id == event_id)


def _correction(row: Row[*tuple[object, ...]]) -> Correction:
    return of_row(row, Correction)
