"""Keys: shown once, cached for a second, good while the database is away, refused once revoked."""

import asyncio
import re
from pathlib import Path

import pytest
from sqlalchemy import select

from billing.db.hot import DatabaseUnavailableError
from billing.db.tables import metadata
from billing.keys import (
    CACHED_KEYS_MAX,
    MISS,
    KeyChange,
    KeyInfo,
    KeyOutOfUseError,
    NewKey,
    UnknownKeyError,
)
from billing.kinds import KeyKind
from billing.lists import PageRequest
from tests.support.control import NOON, Control

UNKNOWN = "lgw_" + "x" * 43


async def _user_key(plane: Control, account: str = "ada") -> tuple[KeyInfo, str]:
    return await plane.keys.create_user(account, default_scene="default", actor="test")


async def test_token_has_256_bits(plane: Control) -> None:
    info, token = await _user_key(plane)
    assert re.fullmatch(r"lgw_[A-Za-z0-9_-]{43}", token)
    assert token.startswith(info.prefix)
    assert len(info.prefix) == 10
    other = (await _user_key(plane))[1]
    assert token != other


async def test_token_is_nowhere_in_the_database(plane: Control, tmp_path: Path) -> None:
    _, token = await _user_key(plane)
    await plane.keys.fetch(token)
    async with plane.database.read() as connection:
        rows = [
            repr(row)
            for table in metadata.tables.values()
            for row in await connection.execute(select(table))
        ]
    assert any(token[:10] in row for row in rows)
    assert not [row for row in rows if token[10:] in row]
    for path in tmp_path.rglob("*.db*"):
        assert token[10:].encode() not in path.read_bytes()
    page = await plane.audit.page(PageRequest())
    assert [row.action for row in page.items] == ["key.create"]


async def test_fetched_key_is_found_without_waiting(plane: Control) -> None:
    info, token = await _user_key(plane)
    assert plane.keys.lookup(token) is MISS
    assert await plane.keys.fetch(token) == info
    assert plane.keys.lookup(token) == info


async def test_cache_lasts_a_second_and_no_longer(plane: Control) -> None:
    info, token = await _user_key(plane)
    await plane.keys.fetch(token)
    plane.clock.tick(0.999)
    assert plane.keys.lookup(token) == info
    plane.clock.tick(0.001)
    assert plane.keys.lookup(token) is MISS


async def test_all_fields_come_back_from_the_database(plane: Control) -> None:
    new = NewKey(
        kind=KeyKind.APP,
        app="forum",
        accounts=("ada", "bob"),
        default_scene="chat",
        scenes=("agent", "batch"),
        models=("mini", "gpt-*"),
        description="the forum's key",
        expires_at=NOON + 5_000,
    )
    info, token = await plane.keys.create(new, actor="test")
    assert await plane.other_process().keys.fetch(token) == info
    assert {name: getattr(info, name) for name in NewKey.__struct_fields__} == {
        name: getattr(new, name) for name in NewKey.__struct_fields__
    }


async def test_unknown_token_is_no_key(plane: Control) -> None:
    assert await plane.keys.fetch(UNKNOWN) is None
    assert plane.keys.lookup(UNKNOWN) is None


@pytest.mark.parametrize(
    "token", ["", "lgw_", "sk-" + "x" * 44, "lgw_" + "x" * 42, "lgw_" + "x" * 44, "Lgw_" + "x" * 43]
)
async def test_noise_asks_no_database(plane: Control, token: str) -> None:
    async with plane.away():
        assert plane.keys.lookup(token) is None
        assert await plane.keys.fetch(token) is None


async def test_token_with_one_other_character_is_no_key(plane: Control) -> None:
    _, token = await _user_key(plane)
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert await plane.keys.fetch(wrong) is None


async def test_revoked_here_is_unusable_at_once(plane: Control) -> None:
    info, token = await _user_key(plane)
    await plane.keys.fetch(token)
    revoked = await plane.keys.revoke(info.key_id, actor="test")
    assert revoked is not None
    assert revoked.revoked
    key = await plane.keys.fetch(token)
    assert key is not None
    assert not key.usable(plane.clock.ms)


async def test_revoked_elsewhere_is_unusable_after_a_second(plane: Control) -> None:
    info, token = await _user_key(plane)
    other = plane.other_process()
    await other.keys.fetch(token)
    await plane.keys.revoke(info.key_id, actor="test")
    plane.clock.tick(1.0)
    key = await other.keys.fetch(token)
    assert key is not None
    assert not key.usable(plane.clock.ms)


