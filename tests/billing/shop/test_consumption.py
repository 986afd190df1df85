"""Consumption by hand-worked sums, and a rollup that is the same however it came about."""

import asyncio
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from billing.db.invariants import FAILURES
from billing.events import Finish, UsageNotes, UsageQuality
from billing.kinds import GroupBy
from billing.shop.consumption import Question, Sums, consumption
from billing.shop.periods import Period, Step, zone_of
from pricing_rules.usage import Usage
from tests.support.migrated import migrated
from tests.support.money import T0, Place, cancelled, charge, estimate, hold
from tests.support.services import PostgresServer
from tests.support.shop import Shop, open_shop

HOUR = 3_600_000
QUARTER = 900_000
QUARTER_END = T0 - T0 % QUARTER + QUARTER  # T0 is 2026-09-21 14:13:20 UTC


def changed(finish: Finish, *, reason: str | None = None, **fields: object) -> Finish:
    """A finish whose context has other fields."""
    context = msgspec.structs.replace(finish.event.context, **fields)
    event = msgspec.structs.replace(finish.event, context=context)
    notes = finish.notes if reason is None else UsageNotes(reason=reason)
    return msgspec.structs.replace(finish, event=event, notes=notes)


async def day(shop: Shop) -> None:
    """Six calls of ada's within the last 24 hours, one from before, and one of bob's.

    30 now, 5 three hours ago, on `mini-1`; 7 on `maxi` then, by another key in another scene; an
    upstream error, a client that went, and an answer for 3 that broke off. Before that, 100.
    """
    for finish in (
        charge(shop.new_id(), 30, account="ada"),
        changed(charge(shop.new_id(), 5, account="ada"), started_at=T0 - 3 * HOUR),
        changed(
            charge(shop.new_id(), 7, account="ada"),
            model_sent="maxi", scene="chat", key_id="key-2", provider="other",
            started_at=T0 - 3 * HOUR,
        ),
        changed(charge(shop.new_id(), 100, account="ada"), started_at=QUARTER_END - 24 * HOUR - 1),
        charge(shop.new_id(), 1000, account="bob"),
    ):  # fmt: skip
        await shop.hot.record(finish)
    broken = changed(charge(shop.new_id(), 3, account="ada"), reason="broken")
    event = msgspec.structs.replace(broken.event, quality=UsageQuality.PARTIAL)
    await shop.hot.record(msgspec.structs.replace(broken, event=event))
    for reason in ("upstream_error", "client_gone"):
        await shop.hot.cancel(cancelled(shop.new_id(), account="ada", reason=reason))
    await shop.hot.settle_pending(100)


def tokens(calls: int) -> dict[str, int]:
    """Of as many charged calls."""
    return {
        "input": 10 * calls, "cached_input": 2 * calls, "output": 5 * calls, "reasoning": calls,
    }  # fmt: skip


async def test_a_day_of_calls(shop: Shop) -> None:
    """30 + 5 + 7 + 3 of four charged calls; two cancelled ones count, and one of them failed."""
    await day(shop)
    told = await consumption(shop.database, Question(account="ada"), T0)
    assert (told.from_at, told.to_at, told.step) == (
        QUARTER_END - 24 * HOUR, QUARTER_END, Step.HOUR,
    )  # fmt: skip
    assert told.totals == Sums(**tokens(4), amount=45, calls=6, errors=2)
    assert told.groups == ()
    calls = {each.from_at: each.sums for each in told.series if each.sums.calls}
    assert calls == {
        T0 - T0 % HOUR - 3 * HOUR: Sums(**tokens(2), amount=12, calls=2),
        T0 - T0 % HOUR: Sums(**tokens(2), amount=33, calls=4, errors=2),
    }


@pytest.mark.parametrize(
    ("group_by", "first", "second"),
    [
        (GroupBy.MODEL, "mini-1", "maxi"),
        (GroupBy.SCENE, "agent", "chat"),
        (GroupBy.PROVIDER, "echo", "other"),
        (GroupBy.KEY, "key-1", "key-2"),
    ],
)
async def test_groups_come_dearest_first(
    shop: Shop, group_by: GroupBy, first: str, second: str
) -> None:
    await day(shop)
    told = await consumption(shop.database, Question(account="ada", group_by=group_by), T0)
    assert [(group.name, group.sums) for group in told.groups] == [
        (first, Sums(**tokens(3), amount=38, calls=5, errors=2)),
        (second, Sums(**tokens(1), amount=7, calls=1)),
    ]
    assert told.totals == Sums(**tokens(4), amount=45, calls=6, errors=2)


