"""Reconciliation: runs the invariants on a live database, and rebuilds what is only derived.

The checks are read-only and each is one statement: it sees one moment of the database, so a charge
on its way is never half there. Repair writes derived state alone: accounts.held, the rollup of usage
with the marks of its folded days and, through its port, a hold store outside of the database. It
never touches a balance or an entry.
"""

import logging
import re
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.db.invariants import (
    CHECKS,
    DAY_DIFFERENCES,
    EXAMPLES_MAX,
    OLDEST_USAGE,
    ROLLUP_DIFFERENCES,
    ROLLUP_KEY,
    ROLLUP_SUMS,
    Check,
    examples_of,
    window,
)
from billing.db.session import Database
from billing.db.tables import accounts, holds, meta
from billing.holds import GuardUnavailableError
from billing.settlement.day_fold import FOLDED_TO
from billing.settlement.registry import AWAY
from billing.settlement.rollup_order import order_rollup

RECENT_MS: Final = 2 * 3_600_000  # what a recent run looks back on, beside the longest call
EVERY_SECONDS: Final = 900.0
FULL_EVERY_SECONDS: Final = 86_400.0
GUARD_CHECK: Final = "R6"  # the check that a hold store outside of the database takes part in

_log: Final = logging.getLogger(__name__)


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """Where an invariant does not hold: the id of an account, call or entry, and what is wrong."""

    id: str
    what: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one check. `examples`: the first ten of `count`, by id."""

    check: str
    sentence: str
    count: int = 0
    examples: tuple[Violation, ...] = ()
    skipped: bool = False  # too dear for a recent run
    error: str = ""  # the check could not be run

    @property
    def ok(self) -> bool:
        """Whether it was run and found nothing, or was not due."""
        return not (self.count or self.error)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a run found; `at` in milliseconds since the epoch."""

    at: int
    full: bool
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every check was run, or not due, and nothing is wrong."""
        return all(finding.ok for finding in self.findings)


class Repaired(msgspec.Struct, frozen=True, kw_only=True):
    """What a repair wrote anew."""

    held_accounts: int  # accounts whose held credit was not the sum of its holds
    rollup_groups: int  # groups of the rollup that were wrong, and folded days
    guard_rebuilt: bool = False  # the hold store loads everything anew; False: it is the database


class GuardAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What a hold store finds wrong in itself: how much in all, and up to ten examples."""

    count: int
    examples: tuple[Violation, ...]


class RebuiltGuard(Protocol):
    """A hold store outside of the database that can be made to forget what it derived."""

    async def rebuild(self, reason: str) -> None:
        """Fence, then load anew from ledger, unsettled events and live processes.

        Raises GuardUnavailableError, and what SQLAlchemy raises.
        """
        ...


class AuditedGuard(RebuiltGuard, Protocol):
    """A hold store outside of the database, as reconciliation sees it."""

    async def audit(self) -> GuardAudit:
        """Compare with the ledger (R6), changing nothing.

        Balance and seq of an account are those of the ledger at that seq or wait for an `apply`;
        held is the sum of the holds; no hold of a settled call, none past the longest call. Raises
        GuardUnavailableError.
        """
        ...


