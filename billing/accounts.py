"""Accounts as admins and their owners see them: made, suspended, granted credit, read.

What moves money goes through the ledger's own port; nothing here writes a balance.
"""

import re
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final, assert_never

import msgspec
from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import ledger
from billing.audit import Act, note
from billing.db.hot import HotDatabase
from billing.db.session import Database, insert_into
from billing.db.tables import accounts as accounts_table
from billing.db.tables import ledger_entries
from billing.holds import GuardUnavailableError
from billing.lists import Page, PageRequest, make_page

ACCOUNT_ID_RULE: Final = (
    "1 to 64 of A-Z a-z 0-9 . _ - : @ | + = ~, beginning with a letter, a digit or _"
)
GRANT_SOURCE: Final = "manual"

# Fits user names, numbers, UUIDs, mail addresses and the ids of identity providers ("auth0|65f").
# No slash, percent sign or leading dot: an id is part of an address.
_ACCOUNT_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:@|+=~-]{0,63}")

# What the store posts begins like this, what is posted about a call ends like this.
_OTHERS_ID: Final = re.compile(
    r"(?:credit-order|reward|adjustment|refund|order-refund):|.*:final$|.*:rerate:"
)


def is_account_id(text: str) -> bool:
    """Whether a text can name an account: see ACCOUNT_ID_RULE."""
    return _ACCOUNT_ID.fullmatch(text) is not None


class AccountInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An account as it stands; all amounts in micro-credits, zeros where there is no row."""

    account: str
    name: str = ""
    note: str = ""
    balance: int = 0
    held: int = 0
    seq: int = 0  # ledger entries so far
    total_recharged: int = 0
    total_rewarded: int = 0
    total_consumed: int = 0
    total_refunded: int = 0
    total_expired: int = 0
    total_adjusted: int = 0
    suspended: bool = False
    suspended_reason: str = ""
    created_at: int | None = None  # milliseconds since the epoch; None: there is no row
    updated_at: int | None = None

    @property
    def available(self) -> int:
        """What the next call may hold."""
        return max(0, self.balance - self.held)

    @property
    def blocked(self) -> bool:
        """No credit left: the next call that costs anything is refused."""
        return self.balance <= 0


class Transaction(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger entry as its account's owner sees it."""

    event_id: str
    account_seq: int | None
    source: str
    source_label: str
    direction: str
    amount: int
    balance_after: int
    status: str
    description: str
    metadata_json: str
    order_id: str | None
    source_ref_id: str | None
    created_at: int


class EntryFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries of an account: "" and None let all pass. Times are the entries' own.

    `from_at` is included, `to_at` is not; milliseconds since the epoch.
    """

    source: str = ""
    direction: str = ""
    from_at: int | None = None
    to_at: int | None = None


EVERY_ENTRY: Final = EntryFilter()


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Credit given by hand; the same event id is the same grant, however often it is asked for.

    Neither its event id nor its source may be of those that something else posts.
    """

    event_id: str
    account: str
    amount: int  # micro-credits, above 0
    description: str = ""
    source: str = GRANT_SOURCE
    source_label: str = ""


class GrantDone(msgspec.Struct, frozen=True, kw_only=True):
    """The entry of a grant, and the account as it is now."""

    entry: Transaction
    account: AccountInfo
    repeated: bool  # the entry was there before


class AccountExistsError(Exception):
    """There is an account by this id already."""


class UnknownAccountError(Exception):
    """There is no account by this id."""


class EntryRefusedError(Exception):
    """The ledger does not take the entry: `refusal` names the field and why."""

    def __init__(self, refusal: ledger.EntryRefused) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class EntryConflictError(Exception):
    """The event id is taken by other content: `conflict` names the field and both values."""

    def __init__(self, conflict: ledger.EventConflict) -> None:
        super().__init__(str(conflict))
        self.conflict = conflict


