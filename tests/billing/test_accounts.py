"""Accounts: made, suspended, granted once per event id; what owners read; calls explained."""

import asyncio

import asyncpg
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from billing.accounts import (
    AccountExistsError,
    AccountInfo,
    EntryConflictError,
    EntryFilter,
    EntryRefusedError,
    Grant,
    UnknownAccountError,
    is_account_id,
)
from billing.charges import CONSIDERED_MAX, Settlement, explain_charge
from billing.context import BillingContext, encode_context
from billing.events import ChargeEvent, Finish, Revision, UsageNotes, UsageQuality, UsageSource
from billing.holds import Granted, HoldRequest, Refused
from billing.ledger import Entry, Posted
from billing.lists import PageRequest
from pricing_rules.usage import Usage
from tests.support.control import BOOK, NOON, Control, control
from tests.support.services import pg_dsn

CREDIT = 1_000_000  # micro-credits

# BOOK's rule echo-mini costs $2.50 and $10.00 per 1M tokens at 100 credits a dollar, so 250 and
# 1,000 micro-credits a token; cached input costs 125. 11 input, 3 cached, 2 output:
# 11 x 250 + 3 x 125 + 2 x 1,000 = 2,750 + 375 + 2,000 = 5,125.
USAGE = Usage(input=11, cached_input=3, output=2)
AMOUNT = 5_125


def _grant(amount: int = 10 * CREDIT, *, event_id: str = "g1", account: str = "ada") -> Grant:
    return Grant(event_id=event_id, account=account, amount=amount, description="welcome")


def _context(event_id: str, account: str = "ada") -> BillingContext:
    return BillingContext(
        event_id=event_id,
        account=account,
        key_id="key_1",
        app="",
        scene="default",
        provider="echo",
        model_requested="mini",
        model_sent="mini",
        run_id="",
        client_request_id="mine",
        book=1,
        rule="echo-mini",
        started_at=NOON,
    )


async def _hold(plane: Control, event_id: str, amount: int = 20_000) -> Granted | Refused:
    return await plane.hot.reserve(
        HoldRequest(
            hold_id=event_id,
            account="ada",
            minimum=amount,
            wanted=amount,
            context=encode_context(_context(event_id)),
            process="p1",
            started_at=NOON,
        )
    )


def _finish(event_id: str, *, amount: int = AMOUNT, cancelled: bool = False) -> Finish:
    return Finish(
        event=ChargeEvent(
            revision=Revision.FINAL,
            context=_context(event_id),
            usage=Usage() if cancelled else USAGE,
            quality=UsageQuality.EXACT,
            usage_source=UsageSource.PROVIDER,
            amount=0 if cancelled else amount,
            ceiling=20_000,
            finished_at=NOON + 900,
        ),
        notes=UsageNotes(reason="empty" if cancelled else ""),
        cancelled=cancelled,
    )


@pytest.mark.parametrize(
    "good", ["a", "7", "_x", "ada@example.com", "auth0|65f", "a" * 64, "svc:forum", "A-b.c+d=e~f"]
)
def test_account_id_is_good(good: str) -> None:
    assert is_account_id(good)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        "a b",
        "a/b",
        "..",
        ".a",
        "-a",
        "a\n",
        "a\x00",
        "ä",
        "a" * 65,
        "a%2f",
        "a?",
        "a;b",
        "１",
    ],
)
def test_account_id_is_bad(bad: str) -> None:
    assert not is_account_id(bad)


@given(st.text(max_size=70))
def test_account_id_fits_an_address_and_a_column(candidate: str) -> None:
    if is_account_id(candidate):
        assert candidate.isascii()
        assert candidate.isprintable()
        assert 1 <= len(candidate) <= 64
        assert not set(candidate) & set(" /?#%&\"'\\<>")


