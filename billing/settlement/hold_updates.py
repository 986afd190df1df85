"""Tells the hold store what settlement did: after each commit, and every few seconds what was lost on its way."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from billing.holds import Applied, GuardUnavailableError, HoldStore

RESEND_SECONDS: Final = 5.0

_log: Final = logging.getLogger(__name__)


class HoldUpdates:
    """For whoever settles; a store that is away delays nothing, for `run` makes up for it.

    The counts are for metrics.
    """

    def __init__(self, holds: HoldStore, *, resend_seconds: float = RESEND_SECONDS) -> None:
        self._holds = holds
        self._resend_seconds = resend_seconds
        self._away = False
        self.resent = 0  # holds that `tell` should have ended, had it come through

    async def tell(self, applied: Sequence[Applied]) -> None:
        """A settlement was committed; never raises for a store that is away."""
        if not applied:
            return
        try:
            await self._holds.apply(applied)
        except GuardUnavailableError as error:
            _log.debug("the hold store was not told: %s", error)

    async def run(self) -> None:
        """Send again until cancelled."""
        while True:
            await asyncio.sleep(self._resend_seconds)
            try:
                self.resent += await self._holds.resend()
                self._away = False
            except GuardUnavailableError as error:
                if not self._away:
                    _log.warning("holds cannot be checked against the ledger: %s", error)
                self._away = True
            except Exception:  # noqa: BLE001 - the next round may fare better, and nobody else would do it
                _log.exception("holds cannot be checked against the ledger")
