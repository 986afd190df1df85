"""A process that holds, charges and settles until it kills itself: `python -m tests.support.doomed`.

Arguments: database, spool directory, failpoint, at which reaching of it to die. Prints the id and
amount of every charge that it was told is durable.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from billing import failpoints
from billing.db.engine import Engine, hot_database
from billing.holds import Granted, HoldBeat
from billing.settlement.outbox import Outbox
from billing.settlement.spool import Spool
from billing.settlement.worker import LedgerWorker
from tests.support.money import T0, charge, hold, new_id


async def main(url: str, spool: Path, point: str, times: int) -> None:
    left = times

    def die() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.hooks[point] = die
    hot = hot_database(url, clock=lambda: T0)
    await hot.start()
    worker = LedgerWorker(hot, clock=lambda: T0, batch_max=5, gather_seconds=0.001)
    outbox = Outbox(hot, Spool(spool, "doomed"), on_written=worker.notify)
    await outbox.start()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run())
        for _ in range(8):
            tasks.create_task(calls(hot, outbox))


async def calls(hot: Engine, outbox: Outbox) -> None:
    amount = 0
    while True:
        event_id = new_id()
        amount = amount % 90 + 1
        assert await hot.reserve(hold(event_id, process="doomed")) == Granted(100)
        await hot.heartbeat([HoldBeat(event_id, 100, amount // 2)])
        await outbox.write(charge(event_id, amount))
        os.write(1, f"{event_id} {amount}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
