"""The hot database on a real SQLite file: holds, charge events, settlement, and what breaks them."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from billing import failpoints
from billing.db.hot import DatabaseUnavailableError
from billing.db.sqlite import SqliteHotDatabase
from tests.support.migrated import migrated
from tests.support.money import (
    T0,
    charge,
    hot_database,
    new_id,
    purchase,
    rows,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return migrated(tmp_path)


@pytest.fixture
async def hot(path: Path) -> AsyncIterator[SqliteHotDatabase]:
    async with hot_database(path) as started:
        assert isinstance(started, SqliteHotDatabase)
        yield started


def held(path: Path, account: str = "alice") -> tuple[object, ...]:
    return rows(path, "SELECT balance, held FROM accounts WHERE account = ?", account)[0]


class TestTrouble:
    async def test_a_locked_database_is_unavailable_and_comes_back(
        self, hot: SqliteHotDatabase, path: Path
    ) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseUnavailableError):
                await hot.record(charge(new_id(), 1))
            other.execute("ROLLBACK")
        await hot.ping()

    async def test_a_full_disk_is_unavailable_and_leaves_nothing_half_done(
        self, hot: SqliteHotDatabase, path: Path
    ) -> None:
        await hot.post([purchase(1000)])
        full = sqlite3.OperationalError("database or disk is full")

        def fail() -> None:
            raise full

        failpoints.hooks["usage_written"] = fail
        try:
            with pytest.raises(DatabaseUnavailableError, match="disk is full"):
                await hot.record(charge(new_id(), 1))
        finally:
            failpoints.hooks.clear()
        assert rows(path, "SELECT count(*) FROM usage") == [(0,)]
        await hot.record(charge(new_id(), 1))
        await hot.settle_pending(10)

    async def test_a_missing_file_does_not_come_back_empty(self, tmp_path: Path) -> None:
        hot = SqliteHotDatabase(tmp_path / "none.db", clock=lambda: T0)
        with pytest.raises(DatabaseUnavailableError):
            await hot.start()
        await hot.close()
        assert not (tmp_path / "none.db").exists()

    async def test_after_close_it_is_unavailable(self, path: Path) -> None:
        async with hot_database(path) as hot:
            pass
        with pytest.raises(DatabaseUnavailableError):
            await hot.ping()

    async def test_close_finishes_what_is_queued(self, path: Path) -> None:
        async with hot_database(path) as hot:
            asked = [hot.record(charge(new_id(), 1)) for _ in range(100)]
            await hot.close()
            await asyncio.gather(*asked)
            assert rows(path, "SELECT count(*) FROM outbox") == [(100,)]