async def test_longer_periods_see_what_was_before(shop: Shop) -> None:
    await day(shop)
    for period in (Period.WEEK, Period.MONTH, Period.ALL):
        told = await consumption(shop.database, Question(account="ada", period=period), T0)
        assert (told.totals.amount, told.totals.calls) == (145, 7)
        assert sum(each.sums.amount for each in told.series) == 145


async def test_a_day_is_the_callers(shop: Shop) -> None:
    """The 100 are of 04:14 of the 20th in Honolulu, the earliest of the rest of 01:13 of the 21st."""
    await day(shop)
    zone = zone_of("Pacific/Honolulu")
    told = await consumption(
        shop.database, Question(account="ada", period=Period.MONTH, zone=zone), T0
    )
    assert [each.sums.amount for each in told.series[-2:]] == [100, 45]


async def test_another_accounts_calls_are_not_told(shop: Shop) -> None:
    await day(shop)
    for account in ("eve", "", "ADA", "ada%"):
        told = await consumption(shop.database, Question(account=account), T0)
        assert told.totals == Sums()
        assert len(told.series) == 25


async def test_everybody_by_account(shop: Shop) -> None:
    await day(shop)
    told = await consumption(
        shop.database, Question(account=None, group_by=GroupBy.ACCOUNT, period=Period.ALL), T0
    )
    assert [(group.name, group.sums.amount) for group in told.groups] == [
        ("bob", 1000),
        ("ada", 145),
    ]
    assert told.totals.amount == 1145


@pytest.mark.parametrize("account", ["ada", None])
async def test_groups_beyond_a_thousand_stay_in_the_database(
    shop: Shop, account: str | None
) -> None:
    """A client may ask for as many models as it likes, and each would be a group."""
    insert = (
        "INSERT INTO usage_quarters (account, bucket_at, key_id, app, scene, provider, model,"
        " amount, calls) VALUES ('ada', :at, 'key-1', '', 'agent', 'echo', :model, :amount, 1)"
    )
    async with shop.database.write() as connection:
        await connection.execute(
            text(insert),
            [
                {"at": QUARTER_END - QUARTER * (1 + number % 8), "model": f"m{number:04d}",
                 "amount": number % 1_003}
                for number in range(2_006)
            ],
        )  # fmt: skip
    for group_by in (GroupBy.MODEL, GroupBy.KEY, GroupBy.ACCOUNT):
        question = Question(account=account, group_by=group_by, period=Period.WEEK)
        told = await consumption(shop.database, question, T0)
        assert (told.totals.amount, told.totals.calls) == (1_005_006, 2_006)
        if group_by is not GroupBy.MODEL:
            assert [each.sums for each in told.groups] == [told.totals]
            assert told.groups_left_out == 0
            continue
        assert (len(told.groups), told.groups_left_out) == (1_000, 1_006)
        # Each amount is there twice, in the order of the names.
        assert [each.name for each in told.groups[:3]] == ["m1002", "m2005", "m1001"]
        assert told.groups[-1].sums.amount == 503
    await shop.change("DELETE FROM usage_quarters")


async def test_a_run_is_summed_from_its_calls(shop: Shop) -> None:
    """8 that is not settled yet, an estimate of 20 whose final of 6 stands, and a failed call."""
    await day(shop)
    for finish in (
        changed(charge(shop.new_id(), 8, account="ada"), run_id="run-1", started_at=T0 - HOUR),
        changed(charge(shop.new_id(), 50, account="ada"), run_id="run-2"),
        changed(charge(shop.new_id(), 50, account="bob"), run_id="run-1"),
    ):
        await shop.hot.record(finish)
    both = shop.new_id()
    await shop.hot.record(changed(estimate(both, 20, account="ada"), run_id="run-1"))
    await shop.hot.record(changed(charge(both, 6, account="ada"), run_id="run-1"))
    await shop.hot.cancel(
        changed(cancelled(shop.new_id(), account="ada", reason="upstream_timeout"), run_id="run-1")
    )
    question = Question(account="ada", run_id="run-1", group_by=GroupBy.MODEL)
    told = await consumption(shop.database, question, T0 + 40 * 24 * HOUR)
    assert told.totals == Sums(**tokens(2), amount=14, calls=3, errors=1)
    assert [group.sums for group in told.groups] == [told.totals]
    assert [each.sums.amount for each in told.series] == [8, 6]
    assert (told.from_at, told.to_at) == (T0 - HOUR - T0 % QUARTER, QUARTER_END)
    nothing = await consumption(shop.database, Question(account="ada", run_id="run-3"), T0)
    assert nothing.totals == Sums()


