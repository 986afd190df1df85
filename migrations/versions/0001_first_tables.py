"""The first tables: accounts, ledger, usage, outbox, holds, price books, keys, audit.

Frozen: like every migration it takes nothing from the code, whose constants change their meaning.
"""

import datetime as dt

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Ids sort by their bytes, whatever the language of the server.
ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


APPEND_ONLY = ("ledger_entries", "usage", "price_books", "price_book_activations", "admin_audit")

# An exception of this class reads as what it is: a constraint that was about to be broken.
REFUSE_CHANGE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$
"""

MONTHS_AHEAD = 3


def upgrade() -> None:
    """Make every table, and the triggers that keep ledger and usage append-only."""
    op.create_table(
        "accounts",
        sa.Column("account", ID, nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.Column("balance", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("held", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_recharged", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_rewarded", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_consumed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_refunded", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_expired", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_adjusted", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("suspended", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("suspended_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("guard_epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_ledger_event_id", ID, nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "balance = total_recharged + total_rewarded - total_consumed - total_refunded"
            " - total_expired + total_adjusted",
            name=op.f("ck_accounts_balance_is_sum_of_totals"),
        ),
        sa.CheckConstraint("held >= 0", name=op.f("ck_accounts_held")),
        sa.CheckConstraint("length(account) BETWEEN 1 AND 64", name=op.f("ck_accounts_account")),
        sa.CheckConstraint("seq >= 0", name=op.f("ck_accounts_seq")),
        sa.PrimaryKeyConstraint("account", name=op.f("pk_accounts")),
    )
    op.create_table(
        "admin_audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), server_default="", nullable=False),
        sa.Column("detail_json", sa.Text(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_admin_audit")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("account", ID, nullable=True),
        sa.Column("app", sa.Text(), server_default="", nullable=False),
        sa.Column("accounts", sa.Text(), nullable=True),
        sa.Column("default_scene", sa.Text(), server_default="", nullable=False),
        sa.Column("scenes", sa.Text(), nullable=True),
        sa.Column("models", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("kind IN ('user', 'app')", name=op.f("ck_api_keys_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("sha256", name=op.f("uq_api_keys_sha256")),
    )
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.create_index("ix_api_keys_account", ["account"], unique=False)

    op.create_table(
        "holds",
        sa.Column("hold_id", ID, nullable=False),
        sa.Column("account", ID, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("progress", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("state", sa.Text(), server_default="live", nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("context", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("state IN ('live', 'residual')", name=op.f("ck_holds_state")),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_holds_amount")),
        sa.PrimaryKeyConstraint("hold_id", name=op.f("pk_holds")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ledger_entries",
        sa.Column("event_id", ID, nullable=False),
        sa.Column("account", ID, nullable=False),
        sa.Column("account_seq", sa.BigInteger(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("source_label", sa.Text(), server_default="", nullable=False),
        sa.Column("direction", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=True),
        sa.Column("source_ref_id", sa.Text(), nullable=True),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("metadata_json", sa.Text(), server_default="{}", nullable=False),
        sa.Column("balance_before", sa.BigInteger(), nullable=False),
        sa.Column("balance_after", sa.BigInteger(), nullable=False),
        sa.Column("payload_hash", sa.Text(), nullable=False),
        sa.Column("usage_event_id", ID, nullable=True),
        sa.Column("usage_revision", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("posted_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "(direction = 'income' AND amount >= 0) OR (direction = 'expense' AND amount <= 0)",
            name=op.f("ck_ledger_entries_sign"),
        ),
        sa.CheckConstraint(
            "balance_after = balance_before + CASE WHEN status = 'applied' THEN amount ELSE 0 END",
            name=op.f("ck_ledger_entries_balance_after"),
        ),
        sa.CheckConstraint(
            "direction IN ('income', 'expense')", name=op.f("ck_ledger_entries_direction")
        ),
        sa.CheckConstraint(
            "account_seq IS NOT NULL OR balance_after = 0",
            name=op.f("ck_ledger_entries_without_account"),
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_ledger_entries")),
        sa.UniqueConstraint(
            "account", "account_seq", name=op.f("uq_ledger_entries_account_account_seq")
        ),
    )
    with op.batch_alter_table("ledger_entries", schema=None) as batch_op:
        batch_op.create_index(
            "ix_ledger_entries_source_ref_id",
            ["source_ref_id"],
            unique=False,
            sqlite_where=sa.text("source_ref_id IS NOT NULL"),
            postgresql_where=sa.text("source_ref_id IS NOT NULL"),
        )

    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_meta")),
    )
    op.create_table(
        "outbox",
        sa.Column("event_id", ID, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("account", ID, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("payload_hash", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("claimed_at", sa.BigInteger(), nullable=True),
        sa.Column("published_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", "revision", name=op.f("pk_outbox")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "price_book_activations",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("effective_from", sa.BigInteger(), nullable=False),
        sa.Column("activated_by", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_price_book_activations")),
    )
    with op.batch_alter_table("price_book_activations", schema=None) as batch_op:
        batch_op.create_index(
            "ix_price_book_activations_effective_from", ["effective_from"], unique=False
        )

    op.create_table(
        "price_books",
        sa.Column("version", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("toml", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("rules", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("uploaded_by", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_price_books")),
        sa.UniqueConstraint("sha256", name=op.f("uq_price_books_sha256")),
    )
    op.create_table(
        "usage_hourly",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("hour_at", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("scene", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("input", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cached_input", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cache_write_5m", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cache_write_1h", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("audio_input", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("image_input", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("reasoning", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("audio_output", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("amount", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("calls", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint(
            "account",
            "hour_at",
            "key_id",
            "app",
            "scene",
            "provider",
            "model",
            name=op.f("pk_usage_hourly"),
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "processes",
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), server_default="", nullable=False),
        sa.Column("pid", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_at", sa.BigInteger(), nullable=False),
        sa.Column("heartbeats", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("guard_step", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("process", name=op.f("pk_processes")),
    )
    op.create_table(
        "quarantine",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("event_id", ID, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("account", ID, nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("resolved_at", sa.BigInteger(), nullable=True),
        sa.Column("resolution", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantine")),
    )
    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.create_index("ix_quarantine_event_id", ["event_id"], unique=False)

    op.create_table(
        "usage",
        sa.Column("event_id", ID, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("account", ID, nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("app", sa.Text(), server_default="", nullable=False),
        sa.Column("scene", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model_requested", sa.Text(), nullable=False),
        sa.Column("model_sent", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), server_default="", nullable=False),
        sa.Column("client_request_id", sa.Text(), server_default="", nullable=False),
        sa.Column("book", sa.BigInteger(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("input", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cached_input", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cache_write_5m", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cache_write_1h", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("audio_input", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("image_input", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("reasoning", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("audio_output", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("quality", sa.Text(), nullable=False),
        sa.Column("usage_source", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("ceiling", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("raw_usage", sa.LargeBinary(), nullable=True),
        sa.Column("upstream_request_id", sa.Text(), server_default="", nullable=False),
        sa.Column("failed_attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("payload_hash", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "NOT cancelled OR (amount = 0 AND revision = 2)", name=op.f("ck_usage_cancelled")
        ),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_usage_amount")),
        sa.CheckConstraint("revision IN (1, 2)", name=op.f("ck_usage_revision")),
        sa.PrimaryKeyConstraint("event_id", "revision", name=op.f("pk_usage")),
        postgresql_partition_by="RANGE (event_id)",
    )
    op.create_index(
        "ix_usage_estimates",
        "usage",
        ["account"],
        unique=False,
        sqlite_where=sa.text("revision = 1"),
        postgresql_where=sa.text("revision = 1"),
    )
    op.create_index(
        "ix_accounts_suspended",
        "accounts",
        ["account"],
        unique=False,
        sqlite_where=sa.text("suspended = 1"),
        postgresql_where=sa.text("suspended"),
    )

    if op.get_bind().dialect.name == "sqlite":
        _on_sqlite()
    else:
        _on_postgres()


def _on_sqlite() -> None:
    for table in APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def _on_postgres() -> None:
    op.execute(REFUSE_CHANGE)
    op.execute("CREATE TABLE usage_default PARTITION OF usage DEFAULT")
    # Triggers for rows hold for partitions too, that for TRUNCATE does not.
    for table in APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}"
                " FOR EACH ROW EXECUTE FUNCTION refuse_change()"
            )
        _refuse_truncate(table)
    _refuse_truncate("usage_default")
    _add_months()
    # Rows that are changed often find room on their page, and no index has to know of it.
    op.execute("ALTER TABLE accounts SET (fillfactor = 50)")
    for table in ("holds", "outbox"):
        # Their rows live for a second or so.
        op.execute(
            f"ALTER TABLE {table} SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02,"
            " autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0)"
        )


def _refuse_truncate(table: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )


def _add_months() -> None:
    """Partitions of this month and those ahead, by the database's clock; later ones the workers make.

    Event ids are UUIDv7 and begin with their milliseconds, so a month is a range of ids:
    https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7
    """
    now_ms = op.get_bind().scalar(
        sa.text("SELECT CAST(extract(epoch FROM now()) * 1000 AS bigint)")
    )
    now = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
    first = dt.datetime(now.year, now.month, 1, tzinfo=dt.UTC)
    for _ in range(MONTHS_AHEAD + 1):
        following = dt.datetime(
            first.year + first.month // 12, first.month % 12 + 1, 1, tzinfo=dt.UTC
        )
        name = f"usage_y{first.year:04d}m{first.month:02d}"
        op.execute(
            f"CREATE TABLE {name} PARTITION OF usage"
            f" FOR VALUES FROM ('{_first_id(first)}') TO ('{_first_id(following)}')"
        )
        _refuse_truncate(name)
        first = following


def _first_id(moment: dt.datetime) -> str:
    digits = f"{round(moment.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def downgrade() -> None:
    """Drop all of it."""
    op.drop_table("usage")
    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.drop_index("ix_quarantine_event_id")

    op.drop_table("quarantine")
    op.drop_table("usage_hourly")
    op.drop_table("processes")
    op.drop_table("price_books")
    with op.batch_alter_table("price_book_activations", schema=None) as batch_op:
        batch_op.drop_index("ix_price_book_activations_effective_from")

    op.drop_table("price_book_activations")
    op.drop_table("outbox")
    op.drop_table("meta")
    with op.batch_alter_table("ledger_entries", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_ledger_entries_source_ref_id",
            sqlite_where=sa.text("source_ref_id IS NOT NULL"),
            postgresql_where=sa.text("source_ref_id IS NOT NULL"),
        )

    op.drop_table("ledger_entries")
    op.drop_table("holds")
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.drop_index("ix_api_keys_account")

    op.drop_table("api_keys")
    op.drop_table("admin_audit")
    op.drop_table("accounts")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_change()")
