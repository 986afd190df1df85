"""What must hold in the database at any moment; used by `reconcile`, `doctor` and the tests."""

import sqlite3
from typing import Final

_EXAMPLES_MAX: Final = 10

# Each query gives one line of text per violation. R numbers are those of docs and `reconcile`.
_CHECKS: Final[dict[str, str]] = {
    "R1 balance is the sum of the entries": """
        SELECT account || ': balance ' || balance || ', entries ' || moved FROM (
            SELECT a.account, a.balance, COALESCE(SUM(
                CASE WHEN e.status = 'applied' THEN e.amount ELSE 0 END), 0) AS moved
            FROM accounts a LEFT JOIN ledger_entries e
                ON e.account = a.account AND e.account_seq IS NOT NULL
            GROUP BY a.account)
        WHERE balance <> moved
        UNION ALL
        SELECT event_id || ': moves money of no account' FROM ledger_entries
        WHERE status = 'applied' AND amount <> 0 AND account_seq IS NULL
        UNION ALL
        SELECT e.event_id || ': account has no row' FROM ledger_entries e
        WHERE e.account_seq IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM accounts a WHERE a.account = e.account)
    """,
    "R2 entries are gapless and chained": """
        SELECT account || ' at ' || account_seq FROM (
            SELECT account, account_seq, balance_before,
                LAG(account_seq, 1, 0) OVER chain AS seq_before,
                LAG(balance_after, 1, 0) OVER chain AS after_before
            FROM ledger_entries WHERE account_seq IS NOT NULL
            WINDOW chain AS (PARTITION BY account ORDER BY account_seq))
        WHERE account_seq <> seq_before + 1 OR balance_before <> after_before
        UNION ALL
        SELECT account || ': seq ' || seq || ', last entry ' || last FROM (
            SELECT a.account, a.seq, COALESCE(MAX(e.account_seq), 0) AS last
            FROM accounts a LEFT JOIN ledger_entries e ON e.account = a.account
            GROUP BY a.account)
        WHERE seq <> last
    """,
    "R3 totals are the sums of their entries": """
        SELECT account || ': a total is wrong' FROM (
            SELECT a.*,
                SUM(CASE WHEN k = 'charge' OR (k = 'other' AND m < 0)
                    THEN -m ELSE 0 END) AS consumed,
                SUM(CASE WHEN k = 'refund' THEN -m ELSE 0 END) AS refunded,
                SUM(CASE WHEN k = 'expiry' THEN -m ELSE 0 END) AS expired,
                SUM(CASE WHEN k = 'adjustment' THEN m ELSE 0 END) AS adjusted,
                SUM(CASE WHEN k = 'other' AND m > 0 AND source = 'purchase'
                    THEN m ELSE 0 END) AS recharged,
                SUM(CASE WHEN k = 'other' AND m > 0 AND source <> 'purchase'
                    THEN m ELSE 0 END) AS rewarded
            FROM accounts a JOIN (
                SELECT account AS of_account, source, amount AS m,
                    CASE WHEN source IN ('charge', 'refund', 'expiry', 'adjustment')
                        THEN source ELSE 'other' END AS k
                FROM ledger_entries WHERE status = 'applied') ON of_account = a.account
            GROUP BY a.account)
        WHERE consumed <> total_consumed OR refunded <> total_refunded
            OR expired <> total_expired OR adjusted <> total_adjusted
            OR recharged <> total_recharged OR rewarded <> total_rewarded
    """,
    "R4 every recorded call is charged once": """
        WITH said AS (
            SELECT event_id, account, amount, cancelled, MAX(revision) FROM usage GROUP BY event_id
        ), charged AS (
            SELECT usage_event_id AS event_id, SUM(amount) AS amount, COUNT(*) AS entries
            FROM ledger_entries WHERE usage_event_id IS NOT NULL GROUP BY usage_event_id
        )
        SELECT s.event_id || ': recorded ' || s.amount || ', charged '
            || COALESCE(-c.amount, 'nothing')
        FROM said s LEFT JOIN charged c ON c.event_id = s.event_id
        WHERE NOT EXISTS (SELECT 1 FROM outbox o WHERE o.event_id = s.event_id)
            AND NOT EXISTS (SELECT 1 FROM quarantine q
                WHERE q.event_id = s.event_id AND q.resolved_at IS NULL)
            AND CASE WHEN s.cancelled THEN COALESCE(c.amount, 0) <> 0
                ELSE c.amount IS NULL OR c.amount <> -s.amount END
        UNION ALL
        SELECT c.event_id || ': charged, but not recorded' FROM charged c
        WHERE NOT EXISTS (SELECT 1 FROM usage u WHERE u.event_id = c.event_id)
        UNION ALL
        SELECT o.event_id || ': waits, but is not recorded' FROM outbox o
        WHERE NOT EXISTS (SELECT 1 FROM usage u
            WHERE u.event_id = o.event_id AND u.revision = o.revision)
    """,
    "R6 held is the sum of the holds": """
        SELECT account || ': held ' || held || ', holds ' || holding FROM (
            SELECT a.account, a.held, COALESCE(SUM(h.amount), 0) AS holding
            FROM accounts a LEFT JOIN holds h ON h.account = a.account
            GROUP BY a.account)
        WHERE held <> holding
        UNION ALL
        SELECT h.hold_id || ': holds credit of no account' FROM holds h
        WHERE h.amount > 0 AND NOT EXISTS (SELECT 1 FROM accounts a WHERE a.account = h.account)
        UNION ALL
        SELECT h.hold_id || ': held, but settled or cancelled' FROM holds h
        WHERE h.state = 'live' AND EXISTS (SELECT 1 FROM usage u WHERE u.event_id = h.hold_id)
            AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.event_id = h.hold_id)
            AND NOT EXISTS (SELECT 1 FROM quarantine q
                WHERE q.event_id = h.hold_id AND q.resolved_at IS NULL)
    """,
}


def check_invariants(connection: sqlite3.Connection) -> list[str]:
    """Every violation, as one line that names the rule and an example; empty: all is well."""
    problems: list[str] = []
    for rule, query in _CHECKS.items():
        found = connection.execute(query).fetchmany(_EXAMPLES_MAX)
        problems += [f"{rule}: {line}" for (line,) in found]
    return problems
