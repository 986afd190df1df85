"""Makes the limit store that goes with a database and a hold store."""

from collections.abc import Callable
from functools import partial

from billing.db.postgres_url import is_postgres
from billing.db.session import Database
from billing.holds.database import DatabaseHoldStore
from billing.holds.redis import RedisHoldStore
from billing.limits import LimitStore
from billing.limits.memory import MemoryLimitStore
from billing.limits.postgres import PostgresLimitStore
from billing.limits.redis import RedisLimitStore
from billing.settlement.registry import living


def limit_store(
    holds: DatabaseHoldStore | RedisHoldStore,
    database: Database,
    *,
    call_seconds_max: float,
    monotonic: Callable[[], float],
) -> LimitStore:
    """Where the holds are, so are the limits; but SQLite serves one process, whose memory will do.

    `monotonic` gives seconds.
    """
    if isinstance(holds, RedisHoldStore):
        return RedisLimitStore(
            holds.line, call_seconds_max=call_seconds_max, living=partial(living, database)
        )
    if is_postgres(database.url):
        return PostgresLimitStore(database.url, call_seconds_max=call_seconds_max)
    return MemoryLimitStore(now_ms=lambda: round(monotonic() * 1000))
