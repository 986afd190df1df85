"""The audit trail: one row for each act of an administrator, written with the act itself."""

import msgspec
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.db.session import Database
from billing.db.tables import admin_audit
from billing.lists import Page, PageRequest, make_page

Detail = dict[str, str | int | bool | None]


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what to what; `detail` holds ids, names and amounts, never a token."""

    actor: str
    action: str  # "<noun>.<verb>", such as "account.suspend"
    target: str
    detail: Detail = {}


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """An act as it was recorded."""

    audit_id: int
    actor: str
    action: str
    target: str
    detail: Detail
    created_at: int  # milliseconds since the epoch


async def note(connection: AsyncConnection, act: Act, now_ms: int) -> None:
    """Record an act in the transaction that carries it out: both stand or neither does."""
    await connection.execute(
        insert(admin_audit).values(
            actor=act.actor,
            action=act.action,
            target=act.target,
            detail_json=_encode(act.detail),
            at=now_ms,
        )
    )


class AuditTrail:
    """The trail as a whole. Nothing changes or deletes a row of it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, act: Act, now_ms: int) -> None:
        """Record an act that has no transaction of its own; before it is carried out."""
        async with self._database.write() as connection:
            await note(connection, act, now_ms)

    async def page(
        self, request: PageRequest, *, action: str = "", target: str = ""
    ) -> Page[AuditRow]:
        """The acts, newest first; `action` and `target` filter exactly."""
        wanted = select(admin_audit)
        if action:
            wanted = wanted.where(admin_audit.c.action == action)
        if target:
            wanted = wanted.where(admin_audit.c.target == target)
        rows_wanted = wanted.order_by(admin_audit.c.id.desc()).limit(request.page_size + 1)
        if request.after is not None:
            rows_wanted = rows_wanted.where(admin_audit.c.id < request.after)
        async with self._database.read() as connection:
            rows = (await connection.execute(rows_wanted.offset(request.offset))).all()
            total = await connection.scalar(select(func.count()).select_from(wanted.subquery()))
        items = [
            AuditRow(
                audit_id=row.id,
                actor=row.actor,
                action=row.action,
                target=row.target,
                detail=_decode(row.detail_json),
                created_at=row.at,
            )
            for row in rows
        ]
        return make_page(request, items, [item.audit_id for item in items], total or 0)


def _encode(detail: Detail) -> str:
    return msgspec.json.encode(detail).decode()


def _decode(text: str) -> Detail:
    return msgspec.json.decode(text, type=Detail)
