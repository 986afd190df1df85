"""Holds kept in the database that also keeps the ledger: strict, and in need of no other service."""

from collections.abc import Sequence

from billing.db.hot import DatabaseUnavailableError, HotDatabase
from billing.events import Finish
from billing.holds import (
    Applied,
    Granted,
    GuardUnavailableError,
    HoldBeat,
    HoldRequest,
    Refused,
)


class DatabaseHoldStore:
    """The HoldStore port on a HotDatabase."""

    def __init__(self, hot: HotDatabase) -> None:
        self._hot = hot

    async def start(self) -> None:
        """Nothing to do: whoever made the database starts it."""

    async def close(self) -> None:
        """Nothing to do: whoever made the database closes it."""

    async def reserve(self, request: HoldRequest) -> Granted | Refused:
        try:
            return await self._hot.reserve(request)
        except DatabaseUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error

    async def extend(self, hold_id: str, new_total: int) -> Granted | Refused:
        try:
            return await self._hot.extend(hold_id, new_total)
        except DatabaseUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error

    async def heartbeat(self, beats: list[HoldBeat]) -> None:
        try:
            await self._hot.heartbeat(beats)
        except DatabaseUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error

    async def cancel(self, finish: Finish) -> None:
        try:
            await self._hot.cancel(finish)
        except DatabaseUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error

    async def release(self, account: str, hold_id: str) -> None:
        try:
            await self._hot.release(hold_id)
        except DatabaseUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error

    async def apply(self, applied: Sequence[Applied]) -> None:
        """Nothing to do: settlement lowered the holds in its own transaction."""

    async def resend(self) -> int:
        """Nothing to do: what settlement commits cannot be lost on its way."""
        return 0
