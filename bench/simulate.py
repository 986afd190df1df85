"""Measures simulations over a long history: `python -m bench.simulate [--calls N] [--json FILE]`.

Calls of thirty days, a million unless told otherwise, are made on SQLite and on a private PostgreSQL;
then their re-rating is measured, as a gateway does it, against what was recorded and against the
ledger. Exit status 1 if an aim is missed; what counts is the CPU time of the simulating process, for
that of the clock depends on what else runs. `--latency` measures what calls of a gateway feel
meanwhile: one after the other, with and without a simulation beside them.
"""

import argparse
import asyncio
import json
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import quantiles

import asyncpg
import uvloop

from bench.load import Client, Target, request
from billing.books import PriceBooks
from billing.db import migrate
from billing.db.invariants import first_id
from billing.db.partitions import add_partitions
from billing.db.postgres_url import dsn_of
from billing.db.session import Database
from billing.rerating.calls import Window
from billing.rerating.simulator import Question, Simulator
from billing.rerating.tally import Simulation
from pricing_rules.book import Book, parse_book
from pricing_rules.match import match
from pricing_rules.price import as_answered, factors_of, price
from pricing_rules.usage import Usage
from tests.support.gateway import ADMIN_TOKEN, GatewayProcess
from tests.support.services import PostgresServer

NOW = 1_790_000_000_000  # milliseconds since the epoch
DAYS = 30
DAY_MS = 86_400_000
ACCOUNTS = 2_000
MODELS = 40
SECONDS_MAX = 60.0  # the aim, for a million calls
RICH = 10**12
ROWS_AT_ONCE = 20_000
PROBE_SECONDS = 10.0
PROBE_ROUNDS = 3
NOW_TEXT = "2026-09-21T14:13:20Z"
ECHO = """
[[providers]]
name = "echo"
kind = "echo"
tokens_per_second = 100000
answer_tokens = 1
[[models]]
name = "m-echo"
max_output_tokens = 100
targets = [{ provider = "echo", model = "m-echo" }]
"""

HEAD = '[book]\nname = "{}"\ncurrency = "USD"\ncredits_per_unit = "100"\n'
CONDITIONS = """\
tiers = [{ over_input_tokens = 3000, input = "5.00", output = "20.00" }]
hours = [{ days = "Mon-Fri", tz = "Asia/Shanghai", from = "09:00", to = "18:00", multiply = "2" }]
service_tiers = { priority = "1.7", flex = "0.5" }
"""
USAGE = (
    "event_id", "revision", "account", "key_id", "scene", "provider", "model_requested",
    "model_sent", "book", "rule", "input", "cached_input", "output", "reasoning", "quality",
    "usage_source", "amount", "ceiling", "payload_hash", "started_at", "finished_at",
)  # fmt: skip
ENTRY = (
    "event_id", "account", "account_seq", "source", "direction", "amount", "status",
    "balance_before", "balance_after", "payload_hash", "usage_event_id", "usage_revision",
    "created_at", "posted_at",
)  # fmt: skip
Row = tuple[str | int, ...]


@dataclass
class Figure:
    """One line of the table: seconds of the process, and by the clock on the wall."""

    what: str
    cpu: float
    wall: float
    aim: float
    note: str


def book_text(name: str, dearer: int, models: int = MODELS) -> str:
    """A rule for each model; one in four has tiers, hours and service tiers."""
    return HEAD.format(name) + "".join(
        f'[[rule]]\nid = "m{number}"\nprovider = "provider-{number % 4}"\n'
        f'model = "model-{number}"\ninput = "{2 + dearer}.50"\ncached_input = "0.25"\n'
        f'output = "10.00"\n{"" if number % 4 else CONDITIONS}\n'
        for number in range(models)
    )


