"""The rules of the ledger, one test each; pure, so without any database."""

import msgspec
import pytest

from billing.events import Finish, payload_hash
from billing.ledger import (
    AMOUNT_MAX,
    Account,
    Batch,
    Dropped,
    Entry,
    EntryRefused,
    EventConflict,
    LedgerEntry,
    PendingCharge,
    Posted,
    Repeated,
    Snapshot,
    default_label,
    label_in,
    normalise,
    total_of,
)
from tests.support.money import T0, cancelled, charge, estimate

NOW = T0 + 1000


def entry(**changes: object) -> Entry:
    plain = Entry(event_id="e1", account="alice", source="manual", direction="income", amount=500)
    return msgspec.structs.replace(plain, **changes)


def account(balance: int = 0, **changes: object) -> Account:
    plain = Account(
        account="alice",
        balance=balance,
        seq=3,
        total_recharged=balance,
        last_ledger_event_id="e0",
        created_at=T0,
        updated_at=T0,
    )
    return msgspec.structs.replace(plain, **changes)


def batch(*accounts: Account, entries: list[LedgerEntry] | None = None) -> Batch:
    return Batch(accounts=accounts, entries=entries or [], now=NOW)


def posted(made: Batch, asked: Entry) -> Posted:
    result = made.post(asked)
    assert isinstance(result, Posted)
    return result


def moved(result: Posted) -> Snapshot:
    assert result.account is not None
    return result.account


def refused(asked: Entry) -> str:
    result = batch(account(1000)).post(asked)
    assert isinstance(result, EntryRefused), result
    assert result.message
    return result.field


def settled(made: Batch, finish: Finish) -> LedgerEntry:
    result = settle(made, finish)
    assert isinstance(result, LedgerEntry), result
    return result


def settle(made: Batch, finish: Finish) -> object:
    pending = PendingCharge(finish.event, payload_hash(finish.event), finish.cancelled)
    return made.settle(pending)


class TestNormalise:
    def test_trims_text_and_lowers_source_direction_status(self) -> None:
        tidy = normalise(
            entry(
                event_id=" e1 ",
                account="\tAlice\n",
                source=" Forum_Like",
                direction="INCOME ",
                status=" Applied",
                source_label=" mine ",
                description=" why ",
                order_id=" o1 ",
                source_ref_id="  ",
            ),
            NOW,
        )
        assert tidy == Entry(
            event_id="e1",
            account="Alice",
            source="forum_like",
            direction="income",
            amount=500,
            status="applied",
            source_label="mine",
            description="why",
            order_id="o1",
            source_ref_id=None,
            created_at=NOW,
        )

    def test_keeps_a_time_that_is_given(self) -> None:
        tidy = normalise(entry(created_at=0), NOW)
        assert isinstance(tidy, Entry)
        assert tidy.created_at == 0

    @pytest.mark.parametrize("field", ["event_id", "account", "source", "status"])
    @pytest.mark.parametrize("value", ["", "   ", "\n\t"])
    def test_refuses_an_empty_field_by_name(self, field: str, value: str) -> None:
        assert refused(entry(**{field: value})) == field

    @pytest.mark.parametrize("direction", ["", "in", "incomes", "credit", "expense income"])
    def test_refuses_another_direction(self, direction: str) -> None:
        assert refused(entry(direction=direction)) == "direction"

    def test_refuses_a_sign_that_contradicts_the_direction(self) -> None:
        assert refused(entry(direction="income", amount=-1)) == "amount"
        assert refused(entry(direction="expense", amount=1)) == "amount"

    @pytest.mark.parametrize("amount", [True, 1.0, "5", None, AMOUNT_MAX + 1, -AMOUNT_MAX - 1])
    def test_refuses_what_is_no_amount(self, amount: object) -> None:
        direction = "expense" if isinstance(amount, int) and amount < 0 else "income"
        assert refused(entry(amount=amount, direction=direction)) == "amount"

    def test_refuses_ids_too_long_or_unprintable(self) -> None:
        assert refused(entry(account="a" * 65)) == "account"
        assert refused(entry(event_id="e" * 256)) == "event_id"
        assert refused(entry(account="a\x00b")) == "account"
        assert refused(entry(event_id="a\nb")) == "event_id"
        assert isinstance(batch().post(entry(account="a" * 64)), Posted)

    @pytest.mark.parametrize("text", ["{", "[]", "1", "null"])
    def test_refuses_metadata_that_is_no_json_object(self, text: str) -> None:
        assert refused(entry(metadata_json=text)) == "metadata_json"

    def test_a_refusal_leaves_nothing_to_write(self) -> None:
        made = batch(account(5))
        made.post(entry(account=""))
        assert made.written == []
        assert made.changed() == []


