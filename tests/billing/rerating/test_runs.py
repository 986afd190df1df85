"""Runs of re-rating: each difference an entry, once per run, whoever dies when; and the way back."""

import asyncio

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

from billing.accounts import entries_of_call
from billing.books import UnknownBookError
from billing.charges import explain_charge
from billing.context import decode_context
from billing.corrections import ChargeBeingReratedError, ChargeRefund, RefundTooLargeError
from billing.failpoints import hooks
from billing.holds import Granted, GuardUnavailableError, HoldRequest, Refused
from billing.holds.database import DatabaseHoldStore
from billing.holds.ledger_view import SqlLedgerView
from billing.ledger import label_in
from billing.lists import PageRequest
from billing.rerating.calls import Window
from billing.rerating.runs import (
    DUTY,
    Run,
    RunConflictError,
    RunInProgressError,
    Runs,
    UnknownRunError,
)
from billing.settlement.election import Election
from billing.settlement.orphans import DatabaseOrphans
from billing.shop.consumption import Question, consumption
from billing.shop.fields import InvalidFieldsError
from billing.shop.statements import month_of, statement
from pricing_rules.usage import Usage
from tests.support.money import T0, Place, cancelled, charge, estimate, hold, purchase
from tests.support.rerating import (
    CHEAPER_BOOK,
    DEARER_BOOK,
    HOUR_MS,
    OLD_BOOK,
    WINDOW,
    book,
    calls,
    run_asked,
    used,
    with_books,
)
from tests.support.shop import ADMIN, Gone, Shop, die, end, many_shops, open_shop


async def rerate(shop: Shop, version: int, run_id: str | None = None) -> Run:
    """A run to its end, an hour after T0."""
    shop.now = max(shop.now, T0 + HOUR_MS)
    run, _ = await shop.rerating.start(run_asked(version, run_id), actor=ADMIN)
    done = await shop.rerating.carry_on()
    assert done is not None
    assert (done.run_id, done.state) == (run.run_id, "done")
    return done


async def refund(shop: Shop, charge_id: str, amount: int | None = None) -> int:
    asked = ChargeRefund(charge_id=charge_id, amount=amount, reason="bad")
    return (await shop.corrections.refund_charge(asked, actor=ADMIN)).entry.amount


async def balances(shop: Shop) -> list[tuple[object, ...]]:
    return await shop.rows(
        "SELECT account, balance, held, total_consumed, total_recharged FROM accounts ORDER BY 1"
    )


# --- what is posted -----------------------------------------------------------------------------


async def test_each_difference_is_an_entry_that_names_its_charge(shop: Shop) -> None:
    """Charged 35 of 100, 45 by the dearer book: 10 more are taken."""
    await shop.give(100)
    (charge_id,) = await calls(shop, 1)
    run = await rerate(shop, DEARER_BOOK, "r1")
    assert (run.calls, run.entries, run.taken, run.given_back) == (1, 1, 10, 0)
    (entry,) = await shop.rows(
        "SELECT event_id, source, direction, amount, source_ref_id, usage_event_id, source_label,"
        " description, metadata_json FROM ledger_entries WHERE event_id LIKE '%rerate%'"
    )
    assert entry[:6] == (f"{charge_id}:rerate:r1", "charge", "expense", -10, charge_id, None)
    assert entry[6:8] == ("AI 调用重新计价", "wrong price")
    told = msgspec.json.decode(str(entry[8]))
    assert told == {"run_id": "r1", "book": DEARER_BOOK, "book_before": OLD_BOOK}
    account = await shop.account()
    assert (account.balance, account.total_consumed, account.held) == (55, 45, 0)
    assert (account.total_adjusted, account.total_rewarded, account.total_refunded) == (0, 0, 0)
    assert shop.told == ["ada"]


async def test_what_was_charged_too_much_goes_back_to_consumed(shop: Shop) -> None:
    """35, by the cheaper book 23: 12 come back."""
    await shop.give(100)
    await calls(shop, 2)
    run = await rerate(shop, CHEAPER_BOOK)
    assert (run.entries, run.taken, run.given_back) == (2, 0, 24)
    account = await shop.account()
    assert (account.balance, account.total_consumed) == (54, 46)
    directions = await shop.rows(
        "SELECT DISTINCT direction FROM ledger_entries WHERE event_id LIKE '%:rerate:%'"
    )
    assert directions == [("income",)]


