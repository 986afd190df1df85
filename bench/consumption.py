"""Measures consumption, statements and outstanding credit over a long history on PostgreSQL.

`python -m bench.consumption [--calls N] [--database URL] [--json FILE]`; exit status 1 if an aim is
missed. A year of calls, ten million unless told otherwise, is made by the server itself: half of
them by one account, the rest by a thousand; and a ledger of their charges. The longest period is asked
for before the days are folded, too. With `--database`, what is in that database already is measured,
and nothing is made. The server is a private one.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from zoneinfo import ZoneInfo

import uvloop
from sqlalchemy import Connection, text

from billing.db import migrate
from billing.db.invariants import BUCKET, IS_FAILURE, ROLLUP_KEY, ROLLUP_SUMS
from billing.db.partitions import add_partitions
from billing.db.session import Database
from billing.kinds import GroupBy
from billing.settlement.day_fold import fold_days
from billing.settlement.rollup_order import DAY_MS, REST_MS
from billing.shop.consumption import Question, consumption
from billing.shop.periods import Period
from billing.shop.statements import month_of, outstanding, statement
from tests.support.services import PostgresServer

NOW = 1_790_000_000_000  # milliseconds since the epoch
YEAR_MS = 365 * 86_400_000
ACCOUNTS = 1_000  # beside the heavy one
ROUNDS = 30
AIM_MS = 200.0
HEAVY, LIGHT = "heavy", "a7"
ZONE = ZoneInfo("Asia/Kathmandu")  # none whose days are those of UTC

_STARTED = f"{NOW - YEAR_MS} + n * {YEAR_MS} / :calls"
_HEX = "lpad(to_hex(started_at), 12, '0')"
_USAGE = f"""
    INSERT INTO usage (event_id, revision, account, key_id, app, scene, provider, model_requested,
        model_sent, run_id, book, rule, input, cached_input, output, reasoning, quality,
        usage_source, amount, ceiling, reason, payload_hash, started_at, finished_at)
    SELECT left({_HEX}, 8) || '-' || right({_HEX}, 4) || '-7000-8000-' || lpad(to_hex(n), 12, '0'),
        2, CASE WHEN n % 2 = 0 THEN '{HEAVY}' ELSE 'a' || h % {ACCOUNTS} END,
        CASE WHEN n % 2 = 0 THEN 'key-' || h % 2 ELSE 'key-a' || h % {ACCOUNTS} END, '',
        CASE WHEN h % 5 = 0 THEN 'agent' ELSE 'chat' END, 'provider-' || h % 4 / 2,
        'model-' || h % 4, 'model-' || h % 4, CASE WHEN n % 10 = 0 THEN 'run-' || n / 20000 ELSE '' END,
        1, 'rule', 100 + h % 900, h % 90, 50 + h % 500, h % 40, 'exact', 'provider', 20 + h % 1000,
        5000, CASE WHEN h % 97 = 0 THEN 'broken' ELSE '' END, 'seeded', started_at, started_at + 2000
    FROM (SELECT n, {_STARTED} AS started_at, abs(hashint8(n)::bigint) AS h
        FROM generate_series(1::bigint, :calls) AS n) AS calls
"""
# As they come, and past days as billing.settlement.rollup_order leaves them.
_QUARTERS = f"""
    INSERT INTO usage_quarters ({", ".join((*ROLLUP_KEY, *ROLLUP_SUMS))})
    SELECT * FROM (
        SELECT account, {BUCKET} AS bucket_at, key_id, app, scene, provider, model_sent,
            {", ".join(f"sum({name})" for name in ROLLUP_SUMS[:-2])}, count(*), sum({IS_FAILURE})
        FROM usage GROUP BY account, bucket_at, key_id, app, scene, provider, model_sent
    ) AS sums
    ORDER BY CASE WHEN bucket_at < {NOW - REST_MS} THEN bucket_at / {DAY_MS} * {DAY_MS}
        ELSE bucket_at END, account, bucket_at
"""
# One purchase, then the charges; balances run on, as the table's own check demands.
_ENTRIES = """
    INSERT INTO ledger_entries (event_id, account, account_seq, source, direction, amount, status,
        balance_before, balance_after, payload_hash, created_at, posted_at)
    SELECT 'bought:' || account, account, 1, 'purchase', 'income', 1000000000000, 'applied', 0,
        1000000000000, 'seeded', MIN(started_at), MIN(started_at) FROM usage GROUP BY account
    UNION ALL
    SELECT event_id, account, 1 + row_number() OVER own, 'charge', 'expense', -amount, 'applied',
        1000000000000 - sum(amount) OVER own + amount, 1000000000000 - sum(amount) OVER own,
        'seeded', finished_at, finished_at
    FROM usage WINDOW own AS (PARTITION BY account ORDER BY event_id)
"""
_ACCOUNTS = """
    INSERT INTO accounts (account, balance, seq, total_recharged, total_consumed, created_at,
        updated_at)
    SELECT account, 1000000000000 + sum(amount) FILTER (WHERE amount < 0), max(account_seq),
        1000000000000, -sum(amount) FILTER (WHERE amount < 0), min(posted_at), max(posted_at)
    FROM ledger_entries GROUP BY account
