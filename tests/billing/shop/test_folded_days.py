"""Answers with folded days are those of the quarters alone, in any zone, whatever came late."""

import asyncio
import tempfile
from collections import defaultdict
from itertools import product
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from billing.db.invariants import DAY_DIFFERENCES, DAY_MS, QUARTER_MS, ROLLUP_SUMS
from billing.events import Finish
from billing.kinds import GroupBy
from billing.settlement.day_fold import fold_days
from billing.shop.consumption import Consumption, Question, Sums, consumption
from billing.shop.periods import Period, Piece, Span, Step, pieces, span_of, zone_of
from llm_gateway import clock
from tests.support.migrated import migrated
from tests.support.money import T0, Place, cancelled, charge, estimate
from tests.support.services import PostgresServer
from tests.support.shop import Shop, open_shop

TODAY = T0 - T0 % DAY_MS
HISTORY_DAYS = 280  # the clocks of the zones below change within them
ZONES = (
    "UTC", "Asia/Kathmandu", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia",
    "America/New_York", "Europe/Berlin", "Pacific/Honolulu", "Asia/Shanghai",
)  # fmt: skip
COLUMNS = {
    GroupBy.ACCOUNT: "account",
    GroupBy.KEY: "key_id",
    GroupBy.SCENE: "scene",
    GroupBy.PROVIDER: "provider",
    GroupBy.MODEL: "model",
}

# --- how a span is cut ----------------------------------------------------------------------------


def test_days_are_read_whole_within_a_step_and_quarters_at_its_edges() -> None:
    """Two steps that meet at six o'clock: the day in which they meet, and those of the ends, are cut."""
    six = 6 * 4 * QUARTER_MS
    span = Span(from_at=six, to_at=7 * DAY_MS + six, step=Step.WEEK, edges=(six, 4 * DAY_MS + six))
    outside, inside = pieces(span, [0, DAY_MS, 2 * DAY_MS, 4 * DAY_MS, 6 * DAY_MS, 7 * DAY_MS])
    assert inside == [
        Piece(0, DAY_MS, 3 * DAY_MS),
        Piece(1, 6 * DAY_MS, 7 * DAY_MS),
    ]
    assert outside == [
        Piece(0, six, DAY_MS),
        Piece(0, 3 * DAY_MS, 4 * DAY_MS + six),
        Piece(1, 4 * DAY_MS + six, 6 * DAY_MS),
        Piece(1, 7 * DAY_MS, 7 * DAY_MS + six),
    ]


@given(
    zone=st.sampled_from(ZONES),
    period=st.sampled_from(Period),
    now=st.integers(T0, T0 + 400 * DAY_MS),
    ago=st.integers(0, 900),
    days=st.sets(st.integers(-3, 905)),
)
def test_pieces_are_the_span_once(
    zone: str, period: Period, now: int, ago: int, days: set[int]
) -> None:
    span = span_of(period, zone_of(zone), now, first_at=now - ago * DAY_MS)
    begins = sorted(now - now % DAY_MS - day * DAY_MS for day in days)
    outside, inside = pieces(span, begins)
    at = span.from_at
    ends = (*span.edges[1:], span.to_at)
    for piece in sorted([*outside, *inside], key=lambda each: each.from_at):
        assert piece.from_at == at < piece.to_at
        assert span.edges[piece.step] <= piece.from_at
        assert piece.to_at <= ends[piece.step]
        at = piece.to_at
    assert at == span.to_at
    read = {day for each in inside for day in range(each.from_at, each.to_at, DAY_MS)}
    assert read == {
        day
        for day in begins
        if any(
            begin <= day and day + DAY_MS <= end
            for begin, end in zip(span.edges, ends, strict=True)
        )
    }


# --- answers --------------------------------------------------------------------------------------