class TestMovement:
    def test_applied_amount_moves_the_balance(self) -> None:
        result = posted(batch(account(1000)), entry(amount=500))
        assert (result.entry.balance_before, result.entry.balance_after) == (1000, 1500)
        assert moved(result).balance == 1500
        assert moved(result).seq == 4

    def test_amount_zero_is_an_entry_that_moves_nothing(self) -> None:
        made = batch(account(1000))
        result = posted(made, entry(direction="expense", amount=0))
        assert (result.entry.balance_before, result.entry.balance_after) == (1000, 1000)
        assert result.entry.account_seq == 4
        (after,) = made.changed()
        assert after.last_ledger_event_id == "e1"
        assert after == account(1000, seq=4, last_ledger_event_id="e1", updated_at=NOW)

    @pytest.mark.parametrize("status", ["pending", "failed", "void"])
    def test_other_status_moves_nothing(self, status: str) -> None:
        made = batch(account(1000))
        result = posted(made, entry(status=status, amount=500))
        assert (result.entry.amount, result.entry.balance_after) == (500, 1000)
        (after,) = made.changed()
        assert after == account(1000, seq=4, last_ledger_event_id="e1", updated_at=NOW)

    @pytest.mark.parametrize("changes", [{"status": "pending"}, {"amount": 0}])
    def test_what_moves_nothing_makes_no_account(self, changes: dict[str, object]) -> None:
        made = batch()
        result = posted(made, entry(**changes))
        assert result.account is None
        assert result.entry.account_seq is None
        assert (result.entry.balance_before, result.entry.balance_after) == (0, 0)
        assert made.changed() == []
        assert made.written == [result.entry]

    def test_first_money_moving_entry_makes_the_account(self) -> None:
        made = batch()
        posted(made, entry(event_id="e0", amount=0))
        result = posted(made, entry(amount=500))
        assert result.entry.account_seq == 1
        (made_account,) = made.changed()
        assert made_account == Account(
            account="alice",
            balance=500,
            seq=1,
            total_rewarded=500,
            last_ledger_event_id="e1",
            created_at=NOW,
            updated_at=NOW,
        )

    def test_expense_may_pass_below_zero(self) -> None:
        result = posted(batch(account(100)), entry(direction="expense", amount=-150))
        assert moved(result).balance == -50

    def test_entries_of_a_batch_form_one_chain(self) -> None:
        made = batch(account(100))
        results = [
            posted(made, entry(event_id=f"c{n}", direction="expense", amount=-10)).entry
            for n in range(3)
        ]
        assert [r.account_seq for r in results] == [4, 5, 6]
        assert [(r.balance_before, r.balance_after) for r in results] == [
            (100, 90),
            (90, 80),
            (80, 70),
        ]

    def test_balance_beyond_the_largest_amount_is_refused(self) -> None:
        made = batch(account(AMOUNT_MAX))
        result = made.post(entry(amount=1))
        assert isinstance(result, EntryRefused)
        assert result.field == "amount"
        assert made.written == []


class TestTotals:
    @pytest.mark.parametrize(
        ("source", "direction", "amount", "total", "value"),
        [
            ("purchase", "income", 7, "total_recharged", 7),
            ("purchase", "expense", -7, "total_consumed", 7),
            ("charge", "expense", -7, "total_consumed", 7),
            ("charge", "income", 7, "total_consumed", -7),
            ("forum_like", "income", 7, "total_rewarded", 7),
            ("forum_import", "income", 7, "total_rewarded", 7),
            ("manual", "income", 7, "total_rewarded", 7),
            ("manual", "expense", -7, "total_consumed", 7),
            ("daily_bonus", "income", 7, "total_rewarded", 7),
            ("refund", "expense", -7, "total_refunded", 7),
            ("expiry", "expense", -7, "total_expired", 7),
            ("adjustment", "income", 7, "total_adjusted", 7),
            ("adjustment", "expense", -7, "total_adjusted", -7),
        ],
    )
    def test_total_follows_source_and_direction(
        self, source: str, direction: str, amount: int, total: str, value: int
    ) -> None:
        made = batch()
        posted(made, entry(source=source, direction=direction, amount=amount))
        (after,) = made.changed()
        totals = {
            name: getattr(after, name)
            for name in Account.__struct_fields__
            if name.startswith("total_") and getattr(after, name)
        }
        assert totals == {total: value}
        assert after.balance == amount
        assert f"total_{total_of(source, direction)}" == total


