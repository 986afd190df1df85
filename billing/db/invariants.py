"""What must hold in the database at any moment: the registry of read-only checks, the same SQL for both engines.

`billing.settlement.reconcile` runs them, and so do `doctor` and the tests. A check is a query that
gives (id, what) for each violation. R9 belongs to lots, R11 to provider invoices.
"""

import re
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection, text

EXAMPLES_MAX: Final = 10
QUARTER_MS: Final = 900_000  # a bucket of the rollup: fits every time zone there is
DAY_MS: Final = 86_400_000
STALE_MS: Final = 60_000  # a charge that waits longer than this is no longer on its way
FLOW_MS: Final = 900_000  # R10 looks at the calls of so long
HOLD_MARGIN_MS: Final = 300_000  # beyond the longest call: sweeper and settlement take their time
UUID_DIGITS: Final = 32
TAIL_ENTRIES: Final = 1_000  # of each account, in a recent check


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """An invariant: `full` looks at everything, `recent` at what changed of late.

    recent None: the check is too dear to run often. Their parameters: `Window`.
    """

    name: str
    sentence: str
    full: str
    recent: str | None


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of all checks: times in milliseconds since the epoch, and ids made then."""

    since_at: int  # what changed earlier is left out
    since_id: str
    since_bucket: int
    since_bucket_id: str
    stale_before: int
    flow_from: int
    flow_to: int
    flow_id: str
    holds_before: int  # no call that began earlier can run any more


def window(now: int, *, recent_ms: int | None, call_ms_max: int, oldest_id: str = "") -> Window:
    """The parameters of a run; recent_ms None: everything is looked at.

    `oldest_id`: of the usage that there still is. Calls from before are archived: the ledger and
    the rollup know of them, and have nothing to be compared with.
    """
    since = 0 if recent_ms is None else now - recent_ms
    # A call is recorded at its end, but its id was made at its begin.
    began = max(0, since - call_ms_max, time_of(oldest_id))
    bucket = began - began % QUARTER_MS
    flow_from = now - FLOW_MS
    return Window(
        since_at=since,
        since_id=first_id(began),
        since_bucket=bucket,
        since_bucket_id=first_id(max(0, bucket - STALE_MS)),
        stale_before=now - STALE_MS,
        flow_from=flow_from,
        flow_to=now - STALE_MS,
        flow_id=first_id(flow_from - call_ms_max),
        holds_before=now - call_ms_max - HOLD_MARGIN_MS,
    )


def first_id(at_ms: int) -> str:
    """An id that no event made at `at_ms` or later sorts before; "" for the epoch.

    The first 48 bits of a UUIDv7 are its time: https://www.rfc-editor.org/rfc/rfc9562#section-5.7
    """
    if at_ms <= 0:
        return ""
    return f"{at_ms >> 16:08x}-{at_ms & 0xFFFF:04x}-0000-0000-000000000000"


def time_of(event_id: str) -> int:
    """When an id was made, in milliseconds since the epoch; 0 if it is no UUIDv7."""
    digits = event_id.replace("-", "")
    if len(digits) != UUID_DIGITS or digits[12] != "7":
        return 0
    try:
        return int(digits[:12], 16)
    except ValueError:
        return 0


OLDEST_USAGE: Final = "SELECT MIN(event_id) FROM usage"

_TOKENS: Final = (
    "input", "cached_input", "cache_write_5m", "cache_write_1h", "audio_input", "image_input",
    "output", "reasoning", "audio_output",
)  # fmt: skip
ROLLUP_KEY: Final = ("account", "bucket_at", "key_id", "app", "scene", "provider", "model")
ROLLUP_SUMS: Final = (*_TOKENS, "amount", "calls", "errors")

# What `usage.reason` says of a call that got no whole answer. No failures are what the client broke
# off ("client_gone"), what ran out of its account's credit ("exhausted"), an answer that was ended
# early but validly ("cut"), an answer of nothing ("empty"), a hold that an administrator released
# ("released"), and every doubt about a provider's usage report.
FAILURES: Final = (
    "broken",  # the provider broke off in the middle of its answer
    "failed_before_first_byte",
    "upstream_error",
    "upstream_timeout",
    "upstream_rejected",  # the provider found the request wrong
    "rate_limited",  # by the provider: our own limits come before a hold
    "internal_error",
    "guard_unavailable",
    "shutting_down",
    "call_seconds_max",
    "orphaned",  # the process that served the call died
)


def _bucket(table: str = "") -> str:
    return f"{table}started_at - {table}started_at % {QUARTER_MS}"


def _is_failure(table: str = "") -> str:
    reasons = ", ".join(f"'{reason}'" for reason in FAILURES)
    return f"CASE WHEN {table}reason IN ({reasons}) THEN 1 ELSE 0 END"


_NO_TOKENS: Final = ", ".join("0" for _ in _TOKENS)

# Of a row of `usage`: the bucket that it belongs to, and 1 if it tells of a failure.
BUCKET: Final = _bucket()
IS_FAILURE: Final = _is_failure()

# A row of the rollup out of a cancelled call: it counts, and nothing was used or charged.
CANCELLED: Final = f"""{BUCKET}, key_id, app, scene, provider, model_sent, {_NO_TOKENS}, 0,
    1, {IS_FAILURE}"""

# Of each call in the ledger, the word that holds: the final if it was posted, else the estimate.
# A cancelled call counts from its record on; of an estimate that it takes back nothing is left.
_WORDS: Final = f"""
    SELECT u.account, {_bucket("u.")} AS bucket_at, u.key_id, u.app, u.scene,
        u.provider, u.model_sent AS model, {", ".join(f"u.{name}" for name in _TOKENS)},
        u.amount, 1 AS calls, {_is_failure("u.")} AS errors
    FROM usage u
    JOIN ledger_entries e ON e.event_id = u.event_id AND e.usage_event_id = u.event_id
    LEFT JOIN ledger_entries f ON f.event_id = u.event_id || ':' || 'final'
    WHERE NOT u.cancelled AND u.event_id >= :since_bucket_id AND u.started_at >= :since_bucket
        AND u.revision = CASE WHEN f.event_id IS NULL THEN e.usage_revision
            ELSE f.usage_revision END
    UNION ALL
    SELECT account, {CANCELLED}
    FROM usage
    WHERE cancelled AND event_id >= :since_bucket_id AND started_at >= :since_bucket
