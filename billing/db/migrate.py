"""Bring a database to the newest schema; also tells which schema it has."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

import billing
from billing.db.session import sqlite_path


def scripts() -> Path:
    """Where the migrations are: inside the installed package, or at the root of a checkout."""
    package = Path(billing.__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def upgrade(url: str) -> None:
    """Run every migration that the database lacks; makes the directory of a SQLite file."""
    if path := sqlite_path(url):
        path.parent.mkdir(parents=True, exist_ok=True)
    command.upgrade(_config(url), "head")


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
    engine = create_engine(sync_url(url))
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def head() -> str:
    """The schema that this code needs."""
    revision = ScriptDirectory(str(scripts())).get_current_head()
    assert revision is not None, "there is at least one migration"
    return revision


def sync_url(url: str) -> str:
    """The same database through a driver without asyncio, for Alembic."""
    parsed = make_url(url)
    driver = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}[parsed.get_backend_name()]
    return parsed.set(drivername=driver).render_as_string(hide_password=False)


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.attributes["url"] = sync_url(url)
    return config
