"""What a person does with what is stuck: look at it, replay or discard it with a reason, release a hold.

Every act is written into the audit trail: in the act's own transaction where it has one, before it
where it goes through a port. Repeating an act is harmless and answers as the first time.
"""

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import msgspec
from sqlalchemy import Select, case, delete, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.audit import Act, Detail, note
from billing.backlog import Backlog, HeldCredit, SetAside, WaitingCharge
from billing.context import BillingContext, decode_context
from billing.db import rows
from billing.db.hot import EventConflictError
from billing.db.session import Database
from billing.db.tables import accounts, holds, outbox, processes, quarantine, usage
from billing.events import (
    ChargeEvent,
    Finish,
    Revision,
    UsageNotes,
    UsageQuality,
    UsageSource,
    payload_hash,
)
from billing.holds import Applied, HoldStore
from billing.lists import Page, PageRequest
from billing.settlement.reconcile import RebuiltGuard, Reconciler
from pricing_rules.usage import Usage

T = TypeVar("T", bound=msgspec.Struct)

REPLAYED: Final = "replayed"
DISCARDED: Final = "discarded"
FROM_BROKER: Final = "broker"  # a message that says whose it is, and may be wrong or foreign
RELEASED: Final = "released"  # the reason of a usage row that a released hold leaves


class UnknownItemError(Exception):
    """There is no such hold, event or quarantine number."""


class ActRefusedError(Exception):
    """It cannot be done as things stand; the message says why and what can be done instead."""


class QuarantinedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event in quarantine. `event` None: its payload cannot be read. No text of a call is in it."""

    row: SetAside
    event: ChargeEvent | None
    context: BillingContext | None  # also of a hold that was set aside, as far as it can be read
    payload_bytes: int
    recorded: tuple[int, ...]  # revisions of the call in the usage table
    held: int | None  # micro-credits still held for the call; None: nothing is known of a hold


class WaitingEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A charge event in the outbox. `event` None: its payload cannot be read."""

    row: WaitingCharge
    event: ChargeEvent | None
    payload_bytes: int


class HoldDetail(msgspec.Struct, frozen=True, kw_only=True):
    """A hold, its call, and whether its process lives. `context` None: it cannot be read."""

    hold: HeldCredit
    context: BillingContext | None
    process_alive: bool
    recorded: tuple[int, ...]
    waiting: bool  # its charge waits to be settled
    quarantined: bool


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an event in quarantine."""

    row: SetAside
    repeated: bool  # it was resolved like this before
    hold_released: bool = False


class ReleasedHold(msgspec.Struct, frozen=True, kw_only=True):
    """A hold that is no more. `cancelled`: its call is recorded as one that costs nothing."""

    hold_id: str
    repeated: bool
    cancelled: bool = False


class StoredHold(msgspec.Struct, frozen=True, kw_only=True):
    """A hold with its context as it is stored."""

    hold: HeldCredit
    context: bytes


class HoldShelf(Protocol):
    """Where holds can be looked at. All raise GuardUnavailableError, or what SQLAlchemy raises."""

    async def page(self, request: PageRequest, *, account: str = "") -> Page[HeldCredit]:
        """The holds of all accounts or one, newest first."""
        ...

    async def get(self, hold_id: str) -> StoredHold | None:
        """One hold."""
        ...


class DatabaseShelf:
    """HoldShelf on the table of holds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, request: PageRequest, *, account: str = "") -> Page[HeldCredit]:
        return await Backlog(self._database).holds(request, account=account)

    async def get(self, hold_id: str) -> StoredHold | None:
        async with self._database.read() as connection:
            row = (
                await connection.execute(select(holds).where(holds.c.hold_id == hold_id))
            ).one_or_none()
        if row is None:
            return None
        return StoredHold(hold=_of_row(row, HeldCredit), context=bytes(row.context))


class _Call(msgspec.Struct, frozen=True, kw_only=True):
    """What the database knows of a call beside its hold."""

    revisions: tuple[int, ...]
    released: bool
    waiting: bool
    quarantined: bool