"""  # noqa: S608 - constants

# The estimates of calls whose finals take their place, as rows of the rollup; the ids follow.
ESTIMATES: Final = f"""
    SELECT account, {BUCKET}, key_id, app, scene, provider, model_sent,
        {", ".join(_TOKENS)}, amount, 1, {IS_FAILURE}
    FROM usage WHERE revision = 1 AND event_id IN
"""  # noqa: S608 - constants

# Which of some words on calls are of failures; their ids follow.
FAILED: Final = f"""
    SELECT event_id, revision FROM usage WHERE {IS_FAILURE} = 1 AND event_id IN
"""  # noqa: S608 - constants

# The groups in which rollup and calls differ, and by how much the rollup has too little.
ROLLUP_DIFFERENCES: Final = f"""
    SELECT {", ".join(ROLLUP_KEY)}, {", ".join(f"SUM({name}) AS {name}" for name in ROLLUP_SUMS)}
    FROM (
        SELECT {", ".join(ROLLUP_KEY)}, {", ".join(ROLLUP_SUMS)} FROM ({_WORDS}) AS words
        UNION ALL
        SELECT {", ".join(ROLLUP_KEY)}, {", ".join(f"-{name}" for name in ROLLUP_SUMS)}
        FROM usage_quarters WHERE bucket_at >= :since_bucket
    ) AS both_sides
    GROUP BY {", ".join(ROLLUP_KEY)}
    HAVING {" OR ".join(f"SUM({name}) <> 0" for name in ROLLUP_SUMS)}