async def test_created_account_has_nothing(plane: Control) -> None:
    info = await plane.accounts.create("ada", name="Ada", actor="test")
    assert info == AccountInfo(account="ada", name="Ada", created_at=NOON, updated_at=NOON)
    assert info.blocked


async def test_account_is_made_once(plane: Control) -> None:
    await plane.accounts.create("ada", actor="test")
    with pytest.raises(AccountExistsError):
        await plane.accounts.create("ada", name="other", actor="test")
    assert (await plane.accounts.get("ada")).name == ""


async def test_creating_at_once_makes_one_account(plane: Control) -> None:
    made = await asyncio.gather(
        *(plane.accounts.create("ada", name=f"n{n}", actor="test") for n in range(8)),
        return_exceptions=True,
    )
    (info,) = [one for one in made if isinstance(one, AccountInfo)]
    assert [type(one) for one in made].count(AccountExistsError) == 7
    assert (await plane.accounts.get("ada")).name == info.name
    assert (await plane.audit.page(PageRequest())).total == 1


async def test_creating_beside_first_entries_keeps_both(plane: Control) -> None:
    accounts = [f"user-{number}" for number in range(12)]
    made, posted = await asyncio.gather(
        asyncio.gather(
            *(plane.accounts.create(account, actor="test") for account in accounts),
            return_exceptions=True,
        ),
        asyncio.gather(*(plane.hot.post([_entry(account)]) for account in accounts)),
    )
    assert {type(one) for one in made} <= {AccountInfo, AccountExistsError}
    assert [type(one) for (one,) in posted] == [Posted] * 12
    assert [(await plane.accounts.get(account)).balance for account in accounts] == [CREDIT] * 12


def _entry(account: str) -> Entry:
    return Entry(
        event_id=f"bought:{account}",
        account=account,
        source="purchase",
        direction="income",
        amount=CREDIT,
    )


async def test_account_that_a_first_entry_is_making_exists(postgres_url: str) -> None:
    """The ledger's transaction is not over when an admin makes the same account."""
    async with control(postgres_url) as plane:
        ledger = await asyncpg.connect(pg_dsn(postgres_url))
        entry = ledger.transaction()
        await entry.start()
        await ledger.execute(
            "INSERT INTO accounts (account, created_at, updated_at) VALUES ('ada', 1, 1)"
        )
        creating = asyncio.create_task(plane.accounts.create("ada", name="Ada", actor="test"))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()"
        while not await ledger.fetchval(waiting):
            assert not creating.done()
            await asyncio.sleep(0)
        await entry.commit()
        await ledger.close()
        with pytest.raises(AccountExistsError):
            await creating
        assert (await plane.accounts.get("ada")).name == ""
        assert (await plane.audit.page(PageRequest())).total == 0


async def test_bad_id_makes_no_account(plane: Control) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        await plane.accounts.create("a/b", actor="test")
    assert (await plane.accounts.page(PageRequest())).total == 0


async def test_unknown_account_reads_zeros(plane: Control) -> None:
    assert await plane.accounts.read("nobody") == AccountInfo(account="nobody")
    assert (await plane.accounts.transactions("nobody", PageRequest())).total == 0
    with pytest.raises(UnknownAccountError):
        await plane.accounts.get("nobody")


async def test_grant_adds_credit_and_makes_the_account(plane: Control) -> None:
    done = await plane.accounts.grant(_grant(), actor="test")
    assert not done.repeated
    assert (done.entry.amount, done.entry.balance_after) == (10 * CREDIT, 10 * CREDIT)
    assert done.entry.source_label == "人工补发"
    assert (done.account.balance, done.account.total_rewarded) == (10 * CREDIT, 10 * CREDIT)
    assert not done.account.blocked


async def test_repeated_grant_is_one_entry(plane: Control) -> None:
    first = await plane.accounts.grant(_grant(), actor="test")
    again = await plane.accounts.grant(_grant(), actor="test")
    assert (again.repeated, again.entry) == (True, first.entry)
    assert again.account.balance == 10 * CREDIT


