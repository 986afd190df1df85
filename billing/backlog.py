"""What is on its way or stuck, to be looked at: holds, the outbox and the quarantine."""

import msgspec
from sqlalchemy import Column, Select, Table, func, select
from sqlalchemy.engine import Row

from billing.db.session import Database
from billing.db.tables import accounts, holds, outbox, quarantine
from billing.lists import Page, PageRequest, T, make_page


class HeldCredit(msgspec.Struct, frozen=True, kw_only=True):
    """A hold; amounts in micro-credits, the time in milliseconds since the epoch."""

    hold_id: str
    account: str
    amount: int
    progress: int
    state: str
    process: str
    started_at: int


class WaitingCharge(msgspec.Struct, frozen=True, kw_only=True):
    """A charge event that the ledger worker has not posted yet."""

    event_id: str
    revision: int
    account: str
    cancelled: bool
    attempts: int
    claimed_by: str | None
    claimed_at: int | None
    created_at: int


class SetAside(msgspec.Struct, frozen=True, kw_only=True):
    """An event in quarantine, without its payload."""

    id: int
    event_id: str
    revision: int
    account: str
    origin: str
    reason: str
    resolution: str
    created_at: int
    resolved_at: int | None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """How much there is of it all; `held` in micro-credits."""

    held: int
    unsettled: int  # charge events that are not in the ledger yet
    oldest_unsettled_at: int | None  # milliseconds since the epoch
    quarantined: int  # events that wait for a person


class Backlog:
    """Reads the three tables, by page number."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def holds(self, request: PageRequest, *, account: str = "") -> Page[HeldCredit]:
        """The holds, newest first."""
        wanted = _select(holds, HeldCredit)
        if account:
            wanted = wanted.where(holds.c.account == account)
        newest_first = (holds.c.started_at.desc(), holds.c.hold_id.desc())
        rows, total = await self._page(request, wanted, wanted.order_by(*newest_first))
        return _made(request, [_convert(row, HeldCredit) for row in rows], total)

    async def outbox(self, request: PageRequest) -> Page[WaitingCharge]:
        """The outbox, oldest first."""
        wanted = _select(outbox, WaitingCharge)
        oldest_first = (outbox.c.created_at, outbox.c.event_id, outbox.c.revision)
        rows, total = await self._page(request, wanted, wanted.order_by(*oldest_first))
        return _made(request, [_convert(row, WaitingCharge) for row in rows], total)

    async def quarantine(
        self, request: PageRequest, *, unresolved_only: bool = False
    ) -> Page[SetAside]:
        """The quarantine, newest first."""
        wanted = _select(quarantine, SetAside)
        if unresolved_only:
            wanted = wanted.where(quarantine.c.resolved_at.is_(None))
        rows, total = await self._page(request, wanted, wanted.order_by(quarantine.c.id.desc()))
        return _made(request, [_convert(row, SetAside) for row in rows], total)

    async def figures(self) -> Figures:
        """What /metrics shows; raises what the database raises."""
        waits = quarantine.c.resolved_at.is_(None)
        wanted = select(
            select(func.coalesce(func.sum(accounts.c.held), 0)).scalar_subquery(),
            select(func.count()).select_from(outbox).scalar_subquery(),
            select(func.min(outbox.c.created_at)).scalar_subquery(),
            select(func.count()).select_from(quarantine).where(waits).scalar_subquery(),
        )
        async with self._database.read() as connection:
            held, unsettled, oldest, quarantined = (await connection.execute(wanted)).one()
        return Figures(
            held=int(held), unsettled=unsettled, oldest_unsettled_at=oldest, quarantined=quarantined
        )

    async def _page(
        self,
        request: PageRequest,
        wanted: Select[*tuple[object, ...]],
        ordered: Select[*tuple[object, ...]],
    ) -> tuple[list[Row[*tuple[object, ...]]], int]:
        async with self._database.read() as connection:
            limited = ordered.limit(request.page_size).offset(request.offset)
            rows = (await connection.execute(limited)).all()
            total = await connection.scalar(select(func.count()).select_from(wanted.subquery()))
        return list(rows), total or 0


def _select(table: Table, shape: type[msgspec.Struct]) -> Select[*tuple[object, ...]]:
    columns: list[Column[object]] = [table.c[name] for name in shape.__struct_fields__]
    return select(*columns)


def _convert(row: Row[*tuple[object, ...]], shape: type[T]) -> T:
    names = shape.__struct_fields__  # type: ignore[attr-defined]
    return msgspec.convert(dict(zip(names, row, strict=True)), shape)


def _made(request: PageRequest, items: list[T], total: int) -> Page[T]:
    return make_page(request, items, [None] * len(items), total)