"""  # noqa: S608 - constants

# The groups in which a folded day differs from its quarters, and by how much it has too much.
DAY_DIFFERENCES: Final = f"""
    SELECT {", ".join(ROLLUP_KEY)}, {", ".join(f"SUM({name}) AS {name}" for name in ROLLUP_SUMS)}
    FROM (
        SELECT {", ".join(f"d.{name}" for name in (*ROLLUP_KEY, *ROLLUP_SUMS))}
        FROM usage_days d JOIN folded_days f
            ON f.account = d.account AND f.day_at = d.bucket_at
        WHERE f.whole
        UNION ALL
        SELECT q.account, f.day_at, {", ".join(f"q.{name}" for name in ROLLUP_KEY[2:])},
            {", ".join(f"-q.{name}" for name in ROLLUP_SUMS)}
        FROM usage_quarters q JOIN folded_days f
            ON f.account = q.account AND f.day_at = q.bucket_at - q.bucket_at % {DAY_MS}
        WHERE f.whole
    ) AS both_sides
    GROUP BY {", ".join(ROLLUP_KEY)}
    HAVING {" OR ".join(f"SUM({name}) <> 0" for name in ROLLUP_SUMS)}
"""  # noqa: S608 - constants

_R1_FULL: Final = """
    SELECT account AS id, 'balance ' || balance || ', entries ' || moved AS what FROM (
        SELECT a.account, a.balance, COALESCE(SUM(
            CASE WHEN e.status = 'applied' THEN e.amount ELSE 0 END), 0) AS moved
        FROM accounts a LEFT JOIN ledger_entries e
            ON e.account = a.account AND e.account_seq IS NOT NULL
        GROUP BY a.account, a.balance) AS sums
    WHERE balance <> moved
    UNION ALL
    SELECT event_id, 'moves money of no account' FROM ledger_entries
    WHERE status = 'applied' AND amount <> 0 AND account_seq IS NULL
    UNION ALL
    SELECT e.event_id, 'its account has no row' FROM ledger_entries e
    WHERE e.account_seq IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM accounts a WHERE a.account = e.account)
"""

# With R2 and the entries' own CHECK, this is the same thing said of the last link alone.
_R1_RECENT: Final = """
    SELECT a.account AS id,
        'balance ' || a.balance || ', last entry leaves ' || COALESCE(e.balance_after, 0) AS what
    FROM accounts a LEFT JOIN ledger_entries e ON e.account = a.account AND e.account_seq = a.seq
    WHERE a.updated_at >= :since_at AND a.balance <> COALESCE(e.balance_after, 0)
"""

_R2_FULL: Final = """
    SELECT account AS id, 'breaks at entry ' || account_seq AS what FROM (
        SELECT account, account_seq, balance_before,
            LAG(account_seq) OVER chain AS seq_before,
            LAG(balance_after) OVER chain AS after_before
        FROM ledger_entries WHERE account_seq IS NOT NULL
        WINDOW chain AS (PARTITION BY account ORDER BY account_seq)) AS links
    WHERE account_seq <> COALESCE(seq_before, 0) + 1
        OR balance_before <> COALESCE(after_before, 0)
    UNION ALL
    SELECT account, 'seq ' || seq || ', last entry ' || last_seq FROM (
        SELECT a.account, a.seq, COALESCE(MAX(e.account_seq), 0) AS last_seq
        FROM accounts a LEFT JOIN ledger_entries e ON e.account = a.account
        GROUP BY a.account, a.seq) AS ends
    WHERE seq <> last_seq
"""

_R2_RECENT: Final = f"""
    SELECT account AS id, 'breaks at entry ' || account_seq AS what FROM (
        SELECT e.account, e.account_seq, e.balance_before,
            LAG(e.account_seq) OVER chain AS seq_before,
            LAG(e.balance_after) OVER chain AS after_before
        FROM accounts a JOIN ledger_entries e
            ON e.account = a.account AND e.account_seq > a.seq - {TAIL_ENTRIES}
        WHERE a.updated_at >= :since_at
        WINDOW chain AS (PARTITION BY e.account ORDER BY e.account_seq)) AS links
    WHERE seq_before IS NOT NULL
        AND (account_seq <> seq_before + 1 OR balance_before <> after_before)
