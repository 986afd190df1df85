"""Makes the hold store that the settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from billing.holds.database import DatabaseHoldStore
from billing.holds.ledger_view import SqlLedgerView
from billing.holds.redis import RedisHoldStore
from billing.holds.redis_connection import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from billing.db.hot import HotDatabase
    from billing.db.session import Database


class GuardSettings(Protocol):
    """[guard] of gateway.toml, as far as a store needs it."""

    @property
    def store(self) -> str:
        """`database` or `redis`."""
        ...

    @property
    def redis_url(self) -> str: ...

    @property
    def call_seconds_max(self) -> float: ...

    @property
    def allow_micro_credits(self) -> int: ...


def hold_store(
    guard: GuardSettings,
    *,
    hot: HotDatabase,
    database: Database,
    process: str,
    now_ms: Callable[[], int],
    may_hold: bool = True,
) -> DatabaseHoldStore | RedisHoldStore:
    """The store, not started yet; `process` and `may_hold` are what the registry says of this process.

    For `redis` the hot database is to be made with holds_here=False. Raises RedisAddressError.
    """
    if guard.store == "database":
        return DatabaseHoldStore(hot)
    return RedisHoldStore(
        parse_address(guard.redis_url),
        SqlLedgerView(database),
        hot,
        process=process,
        now_ms=now_ms,
        call_seconds_max=guard.call_seconds_max,
        allow=guard.allow_micro_credits,
        may_hold=may_hold,
    )