ACTS = st.lists(
    st.tuples(
        st.sampled_from(["charge", "charge", "estimate", "final", "cancel", "fold", "fold"]),
        st.sampled_from(["ada", "bob", "eve"]),
        st.integers(0, HISTORY_DAYS * 96 - 1),  # which quarter
        st.integers(0, 3),  # which model, scene, provider and key
    ),
    min_size=4,
    max_size=30,
)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["ada", "bob"]),
        st.integers(0, HISTORY_DAYS * 96 - 1),
        st.integers(0, 3),
        st.integers(-5, 1_000),
    ),
    max_size=60,
    unique_by=lambda row: row[:3],
)
INSERT = (
    "INSERT INTO usage_quarters (account, bucket_at, key_id, app, scene, provider, model,"
    " output, amount, calls, errors)"
    " VALUES (:account, :at, :key, '', :scene, :provider, :model, :amount, :amount, 1, 1)"
)


def at_quarter(number: int) -> int:
    """Quarters before the end of today, newest first, and thrice as many in the newest 30 days."""
    last = TODAY + DAY_MS - QUARTER_MS
    return last - (number % 2_880 if number % 3 else number) * QUARTER_MS


def named(which: int) -> dict[str, str]:
    return {
        "model": f"model-{which}", "scene": ("agent", "chat")[which % 2],
        "provider": ("echo", "other")[which // 2], "key": f"key-{which % 3}",
    }  # fmt: skip


class History:
    """Acts on a store; every call has one begin, and at most an estimate and a final."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._guessed: list[Finish] = []

    async def do(self, act: str, account: str, quarter: int, which: int) -> None:
        hot = self._shop.hot
        started_at = at_quarter(quarter)
        event_id = clock.new_event_id(started_at)
        match act:
            case "charge":
                await hot.record(
                    placed(charge(event_id, quarter % 50, account=account), started_at, which)
                )
            case "estimate":
                finish = placed(
                    estimate(event_id, quarter % 50, account=account), started_at, which
                )
                self._guessed.append(finish)
                await hot.record(finish)
            case "final" if self._guessed:
                before = self._guessed.pop(which % len(self._guessed)).event.context
                final = charge(before.event_id, quarter % 60, account=before.account)
                await hot.record(placed(final, before.started_at, which))
            case "cancel":
                finish = cancelled(event_id, account=account, reason="upstream_error")
                await hot.cancel(placed(finish, started_at, which))
            case "fold":
                await fold_days(
                    self._shop.database, T0, folds=1 + quarter % 4, rows_min=1 + which // 2
                )
            case _:
                pass  # a final of a call that has none to be final of
        await hot.settle_pending(100)


def placed(finish: Finish, started_at: int, which: int) -> Finish:
    names = named(which)
    context = msgspec.structs.replace(
        finish.event.context, started_at=started_at, model_sent=names["model"],
        scene=names["scene"], provider=names["provider"], key_id=names["key"],
    )  # fmt: skip
    return msgspec.structs.replace(
        finish, event=msgspec.structs.replace(finish.event, context=context)
    )


Rows = list[tuple[object, ...]]


def by_hand(rows: Rows, question: Question, now: int) -> Consumption:
    """The answer, out of all rows of quarters: key, then sums."""
    names = ["account", "bucket_at", "key_id", "scene", "provider", "model"]
    own = [row for row in rows if question.account in (None, row[0])]
    first = min((int(str(row[1])) for row in own), default=None)
    span = span_of(question.period, question.zone, now, first_at=first)
    steps: dict[int, Sums] = defaultdict(Sums)
    groups: dict[str, Sums] = defaultdict(Sums)
    for row in own:
        at = int(str(row[1]))
        if not span.from_at <= at < span.to_at:
            continue
        sums = Sums(**{name: int(str(n)) for name, n in zip(ROLLUP_SUMS, row[6:], strict=True)})
        steps[max(n for n, edge in enumerate(span.edges) if edge <= at)] += sums
        if question.group_by is not None:
            groups[str(row[names.index(COLUMNS[question.group_by])])] += sums
    totals = sum(steps.values(), Sums())
    return msgspec.convert(
        {
            "from_at": span.from_at, "to_at": span.to_at, "step": span.step, "totals": totals,
            "groups": [
                {"name": name, "sums": sums}
                for name, sums in sorted(
                    groups.items(), key=lambda each: (-each[1].amount, -each[1].calls, each[0])
                )
            ],
            "groups_left_out": 0,
            "series": [
                {"from_at": begin, "to_at": end, "sums": steps.get(number, Sums())}
                for number, (begin, end) in enumerate(
                    zip(span.edges, (*span.edges[1:], span.to_at), strict=True)
                )
            ],
        },
        Consumption,
    )  # fmt: skip


async def compare(shop: Shop, zone: str, now: int) -> None:
    columns = ", ".join(
        ("account", "bucket_at", "key_id", "scene", "provider", "model", *ROLLUP_SUMS)
    )
    rows = await shop.rows(f"SELECT {columns} FROM usage_quarters")
    for account, period, group_by in product(
        ("ada", "eve", None), (Period.WEEK, Period.MONTH, Period.ALL), (None, *GroupBy)
    ):
        question = Question(account=account, period=period, group_by=group_by, zone=zone_of(zone))
        assert await consumption(shop.database, question, now) == by_hand(rows, question, now)
    assert await shop.rows(DAY_DIFFERENCES) == []


async def live(
    place: Place, rows: list[tuple[str, int, int, int]], acts: list[tuple[str, str, int, int]],
    zone: str, after: int,
) -> None:  # fmt: skip
    async with open_shop(place, check=False) as shop:
        await shop.give(10_000, "ada")
        await shop.give(10_000, "bob")
        if rows:
            async with shop.database.write() as connection:
                await connection.execute(
                    text(INSERT),
                    [
                        {"account": account, "at": at_quarter(quarter), "amount": amount}
                        | named(which)
                        for account, quarter, which, amount in {
                            (row[0], at_quarter(row[1]), row[2]): row for row in rows
                        }.values()
                    ],
                )
        history = History(shop)
        for number, act in enumerate(acts):
            await history.do(*act)
            if number == len(acts) // 2:
                await compare(shop, zone, T0 + after * QUARTER_MS)
        await compare(shop, zone, T0 + after * QUARTER_MS)
        while await fold_days(shop.database, T0, rows_min=1):
            pass
        await compare(shop, zone, T0 + after * QUARTER_MS)


EVERY_DAY = [("ada", 3 * (96 * day + 13), day % 4, day) for day in range(1, 90)]
ASKED = {"zone": st.sampled_from(ZONES), "after": st.integers(0, 500)}


@pytest.mark.timeout(400)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS, acts=ACTS, **ASKED)
@example(rows=EVERY_DAY, acts=[("fold", "ada", 3, 0)], zone="Asia/Kathmandu", after=0)
@example(rows=EVERY_DAY, acts=[("fold", "ada", 3, 0)], zone="America/St_Johns", after=96 * 60)
def test_answers_on_sqlite(
    rows: list[tuple[str, int, int, int]],
    acts: list[tuple[str, str, int, int]],
    zone: str,
    after: int,
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(live(migrated(Path(directory)), rows, acts, zone, after))


@pytest.mark.timeout(400)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS, acts=ACTS, **ASKED)
@example(rows=EVERY_DAY, acts=[("fold", "ada", 3, 0)], zone="Asia/Kathmandu", after=0)
def test_answers_on_postgresql(
    postgres: PostgresServer, rows: list[tuple[str, int, int, int]],
    acts: list[tuple[str, str, int, int]], zone: str, after: int,
) -> None:  # fmt: skip
    url = postgres.new_database()
    try:
        asyncio.run(live(url, rows, acts, zone, after))
    finally:
        postgres.drop_database(url)