class Accounts:
    """All accounts of one database."""

    def __init__(
        self,
        database: Database,
        hot: HotDatabase,
        *,
        now_ms: Callable[[], int],
        on_posted: Callable[[Collection[str]], Awaitable[None]] | None = None,
    ) -> None:
        """`on_posted` is told the accounts of entries that are no call's: a guard with balances of its own."""
        self._database = database
        self._hot = hot
        self._on_posted = on_posted
        self._now_ms = now_ms

    async def create(
        self, account: str, *, name: str = "", remark: str = "", actor: str
    ) -> AccountInfo:
        """Make an account with a balance of 0; raises AccountExistsError, ValueError (the id)."""
        if not is_account_id(account):
            raise ValueError(ACCOUNT_ID_RULE)
        now_ms = self._now_ms()
        async with self._database.write() as connection:
            # The first entry of an account makes it as well, and may do so at this very moment.
            made = await connection.execute(
                insert_into(connection, accounts_table)
                .values(
                    account=account, name=name, note=remark, created_at=now_ms, updated_at=now_ms
                )
                .on_conflict_do_nothing()
            )
            if not made.rowcount:
                raise AccountExistsError
            act = Act(actor=actor, action="account.create", target=account, detail={"name": name})
            await note(connection, act, now_ms)
        return await self.read(account)

    async def page(self, request: PageRequest, *, contains: str = "") -> Page[AccountInfo]:
        """Accounts in the order of their ids; `contains` looks in id and name. By page only."""
        wanted = _account_columns()
        if contains:
            wanted = wanted.where(
                or_(
                    accounts_table.c.account.contains(contains, autoescape=True),
                    accounts_table.c.name.contains(contains, autoescape=True),
                )
            )
        ordered = wanted.order_by(accounts_table.c.account)
        async with self._database.read() as connection:
            rows = (
                await connection.execute(ordered.limit(request.page_size).offset(request.offset))
            ).all()
            total = await connection.scalar(select(func.count()).select_from(wanted.subquery()))
        items = [_account(row) for row in rows]
        return make_page(request, items, [None] * len(items), total or 0)

    async def get(self, account: str) -> AccountInfo:
        """An account that exists; raises UnknownAccountError."""
        found = await self.read(account)
        if found.created_at is None:
            raise UnknownAccountError
        return found

    async def read(self, account: str) -> AccountInfo:
        """An account as its owner sees it: zeros if it has no row yet."""
        async with self._database.read() as connection:
            row = (
                await connection.execute(
                    _account_columns().where(accounts_table.c.account == account)
                )
            ).one_or_none()
        return AccountInfo(account=account) if row is None else _account(row)

    async def suspend(self, account: str, reason: str, *, actor: str) -> AccountInfo:
        """Admit no further call of an account; raises UnknownAccountError."""
        return await self._set_suspended(account, reason, suspended=True, actor=actor)

    async def unsuspend(self, account: str, *, actor: str) -> AccountInfo:
        """Admit calls again; raises UnknownAccountError."""
        return await self._set_suspended(account, "", suspended=False, actor=actor)

    async def grant(self, grant: Grant, *, actor: str) -> GrantDone:
        """Post a grant, once for each event id; makes the account if there is none.

        Raises EntryRefusedError, EntryConflictError, and DatabaseUnavailableError (then ask again
        with the same event id). The audit row is written first: an attempt that then fails is
        worth noting, a grant that nobody noted is not acceptable.
        """
        if (refusal := _refusal(grant)) is not None:
            raise EntryRefusedError(refusal)
        now_ms = self._now_ms()
        async with self._database.write() as connection:
            detail: dict[str, str | int | bool | None] = {
                "event_id": grant.event_id,
                "amount_micro_credits": grant.amount,
                "source": grant.source,
            }
            act = Act(actor=actor, action="account.grant", target=grant.account, detail=detail)
            await note(connection, act, now_ms)
        entry = ledger.Entry(
            event_id=grant.event_id,
            account=grant.account,
            source=grant.source,
            source_label=grant.source_label,
            direction=ledger.INCOME,
            amount=grant.amount,
            description=grant.description,
        )
        (result,) = await self._hot.post([entry])
        if self._on_posted is not None:
            # Best effort: a guard that is away reads the balance from the ledger when it is back.
            with suppress(GuardUnavailableError, SQLAlchemyError, OSError):
                await self._on_posted([grant.account])
        match result:
            case ledger.EntryRefused():
                raise EntryRefusedError(result)
            case ledger.EventConflict():
                raise EntryConflictError(result)
            case ledger.Posted() | ledger.Repeated():
                return GrantDone(
                    entry=_of_entry(result.entry),
                    account=await self.read(grant.account),
                    repeated=isinstance(result, ledger.Repeated),
                )
            case _:
                assert_never(result)

    async def transactions(
        self, account: str, request: PageRequest, wanted: EntryFilter = EVERY_ENTRY
    ) -> Page[Transaction]:
        """An account's entries, newest first, by their number within the account.

        Entries from before the account had a row (free calls, balance 0) have no number and are
        left out; each is found under its call.
        """
        conditions = _numbered(account, wanted)
        chosen = _entry_columns().where(*conditions)
        number, skipped = ledger_entries.c.account_seq, request.offset
        async with self._database.read() as connection:
            if wanted != EVERY_ENTRY:
                counted = select(func.count()).select_from(ledger_entries).where(*conditions)
            else:
                # The numbers have no gap, so the last one is how many there are.
                counted = select(accounts_table.c.seq).where(accounts_table.c.account == account)
            total = await connection.scalar(counted) or 0
            if request.after is not None:
                chosen = chosen.where(number < request.after)
            elif wanted == EVERY_ENTRY:
                # Nor does anybody have to count along to the page, however far down it is.
                chosen, skipped = chosen.where(number <= total - skipped), 0
            ordered = chosen.order_by(number.desc()).limit(request.page_size + 1)
            rows = (await connection.execute(ordered.offset(skipped))).all()
        items = [_transaction(row) for row in rows]
        return make_page(request, items, [item.account_seq or 0 for item in items], total)

    async def entries_from(
        self, account: str, wanted: EntryFilter, *, after: int, limit: int
    ) -> list[Transaction]:
        """Up to `limit` entries whose numbers follow `after`, oldest first: for what reads them all."""
        chosen = _entry_columns().where(
            *_numbered(account, wanted), ledger_entries.c.account_seq > after
        )
        ordered = chosen.order_by(ledger_entries.c.account_seq).limit(limit)
        async with self._database.read() as connection:
            return [_transaction(row) for row in (await connection.execute(ordered)).all()]

    async def _set_suspended(
        self, account: str, reason: str, *, suspended: bool, actor: str
    ) -> AccountInfo:
        now_ms = self._now_ms()
        async with self._database.write() as connection:
            changed = await connection.execute(
                update(accounts_table)
                .where(accounts_table.c.account == account)
                .values(
                    suspended=suspended,
                    suspended_reason=reason,
                    # Never back: the next entry is posted no earlier than this.
                    updated_at=case(
                        (accounts_table.c.updated_at > now_ms, accounts_table.c.updated_at),
                        else_=now_ms,
                    ),
                )
            )
            if not changed.rowcount:
                raise UnknownAccountError
            action = "account.suspend" if suspended else "account.unsuspend"
            act = Act(actor=actor, action=action, target=account, detail={"reason": reason})
            await note(connection, act, now_ms)
        return await self.get(account)


