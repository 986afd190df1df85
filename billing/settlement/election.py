"""Election: of the processes of one PostgreSQL database, one at a time has a named duty.

It rests on a session's advisory lock: the server gives the duty to somebody else as soon as the
winner's connection ends, however it ends. What is elected here must be harmless when two do it for a
moment, since a winner learns of its lost connection only at its next look.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from billing.settlement.registry import AWAY

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from billing.db.session import Database

LEDGER_WORKER: Final = "ledger_worker"

_log: Final = logging.getLogger(__name__)


class Election:
    """`stand` now and then: True while this process is the one."""

    def __init__(self, database: Database, duty: str) -> None:
        self._database = database
        self._lock = int.from_bytes(
            hashlib.sha256(f"llm-gateway:{duty}".encode()).digest()[:8], "big", signed=True
        )
        self._duty = duty
        self._stack: AsyncExitStack | None = None
        self._connection: AsyncConnection | None = None

    @property
    def won(self) -> bool:
        """As of the last look."""
        return self._connection is not None

    async def stand(self) -> bool:
        """Win if nobody else has, keep what was won as long as the connection lasts."""
        try:
            if self._connection is not None:
                await self._connection.scalar(select(1))
                return True
            return await self._try()
        except AWAY:
            if self._connection is not None:
                _log.warning("the duty %s is given up: its connection is gone", self._duty)
            await self.resign()
            return False

    async def resign(self) -> None:
        """Let somebody else have it; harmless if it was never won."""
        stack, self._stack, self._connection = self._stack, None, None
        if stack is not None:
            try:
                await stack.aclose()
            except AWAY:
                _log.debug("the connection of %s was gone already", self._duty)

    async def _try(self) -> bool:
        stack = AsyncExitStack()
        try:
            connection = await stack.enter_async_context(self._database.session())
            if not await connection.scalar(select(func.pg_try_advisory_lock(self._lock))):
                await stack.aclose()
                return False
        except BaseException:
            await stack.aclose()
            raise
        self._stack, self._connection = stack, connection
        _log.info("this process has the duty %s now", self._duty)
        return True
