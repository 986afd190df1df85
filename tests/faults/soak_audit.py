"""Compares what a soak's provider served, what its clients got whole, and what the ledger says."""

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from billing.db.session import Database
from billing.settlement.reconcile import Reconciler
from llm_gateway import clock
from tests.faults.soak_load import Load, Outcome, Served
from tests.support.gateway import price
from tests.support.services import pg_dsn

FINAL: Final = 2
LOST_TWICE: Final = "delivered in part, lost with gateway and Redis"
# Answers before which nothing was asked of a provider: the gateway refused, or could not be sure.
REFUSED: Final = (400, 401, 402, 403, 404, 429)

# What a Word is made of, on either engine.
WORDS: Final = (
    "SELECT u.event_id, u.revision, u.client_request_id, u.account, u.cancelled, u.amount,"
    " u.ceiling, u.quality, u.reason, e.total FROM usage u LEFT JOIN"
    " (SELECT usage_event_id, CAST(sum(amount) AS bigint) AS total FROM ledger_entries"
    " WHERE usage_event_id IS NOT NULL GROUP BY usage_event_id) e"
    " ON e.usage_event_id = u.event_id ORDER BY u.event_id, u.revision"
)


@dataclass(frozen=True)
class Word:
    """One revision of a call in the ledger."""

    event_id: str
    revision: int
    call: str
    account: str
    cancelled: bool
    amount: int
    ceiling: int
    quality: str
    reason: str
    posted: int | None  # sum of its entries; None: there is none


@dataclass
class Findings:
    """What is wrong, and the totals of what is right."""

    violations: list[str] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)

    def wrong(self, sentence: str) -> None:
        """Note a violation."""
        self.violations.append(sentence)


async def audit(
    url: str,
    load: Load,
    served: Mapping[str, Sequence[Served]],
    *,
    call_seconds_max: float,
    holds_in_redis: bool,
    forgiven: Container[str] = (),
    lost_twice: Callable[[Outcome], bool] = lambda _: False,
    residuals_stay: bool = False,
) -> Findings:
    """Everything that must hold once nothing is under way.

    Of the calls in `forgiven` the ledger may know or not: a backup was restored since. Of those
    `lost_twice`, with their gateway and with Redis, it need not know what was delivered. With
    `residuals_stay` what estimates leave held for a while may be there still.
    """
    findings = Findings()
    connection = await asyncpg.connect(pg_dsn(url))
    try:
        words = [Word(*row) for row in await connection.fetch(WORDS)]
        check_calls(findings, load, served, words, forgiven, lost_twice)
        check_words(findings, words)
        allowed = _epsilon(words) if holds_in_redis else _unheld(words, forgiven)
        await _check_database(findings, connection, load, allowed, residuals_stay=residuals_stay)
        _count(findings, load, words, served)
    finally:
        await connection.close()
    await _reconcile(findings, url, call_seconds_max)
    return findings


def check_calls(
    findings: Findings,
    load: Load,
    served: Mapping[str, Sequence[Served]],
    words: Sequence[Word],
    forgiven: Container[str] = (),
    lost_twice: Callable[[Outcome], bool] = lambda _: False,
) -> None:
    """Every call that a client made, and none but these."""
    findings.totals[LOST_TWICE] = 0
    by_call: dict[str, dict[str, list[Word]]] = defaultdict(lambda: defaultdict(list))
    for word in words:
        by_call[word.call][word.event_id].append(word)
    for outcome in load.outcomes:
        events = by_call.pop(outcome.plan.call, {})
        if outcome.plan.call not in forgiven:
            known = events or not lost_twice(outcome)
            findings.totals[LOST_TWICE] += not known
            check_call(
                findings, outcome, events, served.get(outcome.plan.call, ()), may_be_lost=not known
            )
    for call in by_call:
        findings.wrong(f"the ledger knows a call that nobody made: {call!r}")


def check_call(
    findings: Findings,
    outcome: Outcome,
    events: Mapping[str, Sequence[Word]],
    answers: Sequence[Served],
    *,
    may_be_lost: bool = False,
) -> None:
    """One call: what its client saw, the words on each of its events, what the provider did."""
    told = f"{outcome.plan.call} ({outcome.plan.kind}, {outcome.account}, {outcome.status})"
    if outcome.hung:
        findings.wrong(
            f"{told} never ended: {outcome}; served: {[*answers]}; ledger: {[*events.values()]}"
        )
    if len(events) > 1:
        findings.wrong(f"{told} has {len(events)} events: {[*events]}")
    last = [words[-1] for words in events.values()]
    charged = [word for word in last if not word.cancelled]
    if outcome.ended and not [word for word in charged if word.revision == FINAL]:
        findings.wrong(f"{told} was answered and has no final charge: {last}")
    if outcome.ended and outcome.own_end and answers and answers[-1].reports:
        expected = price(answers[-1].plan.prompt, answers[-1].completion)
        if [word.amount for word in charged] != [expected]:
            findings.wrong(f"{told} costs {expected}, charged: {last}")
    if outcome.content and not charged and not may_be_lost:
        findings.wrong(f"{told} got some of its answer and has no charge: {last}")
    if outcome.status in REFUSED and any(word.amount for word in charged):
        findings.wrong(f"{told} was refused and is charged: {last}")
    if not answers and any(word.amount and word.quality == "exact" for word in charged):
        findings.wrong(f"{told} was never served and is charged as if: {last}")


