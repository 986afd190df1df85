"""Four processes at once on one Redis and one PostgreSQL: room for k calls is room for k."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from billing.holds import Granted
from billing.settlement.late_finals import LOST_SPOOL_MS, MARGIN_MS
from tests.support.money import estimate, hold, new_id
from tests.support.redis_guard import Guards, guards, held, until_open
from tests.support.redis_server import RedisServer

PROCESSES = 4
ASKED = 50  # by each


async def started(redis: RedisServer, url: str, *, amount: int) -> list[asyncio.subprocess.Process]:
    """Processes that are ready to ask and wait for a line on stdin."""
    running = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.redis_asker",
            redis.url, url, f"asker-{number}", str(ASKED), str(amount),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for number in range(PROCESSES)
    ]  # fmt: skip
    for process in running:
        assert await told(process) == "ready"
    return running


async def told(process: asyncio.subprocess.Process) -> object:
    assert process.stdout is not None
    return json.loads(await process.stdout.readline())


async def go(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    await process.stdin.drain()


@pytest.mark.parametrize("room", [1, 37, 200])
async def test_room_for_k_is_room_for_k(
    redis: RedisServer, postgres_url: str, tmp_path: Path, room: int
) -> None:
    async with guards(redis, tmp_path, url=postgres_url) as money:
        await money.buy(room * 25)
        running = await started(redis, postgres_url, amount=25)
        for process in running:
            await go(process)
        granted = [await told(process) for process in running]
        assert sum(len(ids) for ids in granted if isinstance(ids, list)) == room
        assert len(await held(redis)) == room
        await ended(running)


async def test_a_flush_in_the_middle(redis: RedisServer, postgres_url: str, tmp_path: Path) -> None:
    """All keep what they hold: none of the four loses a hold, none gets in beyond the room."""
    async with guards(redis, tmp_path, url=postgres_url) as money:
        await money.buy(150 * 25)
        running = await started(redis, postgres_url, amount=25)
        for process in running:
            await go(process)
        await asyncio.sleep(0.01)
        await redis.ask("FLUSHALL")
        granted = {
            hold_id
            for ids in [await told(process) for process in running]
            if isinstance(ids, list)
            for hold_id in ids
        }
        await until_open(money.store)
        more = await rest(money)
        assert len(granted) + more == 150
        assert granted <= set(await held(redis))
        await ended(running)


async def rest(money: Guards) -> int:
    """How many more get in."""
    count = 0
    while isinstance(await money.store.reserve(hold(new_id(), minimum=25, wanted=25)), Granted):
        count += 1
    return count


async def test_a_killed_process_leaves_its_holds_as_evidence(
    redis: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path, url=postgres_url) as money:
        await money.buy(10**6)
        victim, *others = await started(redis, postgres_url, amount=25)
        await go(victim)
        ids = await told(victim)
        assert isinstance(ids, list)
        os.kill(victim.pid, signal.SIGKILL)
        await victim.wait()
        alive = {money.store.process, *(f"asker-{number}" for number in range(1, PROCESSES))}
        orphans = await money.store.held_by_others(alive, 1_000)
        assert sorted(orphan.hold_id for orphan in orphans) == sorted(ids)
        for orphan in orphans:
            await money.hot.record(estimate(orphan.hold_id, 0))
        await money.settle()
        await money.settle()
        money.now += 3_600_000 + MARGIN_MS + LOST_SPOOL_MS
        assert await money.store.resend() == ASKED
        assert await held(redis) == {}
        await ended(others)


async def ended(running: list[asyncio.subprocess.Process]) -> None:
    for process in running:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