def test_the_label_in_both_languages() -> None:
    assert label_in("en", "charge", "AI 调用重新计价") == "AI call re-rated"
    assert label_in("zh", "charge", "AI call re-rated") == "AI call re-rated"  # nobody's default
    assert label_in("en", "forum_like", "AI 调用重新计价") == "AI 调用重新计价"


async def test_a_debit_is_taken_in_full_below_zero_if_need_be(shop: Shop) -> None:
    """40 there, 35 spent, 4 of the last 5 held by a call: 10 are taken, and the hold stays."""
    await shop.give(40)
    await calls(shop, 1)
    await shop.hot.reserve(hold(shop.new_id(), account="ada", minimum=4, wanted=4))
    await rerate(shop, DEARER_BOOK)
    account = await shop.account()
    assert (account.balance, account.held) == (-5, 4)


async def test_a_suspended_account_is_corrected_too(shop: Shop) -> None:
    await shop.give(100)
    await calls(shop, 1)
    await shop.accounts.suspend("ada", "fraud", actor=ADMIN)
    await rerate(shop, DEARER_BOOK)
    assert (await shop.account()).balance == 55


async def test_a_free_call_of_no_account_makes_the_account_pay(shop: Shop) -> None:
    """Free by a book of then, 45 now; the account had no row."""
    await shop.books.upload(book("free", "free = true"), actor="test")
    await shop.hot.record(used(shop, 0, book=4))
    await shop.hot.settle_pending(10)
    assert (await shop.account()).created_at is None
    await rerate(shop, DEARER_BOOK)
    account = await shop.account()
    assert (account.balance, account.total_consumed) == (-45, 45)


async def test_only_calls_of_the_time_are_touched(shop: Shop) -> None:
    await shop.give(1_000)
    for began in (WINDOW.from_at - 1, WINDOW.to_at):
        shop.now = began
        await calls(shop, 1)
    shop.now = WINDOW.from_at
    (first,) = await calls(shop, 1)
    shop.now = WINDOW.to_at - 1
    (last,) = await calls(shop, 1)
    shop.now = WINDOW.to_at
    await rerate(shop, DEARER_BOOK, "r1")
    assert await shop.entries("%:rerate:%") == [
        (f"{first}:rerate:r1", -10),
        (f"{last}:rerate:r1", -10),
    ]


async def test_pages_lose_and_repeat_no_call(shop: Shop) -> None:
    """Three on a page; 11 calls of two accounts, and an estimate with its final on two pages."""
    await shop.give(1_000)
    await shop.give(1_000, "bob")
    for _ in range(4):
        await calls(shop, 1)
        await calls(shop, 1, "bob")
    parted = shop.new_id()
    await shop.settled(used(shop, finish=estimate(parted, 20, account="ada")))
    await shop.settled(used(shop, finish=charge(parted, 35, account="ada")))
    await calls(shop, 2)
    run = await rerate(shop, DEARER_BOOK)
    assert (run.calls, run.entries, run.taken) == (11, 11, 110)
    assert [(await shop.account(name)).balance for name in ("ada", "bob")] == [
        1_000 - 7 * 45,
        1_000 - 4 * 45,
    ]


# --- what keeps its charge ----------------------------------------------------------------------


async def test_what_cannot_be_rerated_keeps_its_charge(shop: Shop) -> None:
    await shop.give(10_000)
    await shop.settled(
        used(shop, 20, model_sent="unlisted", rule="other")
    )  # by OLD 1 x 12 + 6 = 18
    await shop.settled(used(shop, 18, model_sent="gone", rule="other"))
    await shop.settled(used(shop, 18, model_sent="gone", rule="nothing"))
    await shop.settled(used(shop, 18, model_sent="gone", book=99))
    await shop.settled(used(shop, finish=estimate(shop.new_id(), 35, account="ada")))
    capped = used(shop, 30)
    await shop.settled(capped)
    before = await balances(shop)
    run = await rerate(shop, DEARER_BOOK)
    assert run.left_out == {
        "no_rule": 2, "unknown_book": 2, "estimate": 1, "not_as_priced": 1
    }  # fmt: skip
    assert (run.calls, run.entries) == (6, 0)
    assert await balances(shop) == before


async def test_a_charge_of_the_hold_stays(shop: Shop) -> None:
    """No usage was reported, and the operator's policy took the hold: 35, as it happens."""
    await shop.give(100)
    finish = used(shop)
    event = msgspec.structs.replace(finish.event, usage_source="hold", quality="missing")
    await shop.settled(msgspec.structs.replace(finish, event=event))
    assert (await rerate(shop, DEARER_BOOK)).left_out == {"no_usage": 1}


