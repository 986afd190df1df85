"""Simulations on both engines: what is told of real calls, page by page, in a process of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import msgspec
import pytest

from billing.books import BookRefusedError, UnknownBookError
from billing.db.hot import DatabaseUnavailableError
from billing.db.session import Database
from billing.kinds import LeftOut
from billing.rerating import simulator as module
from billing.rerating.calls import Call, Window, _last_words
from billing.rerating.pricing import Rerater
from billing.rerating.runs import NewRun
from billing.rerating.simulate import Progress, simulate
from billing.rerating.simulator import (
    Question,
    SimulationBusyError,
    SimulationFailedError,
    Simulator,
)
from billing.rerating.tally import Simulation
from pricing_rules.rates import TOKEN_CLASSES
from pricing_rules.usage import Usage
from tests.support.money import T0, cancelled, charge, estimate
from tests.support.rerating import (
    CHEAPER_BOOK,
    DEARER,
    DEARER_BOOK,
    HOUR_MS,
    OLD_BOOK,
    WINDOW,
    book,
    calls,
    used,
)
from tests.support.shop import Shop


class Ticks:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def simulator(shop: Shop, ticks: Ticks | None = None) -> AsyncIterator[Simulator]:
    made = Simulator(shop.database, shop.books, monotonic=ticks or Ticks())
    try:
        yield made
    finally:
        await made.close()


async def result(
    shop: Shop, version: int, *, charged: bool = False, window: Window = WINDOW
) -> Simulation:
    """In this process, with two calls on a page; that pages matter shows here."""
    found: Simulation | None = None
    rerater = Rerater(await shop.books.get(version), version)
    percents = []
    async for step in simulate(
        shop.database, shop.books, rerater, window, charged=charged, calls_at_once=2
    ):
        if isinstance(step, Progress):
            percents.append(step.percent)
        else:
            found = step
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert found is not None
    return found


async def outcome(made: Simulator, question: Question) -> Simulation:
    async with aclosing(made.run(question)) as steps:
        async for step in steps:
            if isinstance(step, Simulation):
                return step
    raise AssertionError("no result")


# --- what is told -------------------------------------------------------------------------------


async def test_what_recorded_calls_would_have_cost(shop: Shop) -> None:
    """Five calls: 5 x 35 before, 5 x 45 after; not all of them are in the ledger yet."""
    await shop.give(1_000)
    await calls(shop, 2)
    await calls(shop, 2, "bob", scene="chat")
    await shop.hot.record(used(shop))
    found = await result(shop, DEARER_BOOK)
    assert (found.sums.calls, found.sums.before, found.sums.after) == (5, 175, 225)
    assert [(each.account, each.sums.after) for each in found.by_account.items] == [
        ("ada", 135),
        ("bob", 90),
    ]
    assert [(each.scene, each.sums.difference) for each in found.by_scene.items] == [
        ("agent", 30),
        ("chat", 20),
    ]
    (model,) = found.by_model.items
    assert (model.provider, model.model) == ("echo", "mini-1")
    assert await shop.entries("%rerate%") == []


async def test_the_own_book_changes_nothing(shop: Shop) -> None:
    await calls(shop, 3)
    await shop.settled(used(shop, 17))  # whatever it was
    found = await result(shop, OLD_BOOK)
    assert (found.sums.before, found.sums.after, found.sums.left_out_calls) == (122, 122, 0)


async def test_an_estimate_gives_way_to_its_final_on_the_next_page(shop: Shop) -> None:
    await calls(shop, 1)
    event_id = shop.new_id()
    await shop.settled(used(shop, finish=estimate(event_id, 20, account="ada")))
    await shop.settled(used(shop, finish=charge(event_id, 35, account="ada")))
    await shop.settled(used(shop, finish=estimate(shop.new_id(), 20, account="ada")))
    found = await result(shop, DEARER_BOOK)
    assert (found.sums.calls, found.sums.before) == (2, 70)
    assert [(each.reason, each.calls, each.amount) for each in found.left_out] == [
        (LeftOut.ESTIMATE, 1, 20)
    ]


async def test_cancelled_calls_are_none(shop: Shop) -> None:
    await shop.hot.cancel(used(shop, finish=cancelled(shop.new_id(), account="ada")))
    found = await result(shop, DEARER_BOOK)
    assert found.sums.calls == found.sums.left_out_calls == 0
    assert (found.by_account.items, found.movers, found.left_out) == ((), (), ())


async def test_windows_include_their_begin_and_not_their_end(shop: Shop) -> None:
    for at in (T0 - 1, T0, T0 + 9, T0 + 10):
        shop.now = at
        await calls(shop, 1)
    found = await result(shop, DEARER_BOOK, window=Window(from_at=T0, to_at=T0 + 10))
    assert found.sums.calls == 2


async def test_a_rule_is_matched_at_the_time_of_the_call(shop: Shop) -> None:
    """A rule from 14:13:20 (T0) on at three times the price, below it one that always holds."""
    timed = (
        '[[rule]]\nid = "later"\nprovider = "echo"\nmodel = "mini-1"\npriority = 1\n'
        'valid_from = 2026-09-21T14:13:20Z\ninput = "3"\ncached_input = "1.5"\noutput = "12"\n'
    )
    always = 'input = "1"\ncached_input = "0.5"\noutput = "4"'
    await shop.books.upload(book("timed", always, timed), actor="test")
    for at in (T0 - 1, T0):
        shop.now = at
        await calls(shop, 1)
    assert (await result(shop, 4)).sums.after == 35 + 105


async def test_against_the_ledger_it_starts_at_what_is_charged_now(shop: Shop) -> None:
    await shop.give(1_000)
    await calls(shop, 3)
    await shop.hot.record(used(shop))  # not in the ledger
    shop.now += HOUR_MS
    for version in (DEARER_BOOK, CHEAPER_BOOK):
        found = await result(shop, version, charged=True)
        before = {DEARER_BOOK: 35, CHEAPER_BOOK: 45}[version]
        after = {DEARER_BOOK: 45, CHEAPER_BOOK: 23}[version]
        assert (found.sums.before, found.sums.after) == (3 * before, 3 * after)
        assert [each.reason for each in found.left_out] == [LeftOut.NOT_SETTLED]
        await shop.rerating.start(run_of(version), actor="test")
        run = await shop.rerating.carry_on()
        assert run is not None
        # What was shown is what is posted.
        assert run.taken - run.given_back == found.sums.difference
        recorded = await result(shop, version)
        assert recorded.sums.before == 4 * 35


def run_of(version: int) -> NewRun:
    return NewRun(book=version, window=WINDOW, reason="r")


def test_the_fields_of_a_call_are_those_that_are_read() -> None:
    """All of them, and no more: a new class of tokens must not be forgotten."""
    row = ("e", 2, False, "ada", "agent", "echo", "mini", 1, "r", "exact", "provider", 5, 6)
    (made,) = _last_words([(*row, *range(1, len(Usage.__struct_fields__) + 1))])  # type: ignore[list-item]
    assert msgspec.structs.astuple(made)[:-1] == row
    assert made == Call(
        *row, Usage(**{name: number for number, name in enumerate(TOKEN_CLASSES, 1)})
    )


# --- in a process of its own --------------------------------------------------------------------


async def test_a_process_of_its_own_comes_to_the_same(shop: Shop) -> None:
    await shop.give(1_000)
    await calls(shop, 3)
    async with simulator(shop) as made:
        by_version = await outcome(made, Question(window=WINDOW, version=DEARER_BOOK))
        assert by_version == await result(shop, DEARER_BOOK)
        by_text = await outcome(
            made, Question(window=WINDOW, toml=DEARER.replace('"dearer"', '"d"'))
        )
        assert by_text == by_version
        charged = await outcome(made, Question(window=WINDOW, version=DEARER_BOOK, charged=True))
        assert charged.sums == by_version.sums
    assert len(await shop.rows("SELECT 1 FROM price_books")) == 3  # nothing was stored


async def test_one_simulation_at_a_time(shop: Shop) -> None:
    await calls(shop, 1)
    question = Question(window=WINDOW, version=DEARER_BOOK)
    async with simulator(shop) as made:
        async with aclosing(made.run(question)) as steps:
            await anext(steps)
            with pytest.raises(SimulationBusyError):
                await outcome(made, question)
        # Who went away does not hold up the next.
        assert (await again(made, question)).sums.calls == 1


async def again(made: Simulator, question: Question) -> Simulation:
    """As soon as the place is free: its process may still have to end."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await outcome(made, question)
            except SimulationBusyError:
                await asyncio.sleep(0.01)