async def entries_of_call(
    connection: AsyncConnection, account: str, event_id: str
) -> tuple[Transaction, ...]:
    """All entries about one call: charge, final after an estimate, re-ratings, corrections."""
    table = ledger_entries
    # ";" follows ":" in ASCII: a range that the primary key serves, unlike LIKE.
    derived = and_(table.c.event_id > f"{event_id}:", table.c.event_id < f"{event_id};")
    wanted = _entry_columns().where(
        table.c.account == account,
        or_(table.c.event_id == event_id, derived, table.c.source_ref_id == event_id),
    )
    rows = (await connection.execute(wanted.order_by(table.c.posted_at, table.c.account_seq))).all()
    return tuple(_transaction(row) for row in rows)


def _refusal(grant: Grant) -> ledger.EntryRefused | None:
    """Why it is no grant, whatever the ledger holds."""
    if not is_account_id(grant.account):
        return ledger.EntryRefused(field="account", message=f"account must be {ACCOUNT_ID_RULE}")
    if grant.amount <= 0:
        return ledger.EntryRefused(field="amount", message="a grant must be above 0")
    if _OTHERS_ID.match(grant.event_id.strip()):
        # Whoever posts under it later would meet a conflict: a paid order without its credit.
        message = "event_id is one of those of orders, rewards, corrections or calls"
        return ledger.EntryRefused(field="event_id", message=message)
    if grant.source.strip().lower() in ledger.SOURCES_OF_THEIR_OWN:
        message = f"source {grant.source.strip()} is for what no grant is: its total is another"
        return ledger.EntryRefused(field="source", message=message)
    return None


def _account_columns() -> Select[*tuple[object, ...]]:
    return select(*(accounts_table.c[name] for name in AccountInfo.__struct_fields__))


def _account(row: Row[*tuple[object, ...]]) -> AccountInfo:
    return msgspec.convert(dict(zip(AccountInfo.__struct_fields__, row, strict=True)), AccountInfo)


def _numbered(account: str, wanted: EntryFilter) -> list[ColumnElement[bool]]:
    table = ledger_entries
    conditions: list[ColumnElement[bool]] = [
        table.c.account == account,
        table.c.account_seq.is_not(None),
    ]
    if wanted.source:
        conditions.append(table.c.source == wanted.source)
    if wanted.direction:
        conditions.append(table.c.direction == wanted.direction)
    if wanted.from_at is not None:
        conditions.append(table.c.created_at >= wanted.from_at)
    if wanted.to_at is not None:
        conditions.append(table.c.created_at < wanted.to_at)
    return conditions


def _entry_columns() -> Select[*tuple[object, ...]]:
    return select(*(ledger_entries.c[name] for name in Transaction.__struct_fields__))


def _transaction(row: Row[*tuple[object, ...]]) -> Transaction:
    return msgspec.convert(dict(zip(Transaction.__struct_fields__, row, strict=True)), Transaction)


def _of_entry(entry: ledger.LedgerEntry) -> Transaction:
    return msgspec.convert(
        {name: getattr(entry, name) for name in Transaction.__struct_fields__}, Transaction
    )
