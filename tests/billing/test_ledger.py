"""The rules of the ledger, one test each; pure, so without any database."""

import msgspec
import pytest

from billing.events import Finish, payload_hash
from billing.ledger import (
    AMOUNT_MAX,
    CHARGE_REFUND_LABEL,
    CHARGE_RERATE_LABEL,
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
    entry_hash,
    label_in,
    normalise,
    snapshot_of,
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

    def test_an_entry_is_not_posted_before_the_last_one_of_its_account(self) -> None:
        """The other's clock was ahead."""
        result = posted(batch(account(5, updated_at=NOW + 7)), entry())
        assert result.entry.posted_at == NOW + 7

    @pytest.mark.parametrize(
        ("label", "source", "english"),
        [
            (CHARGE_REFUND_LABEL, "charge", "AI call refunded"),
            (CHARGE_RERATE_LABEL, "charge", "AI call re-rated"),
            (CHARGE_REFUND_LABEL, "manual", CHARGE_REFUND_LABEL),
            ("mine", "charge", "mine"),
        ],
    )
    def test_labels_of_corrections_are_translated(
        self, label: str, source: str, english: str
    ) -> None:
        assert label_in("en", source, label) == english
        assert label_in("zh", source, label) == label

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


def _changed(**changes: object) -> Finish:
    """A charge with fields that it should not have, of its own or of its context."""
    finish = charge("c1", 1)
    context = finish.event.context
    for name in ("event_id", "account"):
        if name in changes:
            context = msgspec.structs.replace(context, **{name: changes.pop(name)})
    event = msgspec.structs.replace(finish.event, context=context, **changes)
    return msgspec.structs.replace(finish, event=event)


class TestExactly:
    """Every field, every message and every boundary, written out."""

    def test_a_snapshot_has_every_field_of_its_account(self) -> None:
        stored = Account(
            account="alice", balance=61, seq=9, total_recharged=100, total_rewarded=20,
            total_consumed=30, total_refunded=40, total_expired=5, total_adjusted=16,
            suspended=True, last_ledger_event_id="e9", created_at=T0, updated_at=T0 + 1,
        )  # fmt: skip
        assert snapshot_of(stored) == Snapshot(
            account="alice", balance=61, seq=9, total_recharged=100, total_rewarded=20,
            total_consumed=30, total_refunded=40, total_expired=5, total_adjusted=16,
            blocked=False, suspended=True, updated_at=T0 + 1,
        )  # fmt: skip
        made = batch(stored)
        posted(made, entry(amount=7))
        assert made.changed() == [
            msgspec.structs.replace(
                stored,
                balance=68,
                seq=10,
                total_rewarded=27,
                last_ledger_event_id="e1",
                updated_at=NOW,
            )
        ]

    def test_a_repeat_shows_the_account_as_it_was_left(self) -> None:
        first = posted(batch(account(100)), entry())
        again = batch(account(600, updated_at=T0 + 7), entries=[first.entry]).post(entry())
        assert isinstance(again, Repeated)
        assert again.account is not None
        assert again.account.updated_at == T0 + 7

    def test_an_entry_is_written_as_it_was_asked(self) -> None:
        asked = entry(order_id=" o1 ", source_ref_id=" r1 ", metadata_json=" ", created_at=5)
        written = posted(batch(account()), asked).entry
        assert (written.order_id, written.source_ref_id) == ("o1", "r1")
        assert (written.metadata_json, written.created_at) == ("{}", 5)
        assert written.payload_hash == entry_hash(entry())

    @pytest.mark.parametrize(
        "changes",
        [
            {"event_id": "e2"},
            {"account": "bob"},
            {"source": "refund"},
            {"direction": "expense"},
            {"amount": 501},
            {"status": "pending"},
        ],
    )
    def test_the_hash_tells_every_money_field(self, changes: dict[str, object]) -> None:
        assert entry_hash(entry(**changes)) != entry_hash(entry())

    @pytest.mark.parametrize(
        "changes",
        [
            {"event_id": "e" * 255},
            {"account": "a" * 64},
            {"account": "a"},
            {"amount": AMOUNT_MAX},
            {"amount": -AMOUNT_MAX, "direction": "expense"},
        ],
    )
    def test_the_largest_that_is_allowed_is_allowed(self, changes: dict[str, object]) -> None:
        assert isinstance(batch().post(entry(**changes)), Posted)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"amount": 1.0}, "amount must be an integer (micro-credits)"),
            ({"amount": -1}, "income must not be negative"),
            ({"amount": 1, "direction": "expense"}, "expense must not be positive"),
            ({"metadata_json": "[]"}, "metadata_json must be a JSON object"),
        ],
    )
    def test_refusals_say_why(self, changes: dict[str, object], message: str) -> None:
        result = batch().post(entry(**changes))
        assert isinstance(result, EntryRefused)
        assert result.message == message

    def test_a_balance_beyond_the_largest_is_refused(self) -> None:
        assert batch(account(1)).post(entry(amount=AMOUNT_MAX)) == EntryRefused(
            field="amount", message=f"the balance would pass {AMOUNT_MAX} micro-credits"
        )

    @pytest.mark.parametrize(
        ("changes", "total"),
        [
            ({"amount": 1}, "total_rewarded"),
            ({"amount": 1, "source": "purchase"}, ""),
            ({"amount": -1, "source": "charge", "direction": "expense"}, "total_consumed"),
            ({"amount": 1, "source": "charge"}, ""),
            ({"amount": 1, "status": "pending"}, ""),
        ],
    )
    def test_a_total_beyond_the_largest_is_refused(
        self, changes: dict[str, object], total: str
    ) -> None:
        """Given and taken back a thousand times, what is there is nothing, and totals fit no column."""
        worn = account(0, total_rewarded=AMOUNT_MAX, total_consumed=AMOUNT_MAX)
        result = batch(worn).post(entry(**changes))
        if total:
            message = f"{total} would pass {AMOUNT_MAX} micro-credits"
            assert result == EntryRefused(field="amount", message=message)
        else:
            assert isinstance(result, Posted)

    def test_two_entries_make_one_new_account(self) -> None:
        made = batch()
        posted(made, entry())
        second = posted(made, entry(event_id="e2", amount=1))
        assert (second.entry.balance_after, second.entry.account_seq) == (501, 2)
        assert [(a.balance, a.seq) for a in made.changed()] == [(501, 2)]

    def test_a_charge_is_written_out(self) -> None:
        finish = charge("c1", 30)
        written = settled(batch(account(100)), finish)
        assert written.payload_hash == payload_hash(finish.event)
        assert (written.description, written.source_ref_id) == ("mini", None)
        assert (written.created_at, written.posted_at) == (finish.event.finished_at, NOW)

    def test_a_final_one_below_its_estimate_is_an_income_of_one(self) -> None:
        made = batch(account(100))
        settled(made, estimate("c1", 30))
        back = settled(made, charge("c1", 29))
        assert (back.direction, back.amount, back.source_ref_id) == ("income", 1, "c1")

    def test_conflicts_name_both_values(self) -> None:
        made = batch(account(100))
        settled(made, estimate("c1", 30))
        assert settle(made, charge("c1", 30, account="bob")) == EventConflict(
            event_id="c1", field="account", existing="alice", given="bob"
        )
        posted(made, entry(event_id="c2"))
        assert settle(made, estimate("c2", 30)) == EventConflict(
            event_id="c2", field="source", existing="manual", given="charge"
        )

    @pytest.mark.parametrize(
        ("finish", "field", "message"),
        [
            (_changed(version=9), "version", "unknown version 9"),
            (_changed(revision=9), "revision", "unknown revision 9"),
            (_changed(amount=-1), "amount", "a charge of -1 micro-credits"),
            (_changed(event_id=""), "event_id", "event_id must not be empty"),
            (_changed(account=""), "account", "account is empty or too long"),
            (_changed(account="a" * 65), "account", "account is empty or too long"),
        ],
    )
    def test_a_charge_that_makes_no_sense_says_why(
        self, finish: Finish, field: str, message: str
    ) -> None:
        assert settle(batch(), finish) == EntryRefused(field=field, message=message)

    def test_a_cancelled_call_costs_nothing(self) -> None:
        charge_of = PendingCharge(charge("c1", 1).event, "", cancelled=True)
        assert batch().settle(charge_of) == EntryRefused(
            field="amount", message="a cancelled call costs nothing"
        )

    @pytest.mark.parametrize("name", ["a", "a" * 64])
    def test_the_largest_charge_of_the_longest_name(self, name: str) -> None:
        written = settled(batch(), charge("c1", AMOUNT_MAX, account=name))
        assert (written.account, written.amount) == (name, -AMOUNT_MAX)

    def test_a_batch_shows_its_accounts_as_they_run(self) -> None:
        made = batch(account(100))
        posted(made, entry())
        posted(made, entry(event_id="e2", account="bob", status="pending"))
        running = made.account("alice")
        assert running is not None
        assert (running.balance, running.seq) == (600, 4)
        assert made.account("bob") is None, "no money moved, so there is no such account"
        assert made.account("carol") is None