"""  # noqa: S608 - constants

_R3: Final = """
    SELECT account AS id, 'a total is not the sum of its entries' AS what FROM (
        SELECT a.account, a.total_consumed, a.total_refunded, a.total_expired, a.total_adjusted,
            a.total_recharged, a.total_rewarded,
            COALESCE(SUM(CASE WHEN k = 'charge' OR (k = 'other' AND m < 0)
                THEN -m ELSE 0 END), 0) AS consumed,
            COALESCE(SUM(CASE WHEN k = 'refund' THEN -m ELSE 0 END), 0) AS refunded,
            COALESCE(SUM(CASE WHEN k = 'expiry' THEN -m ELSE 0 END), 0) AS expired,
            COALESCE(SUM(CASE WHEN k = 'adjustment' THEN m ELSE 0 END), 0) AS adjusted,
            COALESCE(SUM(CASE WHEN k = 'other' AND m > 0 AND source = 'purchase'
                THEN m ELSE 0 END), 0) AS recharged,
            COALESCE(SUM(CASE WHEN k = 'other' AND m > 0 AND source <> 'purchase'
                THEN m ELSE 0 END), 0) AS rewarded
        FROM accounts a LEFT JOIN (
            SELECT account AS of_account, source, amount AS m,
                CASE WHEN source IN ('charge', 'refund', 'expiry', 'adjustment')
                    THEN source ELSE 'other' END AS k
            FROM ledger_entries WHERE status = 'applied') AS applied ON of_account = a.account
        GROUP BY a.account, a.total_consumed, a.total_refunded, a.total_expired,
            a.total_adjusted, a.total_recharged, a.total_rewarded) AS sums
    WHERE consumed <> total_consumed OR refunded <> total_refunded
        OR expired <> total_expired OR adjusted <> total_adjusted
        OR recharged <> total_recharged OR rewarded <> total_rewarded
"""

# Whom a person has discarded is not charged, and what waits is not charged yet.
_R4: Final = """
    SELECT id, what FROM (
        SELECT u.event_id AS id, 'recorded ' || u.amount || ', charged ' || CASE
            WHEN e.event_id IS NULL THEN 'nothing'
            ELSE CAST(-(e.amount + COALESCE(f.amount, 0)) AS TEXT) END AS what
        FROM usage u
        LEFT JOIN ledger_entries e ON e.event_id = u.event_id
        LEFT JOIN ledger_entries f ON f.event_id = u.event_id || ':' || 'final'
        WHERE u.event_id >= :since_id
            AND NOT EXISTS (SELECT 1 FROM usage later
                WHERE later.event_id = u.event_id AND later.revision > u.revision)
            AND CASE
                WHEN e.event_id IS NULL THEN NOT u.cancelled
                WHEN u.cancelled THEN e.amount + COALESCE(f.amount, 0) <> 0
                ELSE e.amount + COALESCE(f.amount, 0) <> -u.amount END
            AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.event_id = u.event_id)
            AND NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.event_id = u.event_id
                AND q.origin <> 'broker' AND (q.resolved_at IS NULL
                    OR (q.resolution LIKE 'discarded:%' AND q.revision = u.revision)))
    ) AS uncharged
    UNION ALL
    SELECT e.event_id, 'charged, but not recorded' FROM ledger_entries e
    WHERE e.usage_event_id IS NOT NULL AND e.event_id >= :since_id
        AND NOT EXISTS (SELECT 1 FROM usage u
            WHERE u.event_id = e.usage_event_id AND u.revision = e.usage_revision)
    UNION ALL
    SELECT e.event_id, 'a second charge of ' || e.usage_event_id FROM ledger_entries e
    WHERE e.usage_event_id IS NOT NULL AND e.event_id >= :since_id
        AND e.event_id <> e.usage_event_id AND e.event_id <> e.usage_event_id || ':' || 'final'
    UNION ALL
    SELECT o.event_id, 'waits, but is not recorded' FROM outbox o
    WHERE NOT EXISTS (SELECT 1 FROM usage u
        WHERE u.event_id = o.event_id AND u.revision = o.revision)
"""

_R5: Final = """
    SELECT event_id AS id, 'revision ' || revision || ' waits, attempts ' || attempts AS what
    FROM outbox WHERE created_at < :stale_before
    UNION ALL
    SELECT event_id, 'in quarantine as number ' || id FROM quarantine WHERE resolved_at IS NULL
