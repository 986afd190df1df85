"""Migrations from nothing to the newest schema and back, and that they make the tables of the code."""

import ast
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from billing.db import migrate, tables
from billing.db.session import Database, sqlite_path
from billing.ledger import Account, LedgerEntry
from pricing_rules.usage import Usage
from tests.support.services import PostgresServer

APPEND_ONLY = {
    "ledger_entries",
    "usage",
    "price_books",
    "price_book_activations",
    "admin_audit",
}
OURS = ("billing", "llm_gateway", "pricing_rules", "tests")
TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
    "postgresql": "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
    " AND relnamespace = 'public'::regnamespace",
}
TRIGGERS = {
    "sqlite": "SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger t"
    " JOIN pg_class c ON c.oid = tgrelid WHERE NOT tgisinternal AND NOT relispartition",
}
LEFT = {
    "sqlite": "SELECT name FROM sqlite_master WHERE name NOT LIKE '%alembic_version%'",
    "postgresql": "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    " AND relname NOT LIKE 'alembic_version%' UNION ALL"
    " SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
}


class Empty:
    """The address of a database without any table, and what can be asked of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = url.partition("+")[0]

    def run(self, statement: str) -> list[tuple[object, ...]]:
        def work(connection: Connection) -> list[tuple[object, ...]]:
            with connection.begin():
                result = connection.execute(text(statement))
                return [tuple(row) for row in result] if result.returns_rows else []

        return migrate.run_sync(self.url, work)

    def ask(self, queries: dict[str, str]) -> set[object]:
        return {row[0] for row in self.run(queries[self.engine])}


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Empty]:
    if request.param == "sqlite":
        yield Empty(f"sqlite+aiosqlite:///{tmp_path / 'deep' / 'gateway.db'}")
        return
    server = request.getfixturevalue("postgres")
    assert isinstance(server, PostgresServer)
    url = server.empty_database()
    yield Empty(url)
    server.drop_database(url)


def steps() -> list[str]:
    """All revisions, oldest first."""
    scripts = ScriptDirectory(str(migrate.scripts())).walk_revisions()
    return [script.revision for script in scripts][::-1]


def test_up_down_and_up_again(empty: Empty) -> None:
    assert migrate.current(empty.url) is None
    migrate.upgrade(empty.url)
    assert migrate.current(empty.url) == migrate.head()
    assert empty.ask(TABLES) == {*tables.metadata.tables, "alembic_version"}
    assert empty.ask(TRIGGERS) >= APPEND_ONLY == set(tables.APPEND_ONLY)
    migrate.check(empty.url)
    migrate.downgrade(empty.url, "base")
    assert empty.ask(LEFT) == set()
    migrate.upgrade(empty.url)
    migrate.upgrade(empty.url)
    migrate.check(empty.url)


def test_each_step_goes_back_and_keeps_what_is_there(empty: Empty) -> None:
    before = "base"
    for revision in steps():
        migrate.upgrade(empty.url, revision)
        migrate.downgrade(empty.url, before)
        migrate.upgrade(empty.url, revision)
        if before == "base":
            empty.run(
                "INSERT INTO accounts (account, name, created_at, updated_at)"
                " VALUES ('ada', 'Ada', 0, 0)"
            )
            empty.run(
                "INSERT INTO api_keys (id, kind, sha256, prefix, account, created_at)"
                " VALUES ('key_1', 'user', 'f00', 'lgw_f', 'ada', 0)"
            )
        before = revision
    kept = "SELECT name, sha256 FROM accounts JOIN api_keys USING (account)"
    assert empty.run(kept) == [("Ada", "f00")]
    migrate.check(empty.url)
    migrate.downgrade(empty.url, steps()[0])
    assert empty.run(kept) == [("Ada", "f00")]


def test_a_table_that_differs_is_found(empty: Empty) -> None:
    migrate.upgrade(empty.url)
    empty.run("ALTER TABLE meta ADD COLUMN extra TEXT")
    with pytest.raises(CommandError, match="remove_column"):
        migrate.check(empty.url)


@pytest.mark.parametrize(
    "path", sorted(migrate.scripts().glob("versions/*.py")), ids=lambda p: p.stem
)
def test_migrations_take_nothing_from_the_code(path: Path) -> None:
    """What they took would change with the code, and they would make other tables than they made."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert not [name for name in imported if name.partition(".")[0] in OURS]


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
