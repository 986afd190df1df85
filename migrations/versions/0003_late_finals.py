"""What the registry says of a process: whether it may hold credit, and what its spool may keep."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Processes of before count as ones that hold credit and have no spool to wait for."""
    op.add_column(
        "processes", sa.Column("may_hold", sa.Boolean(), server_default=sa.true(), nullable=False)
    )
    op.add_column("processes", sa.Column("spool", sa.Text(), server_default="", nullable=False))
    op.add_column(
        "processes",
        sa.Column("spool_pending", sa.Boolean(), server_default=sa.false(), nullable=False),
    )


def downgrade() -> None:
    """Drop all of it."""
    for column in ("spool_pending", "spool", "may_hold"):
        op.drop_column("processes", column)
