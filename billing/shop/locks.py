"""One at a time for an account, over all processes, until the transaction ends; whether or not it has a row."""

import hashlib

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection


async def lock_account(connection: AsyncConnection, purpose: str, account: str) -> None:
    """Wait until no other transaction has the account's lock of this purpose; then it is ours.

    On SQLite there is nothing to do: every write is alone.
    """
    if connection.dialect.name == "postgresql":
        digest = hashlib.sha256(f"llm-gateway:{purpose}:{account}".encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        await connection.execute(select(func.pg_advisory_xact_lock(number)))
