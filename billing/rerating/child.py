"""The process that simulates: `python -m billing.rerating.child`, a Job as JSON on its standard input.

A process of its own, and a patient one: whatever it reckons and reads, no call waits for it. It
prints a line of JSON for each step, and ends when nobody reads them any more.
"""

import asyncio
import os
import sys
import time
import traceback
from typing import Final

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from billing.books import PriceBooks
from billing.db.session import Database
from billing.rerating.calls import Window
from billing.rerating.pricing import Rerater
from billing.rerating.simulate import Progress, simulate
from billing.rerating.tally import Simulation
from pricing_rules.book import parse_book

NICENESS: Final = 5


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate. `database_url` may hold a password: it comes by standard input alone."""

    database_url: str
    toml: str
    version: int  # 0: the book is not stored
    window: Window
    charged: bool


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of output: one of the four."""

    progress: Progress | None = None
    simulation: Simulation | None = None
    database_away: str = ""  # by which exception
    failed: str = ""  # the exception's type and where it was raised; its message may quote a row


async def work(job: Job) -> None:
    """Do the job and print its steps."""
    database = Database(job.database_url)
    try:
        books = PriceBooks(database, now_ms=lambda: 0, monotonic=time.monotonic)
        rerater = Rerater(parse_book(job.toml), job.version)
        async for step in simulate(database, books, rerater, job.window, charged=job.charged):
            if isinstance(step, Progress):
                _print(Step(progress=step))
            else:
                _print(Step(simulation=step))
    except BrokenPipeError:
        raise
    except (SQLAlchemyError, OSError) as error:
        _print(Step(database_away=type(error).__name__))
    finally:
        await database.dispose()


def _print(step: Step) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(step) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Read the job and do it."""
    os.nice(NICENESS)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        asyncio.run(work(job))
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - who asked is to know
        last = traceback.extract_tb(error.__traceback__)[-1]
        _print(Step(failed=f"{type(error).__name__} at {last.filename}:{last.lineno}"))
        sys.exit(1)


if __name__ == "__main__":
    main()
