"""Keys and scripts: one slot for an account, every script there, none that touches a key it was not given."""

import re

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from tests.support.redis_server import RedisServer

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


# From the server itself: CLUSTER KEYSLOT answers without a cluster, too.
async def test_slots_are_the_servers(redis: RedisServer) -> None:
    for account in ("alice", "}", "{}", "{a}", "a{b}c", "用户", "%"):
        for key in keys_of(account):
            try:
                slot = await redis.ask("CLUSTER", "KEYSLOT", key)
            except hiredis.ReplyError:
                pytest.skip("this server was built without cluster support")
            assert slot == slot_of(key)


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