"""

_R6: Final = """
    SELECT account AS id, 'held ' || held || ', holds ' || holding AS what FROM (
        SELECT a.account, a.held, COALESCE(SUM(h.amount), 0) AS holding
        FROM accounts a LEFT JOIN holds h ON h.account = a.account
        GROUP BY a.account, a.held) AS sums
    WHERE held <> holding
    UNION ALL
    SELECT h.hold_id, 'holds credit of no account' FROM holds h
    WHERE h.amount > 0 AND NOT EXISTS (SELECT 1 FROM accounts a WHERE a.account = h.account)
    UNION ALL
    SELECT h.hold_id, 'held, but settled or cancelled' FROM holds h
    WHERE EXISTS (SELECT 1 FROM usage u WHERE u.event_id = h.hold_id
            AND (h.state = 'live' OR u.revision = 2))
        AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.event_id = h.hold_id)
        AND NOT EXISTS (SELECT 1 FROM quarantine q
            WHERE q.event_id = h.hold_id AND q.resolved_at IS NULL)
    UNION ALL
    SELECT h.hold_id, 'held for longer than a call can last' FROM holds h
    WHERE h.started_at + CASE h.state WHEN 'residual' THEN 86400000 ELSE 0 END < :holds_before
        AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.event_id = h.hold_id)
        AND NOT EXISTS (SELECT 1 FROM quarantine q
            WHERE q.event_id = h.hold_id AND q.resolved_at IS NULL)
"""

_R7_RECENT: Final = f"""
    SELECT account AS id, 'quarter ' || bucket_at || ', ' || provider || '/' || model || ': calls '
        || calls || ', errors ' || errors || ', amount ' || amount || ' missing' AS what
    FROM ({ROLLUP_DIFFERENCES}) AS differences
"""  # noqa: S608 - constants

_R7_FULL: Final = f"""
    {_R7_RECENT}
    UNION ALL
    SELECT account, 'folded day ' || bucket_at || ', ' || provider || '/' || model || ': calls '
        || calls || ', errors ' || errors || ', amount ' || amount || ' more than its quarters'
    FROM ({DAY_DIFFERENCES}) AS folded