async def test_revoking_again_changes_nothing(plane: Control) -> None:
    info, _ = await _user_key(plane)
    first = await plane.keys.revoke(info.key_id, actor="test")
    plane.clock.tick(60)
    assert await plane.keys.revoke(info.key_id, actor="test") == first
    actions = [row.action for row in (await plane.audit.page(PageRequest())).items]
    assert actions == ["key.revoke", "key.create"]


async def test_revoking_no_key_is_none_and_unrecorded(plane: Control) -> None:
    assert await plane.keys.revoke("key_0", actor="test") is None
    assert (await plane.audit.page(PageRequest())).total == 0


@pytest.mark.parametrize(("later", "usable"), [(0, True), (4_999, True), (5_000, False)])
async def test_key_expires_at_its_moment(plane: Control, later: int, usable: bool) -> None:
    new = NewKey(kind=KeyKind.USER, account="ada", default_scene="default", expires_at=NOON + 5_000)
    info, _ = await plane.keys.create(new, actor="test")
    assert info.usable(NOON + later) is usable


async def test_cached_key_stays_good_without_database(plane: Control) -> None:
    info, token = await _user_key(plane)
    await plane.keys.fetch(token)
    async with plane.away():
        for _ in range(10):
            plane.clock.tick(1.5)
            assert await plane.keys.fetch(token) == info
            assert plane.keys.lookup(token) == info


async def test_unknown_key_without_database_is_no_refusal(plane: Control) -> None:
    _, token = await _user_key(plane)
    async with plane.away():
        with pytest.raises(DatabaseUnavailableError):
            await plane.keys.fetch(token)
    assert await plane.keys.fetch(token) is not None


async def test_refused_key_without_database_is_unknown_again(plane: Control) -> None:
    """That there is no such key may have changed meanwhile: only what was good is kept."""
    assert await plane.keys.fetch(UNKNOWN) is None
    plane.clock.tick(1.5)
    async with plane.away():
        with pytest.raises(DatabaseUnavailableError):
            await plane.keys.fetch(UNKNOWN)


async def test_revocation_is_seen_when_the_database_is_back(plane: Control) -> None:
    info, token = await _user_key(plane)
    other = plane.other_process()
    await other.keys.fetch(token)
    await plane.keys.revoke(info.key_id, actor="test")
    async with plane.away():
        plane.clock.tick(1.5)
        stale = await other.keys.fetch(token)
        assert stale is not None
        assert stale.usable(plane.clock.ms)
    plane.clock.tick(1.5)
    fresh = await other.keys.fetch(token)
    assert fresh is not None
    assert not fresh.usable(plane.clock.ms)


async def test_one_query_renews_all_keys_in_use(plane: Control) -> None:
    made = [await _user_key(plane, f"user-{number}") for number in range(5)]
    for _, token in made:
        await plane.keys.fetch(token)
    plane.clock.tick(1.5)
    await plane.keys.fetch(made[0][1])
    assert [plane.keys.lookup(token) for _, token in made] == [info for info, _ in made]


async def test_many_misses_at_once_are_all_answered(plane: Control) -> None:
    made = [await _user_key(plane, f"user-{number}") for number in range(20)]
    found = await asyncio.gather(
        *(plane.keys.fetch(token) for _, token in made for _ in range(10)),
        *(plane.keys.fetch(f"lgw_{number:043}") for number in range(700)),
    )
    assert found[:200] == [info for info, _ in made for _ in range(10)]
    assert found[200:] == [None] * 700


