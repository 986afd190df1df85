"""Reconciliation: each invariant sees its own violation, on both engines, and repair only rebuilds."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from billing.db.invariants import CHECKS, QUARTER_MS, first_id, time_of
from billing.holds import GuardUnavailableError
from billing.settlement.reconcile import (
    FULL_EVERY_SECONDS,
    Finding,
    GuardAudit,
    Reconciler,
    Report,
    Rounds,
    Violation,
)
from llm_gateway import clock
from tests.support.books import Books, new_id
from tests.support.money import T0, cancelled, charge, estimate, hold

QUARTER = T0 - T0 % QUARTER_MS
ROLLUP = (
    "SELECT account, bucket_at, key_id, app, scene, provider, model, input, cached_input, output,"
    " reasoning, amount, calls, errors FROM usage_quarters WHERE calls <> 0 ORDER BY account, model"
)


async def mixed(books: Books) -> None:
    """Every way a call can end, all of it settled."""
    await books.open_account()
    await books.open_account("bob")
    await books.call(30)
    await books.call(0)
    await books.call(7, account="bob")
    await books.call(5, account="nobody")
    for first, last in ((20, 25), (20, 15), (20, 20)):
        event_id = new_id()
        await books.hot.reserve(hold(event_id))
        await books.hot.record(estimate(event_id, first))
        await books.hot.settle_pending(500)
        await books.hot.record(charge(event_id, last))
        await books.hot.settle_pending(500)
    together = new_id()
    await books.hot.reserve(hold(together))
    await books.hot.record(estimate(together, 4))
    await books.hot.record(charge(together, 6))
    taken_back = new_id()
    await books.hot.reserve(hold(taken_back))
    await books.hot.record(estimate(taken_back, 9))
    await books.hot.settle_pending(500)
    await books.hot.cancel(cancelled(taken_back))
    only_cancelled = new_id()
    await books.hot.reserve(hold(only_cancelled))
    await books.hot.cancel(cancelled(only_cancelled, reason="upstream_error"))
    await books.hot.settle_pending(500)


async def test_a_clean_ledger_has_no_violation(books: Books) -> None:
    await mixed(books)
    running, waiting = new_id(), new_id()
    for event_id in (running, waiting):
        await books.hot.reserve(hold(event_id))
    await books.hot.record(charge(waiting, 3))
    assert await books.wrong() == {}
    assert await books.wrong(full=False) == {}


async def test_rollup_is_the_sum_of_the_calls(books: Books) -> None:
    """alice: 30 + 0 + 25 + 15 + 20 + 6, of which each call used 10, 2, 5 and 1 tokens.

    Two more were cancelled, one of them because it failed.
    """
    await mixed(books)
    key = (QUARTER, "key-1", "", "agent", "echo", "mini-1")
    assert await books.rows(ROLLUP) == [
        ("alice", *key, 60, 12, 30, 6, 96, 8, 1),
        ("bob", *key, 10, 2, 5, 1, 7, 1, 0),
        ("nobody", *key, 10, 2, 5, 1, 5, 1, 0),
    ]


async def test_a_posted_charge_that_comes_again_counts_once(books: Books) -> None:
    await books.open_account()
    event_id = await books.call(30)
    await books.change(
        "INSERT INTO outbox (event_id, revision, cancelled, account, payload, payload_hash,"
        " created_at) SELECT event_id, revision, cancelled, account, :payload, payload_hash, 0"
        " FROM usage WHERE event_id = :id",
        payload=_payload(event_id, 30),
        id=event_id,
    )
    report = await books.hot.settle_pending(10)
    assert (report.settled, report.quarantined) == (1, 0)
    assert (await books.rows(ROLLUP))[0][-3:] == (30, 1, 0)


ASIDE = (
    "INSERT INTO quarantine (event_id, revision, account, origin, reason, payload, created_at)"
    " VALUES ('e-1', 2, 'alice', 'owner', 'r', '', 0)"
)
CORRUPTIONS = [
    ("R1", "alice", ["UPDATE accounts SET balance = balance + 5, total_adjusted = 5"], {"R3"}),
    ("R2", "alice", ["UPDATE ledger_entries SET account_seq = 9 WHERE account_seq = 2"], {"R1"}),
    ("R2", "alice", ["UPDATE accounts SET seq = seq + 1"], {"R1"}),
    (
        "R3",
        "alice",
        ["UPDATE accounts SET total_recharged = total_recharged - 5, total_rewarded = 5"],
        set(),
    ),
    ("R4", "CALL", ["UPDATE usage SET amount = 31"], {"R7"}),
    ("R4", "CALL", ["DELETE FROM usage"], {"R7"}),
    ("R4", "CALL", ["UPDATE ledger_entries SET usage_event_id = 'x' WHERE source = 'charge'"],
     {"R7"}),
    ("R5", "e-1", [ASIDE], set()),
    ("R6", "alice", ["UPDATE accounts SET held = held + 1"], set()),
    ("R7", "alice", ["UPDATE usage_quarters SET amount = amount + 1"], set()),
    ("R7", "alice", ["UPDATE usage_quarters SET output = output - 1"], set()),
    ("R7", "alice", ["UPDATE usage_quarters SET errors = errors + 1"], set()),
    ("R7", "alice", ["DELETE FROM usage_quarters"], set()),
    ("R7", "alice", ["UPDATE usage_quarters SET model = 'other'"], set()),
]  # fmt: skip


@pytest.mark.parametrize(("check", "where", "statements", "also"), CORRUPTIONS)
async def test_each_corruption_is_seen(
    books: Books, check: str, where: str, statements: Sequence[str], also: set[str]
) -> None:
    await books.open_account()
    call = await books.call(30)
    await books.change(*statements)
    wrong = await books.wrong()
    assert (call if where == "CALL" else where) in wrong[check]
    assert wrong.keys() - {check} <= also


@pytest.mark.parametrize(
    ("check", "statement"),
    [
        ("R1", "UPDATE accounts SET balance = balance + 5, total_adjusted = 5"),
        ("R2", "UPDATE ledger_entries SET account_seq = 9 WHERE account_seq = 2"),
        ("R7", "DELETE FROM usage_quarters"),
        ("R6", "UPDATE accounts SET held = held + 1"),
    ],
)
async def test_a_recent_run_sees_what_changed_of_late(
    books: Books, check: str, statement: str
) -> None:
    await books.open_account()
    await books.call(30)
    await books.call(5)
    await books.change(statement)
    assert check in await books.wrong(full=False)


async def test_a_recent_run_leaves_out_what_is_old(books: Books) -> None:
    await books.open_account()
    await books.call(30)
    await books.change("DELETE FROM usage_quarters")
    await books.change("UPDATE accounts SET balance = balance + 5, total_adjusted = 5")
    books.now = T0 + 16 * QUARTER_MS
    assert await books.wrong(full=False) == {}
    assert set(await books.wrong()) == {"R1", "R3", "R7"}


async def test_archived_usage_is_neither_missed_nor_taken_out_of_the_rollup(
    books: Books,
) -> None:
    """A call of a quarter of an hour ago, whose usage is kept elsewhere now, and one of today."""
    await books.open_account()
    earlier = clock.new_event_id(T0 - QUARTER_MS)
    await books.call(30, event_id=earlier)
    await books.call(5)
    await books.change(
        "UPDATE usage_quarters SET amount = 5, calls = 1, input = 10, cached_input = 2, output = 5,"
        " reasoning = 1",
        "INSERT INTO usage_quarters (account, bucket_at, key_id, app, scene, provider, model, amount,"
        " calls) VALUES ('alice', :before, '', '', '', '', '', 30, 1)",
        "DELETE FROM usage WHERE event_id = :archived",
        before=QUARTER - QUARTER_MS,
        archived=earlier,
    )
    before = await books.rows(ROLLUP)
    assert await books.wrong() == {}
    assert (await books.reconciler.repair()).rollup_groups == 0
    assert await books.rows(ROLLUP) == before


async def test_a_charge_that_waits_too_long_is_named(books: Books) -> None:
    await books.open_account()
    waiting = await books.call(30, settle=False)
    books.now = T0 + 60_000
    assert await books.wrong() == {}
    books.now = T0 + 60_001
    assert await books.wrong() == {"R5": [waiting]}


async def test_recorded_calls_of_which_none_is_posted_are_seen(books: Books) -> None:
    """Their outbox rows are gone as well: no age tells of it."""
    await books.open_account()
    events = [new_id() for _ in range(3)]
    for event_id in events:
        await books.hot.record(charge(event_id, 5))
    await books.change("DELETE FROM outbox")
    assert set(await books.wrong()) == {"R4"}
    books.now = T0 + 120_000
    assert set(await books.wrong()) == {"R4", "R10"}
    books.now = T0 + 3_600_000
    assert set(await books.wrong()) == {"R4"}


async def test_one_posted_call_is_flow_enough(books: Books) -> None:
    await books.open_account()
    await books.call(5)
    await books.hot.record(charge(new_id(), 5))
    await books.change("DELETE FROM outbox")
    books.now = T0 + 120_000
    assert set(await books.wrong()) == {"R4"}


async def test_a_hold_outlives_no_call(books: Books) -> None:
    await books.open_account()
    running = new_id()
    await books.hot.reserve(hold(running))
    books.now = T0 + 3_900_000
    assert await books.wrong() == {}
    books.now += 1
    assert await books.wrong() == {"R6": [running]}


async def test_a_hold_of_a_settled_call_is_seen(books: Books) -> None:
    await books.open_account()
    call = await books.call(30)
    await books.change(
        "INSERT INTO holds (hold_id, account, amount, process, started_at, context)"
        " VALUES (:id, 'alice', 5, 'p', :at, '')",
        "UPDATE accounts SET held = 5",
        id=call,
        at=T0,
    )
    assert await books.wrong() == {"R6": [call]}


async def test_examples_are_ten_and_the_count_is_whole(books: Books) -> None:
    for number in range(12):
        await books.open_account(f"a{number:02}")
    await books.change("UPDATE accounts SET held = 1")
    report = await books.reconciler.run()
    (finding,) = [each for each in report.findings if not each.ok]
    assert (finding.check, finding.count, len(finding.examples)) == ("R6", 12, 10)
    assert finding.examples[0] == Violation(id="a00", what="held 1, holds 0")


async def test_repair_rebuilds_what_is_derived_and_nothing_else(books: Books) -> None:
    await mixed(books)
    running = new_id()
    await books.hot.reserve(hold(running))
    kept = (
        "SELECT * FROM ledger_entries ORDER BY event_id",
        "SELECT * FROM usage ORDER BY event_id, revision",
        "SELECT * FROM accounts ORDER BY account",
        ROLLUP,
    )
    before = [await books.rows(query) for query in kept]
    await books.change(
        "DELETE FROM usage_quarters WHERE account = 'alice'",
        "UPDATE usage_quarters SET amount = amount + 3, calls = calls - 1 WHERE account = 'bob'",
        "INSERT INTO usage_quarters (account, bucket_at, key_id, app, scene, provider, model, calls)"
        " VALUES ('ghost', :later, '', '', '', '', '', 3)",
        "UPDATE accounts SET held = held + 5",
        later=QUARTER + QUARTER_MS,
    )
    repaired = await books.reconciler.repair()
    assert (repaired.held_accounts, repaired.rollup_groups, repaired.guard_rebuilt) == (3, 3, False)
    assert [await books.rows(query) for query in kept] == before
    again = await books.reconciler.repair()
    assert (again.held_accounts, again.rollup_groups) == (0, 0)
    assert await books.wrong() == {}


async def test_repair_leaves_wrong_balances_alone(books: Books) -> None:
    await books.open_account()
    await books.change("UPDATE accounts SET balance = balance + 5, total_adjusted = 5")
    await books.reconciler.repair()
    assert set(await books.wrong()) == {"R1", "R3"}


async def test_repair_while_calls_are_settled_counts_none_twice(books: Books) -> None:
    await books.open_account(amount=100_000)

    async def spend() -> None:
        for _ in range(15):
            await books.call(3)

    async def repair() -> None:
        for _ in range(5):
            await books.change("DELETE FROM usage_quarters")
            await asyncio.gather(books.reconciler.repair(), books.reconciler.repair())

    await asyncio.gather(spend(), spend(), repair())
    await books.hot.settle_pending(500)
    await books.reconciler.repair()
    assert await books.wrong() == {}
    assert (await books.rows(ROLLUP))[0][-3:] == (90, 30, 0)


async def test_a_check_that_cannot_be_run_is_no_success(books: Books) -> None:
    await books.open_account()
    await books.change("DROP TABLE usage_quarters")
    report = await books.reconciler.run()
    assert [each.check for each in report.findings if each.error] == ["R7"]
    assert not report.ok
    assert [each.count for each in report.findings] == [0] * len(CHECKS)


class Guard:
    """A hold store elsewhere, as far as reconciliation looks at it."""

    def __init__(self, *violations: str, away: bool = False) -> None:
        self._violations = tuple(Violation(id=each, what="held twice") for each in violations)
        self._away = away
        self.rebuilt = 0

    async def audit(self) -> GuardAudit:
        if self._away:
            raise GuardUnavailableError
        return GuardAudit(count=len(self._violations), examples=self._violations)

    async def rebuild(self, reason: str) -> None:
        self.rebuilt += 1


async def test_the_hold_store_takes_part(books: Books) -> None:
    await books.open_account()
    guard = Guard("zoe")
    reconciler = Reconciler(books.database, now_ms=lambda: books.now, guard=guard)
    report = await reconciler.run()
    (finding,) = [each for each in report.findings if not each.ok]
    assert (finding.check, finding.count, finding.examples[0].id) == ("R6", 1, "zoe")
    assert guard.rebuilt == 0
    assert (await reconciler.repair()).guard_rebuilt
    assert guard.rebuilt == 1


async def test_a_hold_store_that_is_away_is_no_success(books: Books) -> None:
    reconciler = Reconciler(books.database, now_ms=lambda: books.now, guard=Guard(away=True))
    report = await reconciler.run()
    assert [each.error for each in report.findings if each.error] == ["GuardUnavailableError"]


async def test_rounds_are_full_once_a_day(books: Books) -> None:
    seconds = 0.0
    told: list[Report] = []
    rounds = Rounds(books.reconciler, monotonic=lambda: seconds, on_report=told.append)
    for step in (0.0, 900.0, FULL_EVERY_SECONDS - 900.0, 900.0):
        seconds += step
        await rounds.make()
    assert [report.full for report in told] == [True, False, True, False]
    assert [each.check for each in told[1].findings if each.skipped] == ["R3"]


def test_findings_without_count_or_error_are_fine() -> None:
    assert Finding(check="R1", sentence="").ok
    assert not Finding(check="R1", sentence="", count=1).ok
    assert not Finding(check="R1", sentence="", error="OSError").ok


def test_ids_of_a_moment_sort_before_those_made_then() -> None:
    for at in (T0, T0 + 65_536, 2**40 + 1):
        assert first_id(at) <= clock.new_event_id(at)
        assert first_id(at + 1) > clock.new_event_id(at)
    assert first_id(0) == ""


def test_time_of_an_id_is_when_it_was_made() -> None:
    assert time_of(clock.new_event_id(T0)) == T0
    for other in ("", "c1", "x" * 32, "0190" * 8):
        assert time_of(other) == 0


def _payload(event_id: str, amount: int) -> bytes:
    return msgspec.json.encode(charge(event_id, amount).event)
