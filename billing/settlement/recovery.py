"""Recovery: what dead processes left behind, spooled events first, then their holds."""

from collections.abc import Callable

import msgspec

from billing.db.hot import HotDatabase
from billing.db.session import Database
from billing.settlement.outbox import Outbox
from billing.settlement.registry import living
from billing.settlement.spool import everybody


class Recovered(msgspec.Struct, frozen=True):
    """How many events came out of the spool, and how many holds became estimates."""

    spooled: int
    orphans: int


async def recover(
    hot: HotDatabase, outbox: Outbox, *, process: str, clock: Callable[[], int]
) -> Recovered:
    """Charge what former processes left; the caller holds the lock that proves them gone.

    Raises DatabaseUnavailableError, and OSError if the spool cannot be read; repeating is harmless.
    """
    spooled = await outbox.replay(everybody)
    orphans = await hot.adopt_orphans(process, clock())
    return Recovered(spooled, orphans)


async def adopt_spool(database: Database, outbox: Outbox) -> int:
    """Replay what dead processes spooled in the same directory; how many events that were.

    Raises DatabaseUnavailableError or what SQLAlchemy raises, and OSError.
    """
    if not outbox.spool_owners():
        return 0
    alive = await living(database)
    return await outbox.replay(lambda process: process not in alive)
