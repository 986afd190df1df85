"""Migrations from nothing to the newest schema and back, and that they make the tables of the code."""

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from billing.db import migrate, tables
from billing.db.session import Database, sqlite_path
from billing.ledger import Account, LedgerEntry
from pricing_rules.usage import Usage


def names(path: Path, kind: str) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = ? AND name NOT LIKE 'sqlite_%'", (kind,)
        )
        return {name for (name,) in found}


def test_up_down_and_up_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gateway.db"
    url = f"sqlite+aiosqlite:///{path}"
    assert migrate.current(url) is None
    migrate.upgrade(url)
    assert migrate.current(url) == migrate.head()
    assert names(path, "table") == {*tables.metadata.tables, "alembic_version"}
    assert names(path, "trigger") == {
        f"{table}_no_{verb}" for table in tables.APPEND_ONLY for verb in ("update", "delete")
    }
    migrate.downgrade(url, "base")
    assert names(path, "table") == {"alembic_version"}
    migrate.upgrade(url)
    migrate.upgrade(url)
    migrate.check(url)


def test_columns_are_those_of_the_values() -> None:
    assert set(LedgerEntry.__struct_fields__) == set(tables.ledger_entries.c.keys())
    assert set(Account.__struct_fields__) <= set(tables.accounts.c.keys())
    assert set(Usage.__struct_fields__) <= set(tables.usage.c.keys())


def test_checks_of_the_schema_repeat_the_rules(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}"
    migrate.upgrade(url)
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as connection:
        for balance, recharged, held in ((5, 4, 0), (5, 5, -1)):
            with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
                connection.execute(
                    "INSERT INTO accounts (account, balance, total_recharged, held, created_at,"
                    " updated_at) VALUES ('a', ?, ?, ?, 0, 0)",
                    (balance, recharged, held),
                )
        good = LedgerEntry(
            event_id="e",
            account="a",
            account_seq=1,
            source="manual",
            source_label="",
            direction="income",
            order_id=None,
            source_ref_id=None,
            amount=5,
            status="applied",
            description="",
            metadata_json="{}",
            balance_before=0,
            balance_after=5,
            payload_hash="",
            usage_event_id=None,
            usage_revision=None,
            created_at=0,
            posted_at=0,
        )
        for bad in (
            msgspec.structs.replace(good, balance_after=6),
            msgspec.structs.replace(good, amount=-5, balance_after=-5),
            msgspec.structs.replace(good, direction="other"),
            msgspec.structs.replace(good, account_seq=None),
        ):
            with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
                insert(connection, bad)
        insert(connection, good)
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            insert(connection, msgspec.structs.replace(good, event_id="e2"))


def insert(connection: sqlite3.Connection, entry: LedgerEntry) -> None:
    columns = ", ".join(LedgerEntry.__struct_fields__)
    marks = ", ".join("?" * len(LedgerEntry.__struct_fields__))
    connection.execute(
        f"INSERT INTO ledger_entries ({columns}) VALUES ({marks})", msgspec.structs.astuple(entry)
    )


async def test_a_write_is_all_or_nothing(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}"
    migrate.upgrade(url)
    database = Database(url)
    insert_meta = tables.meta.insert().values(key="k", value="v")
    with pytest.raises(RuntimeError):  # noqa: PT012 - the block is what is tested
        async with database.write() as connection:
            await connection.execute(insert_meta)
            raise RuntimeError
    async with database.write() as connection:
        await connection.execute(insert_meta)
    async with database.read() as connection:
        assert (await connection.execute(tables.meta.select())).all() == [("k", "v")]
    await database.dispose()


def test_only_files_have_a_path() -> None:
    assert sqlite_path("sqlite+aiosqlite:///.data/x.db") == Path(".data/x.db")
    assert sqlite_path("sqlite+aiosqlite:////var/x.db") == Path("/var/x.db")
    assert sqlite_path("sqlite+aiosqlite://") is None
    assert sqlite_path("postgresql+asyncpg://h/d") is None