def history(book: Book, calls: int) -> Iterator[tuple[Row, Row]]:
    """Rows of usage and of the ledger, oldest first; hardly two calls have used the same."""
    chance = random.Random(1)
    seqs = dict.fromkeys(range(ACCOUNTS), 0)
    balances = dict.fromkeys(range(ACCOUNTS), 0)
    for number in range(calls):
        at = NOW - DAYS * DAY_MS + number * (DAYS * DAY_MS - 1) // calls
        event_id = f"{first_id(at)[:14]}7000-8000-{number:012x}"
        owner = int(chance.random() ** 2 * ACCOUNTS)
        model = int(chance.random() ** 2 * MODELS)
        provider, sent = f"provider-{model % 4}", f"model-{model}"
        usage = Usage(
            input=chance.randrange(20, 6_000),
            cached_input=chance.choice((0, 0, chance.randrange(4_000))),
            output=chance.randrange(1, 2_000),
            reasoning=chance.choice((0, 0, 0, chance.randrange(3_000))),
        )
        scene = "agent" if number % 5 else "chat"
        rule = match(book, scene, provider, sent, at)
        assert rule is not None
        factors = factors_of(rule, at)
        if rule.service_tiers and number % 10 == 0:
            factors = as_answered(rule, factors, "flex")
        amount = price(rule, usage, factors=factors)
        account = f"account-{owner}"
        seqs[owner] += 1
        before = balances[owner]
        balances[owner] = before - amount
        yield (
            event_id, 2, account, f"key-{owner}", scene, provider, sent, sent, 1, rule.id,
            usage.input, usage.cached_input, usage.output, usage.reasoning, "exact", "provider",
            amount, 2 * amount, "seeded", at, at + 2_000,
        ), (
            event_id, account, seqs[owner], "charge", "expense", -amount, "applied", before,
            before - amount, "seeded", event_id, 2, at + 2_000, at + 2_000,
        )  # fmt: skip


def seed_sqlite(path: Path, calls: int) -> None:
    """Into a migrated file."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        rows = history(parse_book(book_text("old", 0)), calls)
        while some := list(islice(rows, ROWS_AT_ONCE)):
            for table, columns, at in (("usage", USAGE, 0), ("ledger_entries", ENTRY, 1)):
                marks = ", ".join("?" * len(columns))
                connection.executemany(
                    f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})",
                    [pair[at] for pair in some],
                )
            connection.commit()


async def seed_postgres(url: str, calls: int) -> None:
    """Into a migrated database."""
    connection = await asyncpg.connect(dsn_of(url))
    rows = history(parse_book(book_text("old", 0)), calls)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        for table, columns, at in (("usage", USAGE, 0), ("ledger_entries", ENTRY, 1)):
            await connection.copy_records_to_table(
                table, columns=columns, records=[pair[at] for pair in some]
            )
    await connection.execute("VACUUM ANALYZE usage, ledger_entries")
    await connection.close()


async def measure(engine: str, url: str, calls: int) -> list[Figure]:
    """Simulate by a new book: against what was recorded, and against the ledger."""
    database = Database(url)
    books = PriceBooks(database, now_ms=lambda: NOW, monotonic=time.monotonic)
    await books.load_first(book_text("old", 0), actor="bench")
    await books.upload(book_text("new", 1, MODELS - 1), actor="bench")
    simulator = Simulator(database, books, monotonic=time.monotonic)
    figures = []
    told = ""
    for charged in (False, True):
        began, used = time.monotonic(), children_cpu()
        window = Window(from_at=NOW - DAYS * DAY_MS, to_at=NOW)
        question = Question(window=window, version=2, charged=charged)
        async for step in simulator.run(question):
            if isinstance(step, Simulation):
                sums = step.sums
                assert sums.calls + sums.left_out_calls == calls, step
                told = f"{sums.calls} re-rated, {sums.left_out_calls} left out"
        what = f"{engine}, {'against the ledger' if charged else 'as recorded'}"
        cpu, wall = children_cpu() - used, time.monotonic() - began
        figures.append(Figure(what, cpu, wall, SECONDS_MAX * calls / 1e6, told))
        print(figures[-1], file=sys.stderr, flush=True)
    await database.dispose()
    return figures


def children_cpu() -> float:
    """Seconds that ended child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def latency(directory: Path, calls: int) -> None:
    """Milliseconds of calls, alone and beside simulations, in turns."""
    directory.mkdir()
    with GatewayProcess(directory, "http://127.0.0.1:9/v1", config=ECHO) as gateway:
        gateway.start()
        account = gateway.account(RICH)
        gateway.stop()
        seed_sqlite(gateway.database, calls)
        gateway.start()
        took: dict[str, list[float]] = {"alone": [], "beside a simulation": []}
        for number in range(2 * PROBE_ROUNDS):
            beside = number % 2 == 1
            path = f"/admin/price-books/1/simulate?from=2026-08-01T00:00:00Z&to={NOW_TEXT}"
            asked = None
            if beside:
                asked = subprocess.Popen(
                    ["curl", "-s", "-o", "/dev/null", "-H", f"Authorization: Bearer {ADMIN_TOKEN}",
                     f"http://127.0.0.1:{gateway.port}{path}"]
                )  # fmt: skip
            uvloop.run(_probe(gateway.port, account.key, took[list(took)[beside]]))
            if asked is not None:
                asked.kill()
                asked.wait()
        gateway.stop()
    for what, seconds in took.items():
        marks = quantiles(seconds, n=100, method="inclusive")
        shown = ", ".join(f"p{at} {1000 * marks[at - 1]:.1f}" for at in (50, 90, 99))
        print(f"a call {what}: {shown} ms ({len(seconds)} calls)")