async def test_grants_at_once_are_one_entry(plane: Control) -> None:
    done = await asyncio.gather(*(plane.accounts.grant(_grant(), actor="t") for _ in range(20)))
    assert sum(not one.repeated for one in done) == 1
    assert (await plane.accounts.get("ada")).balance == 10 * CREDIT


@pytest.mark.parametrize(
    ("other", "field"),
    [(_grant(1), "amount"), (_grant(account="bob"), "account")],
)
async def test_event_id_with_other_content_conflicts(
    plane: Control, other: Grant, field: str
) -> None:
    await plane.accounts.grant(_grant(), actor="test")
    with pytest.raises(EntryConflictError) as conflict:
        await plane.accounts.grant(other, actor="test")
    assert conflict.value.conflict.field == field
    assert (await plane.accounts.get("ada")).balance == 10 * CREDIT
    assert (await plane.accounts.read("bob")).balance == 0


@pytest.mark.parametrize(
    ("grant", "field"),
    [
        (_grant(0), "amount"),
        (_grant(-1), "amount"),
        (_grant(2**53), "amount"),
        (_grant(event_id=" "), "event_id"),
        (_grant(account="a b"), "account"),
        (_grant(account=""), "account"),
        # Taken by a grant, they could never be posted by those whose they are.
        (_grant(event_id="credit-order:o:paid"), "event_id"),
        (_grant(event_id=" reward:forum_like:7:eve"), "event_id"),
        (_grant(event_id="adjustment:k"), "event_id"),
        (_grant(event_id="refund:c:k"), "event_id"),
        (_grant(event_id="order-refund:o:k"), "event_id"),
        (_grant(event_id="01900000-0000-7000-8000-000000000001:final"), "event_id"),
        (_grant(event_id="01900000-0000-7000-8000-000000000001:rerate:r"), "event_id"),
        # Their totals mean something else: given as a charge, credit would be consumption undone.
        *(
            (msgspec.structs.replace(_grant(), source=source), "source")
            for source in ("charge", "refund", "expiry", "adjustment", " Charge ")
        ),
    ],
)
async def test_grant_is_refused_by_field(plane: Control, grant: Grant, field: str) -> None:
    with pytest.raises(EntryRefusedError) as refused:
        await plane.accounts.grant(grant, actor="test")
    assert refused.value.refusal.field == field
    assert (await plane.accounts.page(PageRequest())).total == 0


async def test_suspended_account_is_not_admitted(plane: Control) -> None:
    await plane.accounts.grant(_grant(), actor="test")
    info = await plane.accounts.suspend("ada", "abuse", actor="test")
    assert (info.suspended, info.suspended_reason) == (True, "abuse")
    refused = await _hold(plane, "h1")
    assert isinstance(refused, Refused)
    assert refused.reason == "suspended"
    info = await plane.accounts.unsuspend("ada", actor="test")
    assert (info.suspended, info.suspended_reason) == (False, "")
    assert isinstance(await _hold(plane, "h2"), Granted)


async def test_suspending_nobody_is_refused(plane: Control) -> None:
    with pytest.raises(UnknownAccountError):
        await plane.accounts.suspend("nobody", "typo", actor="test")
    assert (await plane.audit.page(PageRequest())).total == 0


async def test_acts_are_audited_and_cannot_be_erased(plane: Control) -> None:
    await plane.accounts.create("ada", actor="root")
    await plane.accounts.grant(_grant(), actor="root")
    await plane.accounts.suspend("ada", "abuse", actor="root")
    await plane.accounts.unsuspend("ada", actor="root")
    rows = (await plane.audit.page(PageRequest())).items
    assert [row.action for row in reversed(rows)] == [
        "account.create",
        "account.grant",
        "account.suspend",
        "account.unsuspend",
    ]
    assert rows[2].detail["amount_micro_credits"] == 10 * CREDIT
    by_action = await plane.audit.page(PageRequest(), action="account.suspend", target="ada")
    assert [row.detail for row in by_action.items] == [{"reason": "abuse"}]
    with pytest.raises(IntegrityError, match="append-only"):
        async with plane.database.write() as connection:
            await connection.execute(text("DELETE FROM admin_audit"))


