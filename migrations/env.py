"""Alembic's entry point: one transaction per migration, on the address that billing.db.migrate gives."""

from alembic import context
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from billing.db.session import on_begin, on_connect
from billing.db.tables import metadata


def run() -> None:
    """Run the migrations that the command asked for."""
    engine = create_engine(context.config.attributes["url"], poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", on_connect)
        event.listen(engine, "begin", on_begin)
    with engine.connect() as connection:
        migrate(connection)
    engine.dispose()


def migrate(connection: Connection) -> None:
    """Run them on one connection; SQLite's writers stay out from the first statement on."""
    context.configure(
        connection=connection.execution_options(write_transaction=True),
        target_metadata=metadata,
        transaction_per_migration=True,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_server_default=False,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
