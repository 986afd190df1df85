"""Holds in a Redis that forgets, falls silent, loses replies and fails over, under the load of whole gateways."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.faults.bout import Bout, bout
from tests.support.redis_server import Proxy, RedisServer, redis_server
from tests.support.services import PostgresServer

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.slow,
]


@dataclass
class Guard:
    """A primary that gateways reach through a proxy, and a replica that follows through another."""

    primary: RedisServer
    replica: RedisServer
    road: Proxy
    link: Proxy


@pytest.fixture(scope="module")
def primary() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guard(primary: RedisServer) -> AsyncIterator[Guard]:
    async with Proxy(primary.port) as road, Proxy(primary.port) as link:
        # Its own loop serves the proxy: whoever starts the replica must not block it.
        context = redis_server("--replicaof", f"127.0.0.1 {link.port}")
        replica = await asyncio.to_thread(context.__enter__)
        try:
            yield Guard(primary, replica, road, link)
        finally:
            context.__exit__(None, None, None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fight(
    guard: Guard, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bout]:
    url = await asyncio.to_thread(postgres.new_database)
    folder = tmp_path_factory.mktemp("redis")
    async with bout(folder, url, postgres, redis=guard.primary, redis_url=guard.road.url) as begun:
        yield begun
    await asyncio.to_thread(postgres.drop_database, url)


async def epoch(fight: Bout) -> int:
    return await fight.number("SELECT (value::json ->> 'epoch')::int FROM meta WHERE key = 'guard'")


async def test_flushall_again_and_again(fight: Bout, guard: Guard) -> None:
    before = await epoch(fight)

    async def story() -> None:
        for _ in range(3):
            await guard.primary.ask("FLUSHALL")
            await fight.answers(15)

    await fight.play(story)
    assert await epoch(fight) >= before + 3  # each loss was seen


async def test_replies_that_never_arrive(fight: Bout, guard: Guard) -> None:
    """A script ran and nobody was told: it is asked again, and must not count twice."""
    before = guard.road.dropped

    async def story() -> None:
        for _ in range(15):
            guard.road.drop_replies += 1
            await fight.answers(3)

    await fight.play(story)
    assert guard.road.dropped >= before + 15


async def test_nobody_is_admitted_while_redis_is_silent(fight: Bout, guard: Guard) -> None:
    async def story() -> None:
        guard.primary.pause()
        try:
            await fight.falls_silent()
        finally:
            guard.primary.resume()

    await fight.play(story)


async def test_an_account_that_was_evicted_is_missed(fight: Bout, guard: Guard) -> None:
    """A Redis that may evict is refused at the start; where one does so later, this is what it does."""
    before = await epoch(fight)

    async def story() -> None:
        for _ in range(2):
            assert await guard.primary.ask("DEL", key_of(fight, "account")) == 1
            await fight.answers(10)

    await fight.play(story)
    assert await epoch(fight) >= before + 2


async def test_holds_that_were_evicted_without_their_account_stay_held(
    fight: Bout, guard: Guard
) -> None:
    """Nobody spends them again; a rebuild gives them back."""

    async def story() -> None:
        while await guard.primary.ask("DEL", key_of(fight, "holds")) == 0:
            await asyncio.sleep(0)
        await fight.answers(20)

    await fight.play(story)
    held = await guard.primary.ask("HGET", key_of(fight, "account"), "held")
    assert isinstance(held, bytes)
    assert int(held) > 0
    await asyncio.to_thread(fight.gateways[0].admin, "guard/rebuild", {"reason": "evicted"})

    async def nothing() -> None:
        pass

    await fight.play(nothing)
    assert await guard.primary.ask("HGET", key_of(fight, "account"), "held") == b"0"


async def test_credit_held_for_no_call_is_told(fight: Bout, guard: Guard) -> None:
    key = key_of(fight, "account")
    assert await guard.primary.ask("HINCRBY", key, "held", 500) == 500
    report = await asyncio.to_thread(fight.gateways[0].admin, "reconcile")
    assert await guard.primary.ask("HINCRBY", key, "held", -500) == 0
    assert "held 500 in Redis, holds 0" in str(report)


def key_of(fight: Bout, kind: str) -> str:
    """A key of the account that calls most."""
    return f"lgw:{{{fight.load.hot.id}}}:{kind}"


async def test_failover_to_a_replica_that_lags(fight: Bout, guard: Guard) -> None:
    """What was held while the link stood still is unknown to the new primary."""
    before = await epoch(fight)

    async def story() -> None:
        guard.link.hold_replies.clear()
        await fight.answers(30)
        guard.link.cut()
        guard.link.target = 1  # nobody
        await guard.replica.ask("REPLICAOF", "NO", "ONE")
        guard.road.target = guard.replica.port
        guard.road.cut()
        await fight.answers(10)

    fight.machines.redis = guard.replica
    await fight.play(story)
    assert await epoch(fight) > before
