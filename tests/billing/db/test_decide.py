"""What both engines decide alike: whom a turn grants holds, and what waiting charges come to. Pure."""

import msgspec
import pytest

from billing.db.decide import (
    Credit,
    Grants,
    Settlement,
    final_ids_of,
    refused_ids,
    with_earlier_grants,
)
from billing.db.invariants import DAY_MS
from billing.db.rows import Waiting, digest_of, hold_row
from billing.events import Finish
from billing.holds import Applied, Granted, Refused
from billing.ledger import Account, LedgerEntry
from billing.rollups import Rollup
from tests.support.money import T0, cancelled, charge, estimate, hold

NOW = T0 + 1000


def refused(reason: str, balance: int, held: int, needed: int = 100) -> Refused:
    fields = {"reason": reason, "balance": balance, "held": held, "needed": needed}
    return msgspec.convert(fields, Refused)


class TestCredit:
    """Each row: balance and held before, minimum and wanted; the answer, and held after."""

    @pytest.mark.parametrize(
        ("balance", "held", "minimum", "wanted", "answer", "after"),
        [
            pytest.param(1000, 0, 100, 300, Granted(300), 300, id="enough for all"),
            pytest.param(1000, 700, 100, 300, Granted(300), 1000, id="exactly enough for all"),
            pytest.param(1000, 800, 100, 300, Granted(200), 1000, id="what is left"),
            pytest.param(1000, 900, 100, 300, Granted(100), 1000, id="exactly the minimum"),
            pytest.param(1000, 901, 100, 300, refused("held", 1000, 901), 901, id="others hold it"),
            pytest.param(100, 1, 100, 300, refused("held", 100, 1), 1, id="would do if not held"),
            pytest.param(99, 0, 100, 300, refused("insufficient", 99, 0), 0, id="too little"),
            pytest.param(-5, 0, 100, 300, refused("insufficient", -5, 0), 0, id="in debt"),
            pytest.param(0, 0, 0, 0, Granted(0), 0, id="a free call needs nothing"),
            pytest.param(0, 0, 0, 300, Granted(0), 0, id="what is free at the least"),
            pytest.param(1, 0, 0, 1, Granted(1), 1, id="one micro-credit"),
        ],
    )
    def test_grant(
        self,
        balance: int,
        held: int,
        minimum: int,
        wanted: int,
        answer: Granted | Refused,
        after: int,
    ) -> None:
        credit = Credit(balance, held, 0)
        assert credit.grant(minimum, wanted) == answer
        assert (credit.held, credit.changed) == (after, after != held)

    def test_suspended_is_refused_whatever_the_balance(self) -> None:
        credit = Credit(1000, 5, 1)
        assert credit.grant(0, 0) == refused("suspended", 1000, 5, needed=0)
        assert not credit.changed

    def test_a_change_stays_one(self) -> None:
        credit = Credit(100, 0, 0)
        credit.grant(100, 100)
        credit.grant(0, 0)
        assert credit.changed


class TestGrants:
    def test_one_after_the_other(self) -> None:
        first, second, third = hold("h1"), hold("h2"), hold("h3", account="bob")
        credits_ = {"alice": Credit(150, 0, 0), "bob": Credit(100, 0, 0)}
        grants = Grants([first, second, third], credits_)
        assert grants.answers == [Granted(100), refused("held", 150, 100), Granted(100)]
        assert grants.holds == [hold_row(first, 100), hold_row(third, 100)]
        assert grants.held() == [("alice", 100), ("bob", 100)]

    def test_an_account_that_is_not_there_has_nothing(self) -> None:
        grants = Grants([hold("h1"), hold("h2", minimum=0)], {})
        assert grants.answers == [refused("insufficient", 0, 0), Granted(0)]
        assert grants.held() == []

    def test_only_who_says_so_may_hold_while_suspended(self) -> None:
        call = hold("h1")
        correction = msgspec.structs.replace(hold("h2"), while_suspended=True)
        grants = Grants([call, correction], {"alice": Credit(1000, 0, 1)})
        assert grants.answers == [refused("suspended", 1000, 0), Granted(100)]

    def test_a_repeat_gets_its_first_grant_and_takes_no_more(self) -> None:
        """Even 0, and even though the account is suspended by now."""
        known = {"h1": 70, "h2": 0}
        requests = [hold("h1"), hold("h2"), hold("h3")]
        grants = Grants(requests, {"alice": Credit(1000, 70, 1)}, known)
        assert grants.answers == [Granted(70), Granted(0), refused("suspended", 1000, 70)]
        assert (grants.holds, grants.held()) == ([], [])

    def test_a_repeat_that_found_its_own_credit_taken_was_granted(self) -> None:
        requests = [hold("h1"), hold("h2"), hold("h3")]
        no = refused("held", 100, 100)
        assert refused_ids(requests, [no, Granted(5), no]) == ["h1", "h3"]
        answers = with_earlier_grants(requests, [no, Granted(5), no], {"h1": 100, "h2": 99})
        assert answers == [Granted(100), Granted(5), no]

    def test_each_request_has_its_answer(self) -> None:
        with pytest.raises(ValueError, match="shorter"):
            refused_ids([hold("h1"), hold("h2")], [Granted(5)])
        with pytest.raises(ValueError, match="shorter"):
            with_earlier_grants([hold("h1"), hold("h2")], [Granted(5)], {})


