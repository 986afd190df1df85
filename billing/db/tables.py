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

# Derived: the calls in the ledger by the hour in which they began, kept by the settling transaction.
# Wiped, it can be made again from usage and ledger (billing.settlement.reconcile).
usage_hourly = Table(
    "usage_hourly",
    metadata,
    Column("account", Text, nullable=False),
    _at("hour_at"),  # the hour's first millisecond
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
    PrimaryKeyConstraint("account", "hour_at", "key_id", "app", "scene", "provider", "model"),
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


def append_only_triggers(table: str) -> list[str]:
    """SQLite's triggers that refuse to change or delete a row of `table`."""
    return [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ]


# An exception of this class reads as what it is: a constraint that was about to be broken.
REFUSE_CHANGE: Final = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$
"""


def append_only_triggers_on_postgres(table: str) -> list[str]:
    """PostgreSQL's; those for rows hold for partitions too, that for TRUNCATE does not."""
    return [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}"
        f" FOR EACH {'STATEMENT' if verb == 'TRUNCATE' else 'ROW'}"
        " EXECUTE FUNCTION refuse_change()"
        for verb in ("UPDATE", "DELETE", "TRUNCATE")
    ]
