"""What a sweeper needs of a hold store: the holds that nobody alive answers for, and their residuals."""

from collections.abc import Set as AbstractSet
from typing import Final, Protocol

import msgspec
from sqlalchemy import delete, exists, select, update

from billing.db.session import Database
from billing.db.tables import accounts, holds, quarantine, usage
from billing.events import Revision

RELEASED_AT_ONCE: Final = 500


class HeldCall(msgspec.Struct, frozen=True, kw_only=True):
    """A hold as it was left behind; amounts in micro-credits."""

    hold_id: str
    account: str
    amount: int
    progress: int  # what the call had cost when it was last heard of
    process: str
    context: bytes  # billing.context.encode_context


class OrphanHolds(Protocol):
    """A hold store, as a sweeper sees it."""

    async def held_by_others(self, alive: AbstractSet[str], limit: int) -> list[HeldCall]:
        """Holds of processes that are not `alive`.

        Residuals, and calls with a charge or a cancellation recorded, are left out. Raises
        GuardUnavailableError or what SQLAlchemy raises.
        """
        ...

    async def release_residuals(self, started_before: int) -> int:
        """Drop what estimates left held of calls that began before (milliseconds); how many.

        Of such calls no final can come any more: billing.settlement.late_finals.
        """
        ...


class DatabaseOrphans:
    """OrphanHolds on the table of holds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def held_by_others(self, alive: AbstractSet[str], limit: int) -> list[HeldCall]:
        columns = [holds.c[name] for name in HeldCall.__struct_fields__]
        wanted = (
            select(*columns)
            .where(
                holds.c.state == "live",
                holds.c.process.not_in(alive),
                ~exists().where(usage.c.event_id == holds.c.hold_id),
            )
            .order_by(holds.c.hold_id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(wanted)).mappings().all()
        return [HeldCall(**row) for row in rows]

    async def release_residuals(self, started_before: int) -> int:
        # A final that waits to be settled, or for a person, needs the residual still; settling it
        # drops the hold.
        old = (
            select(holds.c.hold_id, holds.c.account)
            .where(
                holds.c.state == "residual",
                holds.c.started_at < started_before,
                ~exists().where(
                    usage.c.event_id == holds.c.hold_id, usage.c.revision == Revision.FINAL
                ),
                ~exists().where(
                    quarantine.c.event_id == holds.c.hold_id, quarantine.c.resolved_at.is_(None)
                ),
            )
            .limit(RELEASED_AT_ONCE)
        )
        async with self._database.read() as connection:
            found = (await connection.execute(old)).all()
        if not found:
            return 0
        async with self._database.write() as connection:
            # Accounts in the order of their ids, then holds: the order of every other transaction.
            mine = select(accounts.c.account).where(
                accounts.c.account.in_({account for _, account in found})
            )
            await connection.execute(mine.order_by(accounts.c.account).with_for_update())
            gone = delete(holds).where(
                holds.c.hold_id.in_([hold_id for hold_id, _ in found]), holds.c.state == "residual"
            )
            freed: dict[str, int] = {}
            dropped = (
                await connection.execute(gone.returning(holds.c.account, holds.c.amount))
            ).all()
            for account, amount in dropped:
                freed[account] = freed.get(account, 0) + amount
            for account, amount in sorted(freed.items()):
                await connection.execute(
                    update(accounts)
                    .where(accounts.c.account == account)
                    .values(held=accounts.c.held - amount)
                )
        return len(dropped)