async def test_what_is_not_in_the_ledger_is_left_to_a_later_run(shop: Shop) -> None:
    """A final that came, but waits to be settled: first not touched, then 35 - 20 and 10 more."""
    await shop.give(100)
    charge_id = shop.new_id()
    await shop.settled(used(shop, finish=estimate(charge_id, 20, account="ada")))
    await shop.hot.record(used(shop, finish=charge(charge_id, 35, account="ada")))
    waiting = used(shop)
    await shop.hot.record(waiting)
    assert (await rerate(shop, DEARER_BOOK)).left_out == {"not_settled": 2}
    await shop.hot.settle_pending(10)
    run = await rerate(shop, DEARER_BOOK)
    assert (run.left_out, run.taken) == ({}, 20)
    assert (await shop.account()).balance == 10


async def test_cancelled_calls_are_none(shop: Shop) -> None:
    await shop.give(100)
    await shop.hot.cancel(used(shop, finish=cancelled(shop.new_id(), account="ada")))
    taken_back = shop.new_id()
    await shop.settled(used(shop, finish=estimate(taken_back, 20, account="ada")))
    await shop.hot.cancel(used(shop, finish=cancelled(taken_back, account="ada")))
    await shop.hot.settle_pending(10)
    run = await rerate(shop, DEARER_BOOK)
    assert (run.calls, run.entries, run.left_out) == (0, 0, {})
    assert (await shop.account()).balance == 100


async def test_a_price_beyond_all_bounds_is_left_out(shop: Shop) -> None:
    huge = book("huge", 'input = "999999999"\noutput = "4"')
    await shop.books.upload(huge, actor="test")
    usage = Usage(input=10**8)  # 10^8 x 999,999,999 is over 2^53
    await shop.settled(used(shop, 10**8, usage=usage))
    assert (await rerate(shop, 4)).left_out == {"too_large": 1}


async def test_an_entry_that_the_ledger_refuses_is_counted(shop: Shop) -> None:
    """The balance would pass what an account can have: 9,007,199,254,740,991 is the most."""
    await shop.give(2**53 - 1 - 5)
    await calls(shop, 1)
    # Of another source than the first: no total may pass that either.
    gift = msgspec.structs.replace(purchase(35, account="ada"), source="manual")
    await shop.hot.post([gift])
    run = await rerate(shop, CHEAPER_BOOK)
    assert (run.entries, run.given_back, run.left_out) == (0, 0, {"refused": 1})
    assert (await shop.account()).balance == 2**53 - 1 - 5


# --- the way back, and runs one after the other -------------------------------------------------


async def test_the_same_book_again_finds_nothing_to_do(shop: Shop) -> None:
    await shop.give(1_000)
    await calls(shop, 5)
    await rerate(shop, DEARER_BOOK)
    run = await rerate(shop, DEARER_BOOK)
    assert (run.calls, run.entries, run.taken) == (5, 0, 0)


async def test_a_run_back_posts_the_opposite(shop: Shop) -> None:
    await shop.give(1_000)
    await calls(shop, 4)
    before = await balances(shop)
    there = await rerate(shop, DEARER_BOOK)
    back = await rerate(shop, OLD_BOOK)
    assert (there.taken, back.given_back, back.taken) == (40, 40, 0)
    assert await balances(shop) == before


async def test_a_run_from_book_to_book_starts_at_what_is_charged(shop: Shop) -> None:
    """35 -> 45 -> 23: 10 taken, then 22 given back."""
    await shop.give(100)
    await calls(shop, 1)
    await rerate(shop, DEARER_BOOK, "up")
    run = await rerate(shop, CHEAPER_BOOK, "down")
    assert run.given_back == 22
    assert (await shop.account()).total_consumed == 23


async def test_the_own_book_leads_back_even_where_no_rule_matches(shop: Shop) -> None:
    """Charged by a fallback rule, which matches nothing by itself; the other book has one for it."""
    some = book("some", 'input = "1"\ncached_input = "1"\noutput = "4"').replace(
        "mini-1", "unlisted"
    )
    await shop.books.upload(some, actor="test")
    await shop.give(100)
    await calls(shop, 1, model_sent="unlisted")  # 35 by OLD's rule "echo-mini"
    assert (await rerate(shop, 4)).taken == 1  # 10 + 2 + 24 = 36
    back = await rerate(shop, OLD_BOOK)
    assert (back.given_back, back.left_out) == (1, {})
    assert (await shop.account()).balance == 65