async def test_cancelled_fetch_leaves_the_rest_working(plane: Control) -> None:
    info, token = await _user_key(plane)
    tasks = [asyncio.create_task(plane.keys.fetch(token)) for _ in range(5)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [info] * 4


def test_cache_has_a_limit() -> None:
    assert CACHED_KEYS_MAX < 100_000


async def test_list_is_newest_first_and_by_account(plane: Control) -> None:
    for account in ("ada", "bob", "ada"):
        await _user_key(plane, account)
        plane.clock.tick(1)
    everyone = await plane.keys.page(PageRequest(page_size=2))
    assert [key.account for key in everyone.items] == ["ada", "bob"]
    assert (everyone.total, everyone.has_more) == (3, True)
    assert (await plane.keys.page(PageRequest(), account="ada")).total == 2
    assert (await plane.keys.page(PageRequest(), account="eve")).items == ()


# -- changed and rotated -----------------------------------------------------------------------


async def test_change_is_seen_elsewhere_within_a_second(plane: Control) -> None:
    info, token = await _user_key(plane)
    other = plane.other_process()
    await other.keys.fetch(token)
    change = KeyChange(
        scenes=("agent",), models=("mini",), description="new", requests_per_minute=60
    )
    after = await plane.keys.update(info.key_id, change, actor="test")
    assert await plane.keys.fetch(token) == after
    plane.clock.tick(1.0)
    seen = await other.keys.fetch(token)
    assert seen == after
    assert (after.scenes, after.models, after.description) == (("agent",), ("mini",), "new")
    assert (after.requests_per_minute, after.default_scene) == (60, "default")
    # What is unset stays; None lifts a limit.
    lifted = await plane.keys.update(
        info.key_id, KeyChange(requests_per_minute=None, concurrent_calls=2), actor="test"
    )
    assert (lifted.requests_per_minute, lifted.concurrent_calls) == (None, 2)
    assert lifted.models == ("mini",)


async def test_end_of_a_key_is_moved_but_never_that_of_a_replaced_one(plane: Control) -> None:
    info, token = await _user_key(plane)
    ends = KeyChange(expires_at=plane.clock.ms + 5_000)
    assert (await plane.keys.update(info.key_id, ends, actor="test")).expires_at is not None
    lifted = await plane.keys.update(info.key_id, KeyChange(expires_at=None), actor="test")
    assert lifted.expires_at is None
    await plane.keys.update(info.key_id, ends, actor="test")
    await plane.keys.rotate(info.key_id, grace_seconds=2, actor="test")
    with pytest.raises(KeyOutOfUseError):
        await plane.keys.update(info.key_id, KeyChange(expires_at=None), actor="test")
    plane.clock.tick(2.0)
    key = await plane.keys.fetch(token)
    assert key is not None
    assert not key.usable(plane.clock.ms)


async def test_rotated_key_ends_with_its_grace_in_every_process(plane: Control) -> None:
    info, token = await _user_key(plane)
    other = plane.other_process()
    await other.keys.fetch(token)
    old, new, fresh = await plane.keys.rotate(info.key_id, grace_seconds=10, actor="test")
    assert old.replaced_by == new.key_id
    assert (new.account, new.default_scene, new.replaced_by) == ("ada", "default", None)
    plane.clock.tick(9.999)
    for keys in (plane.keys, other.keys):
        for each in (token, fresh):
            key = await keys.fetch(each)
            assert key is not None
            assert key.usable(plane.clock.ms)
    plane.clock.tick(0.001)
    for keys in (plane.keys, other.keys):
        key = await keys.fetch(token)
        assert key is not None
        assert not key.usable(plane.clock.ms)


async def test_rotation_without_grace_refuses_the_old_key_within_a_second(plane: Control) -> None:
    info, token = await _user_key(plane)
    other = plane.other_process()
    await other.keys.fetch(token)
    await plane.keys.rotate(info.key_id, grace_seconds=0, actor="test")
    here = await plane.keys.fetch(token)
    plane.clock.tick(1.0)
    there = await other.keys.fetch(token)
    for key in (here, there):
        assert key is not None
        assert not key.usable(plane.clock.ms)


async def test_rotation_does_not_lengthen_a_key(plane: Control) -> None:
    new = NewKey(kind=KeyKind.USER, account="ada", default_scene="default", expires_at=NOON + 5_000)
    info, _ = await plane.keys.create(new, actor="test")
    old, fresh, _ = await plane.keys.rotate(info.key_id, grace_seconds=60, actor="test")
    assert (old.expires_at, fresh.expires_at) == (NOON + 5_000, NOON + 5_000)


async def test_two_rotations_at_once_make_one_key(plane: Control) -> None:
    info, _ = await _user_key(plane)
    results = await asyncio.gather(
        *(plane.keys.rotate(info.key_id, grace_seconds=5, actor="test") for _ in range(4)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, KeyOutOfUseError) for result in results) == 3
    assert (await plane.keys.page(PageRequest())).total == 2


async def test_key_out_of_use_is_neither_changed_nor_rotated(plane: Control) -> None:
    revoked, _ = await _user_key(plane)
    await plane.keys.revoke(revoked.key_id, actor="test")
    replaced, _ = await _user_key(plane)
    await plane.keys.rotate(replaced.key_id, grace_seconds=60, actor="test")
    before = (await plane.audit.page(PageRequest())).total
    for info in (revoked, replaced):
        with pytest.raises(KeyOutOfUseError):
            await plane.keys.update(info.key_id, KeyChange(models=()), actor="test")
        with pytest.raises(KeyOutOfUseError):
            await plane.keys.rotate(info.key_id, grace_seconds=0, actor="test")
    with pytest.raises(UnknownKeyError):
        await plane.keys.update("key_0", KeyChange(models=()), actor="test")
    assert (await plane.audit.page(PageRequest())).total == before
