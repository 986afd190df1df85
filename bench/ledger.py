"""Measures settlement and holds on both engines: `python -m bench.ledger [--json FILE] [--quick]`.

Charges per second by batch, for one hot account and for many; the drain of a long queue; holds per
second in the database and in Redis, one at a time and under many calls at once. Beside each figure
stands what one costs in CPU, here and in the server. The servers are private ones, with the
durability of production; nothing of them is left behind.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop
from sqlalchemy import insert

from bench.processes import family_cpu, postgres_pid, redis_pid
from billing.db import migrate
from billing.db.engine import Engine, hot_database
from billing.db.session import Database
from billing.db.tables import processes
from billing.holds import Granted, HoldStore
from billing.holds.database import DatabaseHoldStore
from billing.holds.ledger_view import SqlLedgerView
from billing.holds.redis import RedisHoldStore
from billing.holds.redis_connection import parse_address
from llm_gateway.garbage import collect_rarely
from tests.support.money import charge, hold, new_id, purchase
from tests.support.redis_server import redis_server
from tests.support.services import PostgresServer

RICH = 10**15  # micro-credits
NOW = 1_790_000_000_000  # milliseconds since the epoch
CALLS_AT_ONCE = 64
RECORDS_AT_ONCE = 2048
OWNER = "p1"  # the process of `tests.support.money.hold`

CHARGES_PER_SECOND_MIN = 15_000  # the aim on PostgreSQL, hot account included
REDIS_HOLD_CPU_US_MAX = 25.0  # the aim for a hold in Redis, under load


@dataclass(frozen=True)
class Scale:
    """How much each part does."""

    by_batch: dict[int, int]  # charges for each size of batch
    drained: int
    holds_alone: int
    holds_at_once: int


FULL = Scale({1: 1_000, 10: 10_000, 100: 40_000, 500: 60_000}, 100_000, 2_000, 40_000)
QUICK = Scale({1: 200, 10: 1_000, 100: 5_000, 500: 10_000}, 10_000, 300, 5_000)


@dataclass
class Figure:
    """One line of a table."""

    table: str
    engine: str
    what: str
    per_second: float
    cpu_us: float  # of this process, for each
    server_cpu_us: float | None = None  # None: there is no server
    seconds: float | None = None
    aim: str = ""
    reached: bool = True


ServerCpu = Callable[[], float]  # seconds so far, of all processes of the server


def cpu_seconds() -> float:
    """What this process has used, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Watch:
    """Wall time and CPU since it was made."""

    def __init__(self, server: ServerCpu | None) -> None:
        self._server = server
        self._server_began = server() if server else 0.0
        self._cpu_began = cpu_seconds()
        self._began = time.perf_counter()

    def figure(self, table: str, engine: str, what: str, count: int) -> Figure:
        """What `count` of something took."""
        took = time.perf_counter() - self._began
        cpu = cpu_seconds() - self._cpu_began
        figure = Figure(table, engine, what, count / took, cpu / count * 1e6, seconds=took)
        if self._server is not None:
            # Children that ended took their count with them: vacuum workers, not our connections.
            figure.server_cpu_us = max(0.0, self._server() - self._server_began) / count * 1e6
        return figure


# --- settlement ----------------------------------------------------------------------------------


async def fill(hot: Engine, accounts: list[str], charges: int) -> None:
    """Let charges wait, spread over the accounts."""
    for done in range(0, charges, RECORDS_AT_ONCE):
        some = range(done, min(charges, done + RECORDS_AT_ONCE))
        await asyncio.gather(
            *(hot.record(charge(new_id(), 7, account=accounts[i % len(accounts)])) for i in some)
        )


async def drain(hot: Engine, batch: int) -> int:
    """Settle until nothing waits; how many."""
    settled = 0
    while True:
        report = await hot.settle_pending(batch)
        assert not report.quarantined
        settled += report.settled
        if not report.remaining:
            return settled