async def test_a_final_after_its_estimate_is_rerated_as_one_charge(shop: Shop) -> None:
    """Estimated 20, in the end 35 (a final of 15); by the dearer book 45."""
    await shop.give(100)
    charge_id = shop.new_id()
    await shop.settled(used(shop, finish=estimate(charge_id, 20, account="ada")))
    await shop.settled(used(shop, finish=charge(charge_id, 35, account="ada")))
    assert (await rerate(shop, DEARER_BOOK)).taken == 10
    assert (await rerate(shop, OLD_BOOK)).given_back == 10


AMOUNTS = st.integers(0, 60)


class Story(msgspec.Struct, frozen=True):
    """Calls by account and input tokens, what is refunded of each, and the books of the runs."""

    calls: list[tuple[str, int, int]]
    runs: list[int]


STORIES = st.builds(
    Story,
    st.lists(
        st.tuples(st.sampled_from(["ada", "bob"]), st.integers(0, 40), st.integers(0, 80)),
        min_size=1,
        max_size=7,
    ),
    st.lists(st.sampled_from([DEARER_BOOK, CHEAPER_BOOK, OLD_BOOK, 4]), max_size=3),
)


async def unwind(place: Place, story: Story) -> None:
    """Whatever runs there were, one back to the first book leaves all as it was; reconcile is clean."""
    async with open_shop(place) as shop:
        free = book("free", "free = true")
        if await shop.rows("SELECT 1 FROM price_books"):
            # Another example was here: its calls are out of the time.
            shop.now = (
                int(str((await shop.rows("SELECT MAX(to_at) FROM rerating_runs"))[0][0])) + HOUR_MS
            )
        else:
            await with_books(shop, free)
        window = Window(from_at=shop.now, to_at=shop.now + 1)
        ids = []
        for account, tokens, back in story.calls:
            usage = Usage(input=tokens, output=2)
            finish = used(shop, tokens + 8, account=account, usage=usage)
            ids.append((await shop.settled(finish), tokens + 8, back))
        shop.now += 1
        for charge_id, amount, back in ids:
            if 0 < back <= amount:
                await refund(shop, charge_id, back)
        before = await balances(shop)
        for version in (*story.runs, OLD_BOOK):
            asked = run_asked(version, window=window)
            await shop.rerating.start(asked, actor=ADMIN)
            await shop.rerating.carry_on()
            assert await shop.wrong() == []
            for charge_id, _, _ in ids:
                async with shop.database.read() as connection:
                    account = str(
                        (
                            await shop.rows(
                                "SELECT account FROM usage WHERE event_id = :id", id=charge_id
                            )
                        )[0][0]
                    )
                    entries = await entries_of_call(connection, account, charge_id)
                assert sum(entry.amount for entry in entries) <= 0, "nobody gains by a call"
        assert await balances(shop) == before


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STORIES)
def test_the_way_back_leaves_all_as_it_was(place: Place, story: Story) -> None:
    asyncio.run(unwind(place, story))


# --- refunds ------------------------------------------------------------------------------------


async def test_what_was_given_back_bounds_the_charge_from_below(shop: Shop) -> None:
    """35, of which 30 were given back; by the cheaper book 23: it stays at 30, and costs 0 in all."""
    await shop.give(100)
    (charge_id,) = await calls(shop, 1)
    await refund(shop, charge_id, 30)
    assert (await rerate(shop, CHEAPER_BOOK)).given_back == 5
    account = await shop.account()
    assert (account.balance, account.total_consumed) == (100, 0)
    with pytest.raises(RefundTooLargeError):
        await refund(shop, charge_id, 1)
    assert (await rerate(shop, OLD_BOOK)).taken == 5
    assert await refund(shop, charge_id) == 5


async def test_a_refund_in_part_stays_beside_the_new_price(shop: Shop) -> None:
    """35, of which 10 were given back; by the dearer book 45: 10 more, so that it costs 35."""
    await shop.give(100)
    (charge_id,) = await calls(shop, 1)
    await refund(shop, charge_id, 10)
    await rerate(shop, DEARER_BOOK)
    assert (await shop.account()).total_consumed == 35
    assert await refund(shop, charge_id) == 35  # all that is left: re-ratings count


