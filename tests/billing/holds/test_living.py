"""The hold store of a process that others may think dead."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from billing.holds import Granted, GuardUnavailableError, HoldBeat, Refused
from billing.holds.database import DatabaseHoldStore
from billing.holds.living import LivingHoldStore
from tests.support.migrated import migrated
from tests.support.money import cancelled, hold, hot_database, new_id, purchase, rows


class Life:
    """What the registry knows, as the test wants it."""

    alive = True


@pytest.fixture
def life() -> Life:
    return Life()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return migrated(tmp_path)


@pytest.fixture
async def store(path: Path, life: Life) -> AsyncIterator[LivingHoldStore]:
    async with hot_database(path) as hot:
        await hot.post([purchase(1_000)])
        yield LivingHoldStore(DatabaseHoldStore(hot), life)


async def test_who_lives_holds_and_raises(store: LivingHoldStore) -> None:
    call = new_id()
    assert await store.reserve(hold(call)) == Granted(100)
    assert await store.extend(call, 150) == Granted(150)


async def test_who_may_be_thought_dead_gets_nothing_new(store: LivingHoldStore, life: Life) -> None:
    call = new_id()
    await store.reserve(hold(call))
    life.alive = False
    with pytest.raises(GuardUnavailableError):
        await store.reserve(hold(new_id()))
    with pytest.raises(GuardUnavailableError):
        await store.extend(call, 150)


async def test_who_may_be_thought_dead_still_gives_back(
    store: LivingHoldStore, life: Life, path: Path
) -> None:
    call = new_id()
    await store.reserve(hold(call))
    life.alive = False
    await store.heartbeat([HoldBeat(call, 100, 30)])
    assert rows(path, "SELECT progress FROM holds") == [(30,)]
    await store.cancel(cancelled(call))
    assert rows(path, "SELECT count(*) FROM holds") == [(0,)]


async def test_holds_of_a_former_life_are_neither_raised_nor_refreshed(
    store: LivingHoldStore, path: Path
) -> None:
    former, present = new_id(), new_id()
    await store.reserve(hold(former))
    store.disown([former])
    await store.reserve(hold(present))
    assert await store.extend(former, 150) == Refused(
        reason="insufficient", balance=0, held=0, needed=150
    )
    assert await store.extend(present, 150) == Granted(150)
    await store.heartbeat([HoldBeat(former, 200, 50), HoldBeat(present, 150, 60)])
    found = rows(path, "SELECT hold_id, progress FROM holds ORDER BY hold_id")
    assert found == [(former, 0), (present, 60)]
