"""Every table of the database, as SQLAlchemy Core; amounts in micro-credits, times in milliseconds since the epoch."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)

ACCOUNT_ID_LENGTH_MAX: Final = 64

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# Ids sort by their bytes, whatever the language of the server: UUIDv7 so by time.
_ID: Final = Text().with_variant(Text(collation="C"), "postgresql")

# SQLite only makes an INTEGER primary key its row id; PostgreSQL gets a BIGINT identity.
_ROW_ID: Final = BigInteger().with_variant(Integer(), "sqlite")


def _amount(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def _at(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _words(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def _tokens(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


accounts = Table(
    "accounts",
    metadata,
    Column("account", _ID, primary_key=True),
    _words("name"),
    _words("note"),
    _amount("balance"),
    _amount("held"),
    Column("seq", BigInteger, nullable=False, server_default=text("0")),
    _amount("total_recharged"),
    _amount("total_rewarded"),
    _amount("total_consumed"),
    _amount("total_refunded"),
    _amount("total_expired"),
    _amount("total_adjusted"),
    Column("suspended", Boolean, nullable=False, server_default=false()),
    _words("suspended_reason"),
    Column("guard_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("last_ledger_event_id", _ID),
    _at("created_at"),
    _at("updated_at"),
    CheckConstraint(f"length(account) BETWEEN 1 AND {ACCOUNT_ID_LENGTH_MAX}", name="account"),
    CheckConstraint(
        "balance = total_recharged + total_rewarded - total_consumed - total_refunded"
        " - total_expired + total_adjusted",
        name="balance_is_sum_of_totals",
    ),
    CheckConstraint("held >= 0", name="held"),
    CheckConstraint("seq >= 0", name="seq"),
    # Few; every process asks for them each second where holds live in Redis.
    Index(
        "ix_accounts_suspended",
        "account",
        sqlite_where=text("suspended = 1"),
        postgresql_where=text("suspended"),
    ),
)

# Append-only: triggers of the migration refuse UPDATE and DELETE.
ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("event_id", _ID, primary_key=True),
    Column("account", _ID, nullable=False),
    Column("account_seq", BigInteger),  # NULL: recorded while the account had no row
    Column("source", Text, nullable=False),
    _words("source_label"),
    Column("direction", Text, nullable=False),
    Column("order_id", Text),
    Column("source_ref_id", Text),
    Column("amount", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    _words("description"),
    Column("metadata_json", Text, nullable=False, server_default="{}"),
    Column("balance_before", BigInteger, nullable=False),
    Column("balance_after", BigInteger, nullable=False),
    Column("payload_hash", Text, nullable=False),
    Column("usage_event_id", _ID),  # the call that a charge belongs to
    Column("usage_revision", Integer),  # 1 a sweeper's estimate, 2 the owner's final
    _at("created_at"),  # as the entry says
    _at("posted_at"),  # when it was written
    UniqueConstraint("account", "account_seq"),
    # Corrections and rewards only: a charge has none, and pays nothing for the index.
    Index(
        "ix_ledger_entries_source_ref_id",
        "source_ref_id",
        sqlite_where=text("source_ref_id IS NOT NULL"),
        postgresql_where=text("source_ref_id IS NOT NULL"),
    ),
    CheckConstraint("direction IN ('income', 'expense')", name="direction"),
    CheckConstraint(
        "(direction = 'income' AND amount >= 0) OR (direction = 'expense' AND amount <= 0)",
        name="sign",
    ),
    CheckConstraint(
        "balance_after = balance_before + CASE WHEN status = 'applied' THEN amount ELSE 0 END",
        name="balance_after",
    ),
    CheckConstraint("account_seq IS NOT NULL OR balance_after = 0", name="without_account"),
)

# Append-only, like the ledger. One row per revision of a call.
usage = Table(
    "usage",
    metadata,
    Column("event_id", _ID, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("cancelled", Boolean, nullable=False, server_default=false()),
    Column("account", _ID, nullable=False),
    Column("key_id", Text, nullable=False),
    _words("app"),
    Column("scene", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model_requested", Text, nullable=False),
    Column("model_sent", Text, nullable=False),
    _words("run_id"),
    _words("client_request_id"),
    Column("book", BigInteger, nullable=False),
    Column("rule", Text, nullable=False),
    _tokens("input"),
    _tokens("cached_input"),
    _tokens("cache_write_5m"),
    _tokens("cache_write_1h"),
    _tokens("audio_input"),
    _tokens("image_input"),
    _tokens("output"),
    _tokens("reasoning"),
    _tokens("audio_output"),
    Column("quality", Text, nullable=False),
    Column("usage_source", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("ceiling", BigInteger, nullable=False),
    _words("reason"),
    Column("raw_usage", LargeBinary),
    _words("upstream_request_id"),
    Column("failed_attempts", Integer, nullable=False, server_default=text("0")),
    Column("payload_hash", Text, nullable=False),
    _at("started_at"),
    _at("finished_at"),
    PrimaryKeyConstraint("event_id", "revision"),
    CheckConstraint("amount >= 0", name="amount"),
    CheckConstraint("revision IN (1, 2)", name="revision"),
    CheckConstraint("NOT cancelled OR (amount = 0 AND revision = 2)", name="cancelled"),
    # A sweeper's estimates only, which are few: what an account holds beside its balance.
    Index(
        "ix_usage_estimates",
        "account",
        sqlite_where=text("revision = 1"),
        postgresql_where=text("revision = 1"),
    ),
    # Calls that name the run they belong to, for what a run has cost.
    Index(
        "ix_usage_run",
        "account",
        "run_id",
        sqlite_where=text("run_id <> ''"),
        postgresql_where=text("run_id <> ''"),
    ),
    postgresql_partition_by="RANGE (event_id)",  # by month; see billing.db.partitions
)

# What the ledger worker has yet to post; only the settling transaction deletes a row.
outbox = Table(
    "outbox",
    metadata,
    Column("event_id", _ID, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("cancelled", Boolean, nullable=False, server_default=false()),
    Column("account", _ID, nullable=False),
    Column("payload", LargeBinary, nullable=False),  # the charge event, as JSON
    Column("payload_hash", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("claimed_by", Text),
    Column("claimed_at", BigInteger),
    Column("published_at", BigInteger),
    _at("created_at"),
    PrimaryKeyConstraint("event_id", "revision"),
    sqlite_with_rowid=False,
)

holds = Table(
    "holds",
    metadata,
    Column("hold_id", _ID, primary_key=True),
    Column("account", _ID, nullable=False),
    Column("amount", BigInteger, nullable=False),
    _amount("progress"),
    Column("state", Text, nullable=False, server_default="live"),  # or "residual"
    Column("process", Text, nullable=False),
    _at("started_at"),
    Column("context", LargeBinary, nullable=False),  # billing.context.encode_context
    CheckConstraint("amount >= 0", name="amount"),
    CheckConstraint("state IN ('live', 'residual')", name="state"),
    sqlite_with_rowid=False,
)

# Events and holds that cannot be posted as they are; a person decides.
quarantine = Table(
    "quarantine",
    metadata,
    Column("id", _ROW_ID, primary_key=True),
    Column("event_id", _ID, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("account", _ID, nullable=False),
    Column("origin", Text, nullable=False),  # "outbox", "spool" or "hold"
    Column("reason", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    _at("created_at"),
    Column("resolved_at", BigInteger),
    _words("resolution"),
    Index("ix_quarantine_event_id", "event_id"),
)

# Append-only: a version never changes. What is in effect when is a matter of the activations.
price_books = Table(
    "price_books",
    metadata,
    Column("version", _ROW_ID, primary_key=True),
    _words("name"),
    Column("toml", Text, nullable=False),
    Column("sha256", Text, nullable=False, unique=True),
    Column("rules", Integer, nullable=False, server_default=text("0")),
    _words("uploaded_by"),
    _at("created_at"),
)

# Append-only. Of the activations whose time has come, the latest holds (a tie: the later row).
price_book_activations = Table(
    "price_book_activations",
    metadata,
    Column("id", _ROW_ID, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("effective_from", BigInteger, nullable=False),
    _words("activated_by"),
    _at("created_at"),
    Index("ix_price_book_activations_effective_from", "effective_from"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("sha256", Text, nullable=False, unique=True),
    Column("prefix", Text, nullable=False),
    Column("account", _ID),
    _words("app"),
    Column("accounts", Text),  # JSON array; NULL: any account
    _words("default_scene"),
    Column("scenes", Text),  # JSON array; NULL: any scene
    Column("models", Text),  # JSON array; NULL: any model
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    _at("created_at"),
    _words("note"),
    Column("requests_per_minute", BigInteger),  # NULL: no limit; so are the next two
    Column("tokens_per_minute", BigInteger),
    Column("concurrent_calls", BigInteger),
    Column("replaced_by", Text),  # the key made by a rotation; this one is good until expires_at
    CheckConstraint("kind IN ('user', 'app')", name="kind"),
    Index("ix_api_keys_account", "account"),
)

admin_audit = Table(
    "admin_audit",
    metadata,
    Column("id", _ROW_ID, primary_key=True),
    _at("at"),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    _words("target"),
    Column("detail_json", Text, nullable=False, server_default="{}"),
)


def _rollup(name: str) -> Table:
    """Sums of calls by account, time, key, app, scene, provider and model."""
    return Table(
        name,
        metadata,
        Column("account", _ID, nullable=False),
        _at("bucket_at"),  # the first millisecond of the quarter, or day
        Column("key_id", Text, nullable=False),
        Column("app", Text, nullable=False),
        Column("scene", Text, nullable=False),
        Column("provider", Text, nullable=False),
        Column("model", Text, nullable=False),  # as sent to the provider
        _tokens("input"),
        _tokens("cached_input"),
        _tokens("cache_write_5m"),
        _tokens("cache_write_1h"),
        _tokens("audio_input"),
        _tokens("image_input"),
        _tokens("output"),
        _tokens("reasoning"),
        _tokens("audio_output"),
        _amount("amount"),
        Column("calls", BigInteger, nullable=False, server_default=text("0")),
        Column("errors", BigInteger, nullable=False, server_default=text("0")),
        PrimaryKeyConstraint("account", "bucket_at", "key_id", "app", "scene", "provider", "model"),
        sqlite_with_rowid=False,
    )


# Derived: the calls in the ledger by the quarter of an hour in which they began, cancelled ones
# included; kept by the settling transaction, and by the one that records a cancelled call. Wiped, it
# can be made again from usage and ledger (billing.settlement.reconcile).
usage_quarters = _rollup("usage_quarters")

# Derived: the sums of an account's quarters by days (UTC), of those days that are folded.
usage_days = _rollup("usage_days")

# An account's day, once it is folded or something was settled late in it (billing.settlement.day_fold).
folded_days = Table(
    "folded_days",
    metadata,
    Column("account", _ID, nullable=False),
    _at("day_at"),
    # Whether usage_days holds all of the day; if not, it is to be folded anew.
    Column("whole", Boolean, nullable=False),
    PrimaryKeyConstraint("account", "day_at"),
    Index(
        "ix_folded_days_to_fold",
        "account",
        "day_at",
        sqlite_where=text("NOT whole"),
        postgresql_where=text("NOT whole"),
    ),
    sqlite_with_rowid=False,
)

products = Table(
    "products",
    metadata,
    Column("product_id", _ID, primary_key=True),
    Column("sku", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    _words("description"),
    Column("credit_amount", BigInteger, nullable=False),  # micro-credits for one of it
    Column("price_cent", BigInteger, nullable=False),
    _amount("original_price_cent"),  # 0 or less reads as the price
    Column("currency", Text, nullable=False),
    _words("badge"),
    Column("sort_order", BigInteger, nullable=False, server_default=text("0")),
    Column("status", Text, nullable=False, server_default="active"),
    _at("created_at"),
    _at("updated_at"),
    CheckConstraint("credit_amount > 0", name="credit_amount"),
    CheckConstraint("price_cent >= 0", name="price_cent"),
    CheckConstraint("length(currency) = 3", name="currency"),
    CheckConstraint("status IN ('active', 'inactive')", name="status"),
)

# What was bought is frozen in the snapshot: later changes of the product change no order.
orders = Table(
    "orders",
    metadata,
    Column("order_id", _ID, primary_key=True),  # UUIDv7: sorts by time
    Column("order_no", Text, nullable=False, unique=True),
    Column("account", _ID, nullable=False),
    Column("product_id", _ID, nullable=False),
    Column("product_snapshot", Text, nullable=False),  # JSON
    Column("product_name", Text, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("credit_amount", BigInteger, nullable=False),  # micro-credits of the whole order
    Column("amount_cent", BigInteger, nullable=False),  # price of the whole order
    Column("currency", Text, nullable=False),
    Column("payment_mode", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("idempotency_key", Text),  # NULL: the client gave none
    Column("request_hash", Text, nullable=False),  # of what was ordered, to compare by
    Column("payment_ref", Text),  # the payment's id where the money was taken
    _words("created_by"),
    Column("paid_by", Text),
    _at("created_at"),
    Column("paid_at", BigInteger),
    Column("credited_at", BigInteger),
    Column("cancelled_at", BigInteger),
    UniqueConstraint("account", "idempotency_key"),
    CheckConstraint(f"length(account) BETWEEN 1 AND {ACCOUNT_ID_LENGTH_MAX}", name="account"),
    CheckConstraint("quantity >= 1", name="quantity"),
    CheckConstraint("credit_amount > 0", name="credit_amount"),
    CheckConstraint("amount_cent >= 0", name="amount_cent"),
    CheckConstraint("status IN ('pending', 'paid', 'credited', 'cancelled')", name="status"),
    CheckConstraint("(status IN ('paid', 'credited')) = (paid_at IS NOT NULL)", name="paid"),
    CheckConstraint("(status = 'credited') = (credited_at IS NOT NULL)", name="credited"),
    CheckConstraint("(status = 'cancelled') = (cancelled_at IS NOT NULL)", name="cancelled"),
    Index("ix_orders_account", "account", "order_id"),
    Index(
        "ix_orders_pending",
        "account",
        sqlite_where=text("status = 'pending'"),
        postgresql_where=text("status = 'pending'"),
    ),
    # Paid and not yet credited: none, but for a moment or after a crash.
    Index(
        "ix_orders_paid",
        "order_id",
        sqlite_where=text("status = 'paid'"),
        postgresql_where=text("status = 'paid'"),
    ),
)

reward_rules = Table(
    "reward_rules",
    metadata,
    Column("rule_id", _ID, primary_key=True),
    Column("source", Text, nullable=False),  # also the source of the entries that it makes
    Column("name", Text, nullable=False),
    _words("description"),
    Column("amount", BigInteger, nullable=False),  # micro-credits
    Column("status", Text, nullable=False, server_default="active"),
    Column("cap_per_user_day", BigInteger),  # rewards paid; NULL: no cap
    Column("cap_micro_credits_per_user_day", BigInteger),
    _at("created_at"),
    _at("updated_at"),
    CheckConstraint("amount > 0", name="amount"),
    CheckConstraint("status IN ('active', 'inactive')", name="status"),
    CheckConstraint("cap_per_user_day IS NULL OR cap_per_user_day > 0", name="cap"),
    CheckConstraint(
        "cap_micro_credits_per_user_day IS NULL OR cap_micro_credits_per_user_day > 0",
        name="cap_micro_credits",
    ),
    Index(
        "uq_reward_rules_active_source",
        "source",
        unique=True,
        sqlite_where=text("status = 'active'"),
        postgresql_where=text("status = 'active'"),
    ),
)

# One row for each reward, written before its entry: what counts against the caps of its day.
rewards = Table(
    "rewards",
    metadata,
    Column("event_id", _ID, primary_key=True),  # reward:{source}:{source_ref_id}, as its entry's
    Column("source", Text, nullable=False),
    Column("source_ref_id", Text, nullable=False),
    Column("account", _ID, nullable=False),  # who is paid
    _words("acting_user"),
    Column("rule_id", _ID, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("day", Integer, nullable=False),  # yyyymmdd, UTC
    _at("created_at"),
    Column("posted_at", BigInteger),  # NULL: its entry is still to be posted
    CheckConstraint("amount > 0", name="amount"),
    Index("ix_rewards_account", "account", "source", "day"),
    Index(
        "ix_rewards_unposted",
        "event_id",
        sqlite_where=text("posted_at IS NULL"),
        postgresql_where=text("posted_at IS NULL"),
    ),
)

# One row for each adjustment and refund, written before its entry: what was promised already.
corrections = Table(
    "corrections",
    metadata,
    Column("event_id", _ID, primary_key=True),  # as its entry's
    Column("kind", Text, nullable=False),
    Column("account", _ID, nullable=False),
    Column("ref_id", _ID),  # the charge or order that is refunded
    Column("wanted", BigInteger, nullable=False),  # micro-credits as asked for, signed as the entry
    Column("amount", BigInteger),  # as granted, never further from 0 than `wanted`; NULL: not yet
    Column("hold_id", _ID),  # of the credit held meanwhile; NULL: an income needs none
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    _at("created_at"),
    Column("posted_at", BigInteger),  # NULL: its entry is still to be posted
    CheckConstraint("kind IN ('adjustment', 'charge_refund', 'order_refund')", name="kind"),
    CheckConstraint("(kind = 'adjustment') = (ref_id IS NULL)", name="ref_id"),
    CheckConstraint(
        "(wanted > 0 AND amount BETWEEN 0 AND wanted) OR"
        " (wanted < 0 AND amount BETWEEN wanted AND 0)",
        name="amount",
    ),
    CheckConstraint("posted_at IS NULL OR amount IS NOT NULL", name="posted"),
    Index(
        "ix_corrections_ref_id",
        "ref_id",
        sqlite_where=text("ref_id IS NOT NULL"),
        postgresql_where=text("ref_id IS NOT NULL"),
    ),
    # Whose a hold is that no living process answers for.
    Index(
        "ix_corrections_hold_id",
        "hold_id",
        sqlite_where=text("hold_id IS NOT NULL"),
        postgresql_where=text("hold_id IS NOT NULL"),
    ),
    Index(
        "ix_corrections_unposted",
        "event_id",
        sqlite_where=text("posted_at IS NULL"),
        postgresql_where=text("posted_at IS NULL"),
    ),
)

# One row for each run of re-rating, written before its entries: how far it is, what it has posted.
rerating_runs = Table(
    "rerating_runs",
    metadata,
    Column("run_id", _ID, primary_key=True),
    Column("book", BigInteger, nullable=False),  # by which the calls are charged
    _at("from_at"),  # calls that began then
    _at("to_at"),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="posting"),
    Column("cursor", _ID, nullable=False, server_default=""),  # up to this call all is done
    Column("calls", BigInteger, nullable=False, server_default=text("0")),
    Column("entries", BigInteger, nullable=False, server_default=text("0")),
    _amount("taken"),  # micro-credits; so is the next
    _amount("given_back"),
    Column("left_out", Text, nullable=False, server_default="{}"),  # JSON: calls by reason
    _at("created_at"),
    Column("finished_at", BigInteger),
    CheckConstraint("from_at < to_at", name="window"),
    CheckConstraint("state IN ('posting', 'done')", name="state"),
    CheckConstraint("(state = 'done') = (finished_at IS NOT NULL)", name="finished"),
    CheckConstraint("taken >= 0 AND given_back >= 0", name="amounts"),
    # One at a time.
    Index(
        "uq_rerating_runs_posting",
        "state",
        unique=True,
        sqlite_where=text("state = 'posting'"),
        postgresql_where=text("state = 'posting'"),
    ),
)

# What runs of re-rating hold, or held: written before it is held, so that it is known for no call's.
# The next run clears what the last one left.
rerating_holds = Table(
    "rerating_holds",
    metadata,
    Column("hold_id", _ID, primary_key=True),
    Column("run_id", _ID, nullable=False),
    Column("done_at", BigInteger),  # NULL: its debits are still to be posted
    sqlite_with_rowid=False,
)

admin_tokens = Table(
    "admin_tokens",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", Text, nullable=False, unique=True),  # the actor of the audit trail
    Column("role", Text, nullable=False),
    Column("sha256", Text, nullable=False, unique=True),
    Column("prefix", Text, nullable=False),
    _words("created_by"),
    _at("created_at"),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    CheckConstraint("role IN ('owner', 'finance', 'operator', 'read_only')", name="role"),
)

# The rate limits of keys where neither Redis nor one process alone keeps them: levels of token
# buckets, in sixty-thousandths (billing.limits.bucket).
limit_buckets = Table(
    "limit_buckets",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("requests_level", BigInteger, nullable=False, server_default=text("0")),
    _amount("requests_at"),
    Column("tokens_level", BigInteger, nullable=False, server_default=text("0")),
    _amount("tokens_at"),
)

# Calls that run, one row each: what they take of the concurrency and of the tokens of their key.
limit_leases = Table(
    "limit_leases",
    metadata,
    Column("event_id", _ID, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("process", Text, nullable=False),
    _at("until_at"),
    _tokens("tokens"),
    Index("ix_limit_leases_key_id", "key_id"),
    sqlite_with_rowid=False,
)

# Which processes serve this database; read by whoever sweeps the holds of dead ones.
processes = Table(
    "processes",
    metadata,
    Column("process", Text, primary_key=True),
    _words("host"),
    Column("pid", BigInteger, nullable=False, server_default=text("0")),
    _at("started_at"),
    _at("heartbeat_at"),
    Column("heartbeats", BigInteger, nullable=False, server_default=text("0")),
    # How far the process has followed a recovery of Redis: billing.holds.ledger_view.step.
    Column("guard_step", BigInteger, nullable=False, server_default=text("0")),
    # Whether it may hold credit: a recovery of Redis waits for no other.
    Column("may_hold", Boolean, nullable=False, server_default=true()),
    # Its spool's directory (billing.settlement.late_finals), and whether something may lie there.
    _words("spool"),
    Column("spool_pending", Boolean, nullable=False, server_default=false()),
    Column("ended_at", BigInteger),
)

meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

APPEND_ONLY: Final = (
    "ledger_entries",
    "usage",
    "price_books",
    "price_book_activations",
    "admin_audit",
)