@pytest.mark.parametrize("version", [DEARER_BOOK, CHEAPER_BOOK])
async def test_what_was_given_back_whole_stays_free(shop: Shop, version: int) -> None:
    await shop.give(100)
    (charge_id,) = await calls(shop, 1)
    await refund(shop, charge_id)
    assert (await rerate(shop, version)).left_out == {"refunded": 1}
    assert (await shop.account()).balance == 100


async def test_a_refund_that_is_promised_counts(shop: Shop) -> None:
    await shop.give(100)
    (charge_id,) = await calls(shop, 1)
    hooks["correction_promised"] = end
    try:
        with pytest.raises(Gone):
            await refund(shop, charge_id)
    finally:
        hooks.clear()
    assert (await rerate(shop, CHEAPER_BOOK)).left_out == {"refunded": 1}
    assert await shop.corrections.resume() == 1
    assert (await shop.account()).balance == 100


async def test_no_charge_of_the_time_is_refunded_meanwhile(shop: Shop) -> None:
    await shop.give(100)
    (charge_id,) = await calls(shop, 1)
    shop.now = WINDOW.to_at
    (other,) = await calls(shop, 1)
    await shop.rerating.start(run_asked(CHEAPER_BOOK, "r1"), actor=ADMIN)
    with pytest.raises(ChargeBeingReratedError, match="r1 is under way"):
        await refund(shop, charge_id)
    assert await refund(shop, other, 5) == 5
    await shop.rerating.carry_on()
    assert await refund(shop, charge_id) == 23


# --- one run, once ------------------------------------------------------------------------------


async def test_a_run_id_is_one_run(shop: Shop) -> None:
    await shop.give(100)
    await calls(shop, 1)
    first = await rerate(shop, DEARER_BOOK, "r1")
    again, repeated = await shop.rerating.start(run_asked(DEARER_BOOK, "r1"), actor="another")
    assert (again, repeated) == (first, True)
    assert await shop.rerating.carry_on() is None
    for asked, field in (
        (run_asked(CHEAPER_BOOK, "r1"), "book"),
        (run_asked(DEARER_BOOK, "r1", Window(from_at=1, to_at=WINDOW.to_at)), "from"),
        (run_asked(DEARER_BOOK, "r1", Window(from_at=WINDOW.from_at, to_at=T0)), "to"),
    ):
        with pytest.raises(RunConflictError, match=field):
            await shop.rerating.start(asked, actor=ADMIN)
    acts = await shop.rows(
        "SELECT actor, action, target FROM admin_audit WHERE action LIKE 'charge%'"
    )
    assert acts == [(ADMIN, "charge.rerate", "r1")]


async def test_one_run_at_a_time(shop: Shop) -> None:
    shop.now = WINDOW.to_at
    await shop.rerating.start(run_asked(DEARER_BOOK, "r1"), actor=ADMIN)
    with pytest.raises(RunInProgressError, match="r1"):
        await shop.rerating.start(run_asked(CHEAPER_BOOK, "r2"), actor=ADMIN)
    assert (await shop.rerating.start(run_asked(DEARER_BOOK, "r1"), actor=ADMIN))[1]
    await shop.rerating.carry_on()
    await shop.rerating.start(run_asked(CHEAPER_BOOK, "r2"), actor=ADMIN)
    await shop.rerating.carry_on()


async def test_two_runs_asked_for_at_once_by_many(place: Place) -> None:
    async with open_shop(place) as shop:
        await with_books(shop)
        async with many_shops(place, 6) as shops:
            for each in shops:
                each.now = WINDOW.to_at
            asked = [run_asked(DEARER_BOOK, f"r{number % 2}") for number in range(6)]
            done = await asyncio.gather(
                *(
                    each.rerating.start(one, actor=ADMIN)
                    for each, one in zip(shops, asked, strict=True)
                ),
                return_exceptions=True,
            )
            refused = [each for each in done if isinstance(each, RunInProgressError)]
            begun = [each for each in done if isinstance(each, tuple)]
            assert (len(refused), len(begun)) == (3, 3)
            assert sum(not repeated for _, repeated in begun) == 1
        shop.now = WINDOW.to_at
        await shop.rerating.carry_on()