def check_words(findings: Findings, words: Sequence[Word]) -> None:
    """No word is beyond its hold, and the entries of a call are its last word."""
    last = {word.event_id: word for word in words}
    for word in words:
        if word.amount > word.ceiling:
            findings.wrong(f"beyond its hold: {word}")
    for word in last.values():
        if (word.posted or 0) != -word.amount:
            findings.wrong(f"the entries are not the last word: {word}")


async def _check_database(
    findings: Findings,
    connection: "asyncpg.Connection",
    load: Load,
    allowed: Counter[str],
    *,
    residuals_stay: bool,
) -> None:
    holds = "holds WHERE state <> 'residual'" if residuals_stay else "holds"
    for table in ("outbox", holds, "quarantine"):
        left = await connection.fetchval(f"SELECT count(*) FROM {table}")
        if left:
            findings.wrong(f"{left} rows are left in {table}")
    rows = await connection.fetch(
        "SELECT a.account, a.balance, a.held - coalesce((SELECT sum(amount) FROM holds h"
        " WHERE h.account = a.account), 0)::bigint AS held, a.seq, count(e.event_id) AS entries,"
        " coalesce(sum(e.amount) FILTER (WHERE e.status = 'applied'), 0)::bigint AS total,"
        # The ledger's own order tells how low a balance ever was.
        " coalesce(min(e.balance_after), 0)::bigint AS lowest"
        " FROM accounts a LEFT JOIN ledger_entries e ON e.account = a.account"
        " AND e.account_seq IS NOT NULL GROUP BY a.account"
    )
    findings.totals["lowest balance ever, micro-credits"] = min(row["lowest"] for row in rows)
    for row in rows:
        if row["balance"] != row["total"] or row["seq"] != row["entries"] or row["held"]:
            findings.wrong(f"does not add up: {dict(row)}")
        if row["lowest"] < -allowed[row["account"]]:
            findings.wrong(f"overspent by more than {allowed[row['account']]}: {dict(row)}")
    granted = {
        row["event_id"]: (row["account"], row["amount"])
        for row in await connection.fetch(
            "SELECT event_id, account, amount FROM ledger_entries"
            " WHERE event_id LIKE 'grant:soak-%'"
        )
    }
    for event_id, (account, amount, acknowledged) in load.grants.items():
        found = granted.get(event_id)
        if (found is None and acknowledged) or found not in (None, (account, amount)):
            findings.wrong(f"{event_id} of {amount} to {account} is in the ledger as {found}")


def _epsilon(words: Sequence[Word]) -> Counter[str]:
    """How much Redis may let an account overspend here: what zombies finished after their estimate.

    A process declared dead does not load its holds anew into a Redis that lost them.
    """
    allowed: Counter[str] = Counter()
    estimates = {word.event_id: word.amount for word in words if word.revision != FINAL}
    for word in words:
        if word.revision == FINAL and word.event_id in estimates:
            allowed[word.account] += max(0, word.amount - estimates[word.event_id])
    return allowed


def _unheld(words: Sequence[Word], forgiven: Container[str]) -> Counter[str]:
    """How much may be overspent after a restoration: the calls under way, whose holds it took along."""
    allowed: Counter[str] = Counter()
    for word in words:
        if word.call in forgiven and word.revision == FINAL:
            allowed[word.account] += word.amount
    return allowed


def _count(
    findings: Findings, load: Load, words: Sequence[Word], served: Mapping[str, Sequence[Served]]
) -> None:
    finals = {word.event_id for word in words if word.revision == FINAL}
    estimates = [word for word in words if word.revision != FINAL]
    answers = [answer for several in served.values() for answer in several]
    outcomes = load.outcomes
    findings.totals |= {
        "calls made": len(outcomes),
        "  ended whole": sum(o.own_end and o.ended for o in outcomes),
        "  ended early by the gateway": sum(o.ended and not o.own_end for o in outcomes),
        "  cut after some of the answer": sum(o.content and not o.ended for o in outcomes),
        "  of these, the client left": sum(o.content and not o.ended and o.left for o in outcomes),
        "  refused for credit (402)": sum(o.status == 402 for o in outcomes),
        "  answered 5xx": sum(o.status >= 500 for o in outcomes),
        "  nobody there, or no answer": sum(o.status == 0 for o in outcomes),
        "longest call, seconds": round(max(o.seconds for o in outcomes)),
        "requests the provider saw": len(answers),
        "  served whole": sum(a.whole for a in answers),
        "calls with a final": len(finals),
        "  of which nobody pays": sum(w.cancelled for w in words),
        "estimates": len(estimates),
        "  corrected by a final": sum(w.event_id in finals for w in estimates),
        "grants acknowledged": sum(done for _, _, done in load.grants.values()),
        "charged, micro-credits": -sum({w.event_id: w.posted or 0 for w in words}.values()),
    }


async def _reconcile(findings: Findings, url: str, call_seconds_max: float) -> None:
    database = Database(url)
    try:
        reconciler = Reconciler(database, now_ms=clock.now_ms, call_seconds_max=call_seconds_max)
        report = await reconciler.run()
    finally:
        await database.dispose()
    for finding in report.findings:
        if not finding.ok:
            findings.wrong(f"reconcile: {finding!r}")
