"""`llm-gateway reconcile` where Redis keeps the holds: it compares them, and says if it cannot."""

import asyncio
from pathlib import Path

from click.testing import CliRunner, Result

from billing.holds.scripts import keys_of
from llm_gateway.cli.reconcile import reconcile
from tests.support.redis_guard import guards
from tests.support.redis_server import RedisServer


async def run(directory: Path, redis: RedisServer, *options: str) -> Result:
    config = directory / "gateway.toml"
    config.write_text(
        f'[database]\nurl = "sqlite+aiosqlite:///{directory}/gateway.db"\n'
        f'[guard]\nstore = "redis"\nredis_url = "{redis.url}"\n'
    )
    return await asyncio.to_thread(
        CliRunner().invoke, reconcile, ["--config", str(config), *options]
    )


async def leave_a_wrong_sum(directory: Path, redis: RedisServer) -> None:
    async with guards(redis, directory) as money:
        await money.buy(1_000)
        await money.reserve(300)
        await redis.ask("HINCRBY", keys_of("alice")[0], "held", 7)


async def test_holds_in_redis_are_compared(redis: RedisServer, tmp_path: Path) -> None:
    await leave_a_wrong_sum(tmp_path, redis)
    for options in ((), ("--repair",)):
        done = await run(tmp_path, redis, *options)
        assert done.exit_code == 1
        assert "alice: held 307 in Redis, holds 300" in done.output


async def test_a_redis_that_is_away_is_no_agreement(own_redis: RedisServer, tmp_path: Path) -> None:
    await leave_a_wrong_sum(tmp_path, own_redis)
    own_redis.kill()
    done = await run(tmp_path, own_redis)
    assert done.exit_code == 1
    assert "could not be run (GuardUnavailableError)" in done.output
