"""One entry posted for the store: the guard is told, and a refusal or conflict becomes an exception."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import assert_never

from sqlalchemy.exc import SQLAlchemyError

from billing.accounts import EntryConflictError, EntryRefusedError
from billing.db.hot import HotDatabase
from billing.holds import GuardUnavailableError
from billing.ledger import Entry, EntryRefused, EventConflict, LedgerEntry, Posted, Repeated

OnPosted = Callable[[Collection[str]], Awaitable[None]]


async def post_one(hot: HotDatabase, entry: Entry, on_posted: OnPosted | None) -> LedgerEntry:
    """The entry as it stands in the ledger, new or from before.

    Raises EntryRefusedError, EntryConflictError, and DatabaseUnavailableError (it may stand then).
    """
    (result,) = await hot.post([entry])
    match result:
        case EntryRefused():
            raise EntryRefusedError(result)
        case EventConflict():
            raise EntryConflictError(result)
        case Posted() | Repeated():
            if on_posted is not None:
                # Best effort: a guard that is away reads the balance when it is back.
                with suppress(GuardUnavailableError, SQLAlchemyError, OSError):
                    await on_posted([entry.account])
            return result.entry
        case _:
            assert_never(result)