async def measure_settlement(
    engine: str, hot: Engine, scale: Scale, server: ServerCpu | None
) -> list[Figure]:
    figures = []
    spread = [f"account-{number}" for number in range(1000)]
    for name, accounts in (("one hot account", ["hot"]), ("1,000 accounts", spread)):
        await hot.post([purchase(RICH, account=account) for account in accounts])
        for batch, charges in scale.by_batch.items():
            await fill(hot, accounts, charges)
            watch = Watch(server)
            settled = await drain(hot, batch)
            assert settled == charges, (settled, charges)
            figure = watch.figure("settlement", engine, f"{name}, batches of {batch}", settled)
            if engine == "PostgreSQL" and batch == 500:
                figure.aim = f">= {CHARGES_PER_SECOND_MIN:,}/s"
                figure.reached = figure.per_second >= CHARGES_PER_SECOND_MIN
            figures.append(figure)
    watch = Watch(server)
    await fill(hot, spread, scale.drained)
    figures.append(watch.figure("settlement", engine, "recording a charge", scale.drained))
    watch = Watch(server)
    settled = await drain(hot, 500)
    what = f"drain of {scale.drained:,} waiting charges"
    figures.append(watch.figure("settlement", engine, what, settled))
    return figures


# --- holds ---------------------------------------------------------------------------------------


async def reserve(store: HoldStore, count: int, account: str) -> None:
    for _ in range(count):
        answer = await store.reserve(hold(new_id(), account=account, process=OWNER))
        assert isinstance(answer, Granted)


async def measure_holds(
    engine: str, store: HoldStore, scale: Scale, server: ServerCpu | None
) -> list[Figure]:
    figures = []
    for number in range(CALLS_AT_ONCE):
        await reserve(store, 2, f"caller-{number}")  # brings the account in, where it must come in
    each = scale.holds_at_once // CALLS_AT_ONCE
    for what, calls, count, accounts in (
        ("one call at a time", 1, scale.holds_alone, 1),
        (f"{CALLS_AT_ONCE} calls at once, one account", CALLS_AT_ONCE, each, 1),
        (f"{CALLS_AT_ONCE} calls at once, as many accounts", CALLS_AT_ONCE, each, CALLS_AT_ONCE),
    ):
        watch = Watch(server)
        await asyncio.gather(
            *(reserve(store, count, f"caller-{number % accounts}") for number in range(calls))
        )
        figure = watch.figure("holds", engine, what, calls * count)
        if engine == "Redis" and calls > 1:
            figure.aim = f"<= {REDIS_HOLD_CPU_US_MAX:.0f} us here"
            figure.reached = figure.cpu_us <= REDIS_HOLD_CPU_US_MAX
        figures.append(figure)
    return figures


async def give_credit(hot: Engine) -> None:
    await hot.post([purchase(RICH, account=f"caller-{i}") for i in range(CALLS_AT_ONCE)])


@asynccontextmanager
async def redis_store(url: str, address: str) -> AsyncIterator[RedisHoldStore]:
    """Holds in Redis, the ledger in a PostgreSQL of its own, as one process of many."""
    database = Database(url)
    hot = hot_database(url, clock=lambda: NOW, holds_here=False)
    await hot.start()
    await give_credit(hot)
    async with database.write() as connection:
        row = {"process": OWNER, "started_at": NOW, "heartbeat_at": NOW}
        await connection.execute(insert(processes).values(**row))
    store = RedisHoldStore(
        parse_address(address),
        SqlLedgerView(database),
        hot,
        process=OWNER,
        now_ms=lambda: NOW,
        call_seconds_max=3600,
        allow=0,
    )
    await store.start()
    try:
        yield store
    finally:
        await store.close()
        await hot.close()
        await database.dispose()


# --- the run -------------------------------------------------------------------------------------


async def measure_database(
    engine: str, url: str, scale: Scale, server: ServerCpu | None
) -> list[Figure]:
    hot = hot_database(url, clock=lambda: NOW)
    await hot.start()
    try:
        figures = await measure_settlement(engine, hot, scale, server)
        await give_credit(hot)
        figures += await measure_holds(engine, DatabaseHoldStore(hot), scale, server)
    finally:
        await hot.close()
    return figures