async def test_a_bad_question_takes_no_place(shop: Shop) -> None:
    async with simulator(shop) as made:
        with pytest.raises(UnknownBookError):
            await outcome(made, Question(window=WINDOW, version=99))
        with pytest.raises(BookRefusedError) as raised:
            await outcome(made, Question(window=WINDOW, toml="[book]\n[[rule]]\n"))
        assert len(raised.value.problems) > 1
        await outcome(made, Question(window=WINDOW, version=OLD_BOOK))


async def test_a_database_that_is_away_is_told(shop: Shop) -> None:
    async with simulator(shop) as made:
        made._database = Database("postgresql+asyncpg://nobody@127.0.0.1:1/none")
        with pytest.raises(DatabaseUnavailableError):
            await outcome(made, Question(window=WINDOW, toml=DEARER))
        await made._database.dispose()


async def test_who_asks_no_more_is_given_up(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await calls(shop, 1)
    ticks = Ticks()
    async with simulator(shop, ticks) as made:
        steps = made.run(Question(window=WINDOW, version=DEARER_BOOK))
        await anext(steps)
        run = made._run
        assert run is not None
        assert run.task is not None
        ticks.now += module.ABANDONED_SECONDS + 1
        await asyncio.wait([run.task])
        assert isinstance(run.task.exception(), SimulationFailedError)
        await again(made, Question(window=WINDOW, version=OLD_BOOK))
        await steps.aclose()


async def test_what_takes_too_long_is_given_up(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIMULATION_SECONDS_MAX", 0.05)
    async with simulator(shop) as made:
        with pytest.raises(SimulationFailedError, match="too long"):
            await outcome(made, Question(window=WINDOW, version=DEARER_BOOK))
