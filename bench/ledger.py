"""Measures settlement and holds on both engines: `python -m bench.ledger [--json FILE] [--quick]`.

Charges per second by batch, for one hot account and for many; the drain of a long queue; holds per
second and what one costs this process in CPU, one at a time and under many calls at once. The
servers are private ones, with the durability of production; nothing of it is left behind.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from billing.db import migrate
from billing.db.engine import Engine, hot_database
from billing.holds import Granted
from tests.support.money import charge, hold, new_id, purchase
from tests.support.services import PostgresServer

RICH = 10**15  # micro-credits
CALLS_AT_ONCE = 64
RECORDS_AT_ONCE = 2048

CHARGES_PER_SECOND_MIN = 15_000  # the aim on PostgreSQL, hot account included


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
    """One line of the table."""

    engine: str
    what: str
    per_second: float
    cpu_us: float | None = None  # of this process, for each
    seconds: float | None = None
    aim: float | None = None


def cpu_seconds() -> float:
    """What this process has used, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


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


async def measure_settlement(engine: str, hot: Engine, scale: Scale) -> list[Figure]:
    figures = []
    spread = [f"account-{number}" for number in range(1000)]
    for name, accounts in (("one hot account", ["hot"]), ("1,000 accounts", spread)):
        await hot.post([purchase(RICH, account=account) for account in accounts])
        for batch, charges in scale.by_batch.items():
            await fill(hot, accounts, charges)
            before, cpu = time.perf_counter(), cpu_seconds()
            settled = await drain(hot, batch)
            took = time.perf_counter() - before
            assert settled == charges, (settled, charges)
            figures.append(
                Figure(
                    engine,
                    f"charges settled, {name}, batches of {batch}",
                    settled / took,
                    (cpu_seconds() - cpu) / settled * 1e6,
                    aim=CHARGES_PER_SECOND_MIN if engine == "PostgreSQL" and batch == 500 else None,
                )
            )
    await fill(hot, spread, scale.drained)
    before = time.perf_counter()
    settled = await drain(hot, 500)
    took = time.perf_counter() - before
    figures.append(
        Figure(engine, f"drain of {scale.drained:,} waiting charges", settled / took, seconds=took)
    )
    return figures


async def reserve(hot: Engine, count: int, account: str) -> None:
    for _ in range(count):
        answer = await hot.reserve(hold(new_id(), account=account))
        assert isinstance(answer, Granted)


async def measure_holds(engine: str, hot: Engine, scale: Scale) -> list[Figure]:
    figures = []
    await hot.post([purchase(RICH, account=f"caller-{i}") for i in range(CALLS_AT_ONCE)])
    await reserve(hot, 100, "caller-0")
    each = scale.holds_at_once // CALLS_AT_ONCE
    for what, calls, count, accounts in (
        ("alone", 1, scale.holds_alone, 1),
        (f"{CALLS_AT_ONCE} calls at once, one account", CALLS_AT_ONCE, each, 1),
        (f"{CALLS_AT_ONCE} calls at once, as many accounts", CALLS_AT_ONCE, each, CALLS_AT_ONCE),
    ):
        before, cpu = time.perf_counter(), cpu_seconds()
        await asyncio.gather(*(reserve(hot, count, f"caller-{i % accounts}") for i in range(calls)))
        took = time.perf_counter() - before
        made = calls * count
        used = (cpu_seconds() - cpu) / made * 1e6
        figures.append(Figure(engine, f"holds, {what}", made / took, used))
    return figures


async def measure(engine: str, url: str, scale: Scale) -> list[Figure]:
    hot = hot_database(url, clock=lambda: 1_790_000_000_000)
    await hot.start()
    try:
        figures = await measure_settlement(engine, hot, scale)
        figures += await measure_holds(engine, hot, scale)
    finally:
        await hot.close()
    return figures


@contextmanager
def servers() -> Iterator[list[tuple[str, str]]]:
    """Each engine's name and a fresh database on it, on a real disk."""
    directory = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
    directory.chmod(0o755)
    (directory / "pg").mkdir()
    server = PostgresServer(directory / "pg", durable=True)
    try:
        server.create()
        sqlite = f"sqlite+aiosqlite:///{directory / 'gateway.db'}"
        migrate.upgrade(sqlite)
        yield [("PostgreSQL", server.new_database()), ("SQLite", sqlite)]
    finally:
        server.stop("immediate")
        shutil.rmtree(directory, ignore_errors=True)


def show(figures: list[Figure]) -> bool:
    """Print the table; whether every aim is reached."""
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}\n")
    print("| engine | what | per second | CPU of the gateway, us each | |")
    print("|---|---|---:|---:|---|")
    reached = True
    for figure in figures:
        cpu = "" if figure.cpu_us is None else f"{figure.cpu_us:.1f}"
        note = "" if figure.seconds is None else f"{figure.seconds:.2f} s"
        if figure.aim is not None:
            well = figure.per_second >= figure.aim
            reached = reached and well
            note = f"aim {figure.aim:,.0f}: {'reached' if well else 'MISSED'}"
        print(f"| {figure.engine} | {figure.what} | {figure.per_second:,.0f} | {cpu} | {note} |")
    return reached


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--engine", choices=["PostgreSQL", "SQLite"], help="only this one")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    with servers() as urls:
        for engine, url in urls:
            if arguments.engine in (None, engine):
                scale = QUICK if arguments.quick else FULL
                figures += uvloop.run(measure(engine, url, scale))
    reached = show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(figure) for figure in figures], indent=1))
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