class Reconciler:
    """Runs the checks on a database. `guard` None: the holds are in the database.

    `now_ms` gives milliseconds since the epoch.
    """

    def __init__(
        self,
        database: Database,
        *,
        now_ms: Callable[[], int],
        call_seconds_max: float = 3600,
        guard: AuditedGuard | None = None,
    ) -> None:
        self._database = database
        self._now_ms = now_ms
        self._call_ms_max = round(call_seconds_max * 1000)
        self._guard = guard

    async def run(self, *, full: bool = True) -> Report:
        """Run every check; not `full`: only over what changed of late, and not the dearest.

        A check that cannot be run is a finding with an error, and the others run even so.
        """
        now = self._now_ms()
        try:
            oldest_id = await self._oldest_usage()
        except AWAY:
            oldest_id = ""  # each check will say so by itself
        limits = window(
            now,
            recent_ms=None if full else RECENT_MS,
            call_ms_max=self._call_ms_max,
            oldest_id=oldest_id,
        )
        parameters = msgspec.structs.asdict(limits)
        findings = [await self._find(check, parameters, full=full) for check in CHECKS]
        return Report(at=now, full=full, findings=tuple(findings))

    async def repair(self) -> Repaired:
        """Rebuild what is derived: held credit, the rollup, and the hold store's own copy.

        Raises what SQLAlchemy raises, and GuardUnavailableError. Calls may go on meanwhile.
        """
        held = await self.repair_held()
        groups = await self.repair_rollup()
        if self._guard is not None:
            await self._guard.rebuild("repair")
        return Repaired(
            held_accounts=held, rollup_groups=groups, guard_rebuilt=self._guard is not None
        )

    async def repair_held(self) -> int:
        """Set accounts.held to the sum of the account's holds; how many were wrong."""
        holding = (
            select(func.coalesce(func.sum(holds.c.amount), 0))
            .where(holds.c.account == accounts.c.account)
            .scalar_subquery()
        )
        suspects = select(accounts.c.account).where(accounts.c.held != holding)
        async with self._database.read() as connection:
            found = (await connection.scalars(suspects)).all()
        repaired = 0
        for first in range(0, len(found), _ACCOUNTS_AT_ONCE):
            some = accounts.c.account.in_(found[first : first + _ACCOUNTS_AT_ONCE])
            async with self._database.write() as connection:
                # Locked first and read in a second statement: one alone would see holds of before.
                await connection.execute(
                    select(accounts.c.account)
                    .where(some)
                    .order_by(accounts.c.account)
                    .with_for_update()
                )
                changed = await connection.execute(
                    update(accounts)
                    .where(some, accounts.c.held != holding)
                    .values(held=holding)
                    .execution_options(synchronize_session=False)
                )
                repaired += changed.rowcount
        return repaired

    async def repair_rollup(self) -> int:
        """Add to each group of the rollup what it lacks; how many were wrong, folded days too.

        Differences are added, not set: what is settled meanwhile adds to the same rows. Folded days
        that then differ from their quarters are to be folded anew.
        """
        oldest_id = await self._oldest_usage()
        limits = window(self._now_ms(), recent_ms=None, call_ms_max=0, oldest_id=oldest_id)
        parameters = _used(_REPAIR_ROLLUP, msgspec.structs.asdict(limits))
        async with self._database.write() as connection:
            await _take_time(connection)
            if connection.dialect.name == "postgresql":
                # Two repairs at once would both add the same; writers of rows are not kept out.
                await connection.execute(
                    text("LOCK TABLE usage_quarters IN SHARE UPDATE EXCLUSIVE MODE")
                )
                # No fold may be about to sum what lacks these differences; settlement writes none.
                await connection.execute(text("LOCK TABLE usage_days IN SHARE ROW EXCLUSIVE MODE"))
            groups = await connection.execute(text(_REPAIR_ROLLUP), parameters)
            days = await connection.execute(text(_UNFOLD_WRONG))
            if groups.rowcount:
                # Of what was wiped, nobody knows any more that it is to be folded.
                await connection.execute(delete(meta).where(meta.c.key == FOLDED_TO))
            return groups.rowcount + days.rowcount

    async def order_rollup(self) -> None:
        """Put what is old in the rollup where an account's rows lie side by side; best effort."""
        try:
            await order_rollup(self._database, self._now_ms())
        except AWAY as error:
            _log.warning("the rollup could not be put in order: %s", type(error).__name__)

    async def _oldest_usage(self) -> str:
        async with self._database.read() as connection:
            return await connection.scalar(text(OLDEST_USAGE)) or ""

    async def _find(self, check: Check, parameters: dict[str, int | str], *, full: bool) -> Finding:
        found = Finding(check=check.name, sentence=check.sentence)
        query = check.full if full else check.recent
        if query is None:
            return msgspec.structs.replace(found, skipped=True)
        try:
            count, examples = await self._violations(examples_of(query), parameters)
            if self._guard is not None and check.name == GUARD_CHECK:
                audit = await self._guard.audit()
                count, examples = count + audit.count, (*examples, *audit.examples)
        except (*AWAY, GuardUnavailableError) as error:
            # The message may quote a row; the type says enough beside the check's name.
            return msgspec.structs.replace(found, error=type(error).__name__)
        return msgspec.structs.replace(found, count=count, examples=examples[:EXAMPLES_MAX])

    async def _violations(
        self, query: str, parameters: dict[str, int | str]
    ) -> tuple[int, tuple[Violation, ...]]:
        async with self._database.read() as connection:
            await _take_time(connection)
            rows = (await connection.execute(text(query), _used(query, parameters))).all()
        examples = tuple(Violation(id=id_, what=what) for id_, what, _ in rows)
        return (int(rows[0][2]) if rows else 0), examples


