"""The credit store: products, orders, rewards, corrections, admin tokens, limits, finer rollups."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Ids sort by their bytes, whatever the language of the server.
ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

# Here and not at a start: made once, so that whoever changes or retires one is not overruled.
REWARD_RULES = (
    {
        "rule_id": "forum_like",
        "source": "forum_like",
        "name": "Plan liked",
        "description": "Paid to the author of a plan for each user who likes it.",
        "amount": 1_000_000,  # 1 credit
        "status": "active",
        "cap_per_user_day": 20,
        "cap_micro_credits_per_user_day": None,
    },
    {
        "rule_id": "forum_import",
        "source": "forum_import",
        "name": "Plan imported",
        "description": "Paid to the author of a plan for each user who imports it.",
        "amount": 5_000_000,  # 5 credits
        "status": "active",
        "cap_per_user_day": 10,
        "cap_micro_credits_per_user_day": None,
    },
)


_SUMS = (
    "input", "cached_input", "cache_write_5m", "cache_write_1h", "audio_input", "image_input",
    "output", "reasoning", "audio_output", "amount", "calls",
)  # fmt: skip
_TOKENS = _SUMS[:-2]
_CALL = "started_at - started_at % 900000, key_id, app, scene, provider, model_sent"
_FAILED = """
    CASE WHEN reason IN ('broken', 'failed_before_first_byte', 'upstream_error', 'upstream_timeout',
        'upstream_rejected', 'rate_limited', 'internal_error', 'guard_unavailable', 'shutting_down',
        'call_seconds_max', 'orphaned') THEN 1 ELSE 0 END
"""

# The hours cannot be cut into quarters, and know of no cancelled call: all is summed anew.
FILL_QUARTERS = f"""
    INSERT INTO usage_quarters (account, bucket_at, key_id, app, scene, provider, model,
        {", ".join(_SUMS)}, errors)
    SELECT account, bucket_at, key_id, app, scene, provider, model,
        {", ".join(f"SUM({name})" for name in _SUMS)}, SUM(errors)
    FROM (
        SELECT u.account, u.started_at - u.started_at % 900000 AS bucket_at, u.key_id, u.app,
            u.scene, u.provider, u.model_sent AS model, {", ".join(f"u.{n}" for n in _TOKENS)},
            u.amount, 1 AS calls, {_FAILED} AS errors
        FROM usage u
        JOIN ledger_entries e ON e.event_id = u.event_id AND e.usage_event_id = u.event_id
        LEFT JOIN ledger_entries f ON f.event_id = u.event_id || ':' || 'final'
        WHERE NOT u.cancelled AND u.revision = CASE WHEN f.event_id IS NULL
            THEN e.usage_revision ELSE f.usage_revision END
        UNION ALL
        SELECT account, {_CALL}, {", ".join("0" for _ in _TOKENS)}, 0, 1, {_FAILED}
        FROM usage WHERE cancelled
    ) AS words
    GROUP BY account, bucket_at, key_id, app, scene, provider, model