async def measure_redis(url: str, address: str, scale: Scale, server: ServerCpu) -> list[Figure]:
    async with redis_store(url, address) as store:
        return await measure_holds("Redis", store, scale, server)


@contextmanager
def postgres_server(directory: Path) -> Iterator[PostgresServer]:
    """A server on a real disk, which waits for it."""
    directory.mkdir()
    server = PostgresServer(directory, durable=True)
    try:
        server.create()
        yield server
    finally:
        server.stop("immediate")


def run(scale: Scale, engines: list[str]) -> list[Figure]:
    """All that is asked for, one after the other."""
    directory = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
    directory.chmod(0o755)
    figures: list[Figure] = []
    try:
        if "PostgreSQL" in engines or "Redis" in engines:
            with postgres_server(directory / "pg") as postgres:
                if "PostgreSQL" in engines:
                    cpu = cpu_of(postgres_pid(directory / "pg"))
                    url = postgres.new_database()
                    figures += uvloop.run(measure_database("PostgreSQL", url, scale, cpu))
                if "Redis" in engines:
                    with redis_server() as redis:
                        url, cpu = postgres.new_database(), cpu_of(redis_pid(redis))
                        figures += uvloop.run(measure_redis(url, redis.url, scale, cpu))
        if "SQLite" in engines:
            url = f"sqlite+aiosqlite:///{directory / 'gateway.db'}"
            migrate.upgrade(url)
            figures += uvloop.run(measure_database("SQLite", url, scale, None))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return figures


def cpu_of(pid: int) -> ServerCpu:
    """Reads what that server has used."""
    return lambda: family_cpu(pid)


# --- the tables ----------------------------------------------------------------------------------

HEADINGS = {
    "settlement": "Charges settled",
    "holds": "Holds granted",
}


def show(figures: list[Figure]) -> bool:
    """Print the tables; whether every aim is reached."""
    busy = f"{os.getloadavg()[0]:.1f}"
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; load {busy}"
    )
    for table, heading in HEADINGS.items():
        lines = [_cells(figure) for figure in figures if figure.table == table]
        if lines:
            head = (
                "engine",
                heading.lower(),
                "per second",
                "CPU here",
                "CPU server",
                "took",
                "aim",
            )
            print(f"\n{heading}; CPU in us for each, here and in the server:\n")
            _print_table([head, *lines])
    return all(figure.reached for figure in figures)


def _cells(figure: Figure) -> tuple[str, ...]:
    return (
        figure.engine,
        figure.what,
        f"{figure.per_second:,.0f}",
        f"{figure.cpu_us:.1f}",
        "" if figure.server_cpu_us is None else f"{figure.server_cpu_us:.1f}",
        "" if figure.seconds is None else f"{figure.seconds:.2f} s",
        figure.aim and f"{figure.aim}: {'reached' if figure.reached else 'MISSED'}",
    )


def _print_table(lines: list[tuple[str, ...]]) -> None:
    """Markdown, in columns that also read well as they are; all but words to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = (False, False, True, True, True, True, False)
    rule = "|".join(
        ("-" * (w + 1) + ":") if r else "-" * (w + 2) for w, r in zip(widths, right, strict=True)
    )
    for number, line in enumerate(lines):
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        print(f"| {' | '.join(cells)} |")
        if number == 0:
            print(f"|{rule}|")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, less exact")
    parser.add_argument(
        "--engine",
        action="append",
        choices=["PostgreSQL", "Redis", "SQLite"],
        help="only this one; may be repeated",
    )
    arguments = parser.parse_args()
    engines = arguments.engine or ["PostgreSQL", "Redis", "SQLite"]
    collect_rarely()  # as the processes do that settle and hold
    figures = run(QUICK if arguments.quick else FULL, engines)
    reached = show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(figure) for figure in figures], indent=1))
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
