"""Processes that fight over one database: `python -m tests.support.rivals JOB URL CONNECTIONS COUNT`.

Waits for a line on stdin, so that all rivals begin at once; prints how many times it succeeded.
"""

import asyncio
import os
import sys

from billing.db.engine import Engine, hot_database
from billing.holds import Granted
from billing.ledger import Posted
from tests.support.money import T0, hold, purchase


async def reserve(hot: Engine, name: str, count: int) -> int:
    """Ask for `count` holds of 100, all at once."""
    ids = [f"{name}-{number}" for number in range(count)]
    answers = await asyncio.gather(*(hot.reserve(hold(hold_id)) for hold_id in ids))
    return sum(isinstance(answer, Granted) for answer in answers)


async def reserve_the_same(hot: Engine, name: str, count: int) -> int:
    """Ask for holds that every rival asks for."""
    answers = await asyncio.gather(*(hot.reserve(hold(f"same-{n}")) for n in range(count)))
    return sum(isinstance(answer, Granted) for answer in answers)


async def settle(hot: Engine, name: str, count: int) -> int:
    """Settle in batches of 7 until nothing is left."""
    settled = 0
    for _ in range(count):
        settled += (await hot.settle_pending(7)).settled
    return settled


async def post(hot: Engine, name: str, count: int) -> int:
    """Post entries that every rival posts."""
    posted = 0
    for number in range(count):
        entries = [purchase(1, event_id=f"bought:{number}", account=f"new-{number % 3}")]
        (result,) = await hot.post(entries)
        posted += isinstance(result, Posted)
    return posted


async def main(job: str, url: str, connections: int, count: int) -> None:
    hots = [hot_database(url, clock=lambda: T0) for _ in range(connections)]
    for hot in hots:
        await hot.start()
    await asyncio.to_thread(sys.stdin.readline)
    work = {
        "reserve": reserve,
        "reserve_the_same": reserve_the_same,
        "settle": settle,
        "post": post,
    }[job]
    done = await asyncio.gather(
        *(work(hot, f"{os.getpid()}-{number}", count) for number, hot in enumerate(hots))
    )
    print(sum(done), flush=True)
    for hot in hots:
        await hot.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