"""  # noqa: S608 - constants


def upgrade() -> None:
    """Make the tables, and the rules of the rewards that ship."""
    op.create_table(
        "admin_tokens",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "role IN ('owner', 'finance', 'operator', 'read_only')",
            name=op.f("ck_admin_tokens_role"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_admin_tokens")),
        sa.UniqueConstraint("name", name=op.f("uq_admin_tokens_name")),
        sa.UniqueConstraint("sha256", name=op.f("uq_admin_tokens_sha256")),
    )
    op.create_table(
        "corrections",
        sa.Column("event_id", ID, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("account", ID, nullable=False),
        sa.Column("ref_id", ID, nullable=True),
        sa.Column("wanted", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=True),
        sa.Column("hold_id", ID, nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("posted_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(kind = 'adjustment') = (ref_id IS NULL)", name=op.f("ck_corrections_ref_id")
        ),
        sa.CheckConstraint(
            "(wanted > 0 AND amount BETWEEN 0 AND wanted) OR"
            " (wanted < 0 AND amount BETWEEN wanted AND 0)",
            name=op.f("ck_corrections_amount"),
        ),
        sa.CheckConstraint(
            "posted_at IS NULL OR amount IS NOT NULL", name=op.f("ck_corrections_posted")
        ),
        sa.CheckConstraint(
            "kind IN ('adjustment', 'charge_refund', 'order_refund')",
            name=op.f("ck_corrections_kind"),
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_corrections")),
    )
    op.create_index(
        "ix_corrections_ref_id",
        "corrections",
        ["ref_id"],
        unique=False,
        sqlite_where=sa.text("ref_id IS NOT NULL"),
        postgresql_where=sa.text("ref_id IS NOT NULL"),
    )
    op.create_index(
        "ix_corrections_hold_id",
        "corrections",
        ["hold_id"],
        unique=False,
        sqlite_where=sa.text("hold_id IS NOT NULL"),
        postgresql_where=sa.text("hold_id IS NOT NULL"),
    )
    op.create_index(
        "ix_corrections_unposted",
        "corrections",
        ["event_id"],
        unique=False,
        sqlite_where=sa.text("posted_at IS NULL"),
        postgresql_where=sa.text("posted_at IS NULL"),
    )

    op.create_table(
        "limit_buckets",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("requests_level", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("requests_at", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("tokens_level", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("tokens_at", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_limit_buckets")),
    )
    op.create_table(
        "limit_leases",
        sa.Column("event_id", ID, nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("until_at", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_limit_leases")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_limit_leases_key_id", "limit_leases", ["key_id"], unique=False)

    op.create_table(
        "orders",
        sa.Column("order_id", ID, nullable=False),
        sa.Column("order_no", sa.Text(), nullable=False),
        sa.Column("account", ID, nullable=False),
        sa.Column("product_id", ID, nullable=False),
        sa.Column("product_snapshot", sa.Text(), nullable=False),
        sa.Column("product_name", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("credit_amount", sa.BigInteger(), nullable=False),
        sa.Column("amount_cent", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("payment_mode", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("payment_ref", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), server_default="", nullable=False),
        sa.Column("paid_by", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("paid_at", sa.BigInteger(), nullable=True),
        sa.Column("credited_at", sa.BigInteger(), nullable=True),
        sa.Column("cancelled_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(status = 'cancelled') = (cancelled_at IS NOT NULL)", name=op.f("ck_orders_cancelled")
        ),
        sa.CheckConstraint(
            "(status = 'credited') = (credited_at IS NOT NULL)", name=op.f("ck_orders_credited")
        ),
        sa.CheckConstraint(
            "(status IN ('paid', 'credited')) = (paid_at IS NOT NULL)", name=op.f("ck_orders_paid")
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'paid', 'credited', 'cancelled')", name=op.f("ck_orders_status")
        ),
        sa.CheckConstraint("amount_cent >= 0", name=op.f("ck_orders_amount_cent")),
        sa.CheckConstraint("credit_amount > 0", name=op.f("ck_orders_credit_amount")),
        sa.CheckConstraint("length(account) BETWEEN 1 AND 64", name=op.f("ck_orders_account")),
        sa.CheckConstraint("quantity >= 1", name=op.f("ck_orders_quantity")),
        sa.PrimaryKeyConstraint("order_id", name=op.f("pk_orders")),
        sa.UniqueConstraint(
            "account", "idempotency_key", name=op.f("uq_orders_account_idempotency_key")
        ),
        sa.UniqueConstraint("order_no", name=op.f("uq_orders_order_no")),
    )
    op.create_index("ix_orders_account", "orders", ["account", "order_id"], unique=False)
    op.create_index(
        "ix_orders_pending",
        "orders",
        ["account"],
        unique=False,
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "ix_orders_paid",
        "orders",
        ["order_id"],
        unique=False,
        sqlite_where=sa.text("status = 'paid'"),
        postgresql_where=sa.text("status = 'paid'"),
    )

    op.create_table(
        "products",
        sa.Column("product_id", ID, nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("credit_amount", sa.BigInteger(), nullable=False),
        sa.Column("price_cent", sa.BigInteger(), nullable=False),
        sa.Column(
            "original_price_cent", sa.BigInteger(), server_default=sa.text("0"), nullable=False
        ),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("badge", sa.Text(), server_default="", nullable=False),
        sa.Column("sort_order", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("status IN ('active', 'inactive')", name=op.f("ck_products_status")),
        sa.CheckConstraint("credit_amount > 0", name=op.f("ck_products_credit_amount")),
        sa.CheckConstraint("length(currency) = 3", name=op.f("ck_products_currency")),
        sa.CheckConstraint("price_cent >= 0", name=op.f("ck_products_price_cent")),
        sa.PrimaryKeyConstraint("product_id", name=op.f("pk_products")),
        sa.UniqueConstraint("sku", name=op.f("uq_products_sku")),
    )
    op.create_table(
        "reward_rules",
        sa.Column("rule_id", ID, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("cap_per_user_day", sa.BigInteger(), nullable=True),
        sa.Column("cap_micro_credits_per_user_day", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("status IN ('active', 'inactive')", name=op.f("ck_reward_rules_status")),
        sa.CheckConstraint("amount > 0", name=op.f("ck_reward_rules_amount")),
        sa.CheckConstraint(
            "cap_micro_credits_per_user_day IS NULL OR cap_micro_credits_per_user_day > 0",
            name=op.f("ck_reward_rules_cap_micro_credits"),
        ),
        sa.CheckConstraint(
            "cap_per_user_day IS NULL OR cap_per_user_day > 0", name=op.f("ck_reward_rules_cap")
        ),
        sa.PrimaryKeyConstraint("rule_id", name=op.f("pk_reward_rules")),
    )
    op.create_index(
        "uq_reward_rules_active_source",
        "reward_rules",
        ["source"],
        unique=True,
        sqlite_where=sa.text("status = 'active'"),
        postgresql_where=sa.text("status = 'active'"),
    )

    op.create_table(
        "rewards",
        sa.Column("event_id", ID, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("source_ref_id", sa.Text(), nullable=False),
        sa.Column("account", ID, nullable=False),
        sa.Column("acting_user", sa.Text(), server_default="", nullable=False),
        sa.Column("rule_id", ID, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("posted_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("amount > 0", name=op.f("ck_rewards_amount")),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_rewards")),
    )
    op.create_index("ix_rewards_account", "rewards", ["account", "source", "day"], unique=False)
    op.create_index(
        "ix_rewards_unposted",
        "rewards",
        ["event_id"],
        unique=False,
        sqlite_where=sa.text("posted_at IS NULL"),
        postgresql_where=sa.text("posted_at IS NULL"),
    )

    op.create_table(
        "usage_quarters",
        sa.Column("account", ID, nullable=False),
        sa.Column("bucket_at", sa.BigInteger(), nullable=False),
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
        sa.Column("errors", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint(
            "account",
            "bucket_at",
            "key_id",
            "app",
            "scene",
            "provider",
            "model",
            name=op.f("pk_usage_quarters"),
        ),
        sqlite_with_rowid=False,
    )
    op.execute(FILL_QUARTERS)
    op.drop_table("usage_hourly")
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.BigInteger(), nullable=True))
    op.add_column("api_keys", sa.Column("tokens_per_minute", sa.BigInteger(), nullable=True))
    op.add_column("api_keys", sa.Column("concurrent_calls", sa.BigInteger(), nullable=True))
    op.add_column("api_keys", sa.Column("replaced_by", sa.Text(), nullable=True))

    op.create_index(
        "ix_usage_run",
        "usage",
        ["account", "run_id"],
        unique=False,
        sqlite_where=sa.text("run_id <> ''"),
        postgresql_where=sa.text("run_id <> ''"),
    )
    _add_reward_rules()
    if op.get_bind().dialect.name == "postgresql":
        # Rows that are changed often find room on their page, and no index has to know of it.
        op.execute("ALTER TABLE limit_buckets SET (fillfactor = 50)")
        # Its rows live as long as a call.
        op.execute(
            "ALTER TABLE limit_leases SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02,"
            " autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0)"
        )


def _add_reward_rules() -> None:
    columns = (
        *(sa.column(name, sa.Text) for name in ("rule_id", "source", "name", "description")),
        sa.column("amount", sa.BigInteger),
        sa.column("status", sa.Text),
        sa.column("cap_per_user_day", sa.BigInteger),
        sa.column("cap_micro_credits_per_user_day", sa.BigInteger),
        sa.column("created_at", sa.BigInteger),
        sa.column("updated_at", sa.BigInteger),
    )
    now_ms = time.time_ns() // 1_000_000
    times = {"created_at": now_ms, "updated_at": now_ms}
    op.bulk_insert(sa.table("reward_rules", *columns), [rule | times for rule in REWARD_RULES])


def _bring_back_hours() -> None:
    """Sums of hours out of those of quarters; that they know of cancelled calls, a repair mends."""
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
    op.execute(
        f"""
        INSERT INTO usage_hourly (account, hour_at, key_id, app, scene, provider, model,
            {", ".join(_SUMS)})
        SELECT account, bucket_at - bucket_at % 3600000, key_id, app, scene, provider, model,
            {", ".join(f"SUM({name})" for name in _SUMS)}
        FROM usage_quarters
        GROUP BY account, bucket_at - bucket_at % 3600000, key_id, app, scene, provider, model
        """  # noqa: S608 - constants
    )


def downgrade() -> None:
    """Drop all of it. Entries of orders and rewards stay in the ledger."""
    op.drop_index("ix_usage_run", table_name="usage")
    for column in ("replaced_by", "concurrent_calls", "tokens_per_minute", "requests_per_minute"):
        op.drop_column("api_keys", column)
    _bring_back_hours()
    op.drop_table("usage_quarters")
    op.drop_table("rewards")
    op.drop_table("reward_rules")
    op.drop_table("products")
    op.drop_table("orders")
    op.drop_table("limit_leases")
    op.drop_table("limit_buckets")
    op.drop_table("corrections")
    op.drop_table("admin_tokens")