"""  # noqa: S608 - constants

# What the store has posted is found by event ids of a known beginning: ";" follows ":" in ASCII. A
# recharge without an order id is an administrator's own entry, and none of these.
_R8_RECENT: Final = """
    SELECT o.order_id AS id, 'credited ' || o.credit_amount || ', posted '
        || COALESCE(CAST(e.amount AS TEXT), 'nothing') AS what
    FROM orders o LEFT JOIN ledger_entries e
        ON e.event_id = 'credit-order:' || o.order_id || ':' || 'paid'
    WHERE o.status = 'credited' AND (e.event_id IS NULL OR e.account <> o.account
        OR e.amount <> o.credit_amount OR e.source <> 'purchase' OR e.status <> 'applied'
        OR e.order_id IS NULL OR e.order_id <> o.order_id)
    UNION ALL
    SELECT o.order_id, 'posted, but the order is ' || o.status
    FROM orders o JOIN ledger_entries e
        ON e.event_id = 'credit-order:' || o.order_id || ':' || 'paid'
    WHERE o.status IN ('pending', 'cancelled')
    UNION ALL
    SELECT order_id, 'paid, but not credited' FROM orders
    WHERE status = 'paid' AND paid_at < :stale_before
    UNION ALL
    SELECT e.event_id, 'credits an order that there is not' FROM ledger_entries e
    WHERE e.event_id >= 'credit-order:' AND e.event_id < 'credit-order;'
        AND NOT EXISTS (SELECT 1 FROM orders o
            WHERE e.event_id = 'credit-order:' || o.order_id || ':' || 'paid'
                AND o.order_id = e.order_id)
    UNION ALL
    SELECT r.event_id, 'rewarded ' || r.amount || ', posted '
        || COALESCE(CAST(e.amount AS TEXT), 'nothing')
    FROM rewards r LEFT JOIN ledger_entries e ON e.event_id = r.event_id
    WHERE r.posted_at IS NOT NULL AND (e.event_id IS NULL OR e.account <> r.account
        OR e.amount <> r.amount OR e.source <> r.source OR e.status <> 'applied')
    UNION ALL
    SELECT event_id, 'decided, but not posted' FROM rewards
    WHERE posted_at IS NULL AND created_at < :stale_before
    UNION ALL
    SELECT e.event_id, 'a reward that was not decided' FROM ledger_entries e
    WHERE e.event_id >= 'reward:' AND e.event_id < 'reward;'
        AND NOT EXISTS (SELECT 1 FROM rewards r WHERE r.event_id = e.event_id)
    UNION ALL
    SELECT c.event_id, 'corrected ' || c.amount || ', posted '
        || COALESCE(CAST(e.amount AS TEXT), 'nothing')
    FROM corrections c LEFT JOIN ledger_entries e ON e.event_id = c.event_id
    WHERE c.posted_at IS NOT NULL AND (e.event_id IS NULL OR e.account <> c.account
        OR e.amount <> c.amount OR e.status <> 'applied')
    UNION ALL
    SELECT e.event_id, 'a correction that was not promised' FROM ledger_entries e
    WHERE ((e.event_id >= 'adjustment:' AND e.event_id < 'adjustment;')
            OR (e.event_id >= 'order-refund:' AND e.event_id < 'order-refund;')
            OR (e.event_id >= 'refund:' AND e.event_id < 'refund;'))
        AND NOT EXISTS (SELECT 1 FROM corrections c WHERE c.event_id = e.event_id)
    UNION ALL
    SELECT event_id, 'promised, but not posted' FROM corrections
    WHERE posted_at IS NULL AND created_at < :stale_before
    UNION ALL
    SELECT id, 'refunded ' || given || ', charged ' || charged FROM (
        SELECT c.ref_id AS id, c.given, -COALESCE((SELECT SUM(e.amount) FROM ledger_entries e
            WHERE e.status = 'applied' AND (e.event_id = c.ref_id OR (
                e.event_id > c.ref_id || ':' AND e.event_id < c.ref_id || ';'))), 0) AS charged
        FROM (SELECT ref_id, SUM(amount) AS given FROM corrections
            WHERE kind = 'charge_refund' GROUP BY ref_id) AS c) AS refunds
    WHERE given > charged
    UNION ALL
    SELECT o.order_id, 'refunded ' || c.taken || ', credited ' || o.credit_amount
    FROM orders o JOIN (SELECT ref_id, -SUM(amount) AS taken FROM corrections
        WHERE kind = 'order_refund' GROUP BY ref_id) AS c ON c.ref_id = o.order_id
    WHERE c.taken > o.credit_amount
"""

# The entries of runs of re-rating: the id of the call, and then which run it was.
_RERATED: Final = """
    SELECT event_id, amount, SUBSTR(event_id, LENGTH(source_ref_id) + 9) AS run_id
    FROM ledger_entries WHERE source = 'charge' AND source_ref_id IS NOT NULL
        AND event_id LIKE source_ref_id || ':' || 'rerate' || ':%'
"""

_R8_FULL: Final = f"""
    {_R8_RECENT}
    UNION ALL
    SELECT e.event_id, 'a purchase of no order' FROM ledger_entries e
    WHERE e.source = 'purchase' AND e.order_id IS NOT NULL
        AND NOT (e.event_id >= 'credit-order:' AND e.event_id < 'credit-order;')
    UNION ALL
    SELECT event_id, 'a re-rating of no run' FROM ({_RERATED}) AS rerated
    WHERE NOT EXISTS (SELECT 1 FROM rerating_runs r WHERE r.run_id = rerated.run_id)
    UNION ALL
    SELECT r.run_id, 'noted ' || r.entries || ' entries, posted ' || COALESCE(posted, 0)
    FROM rerating_runs r LEFT JOIN (
        SELECT run_id, COUNT(*) AS posted,
            SUM(CASE WHEN amount < 0 THEN -amount ELSE 0 END) AS taken,
            SUM(CASE WHEN amount > 0 THEN amount ELSE 0 END) AS given_back
        FROM ({_RERATED}) AS rerated GROUP BY run_id) AS sums ON sums.run_id = r.run_id
    WHERE r.state = 'done' AND (r.entries <> COALESCE(sums.posted, 0)
        OR r.taken <> COALESCE(sums.taken, 0) OR r.given_back <> COALESCE(sums.given_back, 0))
