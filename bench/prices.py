"""Measures price books: `python -m bench.prices [--rules N]`; exit status 1 if an aim is missed.

Reading a long book, uploading it by HTTP to both engines, finding a call's rule in it (at first, and
again), pricing a call's usage. CPU time of this process, so that other work on the machine counts
little; of an upload also the time by the clock. The best of several rounds.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

from pricing_rules.book import Book, parse_book
from pricing_rules.lint import review
from pricing_rules.match import _ranked, explain, match
from pricing_rules.price import as_answered, breakdown, ceiling_of, factors_of, price
from pricing_rules.usage import Usage
from tests.support.admin_server import ADMIN_TOKEN, AdminServer
from tests.support.services import PostgresServer

ROUNDS = 5
NOW = 1_800_000_000_000  # milliseconds since the epoch
HEAD = '[book]\nname = "bench"\ncurrency = "USD"\ncredits_per_unit = "100"\n'
CONDITIONS = """\
tiers = [{ over_input_tokens = 200000, input = "5.00", output = "20.00" }]
hours = [{ days = "Mon-Fri", tz = "UTC", from = "01:00", to = "04:00", multiply = "2" }]
service_tiers = { priority = "1.7", flex = "0.5" }
"""


def rule(number: int, scene: str, model: str, more: str = "") -> str:
    """A [[rule]] as long as they usually are."""
    return (
        f'[[rule]]\nid = "rule-{number}"\ndescription = "Price list of the vendor, 2026-11-01"\n'
        f'scene = "{scene}"\nprovider = "provider-{number % 10}"\nmodel = "{model}"\n'
        f'input = "2.50"\ncached_input = "0.25"\noutput = "10.00"\n{more}\n'
    )


def long_book(rules: int) -> str:
    """Mostly exact names; one rule in ten is a glob, one in ten has all conditions."""
    found = [HEAD]
    for number in range(rules):
        model = f"model-{number}" if number % 10 else f"family-{number}-*"
        found.append(rule(number, "*", model, CONDITIONS if number % 10 == 5 else ""))
    return "".join(found)


def glob_book(rules: int) -> str:
    """Nothing but globs."""
    return HEAD + "".join(rule(n, f"scene-{n % 7}*", f"family-{n}-*") for n in range(rules))


def best(action: Callable[[], object], times: int = 1) -> float:
    """Seconds of CPU that one run takes."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(times):
            action()
        found.append((time.process_time() - began) / times)
    return min(found)


def first_match(book: Book, calls: list[tuple[str, str, str]]) -> float:
    """Seconds to find a rule for a call that nobody has made before."""

    def run() -> None:
        _ranked.cache_clear()
        for call in calls:
            match(book, *call, NOW)

    return best(run) / len(calls)


def upload_seconds(place: Path | str, text: str) -> tuple[float, float]:
    """CPU of client and server, and seconds from request to answer, other books being there."""
    server = AdminServer(place)
    server.start()
    found = []
    try:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            for number in range(ROUNDS):
                began, clock = time.process_time(), time.monotonic()
                answer = client.post(
                    "/admin/price-books",
                    files={"file": ("prices.toml", f"{text}# {number}\n".encode())},
                    headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
                )
                found.append((time.process_time() - began, time.monotonic() - clock))
                answer.raise_for_status()
    finally:
        server.stop()
    return min(found)


def uploads(text: str) -> list[tuple[str, tuple[float, float]]]:
    """An upload to each engine, with fsync as in production."""
    with tempfile.TemporaryDirectory() as directory:
        found = [("SQLite", upload_seconds(Path(directory), text))]
    directory = tempfile.mkdtemp(prefix="bench-prices-")
    Path(directory).chmod(0o755)  # the server runs as another user
    postgres = PostgresServer(Path(directory), durable=True)
    try:
        postgres.create()
        found.append(("PostgreSQL", upload_seconds(postgres.new_database(), text)))
    finally:
        postgres.stop()
        shutil.rmtree(directory, ignore_errors=True)
    return found


def main() -> int:
    """Print the table; 1 if an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", type=int, default=10_000)
    rules = parser.parse_args().rules
    text = long_book(rules)
    book, globs = parse_book(text), parse_book(glob_book(rules))
    step = max(1, rules // 1_000)
    exact = [("agent", f"provider-{n % 10}", f"model-{n}") for n in range(1, rules, step)]
    families = [("agent", f"provider-{n % 10}", f"family-{n}-x") for n in range(0, rules, 10)]
    in_globs = [
        (f"scene-{n % 7}", f"provider-{n % 10}", f"family-{n}-x") for n in range(0, rules, step)
    ]
    with_all = book.rules[5]
    plain = book.rules[1]
    usage = Usage(input=1200, cached_input=800, output=350, reasoning=50)
    factors = as_answered(with_all, factors_of(with_all, NOW, "flex"), "priority")
    us = 1e6
    uploaded = uploads(text)
    figures = [
        (f"read {rules} rules", best(lambda: parse_book(text)), 2.0, "s", 1.0),
        (f"read and lint {rules} rules", best(lambda: review(text, active=book)), 4.0, "s", 1.0),
        *((f"upload to {name}", cpu, 2.0, "s", 1.0) for name, (cpu, _) in uploaded),
        ("first match, exact", first_match(book, exact), 5.0, "us", us),
        ("first match, glob", first_match(book, families), 5.0, "us", us),
        ("first match, all globs", first_match(globs, in_globs), 10.0, "us", us),
        ("match again", best(lambda: match(book, *exact[0], NOW), 100_000), 1.0, "us", us),
        ("explain", best(lambda: explain(book, *exact[0], NOW)), 1.0, "s", 1.0),
        ("price", best(lambda: price(plain, usage), 100_000), 3.0, "us", us),
        (
            "price, all conditions",
            best(lambda: price(with_all, usage, factors=factors), 100_000),
            3.0,
            "us",
            us,
        ),
        ("factors of the hour", best(lambda: factors_of(with_all, NOW), 100_000), 5.0, "us", us),
        ("ceiling", best(lambda: ceiling_of(with_all, factors), 100_000), 5.0, "us", us),
        (
            "breakdown",
            best(lambda: breakdown(with_all, usage, factors=factors), 1_000),
            60.0,
            "us",
            us,
        ),
    ]
    missed = 0
    for what, seconds, aim, unit, scale in figures:
        value = seconds * scale
        missed += value > aim
        print(f"{what:<28} {value:8.2f} {unit:<2}  aim {aim:g}{'' if value <= aim else '  MISSED'}")
    for name, (_, clock) in uploaded:
        print(f"{f'upload to {name}':<28} {clock:8.2f} s   by the clock, with all else that runs")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
