"""The rollup by days, and which days of which accounts it holds; all are folded as time goes on."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Ids sort by their bytes, whatever the language of the server.
ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

KEY = ("account", "bucket_at", "key_id", "app", "scene", "provider", "model")
SUMS = (
    "input", "cached_input", "cache_write_5m", "cache_write_1h", "audio_input", "image_input",
    "output", "reasoning", "audio_output", "amount", "calls", "errors",
)  # fmt: skip


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "usage_days",
        sa.Column("account", ID, nullable=False),
        sa.Column("bucket_at", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in KEY[2:]),
        *(
            sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
            for name in SUMS
        ),
        sa.PrimaryKeyConstraint(*KEY, name=op.f("pk_usage_days")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "folded_days",
        sa.Column("account", ID, nullable=False),
        sa.Column("day_at", sa.BigInteger(), nullable=False),
        sa.Column("whole", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("account", "day_at", name=op.f("pk_folded_days")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_folded_days_to_fold",
        "folded_days",
        ["account", "day_at"],
        unique=False,
        sqlite_where=sa.text("NOT whole"),
        postgresql_where=sa.text("NOT whole"),
    )


def downgrade() -> None:
    """Drop them: the quarters are still there. A later upgrade folds from the beginning."""
    op.drop_table("folded_days")
    op.drop_table("usage_days")
    op.execute("DELETE FROM meta WHERE key = 'days_folded_to'")
