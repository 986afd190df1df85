"""A stream that may outrun its hold: when more is asked for, when it waits, and when it ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from billing.db.engine import Engine
from billing.holds import Granted, GuardUnavailableError, HoldStore, Refused
from billing.holds.database import DatabaseHoldStore
from llm_gateway.config import SceneConfig
from llm_gateway.hold_watch import LOOK_BYTES, HoldWatch
from llm_gateway.meter import StreamMeter
from tests.support.migrated import migrated
from tests.support.money import (
    charge,
    execute,
    hold,
    hot_database,
    new_id,
    purchase,
    rows,
)

RATE = 1  # micro-credits for each byte of text: what a stream has cost is what it has delivered
LOOK = "x" * LOOK_BYTES  # the shortest text that is looked at


class Stream:
    """Stands in for the call: text passes its meter, and it notes what the watch tells it."""

    def __init__(self, holds: HoldStore, event_id: str, grant: int, on_exhausted: str) -> None:
        self.event_id = event_id
        self.grant = grant
        self.told: list[str] = []
        self.meter = StreamMeter(client_wants_usage=False)
        scene = SceneConfig(name="agent", on_exhausted=on_exhausted)
        self.watch = HoldWatch(self, self.meter, holds, scene)

    def progress(self) -> int:
        return self.meter.delivered_bytes * RATE

    def await_credit(self) -> None:
        self.told.append("await_credit")

    def go_on(self) -> None:
        self.told.append("go_on")

    def stop(self, reason: str) -> None:
        self.told.append(reason)

    def pass_text(self, text: str) -> None:
        """What one read of the upstream brings."""
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        self.meter.feed(b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode())
        self.watch()


class Unreachable(DatabaseHoldStore):
    """A store whose database does not answer."""

    async def extend(self, hold_id: str, new_total: int) -> Granted | Refused:
        raise GuardUnavailableError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return migrated(tmp_path)


@pytest.fixture
async def hot(path: Path) -> AsyncIterator[Engine]:
    async with hot_database(path) as started:
        yield started


async def stream_of(
    hot: Engine,
    *,
    credit: int,
    grant: int = 1000,
    on_exhausted: str = "cut",
    reachable: bool = True,
) -> Stream:
    """A stream whose call holds `grant` of the account's `credit`."""
    one = new_id()
    await hot.post([purchase(credit)])
    granted = await hot.reserve(hold(one, minimum=grant, wanted=grant))
    assert granted == Granted(grant)
    holds = DatabaseHoldStore(hot) if reachable else Unreachable(hot)
    return Stream(holds, one, grant, on_exhausted)


async def answered(hot: Engine) -> None:
    """Until the store has answered whatever was asked of it: it answers in order."""
    for _ in range(3):  # an ask may be followed by another for what there is
        await asyncio.sleep(0)
        await hot.ping()
    await asyncio.sleep(0)


def held(path: Path) -> object:
    [(amount,)] = rows(path, "SELECT held FROM accounts")
    return amount


async def test_nothing_is_asked_below_four_fifths(hot: Engine, path: Path) -> None:
    stream = await stream_of(hot, credit=100_000)
    stream.pass_text("x" * 799)
    await answered(hot)
    assert (stream.grant, held(path), stream.told) == (1000, 1000, [])


async def test_half_as_much_again_is_asked_at_four_fifths(hot: Engine, path: Path) -> None:
    stream = await stream_of(hot, credit=100_000)
    stream.pass_text("x" * 800)
    await answered(hot)
    assert (stream.grant, held(path), stream.told) == (1501, 1501, [])


async def test_few_bytes_are_not_worth_a_look(hot: Engine, path: Path) -> None:
    stream = await stream_of(hot, credit=100_000, grant=100)
    stream.pass_text("x" * (LOOK_BYTES - 1))
    await answered(hot)
    assert held(path) == 100
    stream.pass_text("x")
    await answered(hot)
    assert stream.grant > LOOK_BYTES


async def test_a_rich_account_outruns_its_hold_and_goes_on(hot: Engine, path: Path) -> None:
    # A provider that sends everything at once: 50 times the hold before anybody could ask.
    stream = await stream_of(hot, credit=100_000)
    stream.pass_text("x" * 50_000)
    assert stream.told == ["await_credit"]
    await answered(hot)
    # A quarter beyond the cost: 50,000 x 5/4 + 1.
    assert (stream.grant, held(path)) == (62_501, 62_501)
    assert stream.told == ["await_credit", "go_on"]


async def test_what_passes_while_the_answer_is_awaited_is_asked_for_too(
    hot: Engine, path: Path
) -> None:
    stream = await stream_of(hot, credit=100_000)
    stream.pass_text("x" * 1000)
    stream.pass_text("x" * 9000)  # the rest of the same read
    await answered(hot)
    await answered(hot)
    assert stream.told == ["await_credit", "go_on"]
    assert (stream.grant, held(path)) == (12_501, 12_501)  # 10,000 x 5/4 + 1