@pytest.mark.parametrize(
    ("fields", "problems"),
    [
        ({"window": Window(from_at=2, to_at=2)}, ["to"]),
        ({"window": Window(from_at=2, to_at=T0 + 1)}, ["to"]),
        ({"reason": "  "}, ["reason"]),
        ({"reason": "x" * 501}, ["reason"]),
        ({"run_id": ""}, ["run_id"]),
        ({"run_id": "a:b"}, ["run_id"]),
        ({"run_id": "x" * 65, "reason": "\n"}, ["reason", "run_id"]),
    ],
)
async def test_bad_fields_are_named(
    shop: Shop, fields: dict[str, object], problems: list[str]
) -> None:
    good = run_asked(OLD_BOOK, window=Window(from_at=1, to_at=2))
    with pytest.raises(InvalidFieldsError) as raised:
        await shop.rerating.start(msgspec.structs.replace(good, **fields), actor=ADMIN)
    assert [problem.field for problem in raised.value.problems] == problems
    assert await shop.rows("SELECT * FROM rerating_runs") == []


async def test_unknown_books_and_runs(shop: Shop) -> None:
    with pytest.raises(UnknownBookError):
        await shop.rerating.start(run_asked(99, window=Window(from_at=1, to_at=2)), actor=ADMIN)
    with pytest.raises(UnknownRunError):
        await shop.rerating.get("nothing")
    assert await shop.rerating.carry_on() is None


async def test_runs_are_listed_newest_first(shop: Shop) -> None:
    await rerate(shop, DEARER_BOOK, "r1")
    shop.now += 1
    await rerate(shop, OLD_BOOK, "r2")
    page = await shop.rerating.page(PageRequest(page_size=1))
    assert ([run.run_id for run in page.items], page.total, page.has_more) == (["r2"], 2, True)


# --- dying in between ---------------------------------------------------------------------------

