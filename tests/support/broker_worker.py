"""A ledger worker that kills itself: `python -m tests.support.broker_worker KIND URL DATABASE POINT`."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from billing import failpoints
from billing.db.sqlite import SqliteHotDatabase
from billing.settlement.brokers import link_maker
from billing.settlement.delivery import make_delivery
from billing.settlement.subscriber import BrokerWorker
from tests.support.money import T0


async def main(kind: str, url: str, path: Path, point: str) -> None:
    failpoints.hooks[point] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    hot = SqliteHotDatabase(path, clock=lambda: T0)
    await hot.start()
    assert kind in {"kafka", "redis"}
    maker = link_maker("kafka" if kind == "kafka" else "redis", url, process="doomed")
    worker = BrokerWorker(hot, clock=lambda: T0)
    await make_delivery(maker, hot, clock=lambda: T0, worker=worker).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