async def test_list_filters_literally(plane: Control) -> None:
    for account in ("ada", "a_da", "bob"):
        await plane.accounts.create(account, name=f"Dr. {account}", actor="test")
    page = await plane.accounts.page(PageRequest(page_size=2))
    assert [info.account for info in page.items] == ["a_da", "ada"]
    assert (page.total, page.has_more) == (3, True)
    assert (await plane.accounts.page(PageRequest(), contains="a_d")).total == 1
    assert (await plane.accounts.page(PageRequest(), contains="%")).total == 0


async def _entries(plane: Control, count: int) -> None:
    for number in range(1, count + 1):
        income = number % 2 == 1
        await plane.hot.post(
            [
                Entry(
                    event_id=f"e{number}",
                    account="ada",
                    source="purchase" if income else "adjustment",
                    direction="income" if income else "expense",
                    amount=CREDIT if income else -1,
                )
            ]
        )


async def test_transactions_are_newest_first_by_page_and_cursor(plane: Control) -> None:
    await _entries(plane, 5)
    by_page = [
        entry.event_id
        for number in (1, 2, 3)
        for entry in (
            await plane.accounts.transactions("ada", PageRequest(page=number, page_size=2))
        ).items
    ]
    assert by_page == ["e5", "e4", "e3", "e2", "e1"]
    first = await plane.accounts.transactions("ada", PageRequest(page_size=2))
    assert (first.total, first.has_more, first.next_after) == (5, True, 4)
    await _entries(plane, 7)  # two more arrive meanwhile
    second = await plane.accounts.transactions("ada", PageRequest(page_size=2, after=4))
    assert [entry.event_id for entry in second.items] == ["e3", "e2"]
    assert second.has_more
    third = await plane.accounts.transactions("ada", PageRequest(page_size=2, after=2))
    assert ([entry.event_id for entry in third.items], third.has_more) == (["e1"], False)


@pytest.mark.parametrize(("page", "more"), [(1, True), (2, False), (3, False)])
async def test_has_more_ends_with_the_last_full_page(plane: Control, page: int, more: bool) -> None:
    await _entries(plane, 4)
    got = await plane.accounts.transactions("ada", PageRequest(page=page, page_size=2))
    assert (got.has_more, got.total) == (more, 4)


async def test_transactions_are_filtered(plane: Control) -> None:
    await _entries(plane, 5)
    spent = await plane.accounts.transactions(
        "ada", PageRequest(), EntryFilter(direction="expense")
    )
    assert ([entry.event_id for entry in spent.items], spent.total) == (["e4", "e2"], 2)
    bought = await plane.accounts.transactions("ada", PageRequest(), EntryFilter(source="purchase"))
    assert bought.total == 3
    both = await plane.accounts.transactions(
        "ada", PageRequest(), EntryFilter(source="purchase", direction="expense")
    )
    assert (both.total, both.items) == (0, ())
    assert (await plane.accounts.transactions("bob", PageRequest())).items == ()


