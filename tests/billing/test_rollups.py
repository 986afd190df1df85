"""The sums of a batch: grouped, in one order, and nothing where nothing changes."""

import msgspec

from billing.db.invariants import DAY_MS, QUARTER_MS, ROLLUP_SUMS
from billing.events import ChargeEvent
from billing.rollups import COLUMNS, Rollup, foldable_before, late_before
from pricing_rules.usage import Usage
from tests.support.money import T0, charge

QUARTER = T0 - T0 % QUARTER_MS


def event(amount: int, *, account: str = "alice", started_at: int = T0) -> ChargeEvent:
    made = charge("e-1", amount, account=account).event
    context = msgspec.structs.replace(made.context, started_at=started_at)
    return msgspec.structs.replace(made, context=context)


def row(account: str, bucket: int, counts: tuple[int, ...]) -> tuple[str | int, ...]:
    """Of counts: input, cached_input, output, reasoning, amount, calls, and errors if there are."""
    given, cached, answered, thought, amount, calls, errors = (*counts, 0)[:7]
    tokens = (given, cached, 0, 0, 0, 0, answered, thought, 0)
    return (account, bucket, "key-1", "", "agent", "echo", "mini-1", *tokens, amount, calls, errors)


def test_columns_are_the_classes_of_usage_in_their_order() -> None:
    assert (*Usage.__struct_fields__, "amount", "calls", "errors") == ROLLUP_SUMS
    assert COLUMNS.split(", ")[7:] == list(ROLLUP_SUMS)


def test_calls_are_summed_by_account_and_quarter() -> None:
    rollup = Rollup()
    for each in (
        event(30),
        event(12, account="bob"),
        event(5, started_at=QUARTER + QUARTER_MS),
        event(4, started_at=QUARTER + QUARTER_MS - 1),
        event(0, started_at=QUARTER),
    ):
        rollup.add(each)
    assert rollup.rows() == [
        row("alice", QUARTER, (30, 6, 15, 3, 34, 3)),
        row("alice", QUARTER + QUARTER_MS, (10, 2, 5, 1, 5, 1)),
        row("bob", QUARTER, (10, 2, 5, 1, 12, 1)),
    ]


def test_an_estimate_that_is_taken_back_leaves_its_group() -> None:
    rollup = Rollup()
    rollup.add(event(30, account="bob"))
    rollup.take_back(row("alice", QUARTER, (0, 0, 0, 0, 20, 1)))
    assert rollup.rows() == [
        row("alice", QUARTER, (0, 0, 0, 0, -20, -1)),
        row("bob", QUARTER, (10, 2, 5, 1, 30, 1)),
    ]


def test_what_cancels_out_is_not_written() -> None:
    rollup = Rollup()
    rollup.add(event(30))
    rollup.take_back(row("alice", QUARTER, (10, 2, 5, 1, 30, 1)))
    assert rollup.rows() == []
    assert Rollup().rows() == []


def test_a_call_that_failed_is_counted_as_an_error_too() -> None:
    rollup = Rollup()
    rollup.add(event(30), failed=True)
    rollup.add(event(12))
    assert rollup.rows() == [row("alice", QUARTER, (20, 4, 10, 2, 42, 2, 1))]


def test_groups_of_before_yesterday_are_late() -> None:
    """T0 is 14:13 of a day: what began before the midnight that yesterday began with is late."""
    today = T0 - T0 % DAY_MS
    rollup = Rollup()
    for account, started_at in (
        ("bob", today - DAY_MS - 1), ("bob", today - 2 * DAY_MS), ("alice", today - DAY_MS),
        ("alice", T0), ("alice", today - 9 * DAY_MS + 5),
    ):  # fmt: skip
        rollup.add(event(1, account=account, started_at=started_at))
    assert rollup.late_days(T0) == [
        ("alice", today - 9 * DAY_MS), ("bob", today - 2 * DAY_MS),
    ]  # fmt: skip
    assert rollup.late_days(today - 1) == [("alice", today - 9 * DAY_MS)]
    assert Rollup().late_days(T0) == []


def test_a_day_is_foldable_two_days_after_its_end() -> None:
    today = T0 - T0 % DAY_MS
    assert foldable_before(T0) == today - 2 * DAY_MS
    assert late_before(T0) == today - DAY_MS