POINTS = ["rerating_promised", "rerating_held", "rerating_posted"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("version", [DEARER_BOOK, CHEAPER_BOOK])
async def test_another_carries_on_where_one_broke_off(shop: Shop, point: str, version: int) -> None:
    await shop.give(1_000)
    await calls(shop, 7)
    shop.now = WINDOW.to_at
    count = 0

    def second_time() -> None:
        nonlocal count
        count += 1
        if count == 2 or point == "rerating_promised":
            raise Gone

    hooks[point] = second_time
    try:
        with pytest.raises(Gone):
            await rerate(shop, version, "r1")
    finally:
        hooks.clear()
    done = await shop.rerating_with(shop.holds).carry_on()
    assert done is not None
    assert (done.state, done.calls, done.entries) == ("done", 7, 7)
    account = await shop.account()
    new = 45 if version == DEARER_BOOK else 23
    assert (account.balance, account.held) == (1_000 - 7 * new, 0)
    assert len(await shop.entries("%:rerate:r1")) == 7


@pytest.mark.parametrize("point", POINTS)
async def test_a_killed_process_leaves_a_run_to_be_carried_on(place: Place, point: str) -> None:
    async with open_shop(place) as shop:
        await with_books(shop)
        await shop.give(1_000)
        await calls(shop, 5)
        await die(place, point, "rerate", "r1")
        shop.now = WINDOW.to_at
        with pytest.raises(ChargeBeingReratedError):
            await refund(shop, (await shop.entries("%-%"))[0][0])
        done = await shop.rerating.carry_on()
        assert done is not None
        assert (done.calls, done.entries, done.taken) == (5, 5, 50)
        account = await shop.account()
        assert (account.balance, account.held) == (1_000 - 5 * 45, 0)
        assert await shop.wrong() == []


async def test_two_processes_at_one_run_post_everything_once(place: Place) -> None:
    """Each believes to be the one, and goes through all pages: 12 calls, 12 entries."""
    async with open_shop(place) as shop:
        await with_books(shop)
        await shop.give(10_000)
        await calls(shop, 12)
        shop.now = WINDOW.to_at
        await shop.rerating.start(run_asked(DEARER_BOOK, "r1"), actor=ADMIN)
        async with many_shops(place, 4) as shops:
            done = await asyncio.gather(*(each.rerating.finish("r1") for each in shops))
        assert {(run.state, run.calls, run.entries, run.taken) for run in done} == {
            ("done", 12, 12, 120)
        }
        account = await shop.account()
        assert (account.balance, account.held) == (10_000 - 12 * 45, 0)


class Overtaken(DatabaseHoldStore):
    """When it lets go for the first time, another has done the whole run, and the next one has begun."""

    def __init__(self, shop: Shop) -> None:
        super().__init__(shop.hot)
        self._shop = shop
        self._other: Runs | None = shop.rerating

    async def release(self, account: str, hold_id: str) -> None:
        other, self._other = self._other, None
        if other is not None:
            await other.finish("r1")
            await other.start(run_asked(OLD_BOOK, "r2"), actor=ADMIN)
        await super().release(account, hold_id)


async def test_who_is_overtaken_counts_nothing_twice(shop: Shop) -> None:
    """Seven calls on three pages; the slower one has posted the first page, and then sees that all is done."""
    await shop.give(1_000)
    await calls(shop, 7)
    shop.now = WINDOW.to_at
    await shop.rerating.start(run_asked(DEARER_BOOK, "r1"), actor=ADMIN)
    done = await shop.rerating_with(Overtaken(shop)).finish("r1")
    assert done == await shop.rerating.get("r1")
    assert (done.state, done.calls, done.entries, done.taken) == ("done", 7, 7, 70)
    account = await shop.account()
    assert (account.balance, account.held) == (1_000 - 7 * 45, 0)
    assert (await shop.rerating.get("r2")).calls == 0  # nor does it do anything for the next one
    await shop.rerating.carry_on()


async def test_one_process_has_the_duty(postgres_url: str) -> None:
    async with open_shop(postgres_url) as shop:
        await with_books(shop)
        shop.now = WINDOW.to_at
        await shop.rerating.start(run_asked(DEARER_BOOK, "r1"), actor=ADMIN)
        other = Election(shop.database, DUTY)
        assert await other.stand()
        assert await shop.rerating.carry_on() is None
        assert (await shop.rerating.get("r1")).state == "posting"
        await other.resign()
        assert await shop.rerating.carry_on() is not None


async def test_calls_that_are_settled_meanwhile_are_counted_once(place: Place) -> None:
    """Finals of estimates, and new calls, arrive during the run; a second run takes what is left."""
    async with open_shop(place) as shop:
        await with_books(shop)
        await shop.give(100_000)
        estimated = [shop.new_id() for _ in range(15)]
        for event_id in estimated:
            await shop.settled(used(shop, finish=estimate(event_id, 20, account="ada")))
            await calls(shop, 1)
        late = [used(shop, finish=charge(each, 35, account="ada")) for each in estimated]
        shop.now = WINDOW.to_at
        await shop.rerating.start(run_asked(DEARER_BOOK, "r1"), actor=ADMIN)

        async def finals() -> None:
            for finish in late:
                await shop.hot.record(finish)
                await shop.hot.settle_pending(1)

        await asyncio.gather(shop.rerating.finish("r1"), finals())
        first = await shop.rerating.get("r1")
        assert first.calls == 30
        assert first.entries + sum(first.left_out.values()) == 30
        second = await rerate(shop, DEARER_BOOK, "r2")
        assert first.entries + second.entries == 30
        assert second.left_out == {}
        account = await shop.account()
        assert (account.balance, account.total_consumed) == (100_000 - 30 * 45, 30 * 45)
        assert await shop.wrong() == []


# --- holds --------------------------------------------------------------------------------------


class Watched(DatabaseHoldStore):
    """Notes in which order a debit holds and releases, with the balance at that moment."""

    def __init__(self, shop: Shop) -> None:
        super().__init__(shop.hot)
        self._shop = shop
        self.seen: list[tuple[str, int, int]] = []

    async def reserve(self, request: HoldRequest) -> Granted | Refused:
        answer = await super().reserve(request)
        await self._look("held")
        return answer

    async def release(self, account: str, hold_id: str) -> None:
        await self._look("releasing")
        await super().release(account, hold_id)

    async def _look(self, what: str) -> None:
        account = await self._shop.account()
        self.seen.append((what, account.balance, account.held))


async def test_debits_are_held_until_they_are_posted(shop: Shop) -> None:
    """Four calls, three on the first page: 30 are held, then 10."""
    await shop.give(1_000)
    await calls(shop, 4)
    watched = Watched(shop)
    shop.rerating = shop.rerating_with(watched)
    await rerate(shop, DEARER_BOOK)
    assert watched.seen == [
        ("held", 860, 30), ("releasing", 830, 30), ("held", 830, 10), ("releasing", 820, 10)
    ]  # fmt: skip
    await rerate(shop, OLD_BOOK)  # an income holds nothing
    assert len(watched.seen) == 4


class Away(DatabaseHoldStore):
    """A hold store that cannot be reached."""

    async def reserve(self, request: HoldRequest) -> Refused:
        raise GuardUnavailableError("away")


async def test_nothing_is_taken_while_the_guard_is_away(shop: Shop) -> None:
    await shop.give(100)
    await calls(shop, 1)
    shop.now = WINDOW.to_at
    await shop.rerating.start(run_asked(DEARER_BOOK), actor=ADMIN)
    with pytest.raises(GuardUnavailableError):
        await shop.rerating_with(Away(shop.hot)).carry_on()
    assert (await shop.account()).balance == 65
    assert await shop.rerating.carry_on() is not None
    assert (await shop.account()).balance == 55


# --- what others see ----------------------------------------------------------------------------


async def test_the_charge_and_the_statement_tell_of_it(shop: Shop) -> None:
    await shop.give(100)
    (charge_id,) = await calls(shop, 1)
    await rerate(shop, DEARER_BOOK, "r1")
    explained = await explain_charge(shop.database, shop.books, "ada", charge_id)
    assert explained is not None
    assert [(entry.event_id, entry.amount) for entry in explained.entries] == [
        (charge_id, -35), (f"{charge_id}:rerate:r1", -10)
    ]  # fmt: skip
    assert explained.amount == 35  # as it was priced then; the entries tell the rest
    told = await statement(shop.database, "ada", month_of("2026-09"), shop.now)
    assert [(line.source, line.amount, line.entries) for line in told.lines] == [
        ("charge", -45, 2), ("purchase", 100, 1)
    ]  # fmt: skip


async def test_consumption_tells_what_calls_cost_when_they_were_made(shop: Shop) -> None:
    """As with refunds: the rollup is of calls, corrections are in the transactions."""
    await shop.give(100)
    await calls(shop, 1)
    await rerate(shop, DEARER_BOOK)
    told = await consumption(shop.database, Question(account="ada"), shop.now)
    assert told.totals.amount == 35
    assert await shop.wrong() == []
    assert await shop.reconciler.repair_rollup() == 0


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ("DELETE FROM rerating_runs", True),
        ("UPDATE rerating_runs SET entries = entries + 1", True),
        ("UPDATE rerating_runs SET taken = taken - 1", True),
        ("UPDATE rerating_runs SET given_back = 7", True),
        ("UPDATE rerating_runs SET reason = 'other'", False),
    ],
)
async def test_r8_sees_what_is_wrong_with_runs(place: Place, change: str, *, wrong: bool) -> None:
    async with open_shop(place, check=False) as shop:
        await with_books(shop)
        await shop.give(100)
        await calls(shop, 1)
        await rerate(shop, DEARER_BOOK, "r1")
        assert await shop.wrong() == []
        await shop.change(change)
        assert bool(await shop.wrong()) is wrong