"""  # noqa: S608 - constants

_R10: Final = """
    SELECT 'settlement' AS id, recorded || ' calls recorded, none in the ledger' AS what FROM (
        SELECT COUNT(*) AS recorded, COUNT(e.event_id) AS posted
        FROM usage u LEFT JOIN ledger_entries e ON e.event_id = u.event_id
        WHERE u.event_id >= :flow_id AND NOT u.cancelled
            AND u.finished_at >= :flow_from AND u.finished_at < :flow_to
            AND NOT EXISTS (SELECT 1 FROM quarantine q WHERE q.event_id = u.event_id)) AS flow
    WHERE recorded > 0 AND posted = 0
"""

CHECKS: Final = (
    Check(
        name="R1",
        sentence="The balance of an account is the sum of its entries.",
        full=_R1_FULL,
        recent=_R1_RECENT,
    ),
    Check(
        name="R2",
        sentence="The entries of an account have no gap, and each begins where the last one ended.",
        full=_R2_FULL,
        recent=_R2_RECENT,
    ),
    Check(
        name="R3",
        sentence="The totals of an account are the sums of their entries.",
        full=_R3,
        recent=None,
    ),
    Check(
        name="R4",
        sentence="Every recorded call is charged once, as it was recorded.",
        full=_R4,
        recent=_R4,
    ),
    Check(
        name="R5",
        sentence="No charge waits for long, and none is in quarantine.",
        full=_R5,
        recent=_R5,
    ),
    Check(
        name="R6",
        sentence="What an account has held is the sum of its holds, and each hold has a call.",
        full=_R6,
        recent=_R6,
    ),
    Check(
        name="R7",
        sentence="The rollup is the sum of the calls in the ledger and of the cancelled ones,"
        " and a folded day is the sum of its quarters.",
        full=_R7_FULL,
        recent=_R7_RECENT,
    ),
    Check(
        name="R8",
        sentence="Orders, rewards, corrections and re-ratings are in the ledger, each once and as decided.",
        full=_R8_FULL,
        recent=_R8_RECENT,
    ),
    Check(
        name="R10",
        sentence="Where calls are recorded, charges are posted.",
        full=_R10,
        recent=_R10,
    ),
)

# Of these, none depends on the time: they hold between any two transactions.
_TIMELESS: Final = ("R1", "R2", "R3", "R4", "R6", "R7", "R8")


def examples_of(query: str) -> str:
    """A check's first examples: id, what, and on each row how many violations there are in all."""
    return (
        f"SELECT id, what, COUNT(*) OVER () AS total FROM ({query}) AS found"  # noqa: S608
        f" ORDER BY id LIMIT {EXAMPLES_MAX}"
    )


def check_invariants(connection: sqlite3.Connection) -> list[str]:
    """Every violation on SQLite, as one line with the rule and an example; empty: all is well.

    Only what holds between any two transactions: nothing here depends on the time.
    """
    return _problems(lambda query, values: connection.execute(query, values).fetchall())


def check_invariants_on(connection: Connection) -> list[str]:
    """The same on either engine, through SQLAlchemy."""
    return _problems(lambda query, values: connection.execute(text(query), values).all())


def _problems(
    find: Callable[[str, dict[str, int | str]], Sequence[Sequence[object]]],
) -> list[str]:
    parameters = msgspec.structs.asdict(window(0, recent_ms=None, call_ms_max=0))
    parameters["holds_before"] = 0
    problems: list[str] = []
    for check in CHECKS:
        if check.name in _TIMELESS:
            query = examples_of(check.full)
            named = set(re.findall(r"(?<!:):(\w+)", query))
            values = {name: value for name, value in parameters.items() if name in named}
            for id_, what, _ in find(query, values):
                problems.append(f"{check.name} {check.sentence} {id_}: {what}")
    return problems