async def _probe(port: int, key: str, took: list[float]) -> None:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(Client, "127.0.0.1", port)
    body = request(Target("gateway", port, key)).replace(b'"bench"', b'"m-echo"', 1)
    # One letter more than "bench".
    length = int(body.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = body.replace(b"content-length: %d" % length, b"content-length: %d" % (length + 1))
    end = time.monotonic() + PROBE_SECONDS
    while time.monotonic() < end:
        try:
            took.append(await client.call(body))
        except RuntimeError as refused:  # a machine so busy that prices could not be read in time
            print(f"refused: {str(refused)[:40]}", file=sys.stderr, flush=True)
        await asyncio.sleep(0.01)
    client.close()


def on_sqlite(directory: Path, calls: int) -> list[Figure]:
    """On a file of its own."""
    path = directory / "gateway.db"
    url = f"sqlite+aiosqlite:///{path}"
    migrate.upgrade(url)
    seed_sqlite(path, calls)
    return uvloop.run(measure("SQLite", url, calls))


def on_postgres(directory: Path, calls: int) -> list[Figure]:
    """On a server of its own."""
    directory.chmod(0o755)
    server = PostgresServer(directory / "postgres", durable=False)
    server.directory.mkdir()
    server.create()
    try:
        url = server.new_database()
        months = [NOW - DAYS * DAY_MS, NOW]

        def add(connection: object) -> None:
            with connection.begin():  # type: ignore[attr-defined]
                for at in months:
                    add_partitions(connection, at)  # type: ignore[arg-type]

        migrate.run_sync(url, add)
        uvloop.run(seed_postgres(url, calls))
        return uvloop.run(measure("PostgreSQL", url, calls))
    finally:
        server.stop("immediate")


def main() -> int:
    """Seed, measure, tell."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulate")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--latency", action="store_true")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
    try:
        if given.latency:
            latency(directory / "gateway", given.calls)
            return 0
        figures = on_sqlite(directory, given.calls) + on_postgres(directory, given.calls)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    missed = 0
    for each in figures:
        late = each.cpu > each.aim
        missed += late
        aim = f"aim {each.aim:g}{'  MISSED' if late else ''}"
        print(f"{each.what:<30} {each.cpu:7.1f} s CPU  {each.wall:7.1f} s  {aim}  {each.note}")
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in figures], indent=2))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
