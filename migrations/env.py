"""Alembic's entry point: one transaction, on the address that billing.db.migrate gives."""

from alembic import context
from alembic.runtime.environment import NameFilterParentNames, NameFilterType
from sqlalchemy import text
from sqlalchemy.engine import Connection

from billing.db.migrate import run_sync
from billing.db.partitions import is_partition
from billing.db.tables import metadata

ADVISORY_LOCK = 0x6C6C6D67  # any number that nobody else takes; two starters wait for one another


def migrate(connection: Connection) -> None:
    """Run the migrations that the command asked for, on one connection."""
    if connection.dialect.name == "sqlite":
        # Other writers stay out from the first statement on.
        connection = connection.execution_options(write_transaction=True)
        run_migrations(connection)
        return
    with connection.begin():
        # Whoever comes second finds the work done: the version is read after the lock.
        connection.execute(text("SET LOCAL lock_timeout = '60s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": ADVISORY_LOCK})
        # A migration that waits for a table's lock holds up all that want the table after it.
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(text("SET LOCAL statement_timeout = '10min'"))
        run_migrations(connection)


def run_migrations(connection: Connection) -> None:
    """Without partitions of a table: they are made as time goes on."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transaction_per_migration=connection.dialect.name == "sqlite",
        render_as_batch=connection.dialect.name == "sqlite",
        compare_server_default=False,
        include_name=is_ours,
    )
    with context.begin_transaction():
        context.run_migrations()


def is_ours(name: str | None, kind: NameFilterType, _parents: NameFilterParentNames) -> bool:
    """Whether a table is one of the code's own."""
    return kind != "table" or name is None or not is_partition(name)


run_sync(context.config.attributes["url"], migrate)