def test_failures_are_written_down_once() -> None:
    assert len(set(FAILURES)) == len(FAILURES)
    assert not {"client_gone", "empty", "released", "cut", "exhausted", ""} & set(FAILURES)


# --- however the rollup came about ----------------------------------------------------------------

SAY = ("charge", "estimate", "cancel", "settle", "repair", "wipe")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(SAY),
        st.integers(0, 3),  # which call
        st.integers(0, 60),  # what it costs
        st.sampled_from(["", "broken", "upstream_error", "client_gone", "cut"]),
    ),
    min_size=1,
    max_size=14,
)


class Calls:
    """Four calls of two accounts in two quarters; a call's words may come in any order."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._ids = [shop.new_id() for _ in range(4)]
        self._final: dict[int, str] = {}  # by what each call has had its last word
        self._guessed: set[int] = set()

    async def do(self, say: str, call: int, amount: int, reason: str) -> None:
        shop = self._shop
        match say:
            case "settle":
                await shop.hot.settle_pending(2)
            case "repair":
                assert (await shop.reconciler.repair()).rollup_groups == 0
            case "wipe":
                await shop.change("DELETE FROM usage_quarters WHERE account = 'ada'")
                await shop.reconciler.repair()
            case "estimate" if call not in self._guessed:
                self._guessed.add(call)
                await shop.hot.record(self._word(estimate, call, amount, "orphaned"))
            case "charge" if call not in self._final:
                self._final[call] = say
                await shop.hot.record(self._word(charge, call, amount, reason))
            case "cancel" if call not in self._final:
                self._final[call] = say
                account = "ada" if call % 2 else "bob"
                finish = cancelled(self._ids[call], account=account, reason=reason or "x")
                await shop.hot.cancel(self._placed(finish, call))

    def _word(self, kind: object, call: int, amount: int, reason: str) -> Finish:
        assert callable(kind)
        finish = self._placed(
            kind(self._ids[call], amount, account="ada" if call % 2 else "bob"), call
        )
        quality = UsageQuality.PARTIAL if reason else UsageQuality.EXACT
        event = msgspec.structs.replace(finish.event, quality=quality)
        return msgspec.structs.replace(finish, event=event, notes=UsageNotes(reason=reason))

    def _placed(self, finish: Finish, call: int) -> Finish:
        usage = Usage(input=call + 1, output=7) if not finish.cancelled else Usage()
        event = msgspec.structs.replace(finish.event, usage=usage)
        return changed(
            msgspec.structs.replace(finish, event=event), started_at=T0 + call // 2 * QUARTER
        )


async def told_of(shop: Shop) -> list[tuple[object, ...]]:
    return await shop.rows(
        "SELECT * FROM usage_quarters WHERE calls <> 0 OR amount <> 0 ORDER BY 1, 2, 3"
    )


async def unwind(place: Place, steps: list[tuple[str, int, int, str]]) -> None:
    async with open_shop(place) as shop:
        calls = Calls(shop)
        for number in range(4):
            await shop.hot.reserve(hold(f"h{number}"))
        for step in steps:
            await calls.do(*step)
            assert [each for each in await shop.wrong() if each.startswith("R7")] == []
        while (await shop.hot.settle_pending(100)).remaining:
            pass
        before = await told_of(shop)
        asked = Question(account="ada", period=Period.ALL, group_by=GroupBy.MODEL)
        answer = await consumption(shop.database, asked, T0 + HOUR)
        # What is left when all is settled, worked out from the record alone.
        words = await shop.rows(
            "SELECT account, SUM(amount), COUNT(*) FROM usage u WHERE NOT EXISTS (SELECT 1"
            " FROM usage l WHERE l.event_id = u.event_id AND l.revision > u.revision)"
            " GROUP BY account ORDER BY 1"
        )
        sums = "SELECT account, SUM(amount), SUM(calls) FROM usage_quarters GROUP BY 1 ORDER BY 1"
        assert [each for each in await shop.rows(sums) if each[2]] == words
        await shop.change("DELETE FROM usage_quarters")
        await shop.reconciler.repair()
        assert await told_of(shop) == before
        assert await consumption(shop.database, asked, T0 + HOUR) == answer


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_any_order_of_words_on_sqlite(steps: list[tuple[str, int, int, str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(unwind(migrated(Path(directory)), steps))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_any_order_of_words_on_postgresql(
    postgres: PostgresServer, steps: list[tuple[str, int, int, str]]
) -> None:
    url = postgres.new_database()
    try:
        asyncio.run(unwind(url, steps))
    finally:
        postgres.drop_database(url)