class Desk:
    """All acts on stuck events and holds.

    `is_own` says whether a process id is the present process's. `on_waiting` wakes whoever settles.
    `guard` None: the holds are in the database, and so is `shelf`.
    """

    def __init__(  # noqa: PLR0913 - its parts, each by name
        self,
        database: Database,
        store: HoldStore,
        *,
        now_ms: Callable[[], int],
        is_own: Callable[[str], bool],
        on_waiting: Callable[[], None] = lambda: None,
        shelf: HoldShelf | None = None,
        guard: RebuiltGuard | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._now_ms = now_ms
        self._is_own = is_own
        self._on_waiting = on_waiting
        self.shelf = shelf or DatabaseShelf(database)
        self._guard = guard

    # -- looking -----------------------------------------------------------------------------------

    async def waiting(self, event_id: str, revision: int) -> WaitingEvent:
        """A row of the outbox; raises UnknownItemError."""
        wanted = select(outbox).where(outbox.c.event_id == event_id, outbox.c.revision == revision)
        async with self._database.read() as connection:
            row = (await connection.execute(wanted)).one_or_none()
        if row is None:
            raise UnknownItemError
        return WaitingEvent(
            row=_of_row(row, WaitingCharge),
            event=_event(row.payload),
            payload_bytes=len(row.payload),
        )

    async def quarantined(self, number: int) -> QuarantinedEvent:
        """An event in quarantine; raises UnknownItemError."""
        async with self._database.read() as connection:
            row = await _quarantine_row(connection, number)
            call = await _call(connection, row.event_id)
        stored = await self.shelf.get(row.event_id)
        event = _event(row.payload)
        return QuarantinedEvent(
            row=_of_row(row, SetAside),
            event=event,
            context=event.context if event else _context(row.payload),
            payload_bytes=len(row.payload),
            recorded=call.revisions,
            held=None if stored is None else stored.hold.amount,
        )

    async def hold(self, hold_id: str) -> HoldDetail:
        """One hold; raises UnknownItemError."""
        stored = await self.shelf.get(hold_id)
        if stored is None:
            raise UnknownItemError
        async with self._database.read() as connection:
            call = await _call(connection, hold_id)
            alive = await self._lives(connection, stored.hold.process)
        return HoldDetail(
            hold=stored.hold,
            context=_context(stored.context),
            process_alive=alive,
            recorded=call.revisions,
            waiting=call.waiting,
            quarantined=call.quarantined,
        )

    # -- the quarantine ----------------------------------------------------------------------------

    async def replay(self, number: int, reason: str, *, actor: str) -> Resolved:
        """Put an event back into the outbox, for the ledger worker to try again.

        For what failed for a reason that is gone: an older version of this program, say. If it
        cannot be posted this time either, it comes back under a new number. Raises
        UnknownItemError, ActRefusedError.
        """
        now = self._now_ms()
        try:
            async with self._database.write() as connection:
                row = await _quarantine_row(connection, number, lock=True)
                if row.resolved_at is not None:
                    return _resolved_before(row, REPLAYED)
                await _put_back(connection, row, now)
                await _resolve(connection, row, REPLAYED, reason, now)
                await note(connection, _act(actor, "quarantine.replay", row, reason), now)
                changed = await _quarantine_row(connection, number)
        except IntegrityError as error:
            raise ActRefusedError(
                "the database takes no such event; discard it, and correct the account by hand"
            ) from error
        self._on_waiting()
        return Resolved(row=_of_row(changed, SetAside), repeated=False)

    async def discard(self, number: int, reason: str, *, actor: str) -> Resolved:
        """Drop an event for good: it is not charged. What is in the ledger for its call stays.

        The hold of the call goes too, unless another event of the same call still needs it, or the
        event was a broker's message, which proves nothing of the call it names. Raises
        UnknownItemError, ActRefusedError, and GuardUnavailableError (then ask again).
        """
        now = self._now_ms()
        async with self._database.write() as connection:
            row = await _quarantine_row(connection, number, lock=True)
            if row.resolved_at is not None:
                answer = _resolved_before(row, DISCARDED)
            else:
                await _resolve(connection, row, DISCARDED, reason, now)
                await note(connection, _act(actor, "quarantine.discard", row, reason), now)
                changed = await _quarantine_row(connection, number)
                answer = Resolved(row=_of_row(changed, SetAside), repeated=False)
            call = await _call(connection, row.event_id)
            if call.waiting or call.quarantined or row.origin == FROM_BROKER:
                return answer
            released = await _drop_hold(connection, row.event_id, row.account)
        # Also after a repeat: the first try may have ended before this.
        await self._apply(row.account, row.event_id)
        return msgspec.structs.replace(answer, hold_released=released)

    # -- holds -------------------------------------------------------------------------------------

    async def release_hold(self, hold_id: str, reason: str, *, actor: str) -> ReleasedHold:
        """Let go of the hold of a call that nobody will finish; nothing is charged for it.

        Refused while its process lives, and while its charge is on its way or in quarantine. A
        final that its owner writes all the same later conflicts, and goes to quarantine. Raises
        UnknownItemError, ActRefusedError, GuardUnavailableError.
        """
        stored = await self.shelf.get(hold_id)
        async with self._database.read() as connection:
            call = await _call(connection, hold_id)
            if stored is None:
                if call.released:
                    return ReleasedHold(hold_id=hold_id, repeated=True, cancelled=True)
                raise UnknownItemError
            alive = await self._lives(connection, stored.hold.process)
        refusal = _why_not(call, process=stored.hold.process, alive=alive)
        if refusal:
            raise ActRefusedError(refusal)
        context = _context(stored.context)
        hold = stored.hold
        detail: Detail = {
            "reason": reason,
            "account": hold.account,
            "held_micro_credits": hold.amount,
            "progress_micro_credits": hold.progress,
            "process": hold.process,
        }
        act = Act(actor=actor, action="hold.release", target=hold_id, detail=detail)
        now = self._now_ms()
        if context is not None and context.is_call and not call.revisions:
            # Through the store: it knows where else something is to be told.
            async with self._database.write() as connection:
                await note(connection, act, now)
            await self._cancel(context, hold, now)
            return ReleasedHold(hold_id=hold_id, repeated=False, cancelled=True)
        async with self._database.write() as connection:
            await note(connection, act, now)
            await _drop_hold(connection, hold_id, hold.account)
        await self._apply(hold.account, hold_id)
        return ReleasedHold(hold_id=hold_id, repeated=False)

    async def rebuild_guard(self, reason: str, *, actor: str) -> int | None:
        """Make the hold store forget what it derived and load it anew, while calls wait.

        With holds in the database that is `accounts.held`, set to the sum of the holds: answers in
        how many accounts it was wrong. None: the store is elsewhere. Raises GuardUnavailableError,
        and what SQLAlchemy raises.
        """
        now = self._now_ms()
        async with self._database.write() as connection:
            act = Act(actor=actor, action="guard.rebuild", target="", detail={"reason": reason})
            await note(connection, act, now)
        if self._guard is not None:
            await self._guard.rebuild(reason)
            return None
        return await Reconciler(self._database, now_ms=self._now_ms).repair_held()

    async def _cancel(self, context: BillingContext, hold: HeldCredit, now: int) -> None:
        event = ChargeEvent(
            revision=Revision.FINAL,
            context=context,
            usage=Usage(),
            quality=UsageQuality.MISSING,
            usage_source=UsageSource.NONE,
            amount=0,
            ceiling=hold.amount,
            finished_at=now,
        )
        finish = Finish(event=event, notes=UsageNotes(reason=RELEASED), cancelled=True)
        try:
            await self._store.cancel(finish)
        except EventConflictError as error:
            raise ActRefusedError("its owner has recorded a charge meanwhile") from error

    async def _lives(self, connection: AsyncConnection, process: str) -> bool:
        if self._is_own(process):
            return True
        there = select(processes.c.process).where(
            processes.c.process == process, processes.c.ended_at.is_(None)
        )
        return await connection.scalar(there) is not None

    async def _apply(self, account: str, hold_id: str) -> None:
        """Tell a store outside of the database that a hold is over."""
        stands = select(accounts.c.balance, accounts.c.seq).where(accounts.c.account == account)
        async with self._database.read() as connection:
            row = (await connection.execute(stands)).one_or_none()
        applied = Applied(
            account=account,
            balance=row.balance if row else 0,
            seq=row.seq if row else 0,
            final_ids=(hold_id,),
            estimates=(),
        )
        await self._store.apply([applied])


def _why_not(call: _Call, *, process: str, alive: bool) -> str:
    """Why a hold cannot be released; "" if it can."""
    if call.waiting:
        return "its charge waits to be settled, and that releases it"
    if call.quarantined:
        return "its charge is in quarantine: replay or discard that"
    if alive and Revision.FINAL not in call.revisions:
        return f"its process {process} lives: the call ends, or is ended, by itself"
    return ""


async def _call(connection: AsyncConnection, event_id: str) -> _Call:
    said = (
        await connection.execute(
            select(usage.c.revision, usage.c.cancelled, usage.c.reason)
            .where(usage.c.event_id == event_id)
            .order_by(usage.c.revision)
        )
    ).all()
    waits = select(outbox.c.revision).where(outbox.c.event_id == event_id).limit(1)
    aside = (
        select(quarantine.c.id)
        .where(quarantine.c.event_id == event_id, quarantine.c.resolved_at.is_(None))
        .limit(1)
    )
    return _Call(
        revisions=tuple(row.revision for row in said),
        released=any(row.cancelled and row.reason == RELEASED for row in said),
        waiting=await connection.scalar(waits) is not None,
        quarantined=await connection.scalar(aside) is not None,
    )


async def _quarantine_row(
    connection: AsyncConnection, number: int, *, lock: bool = False
) -> Row[*tuple[object, ...]]:
    wanted: Select[*tuple[object, ...]] = select(quarantine).where(quarantine.c.id == number)
    row = (await connection.execute(wanted.with_for_update() if lock else wanted)).one_or_none()
    if row is None:
        raise UnknownItemError
    return row


def _resolved_before(row: Row[*tuple[object, ...]], action: str) -> Resolved:
    if row.resolution.partition(":")[0] != action:
        raise ActRefusedError(f"it was resolved before ({row.resolution})")
    return Resolved(row=_of_row(row, SetAside), repeated=True)


async def _resolve(
    connection: AsyncConnection,
    row: Row[*tuple[object, ...]],
    action: str,
    reason: str,
    now: int,
) -> None:
    await connection.execute(
        update(quarantine)
        .where(quarantine.c.id == row.id)
        .values(resolved_at=now, resolution=f"{action}: {reason}")
    )


def _act(actor: str, action: str, row: Row[*tuple[object, ...]], reason: str) -> Act:
    detail: Detail = {
        "reason": reason,
        "event_id": row.event_id,
        "revision": row.revision,
        "account": row.account,
        "why_quarantined": row.reason,
    }
    return Act(actor=actor, action=action, target=str(row.id), detail=detail)


async def _put_back(connection: AsyncConnection, row: Row[*tuple[object, ...]], now: int) -> None:
    """Write the outbox row, and the usage row if there is none; raises ActRefusedError."""
    event = _event(row.payload)
    recorded = await _recorded(connection, row.event_id, row.revision)
    if recorded is None and event is None:
        raise ActRefusedError("nothing is recorded of it that can be read: discard it")
    digest, cancelled = "", False
    if recorded is not None:
        digest, cancelled = recorded.payload_hash, bool(recorded.cancelled)
    if event is not None:
        _check_ids(row, event)
        digest = payload_hash(event)
        finish = Finish(event=event, notes=UsageNotes(reason=REPLAYED), cancelled=cancelled)
        if recorded is None:
            values = dict(
                zip(rows.USAGE_COLUMNS.split(", "), rows.usage_row(finish, digest), strict=True)
            )
            await connection.execute(insert(usage).values(values))
        elif conflict := _conflict(finish, recorded):
            raise ActRefusedError(
                f"{conflict}: replayed it would conflict again; discard it, and correct the"
                " account by hand if the amount given is the right one"
            )
    await _check_free(connection, row.event_id, row.revision)
    await connection.execute(
        insert(outbox).values(
            event_id=row.event_id,
            revision=row.revision,
            cancelled=cancelled,
            account=row.account,
            payload=row.payload,
            payload_hash=digest,
            created_at=now,
        )
    )


def _check_ids(row: Row[*tuple[object, ...]], event: ChargeEvent) -> None:
    given = (event.context.event_id, event.revision, event.context.account)
    if given != (row.event_id, row.revision, row.account):
        raise ActRefusedError("its payload names another call, revision or account: discard it")


async def _check_free(connection: AsyncConnection, event_id: str, revision: int) -> None:
    waits = select(outbox.c.event_id).where(
        outbox.c.event_id == event_id, outbox.c.revision == revision
    )
    if await connection.scalar(waits) is not None:
        raise ActRefusedError("an event by this id and revision waits in the outbox already")


async def _recorded(
    connection: AsyncConnection, event_id: str, revision: int
) -> Row[*tuple[object, ...]] | None:
    wanted: Select[*tuple[object, ...]] = select(usage).where(
        usage.c.event_id == event_id, usage.c.revision == revision
    )
    return (await connection.execute(wanted)).one_or_none()


def _conflict(finish: Finish, recorded: Row[*tuple[object, ...]]) -> str:
    found = rows.record_conflict(
        finish, tuple(getattr(recorded, name) for name in rows.IDENTITY_COLUMNS)
    )
    return "" if found is None else str(found.conflict)


async def _drop_hold(connection: AsyncConnection, hold_id: str, account: str) -> bool:
    """Delete a hold and what it held of its account; whether there was one."""
    # Account first, then hold: the order of every other transaction.
    mine = select(accounts.c.account).where(accounts.c.account == account).with_for_update()
    await connection.execute(mine)
    gone = (
        await connection.execute(
            delete(holds).where(holds.c.hold_id == hold_id).returning(holds.c.amount)
        )
    ).one_or_none()
    if gone is None:
        return False
    await connection.execute(
        update(accounts)
        .where(accounts.c.account == account)
        # Not below 0: should `held` ever be wrong, R6 tells of it.
        .values(held=case((accounts.c.held > gone.amount, accounts.c.held - gone.amount), else_=0))
    )
    return True


def _event(payload: bytes) -> ChargeEvent | None:
    try:
        return _event_decoder.decode(payload)
    except msgspec.MsgspecError:
        return None


def _context(payload: bytes) -> BillingContext | None:
    try:
        return decode_context(payload)
    except msgspec.MsgspecError:
        return None


def _of_row(row: Row[*tuple[object, ...]], shape: type[T]) -> T:
    fields = {name: getattr(row, name) for name in shape.__struct_fields__}
    return msgspec.convert(fields, shape)


_event_decoder: Final = msgspec.json.Decoder(ChargeEvent)