async def test_the_database_itself_keeps_runs_to_one(shop: Shop) -> None:
    shop.now = WINDOW.to_at
    await shop.rerating.start(run_asked(DEARER_BOOK, "r1"), actor=ADMIN)
    with pytest.raises(DBAPIError):
        await shop.change(
            "INSERT INTO rerating_runs (run_id, book, from_at, to_at, reason, actor, created_at)"
            " VALUES ('r2', 1, 1, 2, 'r', 'a', 1)"
        )
    await shop.rerating.carry_on()


async def test_what_a_run_holds_is_no_calls(shop: Shop) -> None:
    """Its process dies after it held 30: nobody charges the hold as a call, and who carries on lets go."""
    await shop.give(1_000)
    await calls(shop, 3)
    hooks["rerating_held"] = end
    try:
        with pytest.raises(Gone):
            await rerate(shop, DEARER_BOOK, "r1")
    finally:
        hooks.clear()
    assert (await shop.account()).held == 30
    ((hold_id,),) = await shop.rows("SELECT hold_id FROM holds")
    orphans = DatabaseOrphans(shop.database)
    (held_call,) = await orphans.held_by_others(frozenset({"another"}), 10)
    assert not decode_context(held_call.context).is_call  # so no sweeper charges it
    await shop.hot.adopt_orphans("another", shop.now)
    view = SqlLedgerView(shop.database)
    assert await view.recorded([str(hold_id)]) == {hold_id}
    done = await shop.rerating_with(shop.holds).carry_on()
    assert done is not None
    account = await shop.account()
    assert (account.balance, account.held) == (1_000 - 3 * 45, 0)
    assert await shop.rows("SELECT 1 FROM usage WHERE revision = 1") == []
    held = await shop.rows("SELECT hold_id, run_id, done_at FROM rerating_holds")
    assert held == [(hold_id, "r1", shop.now)]
    await rerate(shop, OLD_BOOK)  # the next run clears what the last one left
    assert await shop.rows("SELECT 1 FROM rerating_holds") == []