async def test_call_is_explained_from_hold_to_ledger(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await plane.accounts.grant(_grant(), actor="test")
    await _hold(plane, "c1")
    running = await explain_charge(plane.database, plane.books, "ada", "c1")
    assert running is not None
    assert (running.settlement, running.amount) == (Settlement.RUNNING, None)
    assert running.hold is not None
    assert running.hold.amount == 20_000

    await plane.hot.record(_finish("c1"))
    pending = await explain_charge(plane.database, plane.books, "ada", "c1")
    assert pending is not None
    assert (pending.settlement, pending.amount) == (Settlement.PENDING, AMOUNT)
    assert pending.hold is not None

    await plane.hot.settle_pending(10)
    settled = await explain_charge(plane.database, plane.books, "ada", "c1")
    assert settled is not None
    assert (settled.settlement, settled.hold) == (Settlement.SETTLED, None)
    assert settled.usage == USAGE
    assert [entry.amount for entry in settled.entries] == [-AMOUNT]
    assert settled.entries[0].balance_after == 10 * CREDIT - AMOUNT
    assert settled.context == _context("c1")


async def test_explanation_adds_up(plane: Control) -> None:
    await plane.books.load_first(BOOK.replace('"2.50"', '"2.501"'), actor="test")
    await plane.accounts.grant(_grant(), actor="test")
    # 11 x 250.1 + 3 x 125 + 2 x 1,000 = 5,126.1, rounded up to 5,127.
    await plane.hot.record(_finish("c1", amount=5_127))
    charge = await explain_charge(plane.database, plane.books, "ada", "c1")
    assert charge is not None
    assert charge.pricing is not None
    pricing = charge.pricing
    assert (pricing.exact, pricing.rounding, pricing.computed) == ("5126.1", "0.9", 5_127)
    parts = {line.kind: (line.quantity, line.micro_credits) for line in pricing.lines}
    assert parts["input"] == (11, "2751.1")
    assert parts["cached_input"] == (3, "375")
    assert parts["output"] == (2, "2000")
    assert pricing.rule is not None
    assert pricing.rule.id == "echo-mini"
    assert [one.rule.id for one in pricing.considered if one.won] == ["echo-mini"]
    assert any(one.rule.id == "agent-mini" for one in pricing.considered if not one.won)


@pytest.mark.parametrize(
    ("raw_usage", "told"),
    [
        (b'{"cost":0.0012}', "0.0012"),
        (b'{"cost":1e-7}', "0.0000001"),
        (b'{"cost":0}', "0"),
        (b'{"cost":{"total_cost":0.006,"request_cost":0.005}}', "0.006"),
        (b'{"cost":{"request_cost":0.005}}', None),
        (b'{"cost":null}', None),
        (b'{"cost":"free"}', None),
        (b'{"cost":1e1000000}', None),
        (b"[1]", None),
        (b"", None),
    ],
)
async def test_the_cost_that_the_provider_told_is_kept_apart(
    plane: Control, raw_usage: bytes, told: str | None
) -> None:
    await plane.books.load_first(BOOK, actor="test")
    finish = replace(_finish("c1"), notes=UsageNotes(raw_usage=raw_usage))
    await plane.hot.record(finish)
    charge = await explain_charge(plane.database, plane.books, "ada", "c1")
    assert charge is not None
    assert (charge.provider_cost, charge.amount) == (told, AMOUNT)


async def test_the_conditions_of_a_price_are_explained(plane: Control) -> None:
    conditions = """output = "10.00"
tiers = [{ from_input_tokens = 14, output = "20.00" }]
hours = [{ tz = "UTC", from = "00:00", to = "24:00", multiply = "3" }]
service_tiers = { flex = "0.5" }"""
    await plane.books.load_first(BOOK.replace('output = "10.00"', conditions), actor="test")
    # (11 x 250 + 3 x 125 + 2 x 2,000) x 3 x 0.5 = 7,125 x 1.5
    await plane.hot.record(_finish("c1", amount=10_688))
    charge = await explain_charge(plane.database, plane.books, "ada", "c1")
    assert charge is not None
    assert charge.pricing is not None
    pricing = charge.pricing
    assert (pricing.exact, pricing.computed, pricing.rounding) == ("10687.5", 10_688, "0.5")
    assert pricing.from_input_tokens == 14
    factors = pricing.factors
    assert (factors.hours.text, factors.service_tier, factors.service.text) == ("3", "flex", "0.5")
    assert {line.factor for line in pricing.lines} == {"1.5"}


async def test_a_charge_by_the_fallback_rule_says_so(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    finish = _finish("c1")
    context = replace(finish.event.context, model_sent="of no rule")
    await plane.hot.record(replace(finish, event=replace(finish.event, context=context)))
    charge = await explain_charge(plane.database, plane.books, "ada", "c1")
    assert charge is not None
    assert charge.pricing is not None
    first, *others = charge.pricing.considered
    assert (first.rule.id, first.won) == ("echo-mini", True)
    assert "fallback_rule" in first.why
    assert "echo-mini" not in {each.rule.id for each in others}


async def test_of_many_rules_the_nearest_are_explained(plane: Control) -> None:
    rule = '[[rule]]\nid = "r{0}"\nprovider = "echo"\nmodel = "m{0}"\ninput = "1"\noutput = "1"\n'
    many = "".join(rule.format(number) for number in range(2 * CONSIDERED_MAX))
    lost = rule.format("-any").replace('"m-any"', '"*"')
    await plane.books.load_first(BOOK + many + lost, actor="test")
    await plane.hot.record(_finish("c1"))
    charge = await explain_charge(plane.database, plane.books, "ada", "c1")
    assert charge is not None
    assert charge.pricing is not None
    shown = [each.rule.id for each in charge.pricing.considered]
    # The winner, one that matches and is wider, one of another scene, then those of other models.
    assert shown[:3] == ["echo-mini", "r-any", "agent-mini"]
    assert len(shown) == CONSIDERED_MAX
    # All 100 and the book's disabled one, but for the 47 that are shown.
    assert charge.pricing.considered_left_out == 2 * CONSIDERED_MAX + 1 - (CONSIDERED_MAX - 3)


async def test_cancelled_call_is_explained(plane: Control) -> None:
    """Nor does it cost the fee of a call, or a minimum."""
    fees = 'output = "10.00"\nper_call = "0.01"\nminimum_charge = "0.02"'
    await plane.books.load_first(BOOK.replace('output = "10.00"', fees), actor="test")
    await plane.accounts.grant(_grant(), actor="test")
    await _hold(plane, "c1")
    await plane.hot.cancel(_finish("c1", cancelled=True))
    charge = await explain_charge(plane.database, plane.books, "ada", "c1")
    assert charge is not None
    assert (charge.settlement, charge.amount, charge.reason) == (Settlement.CANCELLED, 0, "empty")
    assert (charge.entries, charge.hold) == ((), None)
    assert charge.pricing is not None
    assert (charge.pricing.lines, charge.pricing.exact, charge.pricing.computed) == ((), "0", 0)


async def test_corrections_belong_to_the_call(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await plane.accounts.grant(_grant(), actor="test")
    await plane.hot.record(_finish("c1"))
    await plane.hot.settle_pending(10)
    given_back = Entry(
        event_id="sorry-1",
        account="ada",
        source="charge",
        direction="income",
        amount=5,
        source_ref_id="c1",
    )
    other = Entry(event_id="c10", account="ada", source="charge", direction="expense", amount=-1)
    bobs = Entry(
        event_id="sorry-2",
        account="bob",
        source="manual",
        direction="income",
        amount=5,
        source_ref_id="c1",
    )
    await plane.hot.post([given_back, other, bobs])
    charge = await explain_charge(plane.database, plane.books, "ada", "c1")
    assert charge is not None
    assert [entry.event_id for entry in charge.entries] == ["c1", "sorry-1"]


@pytest.mark.parametrize(("account", "event_id"), [("bob", "c1"), ("ada", "c2"), ("", "c1")])
async def test_another_accounts_call_is_not_there(
    plane: Control, account: str, event_id: str
) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await plane.accounts.grant(_grant(), actor="test")
    await _hold(plane, "c1")
    assert await explain_charge(plane.database, plane.books, account, event_id) is None
    await plane.hot.record(_finish("c1"))
    assert await explain_charge(plane.database, plane.books, account, event_id) is None