async def test_a_thin_account_gets_what_there_is(hot: Engine, path: Path) -> None:
    stream = await stream_of(hot, credit=1200)
    stream.pass_text("x" * 900)
    await answered(hot)
    assert (stream.grant, held(path), stream.told) == (1200, 1200, [])


async def test_cut_ends_where_nothing_is_left(hot: Engine, path: Path) -> None:
    stream = await stream_of(hot, credit=1000)
    stream.pass_text("x" * 900)
    await answered(hot)
    assert (stream.grant, stream.told) == (1000, [])  # up to its hold it may run
    stream.pass_text(LOOK)
    assert stream.told == ["await_credit"]  # somebody else's call may have ended meanwhile
    await answered(hot)
    assert stream.told == ["await_credit", "exhausted"]
    assert held(path) == 1000


async def test_cut_of_a_stream_that_waited(hot: Engine) -> None:
    stream = await stream_of(hot, credit=1000)
    stream.pass_text("x" * 5000)
    assert stream.told == ["await_credit"]
    await answered(hot)
    assert stream.told == ["await_credit", "exhausted"]


async def test_finish_never_stops(hot: Engine) -> None:
    stream = await stream_of(hot, credit=1000, on_exhausted="finish")
    for _ in range(20):
        stream.pass_text("x" * 1000)
        await answered(hot)
    assert stream.told == []
    assert stream.watch.lent > 10**15


async def test_grace_runs_so_much_further(hot: Engine) -> None:
    # 0.0005 credits = 500 micro-credits.
    stream = await stream_of(hot, credit=1000, on_exhausted="grace:0.0005")
    stream.pass_text("x" * 1243)
    await answered(hot)
    assert stream.told == []
    stream.pass_text("x" * LOOK_BYTES)  # 1,499
    assert stream.told == []
    await answered(hot)
    stream.pass_text("x" * LOOK_BYTES)
    await answered(hot)
    assert stream.told == ["await_credit", "exhausted"]
    assert stream.watch.lent == 500


async def test_refused_for_good_is_asked_once(hot: Engine, path: Path) -> None:
    stream = await stream_of(hot, credit=1000, on_exhausted="finish")
    stream.pass_text("x" * 5000)  # more than the account ever had
    await answered(hot)
    await hot.post([purchase(100_000)])
    stream.pass_text(LOOK)
    await answered(hot)
    assert held(path) == 1000


async def test_credit_held_by_other_calls_is_asked_for_again(hot: Engine, path: Path) -> None:
    other = new_id()
    stream = await stream_of(hot, credit=3000)
    await hot.reserve(hold(other, minimum=2000, wanted=2000))
    stream.pass_text("x" * 800)
    await answered(hot)
    assert stream.grant == 1000
    await hot.record(charge(other, 0))
    await hot.settle_pending(10)
    execute(path, "DELETE FROM outbox")  # nothing of it is left anyway
    stream.pass_text("x" * 100)
    stream.pass_text("x" * (LOOK_BYTES - 101))  # still below the hold
    await answered(hot)
    stream.pass_text("x" * 2)
    await answered(hot)
    assert stream.grant > 1000
    assert "exhausted" not in stream.told


async def test_suspended_account_gets_no_more(hot: Engine, path: Path) -> None:
    stream = await stream_of(hot, credit=100_000)
    execute(path, "UPDATE accounts SET suspended = 1")
    stream.pass_text("x" * 1000)
    await answered(hot)
    assert (stream.told, held(path)) == (["await_credit", "exhausted"], 1000)


async def test_unreachable_store_is_asked_until_the_hold_is_used_up(
    hot: Engine,
) -> None:
    stream = await stream_of(hot, credit=100_000, reachable=False)
    stream.pass_text("x" * 900)
    await answered(hot)
    assert stream.told == []
    stream.pass_text(LOOK)
    assert stream.told == ["await_credit"]
    await answered(hot)
    assert stream.told == ["await_credit", "exhausted"]


async def test_an_answer_after_the_end_decides_nothing(hot: Engine) -> None:
    stream = await stream_of(hot, credit=1000)
    stream.pass_text("x" * 5000)
    stream.watch.end()
    await answered(hot)
    assert stream.told == ["await_credit"]
    assert stream.grant == 1000


async def test_a_hold_that_is_gone_does_not_grow(hot: Engine, path: Path) -> None:
    stream = await stream_of(hot, credit=100_000)
    await hot.record(charge(stream.event_id, 900))
    await hot.settle_pending(10)
    stream.pass_text("x" * 900)
    await answered(hot)
    assert (stream.grant, held(path)) == (1000, 0)
