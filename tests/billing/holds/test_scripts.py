"""Keys and scripts: one slot for an account, every script there, none that touches a key it was not given."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.holds import Granted, HoldBeat
from billing.holds.scripts import (
    DIGESTS,
    MAX_EXACT,
    SOURCES,
    Script,
    account_of,
    keys_of,
    saturated,
    slot_of,
)
from tests.support.money import cancelled, charge
from tests.support.redis_guard import guards, held, until_open
from tests.support.redis_server import RedisServer, redis_server
from tests.support.services import free_port

names = st.text(min_size=1, max_size=64) | st.text(alphabet="{}%7BDa5", min_size=1, max_size=12)


@given(names)
def test_an_accounts_keys_share_a_slot(account: str) -> None:
    first, second = keys_of(account)
    assert first != second
    assert slot_of(first) == slot_of(second)
    assert account_of(first) == account_of(second) == account


@given(names, names)
def test_no_two_accounts_share_a_key(one: str, other: str) -> None:
    assert (one == other) == bool(set(keys_of(one)) & set(keys_of(other)))


@pytest.fixture
def cluster() -> Iterator[RedisServer]:
    """A cluster of one, which insists that a script's keys share a slot all the same."""
    with redis_server("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        yield server


async def test_slots_are_the_servers(cluster: RedisServer) -> None:
    for account in ("alice", "}", "{}", "{a}", "a{b}c", "用户", "%"):
        for key in keys_of(account):
            assert await cluster.ask("CLUSTER", "KEYSLOT", key) == slot_of(key)


async def info(cluster: RedisServer) -> bytes:
    found = await cluster.ask("CLUSTER", "INFO")
    assert isinstance(found, bytes)
    return found


async def test_every_script_runs_in_a_cluster(cluster: RedisServer, tmp_path: Path) -> None:
    async with asyncio.timeout(10):
        while b"cluster_state:ok" not in await info(cluster):
            await asyncio.sleep(0.02)
    async with guards(cluster, tmp_path) as money:
        await money.buy(1_000, account="a}b{")
        kept = await money.reserve(100, account="a}b{")
        assert await money.store.extend(kept, 200) == Granted(200)
        await money.store.heartbeat([HoldBeat(kept, 200, 50)])
        await money.store.rebuild("a test")
        await until_open(money.store)
        other = await money.reserve(300, account="a}b{")
        assert len(await money.store.held_by_others(frozenset(), 10)) == 2
        await money.store.cancel(cancelled(other, account="a}b{"))
        await money.finish(charge(kept, 150, account="a}b{", ceiling=200))
        await money.settle()
        assert await held(cluster, "a}b{") == {}


@pytest.mark.parametrize(
    ("key", "slot"), [(b"123456789", 0x31C3), (b"foo", 12182), (b"{}foo", 9500)]
)
def test_slots_of_the_specification(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


@pytest.mark.parametrize("script", Script)
def test_scripts_touch_only_the_keys_they_are_given(script: Script) -> None:
    source = SOURCES[script].decode()
    touched = re.findall(r"redis\.call\('\w+',\s*([^,)]+)", source)
    assert touched
    assert set(touched) <= {"KEYS[1]", "KEYS[2]"}


async def test_digests_are_those_of_redis(redis: RedisServer) -> None:
    for script in Script:
        assert await redis.ask("SCRIPT", "LOAD", SOURCES[script]) == DIGESTS[script]


@given(st.integers())
def test_what_redis_knows_is_never_more(amount: int) -> None:
    known = saturated(amount)
    assert abs(known) <= MAX_EXACT
    assert known == amount or abs(amount) > MAX_EXACT
    assert known <= amount or amount < -MAX_EXACT
