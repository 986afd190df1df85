"""Room on the pages of tables whose rows are updated over and over; PostgreSQL only."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Percent of a page that inserts may fill. A new version of a row that finds room on its own page
# touches no index. Every row of the outbox is updated once, by its claim, before it goes.
FILL_FACTORS = {"outbox": 45, "usage_quarters": 50}


def upgrade() -> None:
    """For new pages; existing ones change as their rows do."""
    _set(FILL_FACTORS)


def downgrade() -> None:
    """As it was."""
    _set({"outbox": 70, "usage_quarters": 100})


def _set(percents: dict[str, int]) -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table, percent in percents.items():
            op.execute(f"ALTER TABLE {table} SET (fillfactor = {percent})")