"""


@dataclass
class Figure:
    """One line of the table; milliseconds."""

    what: str
    p50: float
    p99: float
    aim: float | None = AIM_MS

    @property
    def reached(self) -> bool:
        """Whether all but the slowest hundredth of the answers came within the aim."""
        return self.aim is None or self.p99 <= self.aim


def seed(url: str, calls: int) -> None:
    """Make the calls, their sums and their entries, each in one statement of the server's."""

    def make(connection: Connection) -> None:
        with connection.begin():
            for month in range(14):
                add_partitions(connection, NOW - YEAR_MS + month * 30 * 86_400_000)
        for name, query in (
            ("usage", _USAGE),
            ("usage_quarters", _QUARTERS),
            ("ledger_entries", _ENTRIES),
            ("accounts", _ACCOUNTS),
        ):
            began = time.monotonic()
            with connection.begin():
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text("SET LOCAL work_mem = '512MB'"))
                values = {"calls": calls} if ":calls" in query else {}
                made = connection.execute(text(query), values).rowcount
            took = time.monotonic() - began
            print(f"{name}: {made} rows in {took:.0f} s", file=sys.stderr, flush=True)

    migrate.run_sync(url, make)


def vacuum(server: PostgresServer, url: str) -> None:
    """As autovacuum would have."""
    server.execute("VACUUM ANALYZE", database=url.rpartition("/")[2])


async def fold(url: str) -> list[Figure]:
    """Fold the days as the ledger service does, if without its pauses; what it saves, and takes."""
    database = Database(url)
    figures: list[Figure] = []
    try:
        for group_by in (None, GroupBy.MODEL):
            question = Question(account=HEAVY, period=Period.ALL, group_by=group_by, zone=ZONE)
            what = f"not folded: {HEAVY}, all, {group_by or 'totals'}"
            ask = partial(consumption, database, question, NOW)
            figures.append(await timed(what, ask, aim=None))
        began = time.perf_counter()
        days = 0
        while some := await fold_days(database, NOW):
            days += some
        took = 1000 * (time.perf_counter() - began)
        figures.append(Figure(f"folding {days} days", took, took, None))
    finally:
        await database.dispose()
    return figures


async def measure(url: str) -> list[Figure]:
    """Every question, again and again."""
    database = Database(url)
    figures: list[Figure] = []
    try:
        for account in (HEAVY, LIGHT):
            for period in Period:
                for group_by in (None, GroupBy.MODEL, GroupBy.KEY):
                    question = Question(
                        account=account, period=period, group_by=group_by, zone=ZONE
                    )
                    what = f"{account}, {period}, {group_by or 'totals'}"
                    ask = partial(consumption, database, question, NOW)
                    figures.append(await timed(what, ask))
        run = Question(account=HEAVY, run_id="run-200", group_by=GroupBy.MODEL, zone=ZONE)
        figures.append(await timed("a run", partial(consumption, database, run, NOW)))
        for period in Period:
            for group_by in (None, GroupBy.MODEL, GroupBy.ACCOUNT):
                question = Question(account=None, period=period, group_by=group_by, zone=ZONE)
                ask = partial(consumption, database, question, NOW)
                what = f"everybody, {period}, {group_by or 'totals'}"
                figures.append(await timed(what, ask, aim=None, rounds=3))
        month = month_of("2026-03")
        for account in (HEAVY, LIGHT):
            told = partial(statement, database, account, month, NOW)
            figures.append(await timed(f"statement of {account}", told, aim=None, rounds=5))
        for ago in (1, 180):
            at = NOW - ago * 86_400_000
            owed = partial(outstanding, database, at)
            figures.append(await timed(f"outstanding {ago} days ago", owed, aim=None, rounds=5))
    finally:
        await database.dispose()
    return figures


async def timed(
    what: str,
    ask: Callable[[], Awaitable[object]],
    *,
    aim: float | None = AIM_MS,
    rounds: int = ROUNDS,
) -> Figure:
    """The first answer warms the caches, and does not count."""
    await ask()
    took: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        await ask()
        took.append(1000 * (time.perf_counter() - began))
    figure = Figure(what, median(took), quantiles(took, n=100, method="inclusive")[98], aim)
    print(f"{what:32} {figure.p50:9.1f} {figure.p99:9.1f}", file=sys.stderr, flush=True)
    return figure


def main() -> int:
    """Seed unless told where, measure, tell."""
    parser = argparse.ArgumentParser(prog="python -m bench.consumption")
    parser.add_argument("--calls", type=int, default=10_000_000)
    parser.add_argument("--database", help="measure what is there")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = uvloop.run(measure(given.database)) if given.database else fresh(given.calls)
    print(f"{'milliseconds':32} {'p50':>9} {'p99':>9}")
    for each in figures:
        missed = "" if each.reached else f"  over {each.aim:.0f}"
        print(f"{each.what:32} {each.p50:9.1f} {each.p99:9.1f}{missed}")
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in figures], indent=2))
    return 0 if all(each.reached for each in figures) else 1


def fresh(calls: int) -> list[Figure]:
    """On a server of its own, of which nothing is left."""
    directory = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
    directory.chmod(0o755)
    server = PostgresServer(directory, durable=False)
    try:
        server.create()
        url = server.new_database()
        seed(url, calls)
        vacuum(server, url)
        folded = uvloop.run(fold(url))
        vacuum(server, url)
        return folded + uvloop.run(measure(url))
    finally:
        server.stop("immediate")
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