class Rounds:
    """What the ledger worker does every EVERY_SECONDS: `make` one run, in full once in a day.

    The first is a full one. `on_report` takes every report, for metrics. `monotonic` gives seconds.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        *,
        monotonic: Callable[[], float],
        on_report: Callable[[Report], None] = lambda _: None,
        full_every_seconds: float = FULL_EVERY_SECONDS,
    ) -> None:
        self._reconciler = reconciler
        self._monotonic = monotonic
        self._on_report = on_report
        self._full_every_seconds = full_every_seconds
        self._full_at: float | None = None

    async def make(self) -> Report:
        """One run, full or recent as its time has come; logs what is wrong."""
        started = self._monotonic()
        full = self._full_at is None or started - self._full_at >= self._full_every_seconds
        report = await self._reconciler.run(full=full)
        if full and not any(finding.error for finding in report.findings):
            self._full_at = started
        tell(report)
        self._on_report(report)
        if full:
            await self._reconciler.order_rollup()
        return report


def tell(report: Report) -> None:
    """Log what is wrong: one line a check, with ids and no text of any call."""
    for finding in report.findings:
        if finding.error:
            _log.warning("reconcile %s could not be run: %s", finding.check, finding.error)
        elif finding.count:
            ids = ", ".join(example.id for example in finding.examples)
            _log.error("reconcile %s: %d violations: %s", finding.check, finding.count, ids)


def _used(query: str, parameters: dict[str, int | str]) -> dict[str, int | str]:
    """Only the parameters that a query names: drivers refuse others."""
    named = set(_NAMED.findall(query))
    return {name: value for name, value in parameters.items() if name in named}


async def _take_time(connection: AsyncConnection) -> None:
    """A check of everything may take longer than what a call may wait for."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SET LOCAL statement_timeout = '30min'"))


def _repair_rollup_sql() -> str:
    columns = ", ".join((*ROLLUP_KEY, *ROLLUP_SUMS))
    key = ", ".join(ROLLUP_KEY)
    more = ", ".join(f"{name} = usage_quarters.{name} + excluded.{name}" for name in ROLLUP_SUMS)
    return (
        f"INSERT INTO usage_quarters ({columns})"  # noqa: S608 - constants
        f" SELECT {columns} FROM ({ROLLUP_DIFFERENCES}) AS differences WHERE true ORDER BY {key}"
        f" ON CONFLICT ({key}) DO UPDATE SET {more}"
    )


_NAMED: Final = re.compile(r":([a-z_]+)")
_ACCOUNTS_AT_ONCE: Final = 500
_REPAIR_ROLLUP: Final = _repair_rollup_sql()
_UNFOLD_WRONG: Final = (
    "INSERT INTO folded_days (account, day_at, whole)"  # noqa: S608 - constants
    f" SELECT DISTINCT account, bucket_at, false FROM ({DAY_DIFFERENCES}) AS differences"
    " WHERE true ORDER BY 1, 2 ON CONFLICT (account, day_at) DO UPDATE SET whole = false"
)
