"""Tells whether an address leads to PostgreSQL itself or to a pooler that hands its sessions around.

We need sessions: prepared statements, advisory locks that say who has a duty, timeouts set at the
connection. A pooler in transaction mode gives each transaction another server connection.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Final

import asyncpg

from billing.db.postgres_url import Connection, connect

_PROBE: Final = "4321ms"  # a timeout that nobody else sets
_UNSUPPORTED: Final = "unsupported startup parameter"  # PgBouncer's word
_NO_SESSION: Final = (
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
)


def pooling(url: str) -> str:
    """What shows that a pooler stands before a PostgreSQL, as half a sentence; "" if nothing does.

    Blocks, also where an event loop runs already. Raises what connecting raises.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="pooler") as thread:
        return thread.submit(lambda: asyncio.run(_look(url))).result()


async def _look(url: str) -> str:
    async with AsyncExitStack() as stack:
        try:
            connections = [await _open(url, stack) for _ in range(2)]
            # Asked in turn, so that each finds what the other has just left.
            backends = [{await _backend(each) for each in connections} for _ in range(2)]
            kept = await connections[0].fetchval("SELECT current_setting('lock_timeout')")
        except _NO_SESSION:
            return "a statement that was prepared is not there any more"
        except asyncpg.PostgresError as error:
            if _UNSUPPORTED not in str(error):
                raise
            return "settings of a session are refused"
    if any(len(found) < len(connections) for found in backends) or backends[0] != backends[1]:
        return "two connections share a session"
    return "" if kept == _PROBE else "settings of a session are dropped"


async def _open(url: str, stack: AsyncExitStack) -> Connection:
    connection = await connect(url, {"lock_timeout": _PROBE})
    stack.callback(connection.terminate)
    return connection


async def _backend(connection: Connection) -> int:
    number: int = await connection.fetchval("SELECT pg_backend_pid()")
    return number