ALICE = Account(
    account="alice", balance=1000, seq=3, total_recharged=1000, created_at=T0, updated_at=T0
)


def waiting(finish: Finish) -> Waiting:
    """The outbox row of a finished call."""
    event = finish.event
    return Waiting(
        event_id=event.context.event_id,
        revision=event.revision,
        cancelled=int(finish.cancelled),
        account=event.context.account,
        payload=msgspec.json.encode(event),
        payload_hash=digest_of(finish),
    )


def settled(
    *finishes: Finish, before: list[LedgerEntry] | None = None, final: str = ""
) -> Settlement:
    """A batch, decided; what the ledger holds already is `before`, and alice's 1000."""
    settlement = Settlement([waiting(finish) for finish in finishes], NOW)
    settlement.decide([ALICE], before or [], {final})
    return settlement


def told(
    balance: int,
    seq: int,
    finals: tuple[str, ...] = (),
    estimates: tuple[tuple[str, int], ...] = (),
) -> tuple[Applied, ...]:
    return (
        Applied(account="alice", balance=balance, seq=seq, final_ids=finals, estimates=estimates),
    )


def amounts(entries: list[LedgerEntry]) -> dict[str, int]:
    return {entry.event_id: entry.amount for entry in entries}


def sums_of(*finishes: Finish) -> Rollup:
    rollup = Rollup()
    for finish in finishes:
        rollup.add(finish.event)
    return rollup