class TestLabels:
    @pytest.mark.parametrize(
        ("source", "chinese", "english"),
        [
            ("purchase", "购买充值", "Purchase"),
            ("charge", "AI 调用扣费", "AI call"),
            ("forum_like", "计划被点赞", "Plan liked"),
            ("forum_import", "计划被导入", "Plan imported"),
            ("manual", "人工补发", "Granted by hand"),
            ("other", "Credit 流水", "Credit entry"),
            ("never heard of", "Credit 流水", "Credit entry"),
        ],
    )
    def test_default_label(self, source: str, chinese: str, english: str) -> None:
        assert default_label(source) == chinese
        assert default_label(source, "en") == english
        assert posted(batch(), entry(source=source)).entry.source_label == chinese
        assert label_in("en", source, chinese) == english

    def test_an_own_label_wins(self) -> None:
        result = posted(batch(), entry(source="purchase", source_label="Gift"))
        assert result.entry.source_label == "Gift"
        assert label_in("en", "purchase", "Gift") == "Gift"


class TestRepeats:
    def test_same_content_returns_the_entry_and_the_current_account(self) -> None:
        made = batch(account(1000))
        first = posted(made, entry(amount=500))
        posted(made, entry(event_id="e2", amount=1))
        again = made.post(entry(amount=500, source_label="x", created_at=5, metadata_json="{}"))
        assert isinstance(again, Repeated)
        assert again.entry == first.entry
        assert again.account is not None
        assert again.account.balance == 1501
        assert len(made.written) == 2

    def test_text_is_compared_as_stored(self) -> None:
        made = batch(account(1000))
        posted(made, entry())
        assert isinstance(made.post(entry(source=" MANUAL ", event_id="e1 ")), Repeated)

    @pytest.mark.parametrize(
        ("changes", "field", "existing", "given"),
        [
            ({"account": "bob"}, "account", "alice", "bob"),
            ({"source": "purchase"}, "source", "manual", "purchase"),
            ({"direction": "expense", "amount": -500}, "direction", "income", "expense"),
            ({"amount": 501}, "amount", "500", "501"),
            ({"status": "pending"}, "status", "applied", "pending"),
        ],
    )
    def test_other_content_is_a_conflict_that_names_the_field(
        self, changes: dict[str, object], field: str, existing: str, given: str
    ) -> None:
        made = batch(account(1000))
        posted(made, entry())
        conflict = made.post(entry(**changes))
        assert conflict == EventConflict(event_id="e1", field=field, existing=existing, given=given)
        assert field in str(conflict)
        assert len(made.written) == 1


class TestCharges:
    def test_a_charge_is_an_expense_that_counts_as_consumed(self) -> None:
        made = batch(account(1000))
        charged = settled(made, charge("c1", 30))
        assert (charged.source, charged.direction, charged.amount) == ("charge", "expense", -30)
        assert (charged.usage_event_id, charged.usage_revision) == ("c1", 2)
        assert charged.source_label == "AI 调用扣费"
        (after,) = made.changed()
        assert (after.balance, after.total_consumed) == (970, 30)

    def test_settlement_never_refuses_for_want_of_credit(self) -> None:
        made = batch(account(10))
        assert settled(made, charge("c1", 30)).balance_after == -20

    def test_a_charge_without_account_makes_one_below_zero(self) -> None:
        made = batch()
        settled(made, charge("c1", 30))
        (after,) = made.changed()
        assert (after.balance, after.seq) == (-30, 1)

    def test_a_free_charge_is_an_entry(self) -> None:
        made = batch(account(10))
        charged = settled(made, charge("c1", 0))
        assert (charged.direction, charged.amount) == ("expense", 0)
        assert charged.balance_after == 10

    def test_the_same_final_twice_is_one_entry(self) -> None:
        made = batch(account(1000))
        first = settled(made, charge("c1", 30))
        assert settled(made, charge("c1", 30)) == first
        assert len(made.written) == 1

    def test_another_final_conflicts(self) -> None:
        made = batch(account(1000))
        settled(made, charge("c1", 30))
        conflict = settle(made, charge("c1", 31))
        assert conflict == EventConflict(event_id="c1", field="amount", existing="-30", given="-31")

    def test_a_cancelled_final_after_a_charge_conflicts(self) -> None:
        made = batch(account(1000))
        settled(made, charge("c1", 30))
        assert isinstance(settle(made, cancelled("c1")), EventConflict)

    def test_an_id_that_belongs_to_no_call_conflicts(self) -> None:
        made = batch(account(1000))
        posted(made, entry(event_id="c1"))
        posted(made, entry(event_id="c2"))
        assert isinstance(settle(made, charge("c1", 30)), EventConflict)
        assert isinstance(settle(made, estimate("c2", 30)), EventConflict)

    @pytest.mark.parametrize(
        ("finish", "field"),
        [
            (charge("c1", -1), "amount"),
            (charge("c1", AMOUNT_MAX + 1), "amount"),
            (charge("", 1), "event_id"),
            (charge("c1", 1, account=""), "account"),
            (charge("c1", 1, account="a" * 65), "account"),
            (charge("c1", 1, revision=3), "revision"),
        ],
    )
    def test_a_poisonous_event_is_refused(self, finish: Finish, field: str) -> None:
        made = batch(account(10))
        result = settle(made, finish)
        assert isinstance(result, EntryRefused)
        assert result.field == field
        assert made.written == []

    def test_an_unknown_version_is_refused(self) -> None:
        event = msgspec.structs.replace(charge("c1", 1).event, version=2)
        result = batch().settle(PendingCharge(event, "", cancelled=False))
        assert isinstance(result, EntryRefused)
        assert result.field == "version"

    def test_cancelled_yet_not_free_is_refused(self) -> None:
        event = charge("c1", 1).event
        result = batch().settle(PendingCharge(event, "", cancelled=True))
        assert isinstance(result, EntryRefused)


