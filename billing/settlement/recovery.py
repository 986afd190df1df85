"""Recovery at start: what dead processes left behind, spooled events first, then their holds."""

from collections.abc import Callable

import msgspec

from billing.db.hot import HotDatabase
from billing.settlement.outbox import Outbox


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
    spooled = await outbox.replay(others=True)
    orphans = await hot.adopt_orphans(process, clock())
    return Recovered(spooled, orphans)