class TestSettlement:
    """Outbox rows that wait, and what they come to: entries, sums, holds."""

    def test_what_must_be_read(self) -> None:
        finishes = [charge("e1", 30), estimate("e2", 20, account="bob"), charge("e3", 1)]
        settlement = Settlement([waiting(finish) for finish in finishes], NOW)
        assert settlement.accounts == {"alice", "bob"}
        assert settlement.event_ids == ["e1", "e2", "e3"]
        assert settlement.estimates == ["e2"]
        assert settlement.applied() == ()
        assert settlement.batch is None

    def test_finals_drop_their_holds(self) -> None:
        one, two = charge("e1", 30), charge("e2", 20)
        settlement = settled(one, two)
        assert amounts(settlement.entries) == {"e1": -30, "e2": -20}
        assert {entry.created_at for entry in settlement.entries} == {T0 + 5}
        hashes = [entry.payload_hash for entry in settlement.entries]
        assert hashes == [digest_of(one), digest_of(two)]
        assert settlement.finished() == ["e1", "e2"]
        assert settlement.estimated() == []
        assert settlement.applied() == told(950, 5, ("e1", "e2"))
        assert settlement.rollup.rows() == sums_of(one, two).rows()
        assert (settlement.superseded, settlement.set_aside) == ([], [])

    @pytest.mark.parametrize(("amount", "stays"), [(30, 70), (100, 0), (130, 0), (0, 100)])
    def test_an_estimate_lowers_its_hold(self, amount: int, stays: int) -> None:
        """The hold was of 100; what is left of it waits for the owner's word."""
        settlement = settled(estimate("e1", amount))
        assert amounts(settlement.entries) == {"e1": -amount}
        assert settlement.finished() == []
        assert settlement.estimated() == [("e1", amount)]
        assert settlement.batch is not None
        assert [account.updated_at for account in settlement.batch.changed()] == [NOW]
        [applied] = settlement.applied()
        assert (applied.final_ids, applied.estimates) == ((), (("e1", stays),))

    def test_charges_that_come_late_say_so(self) -> None:
        """A call of NOW's own day is in time; five days later it is not."""
        assert settled(charge("e1", 30)).late_days() == []
        late = Settlement([waiting(charge("e1", 30))], NOW + 5 * DAY_MS)
        late.decide([ALICE], [], set())
        assert late.late_days() == [("alice", T0 - T0 % DAY_MS)]

    def test_what_failed_counts_as_an_error_by_its_own_word(self) -> None:
        failed, fine = charge("e1", 30), charge("e2", 5)
        settlement = Settlement([waiting(failed), waiting(fine)], NOW)
        settlement.decide([ALICE], [], set(), {("e1", 2), ("e2", 1)})
        expected = sums_of(fine)
        expected.add(failed.event, failed=True)
        assert settlement.rollup.rows() == expected.rows()

    def test_a_final_takes_the_place_of_its_estimate(self) -> None:
        guess, word = estimate("e1", 30), charge("e1", 50)
        before = settled(guess).entries
        settlement = settled(word, before=before)
        assert amounts(settlement.entries) == {"e1:final": -20}
        assert settlement.superseded == ["e1"]
        assert settlement.rollup.rows() == sums_of(word).rows()
        assert settlement.applied() == told(980, 4, ("e1",))

    def test_both_in_one_batch(self) -> None:
        other, guess, word = estimate("e2", 10), estimate("e1", 30), charge("e1", 50)
        settlement = settled(other, guess, word)
        assert amounts(settlement.entries) == {"e2": -10, "e1": -30, "e1:final": -20}
        assert settlement.superseded == ["e1"]
        assert settlement.rollup.rows() == sums_of(other, guess, word).rows()
        assert settlement.finished() == ["e1"]
        assert settlement.estimated() == [("e2", 10)]
        assert settlement.applied() == told(940, 6, ("e1",), (("e2", 90),))

    def test_what_was_posted_before_counts_no_more_but_lets_go_of_its_hold(self) -> None:
        before = settled(charge("e1", 30)).entries
        new = charge("e2", 20)
        settlement = settled(new, charge("e1", 30), before=before)
        assert amounts(settlement.entries) == {"e1": -30, "e2": -20}
        assert settlement.rollup.rows() == sums_of(new).rows()
        assert settlement.superseded == []
        assert settlement.applied() == told(980, 4, ("e2", "e1"))
        alone = settled(charge("e1", 30), before=before)
        assert alone.rollup.rows() == []
        assert alone.applied() == told(1000, 3, ("e1",))

    def test_a_cancelled_call_costs_nothing_and_lets_go_of_its_hold(self) -> None:
        settlement = settled(cancelled("e1"))
        assert (settlement.entries, settlement.rollup.rows()) == ([], [])
        assert settlement.applied() == told(1000, 3, ("e1",))

    def test_a_call_cancelled_after_its_estimate_is_paid_back(self) -> None:
        before = settled(estimate("e1", 30)).entries
        settlement = settled(cancelled("e1"), before=before)
        assert amounts(settlement.entries) == {"e1:final": 30}
        assert settlement.superseded == ["e1"]
        assert settlement.rollup.rows() == []
        assert settlement.applied() == told(1030, 4, ("e1",))

    def test_an_estimate_after_the_final_touches_nothing(self) -> None:
        settlement = settled(estimate("e1", 30), final="e1")
        assert (settlement.entries, settlement.set_aside) == ([], [])
        assert (settlement.finished(), settlement.estimated()) == ([], [])
        assert settlement.applied() == ()

    def test_a_second_estimate_lowers_the_hold_again(self) -> None:
        before = settled(estimate("e1", 30)).entries
        settlement = settled(estimate("e1", 30), before=before)
        assert settlement.entries == []
        assert settlement.estimated() == [("e1", 30)]
        assert settlement.applied() == told(1000, 3, (), (("e1", 70),))

    def test_each_account_is_told_its_own(self) -> None:
        settlement = settled(
            charge("e1", 7, account="carol"),
            charge("e2", 30),
            estimate("e3", 5, account="bob"),
            cancelled("e4", account="dave"),
        )
        assert settlement.applied() == (
            *told(970, 4, ("e2",)),
            Applied(account="bob", balance=-5, seq=1, final_ids=(), estimates=(("e3", 95),)),
            Applied(account="carol", balance=-7, seq=1, final_ids=("e1",), estimates=()),
            # There is no such account, and nothing was posted that would make it.
            Applied(account="dave", balance=0, seq=0, final_ids=("e4",), estimates=()),
        )


class TestSetAside:
    """What cannot be posted goes to the quarantine, and holds nobody up."""

    def test_an_event_that_cannot_be_read(self) -> None:
        broken = Waiting("e1", 2, 0, "alice", b'{"revision":', "hash")
        good = charge("e2", 20)
        settlement = Settlement([broken, waiting(good)], NOW)
        assert (settlement.event_ids, settlement.accounts) == (["e2"], {"alice"})
        settlement.decide([ALICE], [], set())
        reason = "the event cannot be read"
        assert settlement.set_aside == [
            ("e1", 2, "alice", "outbox", reason, b'{"revision":', NOW),
        ]
        assert settlement.applied() == told(980, 4, ("e2",))

    def test_an_event_that_contradicts_the_ledger(self) -> None:
        before = settled(charge("e1", 30)).entries
        other = charge("e1", 31)
        settlement = settled(other, before=before)
        reason = "event e1 conflicts in amount: recorded '-30', given '-31'"
        payload = msgspec.json.encode(other.event)
        assert settlement.set_aside == [("e1", 2, "alice", "outbox", reason, payload, NOW)]
        assert (settlement.entries, settlement.applied()) == ([], ())

    def test_an_event_that_the_ledger_refuses(self) -> None:
        settlement = settled(charge("e1", -1))
        [(*_, reason, _payload, _now)] = settlement.set_aside
        assert reason == "amount: a charge of -1 micro-credits"
        assert (settlement.entries, settlement.applied()) == ([], ())


def test_only_estimates_may_be_followed_by_a_final() -> None:
    entries = settled(charge("e1", 30), estimate("e2", 20), estimate("e3", 10)).entries
    assert final_ids_of(entries) == ["e2:final", "e3:final"]
