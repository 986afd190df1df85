"""A store that kills itself: `python -m tests.support.doomed_shop URL FAILPOINT ACT WHAT...`."""

import asyncio
import os
import signal
import sys

from billing import failpoints
from billing.corrections import Adjustment, OrderRefund
from billing.shop.rewards import NewReward
from tests.support.rerating import DEARER_BOOK, WINDOW, run_asked
from tests.support.shop import Shop


async def main(url: str, point: str, act: str, *what: str) -> None:
    failpoints.hooks[point] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    shop = Shop(url)
    await shop.hot.start()
    match act:
        case "pay":
            await shop.orders.pay(what[0], paid_by="ops")
        case "reward":
            await shop.rewards.reward(
                NewReward(source="forum_like", source_ref_id=what[0], account="ada"), actor="ops"
            )
        case "adjust":
            await shop.corrections.adjust(
                Adjustment(account="ada", amount=-100, reason="r", idempotency_key=what[0]),
                actor="ops",
            )
        case "refund":
            await shop.corrections.refund_order(
                OrderRefund(order_id=what[0], reason="r", idempotency_key="k"), actor="ops"
            )
        case "rerate":
            shop.now = WINDOW.to_at
            await shop.rerating.start(run_asked(DEARER_BOOK, what[0]), actor="ops")
            await shop.rerating.carry_on()
        case _:
            raise ValueError(act)
    print("survived", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
