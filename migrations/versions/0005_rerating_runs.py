"""Runs of re-rating: which calls, by which book, and how far each has come."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Ids sort by their bytes, whatever the language of the server.
ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "rerating_runs",
        sa.Column("run_id", ID, nullable=False),
        sa.Column("book", sa.BigInteger(), nullable=False),
        sa.Column("from_at", sa.BigInteger(), nullable=False),
        sa.Column("to_at", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="posting", nullable=False),
        sa.Column("cursor", ID, server_default="", nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
            for name in ("calls", "entries", "taken", "given_back")
        ),
        sa.Column("left_out", sa.Text(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_rerating_runs")),
        sa.CheckConstraint("from_at < to_at", name=op.f("ck_rerating_runs_window")),
        sa.CheckConstraint("state IN ('posting', 'done')", name=op.f("ck_rerating_runs_state")),
        sa.CheckConstraint(
            "(state = 'done') = (finished_at IS NOT NULL)", name=op.f("ck_rerating_runs_finished")
        ),
        sa.CheckConstraint("taken >= 0 AND given_back >= 0", name=op.f("ck_rerating_runs_amounts")),
    )
    op.create_index(
        "uq_rerating_runs_posting",
        "rerating_runs",
        ["state"],
        unique=True,
        sqlite_where=sa.text("state = 'posting'"),
        postgresql_where=sa.text("state = 'posting'"),
    )
    op.create_table(
        "rerating_holds",
        sa.Column("hold_id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=False),
        sa.Column("done_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("hold_id", name=op.f("pk_rerating_holds")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop it; the entries of the runs stay."""
    op.drop_table("rerating_holds")
    op.drop_table("rerating_runs")
