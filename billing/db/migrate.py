"""Bring a database to the newest schema; also tells which schema it has."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.pool import NullPool

import billing
from billing.db.session import async_engine, sqlite_path

T = TypeVar("T")


def scripts() -> Path:
    """Where the migrations are: inside the installed package, or at the root of a checkout."""
    package = Path(billing.__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def upgrade(url: str, revision: str = "head") -> None:
    """Run every migration up to `revision` that the database lacks; makes a SQLite file's directory."""
    if path := sqlite_path(url):
        path.parent.mkdir(parents=True, exist_ok=True)
    command.upgrade(_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Go back to an older schema ("base": an empty one); what only the newer one holds is lost."""
    command.downgrade(_config(url), revision)


def check(url: str) -> None:
    """Raise alembic.util.CommandError if the tables of the code differ from the migrated ones."""
    command.check(_config(url))


def current(url: str) -> str | None:
    """The schema that the database has; None: none yet."""
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return None
    return run_sync(
        url, lambda connection: MigrationContext.configure(connection).get_current_revision()
    )


def head() -> str:
    """The schema that this code needs."""
    revision = ScriptDirectory(str(scripts())).get_current_head()
    assert revision is not None, "there is at least one migration"
    return revision


def run_sync(url: str, work: Callable[[Connection], T]) -> T:
    """Do `work` on a connection of its own; blocks, also where an event loop runs already.

    Both drivers are asyncio's, so it has a loop of its own, in a thread of its own.
    """

    async def run() -> T:
        engine = async_engine(url, poolclass=NullPool)
        try:
            async with engine.connect() as connection:
                return await connection.run_sync(work)
        finally:
            await engine.dispose()

    with ThreadPoolExecutor(1, thread_name_prefix="migration") as thread:
        return thread.submit(lambda: asyncio.run(run())).result()


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.attributes["url"] = url
    return config
