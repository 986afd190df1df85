"""A process that asks for many holds at once: `redis_url database_url process number amount`.

Writes "ready", waits for a line on stdin, asks, writes the ids that were granted, and ends with stdin.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from billing.holds import Granted, GuardUnavailableError
from llm_gateway import clock
from tests.support.money import hold
from tests.support.redis_guard import guards


async def main(redis_url: str, database_url: str, process: str, number: str, amount: str) -> None:
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as directory:
        async with guards(redis_url, Path(directory), url=database_url, stores=0) as money:
            store = await money.add(process=process)

            async def ask() -> str:
                hold_id = clock.new_event_id(clock.now_ms())
                asked = hold(hold_id, minimum=int(amount), wanted=int(amount), process=process)
                try:
                    answer = await store.reserve(asked)
                except GuardUnavailableError:
                    return ""
                return hold_id if isinstance(answer, Granted) else ""

            print(json.dumps("ready"), flush=True)
            await loop.run_in_executor(None, sys.stdin.readline)
            ids = await asyncio.gather(*(ask() for _ in range(int(number))))
            print(json.dumps([hold_id for hold_id in ids if hold_id]), flush=True)
            await loop.run_in_executor(None, sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