class TestEstimates:
    def test_a_final_posts_the_difference_under_its_own_id(self) -> None:
        made = batch(account(1000))
        settled(made, estimate("c1", 30))
        final = settled(made, charge("c1", 45))
        assert (final.event_id, final.direction, final.amount) == ("c1:final", "expense", -15)
        assert (final.usage_event_id, final.usage_revision) == ("c1", 2)
        assert final.source_ref_id == "c1"
        (after,) = made.changed()
        assert (after.balance, after.total_consumed) == (955, 45)

    def test_a_lower_final_gives_back_and_lowers_consumption(self) -> None:
        made = batch(account(1000))
        settled(made, estimate("c1", 30))
        final = settled(made, charge("c1", 10))
        assert (final.source, final.direction, final.amount) == ("charge", "income", 20)
        (after,) = made.changed()
        assert (after.balance, after.total_consumed, after.total_rewarded) == (990, 10, 0)

    def test_an_equal_final_is_an_entry_of_zero(self) -> None:
        made = batch(account(1000))
        settled(made, estimate("c1", 30))
        final = settled(made, charge("c1", 30))
        assert (final.event_id, final.direction, final.amount) == ("c1:final", "expense", 0)

    def test_a_repeated_final_is_compared_by_the_total(self) -> None:
        made = batch(account(1000))
        settled(made, estimate("c1", 30))
        final = settled(made, charge("c1", 45))
        assert settled(made, charge("c1", 45)) == final
        conflict = settle(made, charge("c1", 15))
        assert conflict == EventConflict(
            event_id="c1:final", field="amount", existing="-45", given="-15"
        )

    def test_a_final_of_another_account_conflicts(self) -> None:
        made = batch(account(1000))
        settled(made, estimate("c1", 30))
        conflict = settle(made, charge("c1", 30, account="bob"))
        assert isinstance(conflict, EventConflict)
        assert conflict.field == "account"

    def test_a_second_estimate_is_dropped(self) -> None:
        made = batch(account(1000))
        settled(made, estimate("c1", 30))
        dropped = settle(made, estimate("c1", 40))
        assert dropped == Dropped(event_id="c1", reason="estimate_after_estimate")

    def test_an_estimate_after_a_final_is_dropped(self) -> None:
        made = batch(account(1000))
        settled(made, charge("c1", 30))
        dropped = settle(made, estimate("c1", 40))
        assert dropped == Dropped(event_id="c1", reason="estimate_after_final")

    def test_an_estimate_whose_final_is_recorded_but_not_posted_is_dropped(self) -> None:
        made = Batch(accounts=[account(1000)], entries=[], finals={"c1"}, now=NOW)
        dropped = settle(made, estimate("c1", 40))
        assert dropped == Dropped(event_id="c1", reason="estimate_after_final")
        assert made.written == []

    def test_cancelling_takes_the_estimate_back(self) -> None:
        made = batch(account(1000))
        settled(made, estimate("c1", 30))
        assert settled(made, cancelled("c1")).amount == 30
        (after,) = made.changed()
        assert (after.balance, after.total_consumed) == (1000, 0)

    def test_cancelling_what_was_never_charged_writes_nothing(self) -> None:
        made = batch(account(1000))
        assert settle(made, cancelled("c1")) == Dropped(event_id="c1", reason="cancelled")
        assert made.written == []


class TestSnapshots:
    @pytest.mark.parametrize(("balance", "blocked"), [(1, False), (0, True), (-1, True)])
    def test_blocked_at_a_balance_of_zero_or_less(self, balance: int, *, blocked: bool) -> None:
        made = batch(account(10))
        change = balance - 10
        result = posted(made, entry(direction="expense", amount=change))
        assert moved(result).blocked is blocked

    def test_income_clears_blocked_but_not_suspended(self) -> None:
        result = posted(batch(account(0, suspended=True)), entry(amount=1))
        assert (moved(result).blocked, moved(result).suspended) == (False, True)

    def test_accounts_come_out_in_the_order_of_their_ids(self) -> None:
        made = batch()
        for name in ("zoe", "alice", "mia"):
            posted(made, entry(event_id=name, account=name))
        assert [after.account for after in made.changed()] == ["alice", "mia", "zoe"]
