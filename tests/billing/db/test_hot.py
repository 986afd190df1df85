"""The hot database on both engines: holds, charge events, settlement, and entries of other kinds."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import msgspec
import pytest

from billing.db.engine import Engine
from billing.db.hot import EventConflictError
from billing.holds import Granted, HoldBeat, Refused
from billing.ledger import Entry, EntryRefused, Posted, Repeated
from tests.support.migrated import migrated
from tests.support.money import (
    T0,
    Place,
    cancelled,
    charge,
    estimate,
    execute,
    hold,
    hot_database,
    new_id,
    purchase,
    rows,
)

BROKEN = (
    sqlite3.IntegrityError,
    OverflowError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    ValueError,
)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return migrated(tmp_path)
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def hot(place: Place) -> AsyncIterator[Engine]:
    async with hot_database(place) as started:
        yield started


def held(place: Place, account: str = "alice") -> tuple[object, ...]:
    return rows(place, "SELECT balance, held FROM accounts WHERE account = ?", account)[0]


def poison(place: Place, event_id: str) -> None:
    """A trigger stands for whatever a later version of the schema may refuse."""
    if isinstance(place, str):
        execute(
            place,
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'poison'; END $$",
        )
        when, then = f"FOR EACH ROW WHEN (NEW.event_id = '{event_id}')", "EXECUTE FUNCTION poison()"
    else:
        when, then = f"WHEN NEW.event_id = '{event_id}'", "BEGIN SELECT RAISE(ABORT, 'poison'); END"
    execute(place, f"CREATE TRIGGER poison BEFORE INSERT ON ledger_entries {when} {then}")


class TestReserve:
    async def test_grants_what_is_wanted(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1000)])
        assert await hot.reserve(hold(new_id(), wanted=300)) == Granted(300)
        assert held(place) == (1000, 300)

    async def test_grants_what_is_left_down_to_the_minimum(self, hot: Engine) -> None:
        await hot.post([purchase(1000)])
        assert await hot.reserve(hold(new_id(), wanted=900)) == Granted(900)
        assert await hot.reserve(hold(new_id(), minimum=100, wanted=500)) == Granted(100)
        assert await hot.reserve(hold(new_id(), minimum=1, wanted=500)) == Refused(
            reason="held", balance=1000, held=1000, needed=1
        )

    async def test_refuses_what_the_balance_cannot_pay(self, hot: Engine) -> None:
        await hot.post([purchase(99)])
        assert await hot.reserve(hold(new_id(), minimum=100)) == Refused(
            reason="insufficient", balance=99, held=0, needed=100
        )

    async def test_an_account_without_a_row_has_nothing(self, hot: Engine) -> None:
        assert await hot.reserve(hold(new_id(), minimum=1)) == Refused(
            reason="insufficient", balance=0, held=0, needed=1
        )

    async def test_a_ceiling_of_zero_passes_at_balance_zero(self, hot: Engine) -> None:
        assert await hot.reserve(hold(new_id(), minimum=0, wanted=0)) == Granted(0)

    async def test_refuses_a_suspended_account(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1000)])
        execute(place, "UPDATE accounts SET suspended = TRUE")
        answer = await hot.reserve(hold(new_id()))
        assert answer == Refused(reason="suspended", balance=1000, held=0, needed=100)

    async def test_the_same_id_gets_the_same_grant(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1000)])
        one, two = new_id(), new_id()
        first = await hot.reserve(hold(one, minimum=1, wanted=900))
        again = await asyncio.gather(
            hot.reserve(hold(one, minimum=1, wanted=900)),
            hot.reserve(hold(two, minimum=1, wanted=900)),
            hot.reserve(hold(one, minimum=1, wanted=900)),
        )
        assert list(again) == [first, Granted(100), first]
        assert held(place) == (1000, 1000)

    @pytest.mark.parametrize("suspended", [False, True])
    async def test_a_repeat_that_finds_no_credit_left_gets_its_first_grant(
        self, hot: Engine, place: Place, suspended: bool
    ) -> None:
        await hot.post([purchase(100)])
        one = hold(new_id())
        together = await asyncio.gather(hot.reserve(one), hot.reserve(one))
        execute(place, "UPDATE accounts SET suspended = ?", suspended)
        assert [*together, await hot.reserve(one)] == [Granted(100)] * 3
        assert held(place) == (100, 100)

    async def test_of_200_at_once_exactly_those_with_room(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1700)])
        answers = await asyncio.gather(*(hot.reserve(hold(new_id())) for _ in range(200)))
        assert sum(isinstance(answer, Granted) for answer in answers) == 17
        assert held(place) == (1700, 1700)

    async def test_a_grant_whose_caller_is_gone_is_given_back(
        self, hot: Engine, place: Place
    ) -> None:
        await hot.post([purchase(1000)])
        asked = hot.reserve(hold(new_id()))
        await asyncio.sleep(0)
        asked.cancel()
        for _ in range(5):
            await hot.ping()
        assert held(place) == (1000, 0)
        assert rows(place, "SELECT count(*) FROM holds") == [(0,)]


class TestExtend:
    async def test_raises_whole_or_not_at_all(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1000)])
        one = new_id()
        await hot.reserve(hold(one))
        assert await hot.extend(one, 600) == Granted(600)
        assert await hot.extend(one, 1001) == Refused(
            reason="held", balance=1000, held=600, needed=401
        )
        assert held(place) == (1000, 600)

    async def test_never_lowers(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1000)])
        one = new_id()
        await hot.reserve(hold(one))
        assert await hot.extend(one, 50) == Granted(100)
        assert held(place) == (1000, 100)

    async def test_a_hold_that_is_gone_cannot_grow(self, hot: Engine) -> None:
        assert isinstance(await hot.extend(new_id(), 50), Refused)


class TestHeartbeat:
    async def test_progress_never_goes_back_and_amounts_never_down(
        self, hot: Engine, place: Place
    ) -> None:
        await hot.post([purchase(1000)])
        one, gone = new_id(), new_id()
        await hot.reserve(hold(one))
        await hot.heartbeat([HoldBeat(one, 100, 40), HoldBeat(gone, 5, 5)])
        await hot.heartbeat([HoldBeat(one, 90, 30)])
        assert rows(place, "SELECT amount, progress FROM holds") == [(100, 40)]
        await hot.heartbeat([HoldBeat(one, 150, 60)])
        assert rows(place, "SELECT amount, progress FROM holds") == [(150, 60)]
        assert held(place) == (1000, 150)


class TestRecord:
    async def test_writes_usage_and_outbox(self, hot: Engine, place: Place) -> None:
        one = new_id()
        await hot.record(charge(one, 30))
        assert rows(
            place,
            "SELECT event_id, revision, amount, input, cached_input, output, reasoning, quality,"
            " cancelled, started_at, finished_at, raw_usage FROM usage",
        ) == [(one, 2, 30, 10, 2, 5, 1, "exact", 0, T0, T0 + 5, b'{"prompt_tokens":12}')]
        assert rows(place, "SELECT event_id, revision, created_at FROM outbox") == [(one, 2, T0)]
        await hot.settle_pending(10)

    async def test_a_repeat_is_no_second_event(self, hot: Engine, place: Place) -> None:
        one = new_id()
        await asyncio.gather(hot.record(charge(one, 30)), hot.record(charge(one, 30)))
        await hot.settle_pending(10)
        await hot.record(charge(one, 30))
        assert rows(place, "SELECT count(*) FROM outbox") == [(0,)]
        assert rows(place, "SELECT count(*), sum(amount) FROM ledger_entries") == [(1, -30)]

    async def test_a_conflict_harms_only_itself(self, hot: Engine, place: Place) -> None:
        one, two, three = new_id(), new_id(), new_id()
        await hot.record(charge(one, 30))
        answers = await asyncio.gather(
            hot.record(charge(two, 1)),
            hot.record(charge(one, 31)),
            hot.record(charge(three, 2)),
            return_exceptions=True,
        )
        assert answers[0] is None
        assert answers[2] is None
        assert isinstance(answers[1], EventConflictError)
        assert (answers[1].conflict.field, answers[1].conflict.given) == ("amount", "31")
        await hot.settle_pending(10)
        assert rows(place, "SELECT event_id, amount FROM ledger_entries ORDER BY 1") == [
            (one, -30),
            (two, -1),
            (three, -2),
        ]

    async def test_a_broken_operation_harms_only_itself(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1000)])
        answers = await asyncio.gather(
            hot.reserve(hold(new_id())),
            hot.record(charge(new_id(), -5)),
            hot.record(charge(new_id(), 2**63)),
            hot.record(charge(new_id(), 7)),
            return_exceptions=True,
        )
        assert answers[0] == Granted(100)
        assert isinstance(answers[1], BROKEN)
        assert isinstance(answers[2], BROKEN)
        assert answers[3] is None
        assert rows(place, "SELECT amount FROM usage") == [(7,)]
        await hot.settle_pending(10)

    async def test_rows_are_append_only(self, hot: Engine, place: Place) -> None:
        await hot.record(charge(new_id(), 30))
        await hot.settle_pending(10)
        for table in ("usage", "ledger_entries"):
            for statement in (f"UPDATE {table} SET amount = 0", f"DELETE FROM {table}"):
                with pytest.raises(BROKEN, match="append-only"):
                    execute(place, statement)


class TestSettle:
    async def test_charges_and_releases_in_one_step(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1000)])
        one = new_id()
        await hot.reserve(hold(one))
        await hot.record(charge(one, 30))
        assert held(place) == (1000, 100)
        report = await hot.settle_pending(10)
        assert (report.settled, report.quarantined, report.remaining) == (1, 0, False)
        assert report.oldest_at is None
        assert held(place) == (970, 0)
        assert rows(place, "SELECT count(*) FROM holds") == [(0,)]
        assert rows(place, "SELECT total_consumed, seq, last_ledger_event_id FROM accounts") == [
            (30, 2, one)
        ]

    async def test_takes_no_more_than_asked_for(self, hot: Engine) -> None:
        for _ in range(5):
            await hot.record(charge(new_id(), 1))
        first = await hot.settle_pending(3)
        assert (first.settled, first.remaining, first.oldest_at) == (3, True, T0)
        second = await hot.settle_pending(3)
        assert (second.settled, second.remaining) == (2, False)
        assert (await hot.settle_pending(3)).settled == 0

    async def test_a_poison_event_is_set_aside_and_its_hold_stays(
        self, hot: Engine, place: Place
    ) -> None:
        await hot.post([purchase(1000)])
        ids = sorted(new_id() for _ in range(5))
        for event_id in ids:
            await hot.reserve(hold(event_id))
            await hot.record(charge(event_id, 10))
        execute(place, "UPDATE outbox SET payload = ? WHERE event_id = ?", b"{", ids[2])
        report = await hot.settle_pending(10)
        assert (report.settled, report.quarantined) == (4, 1)
        assert rows(place, "SELECT event_id, origin, payload FROM quarantine") == [
            (ids[2], "outbox", b"{")
        ]
        assert rows(place, "SELECT hold_id FROM holds") == [(ids[2],)]
        assert held(place) == (960, 100)

    async def test_a_row_that_breaks_the_batch_is_found_by_halving(
        self, hot: Engine, place: Place
    ) -> None:
        await hot.post([purchase(1000)])
        ids = sorted(new_id() for _ in range(9))
        for event_id in ids:
            await hot.record(charge(event_id, 10))
        poison(place, ids[6])
        report = await hot.settle_pending(100)
        assert (report.settled, report.quarantined) == (8, 1)
        assert rows(place, "SELECT event_id FROM quarantine") == [(ids[6],)]
        assert held(place) == (920, 0)

    async def test_an_event_of_a_newer_version_is_set_aside(
        self, hot: Engine, place: Place
    ) -> None:
        one = new_id()
        await hot.record(charge(one, 10))
        newer = msgspec.json.encode(msgspec.structs.replace(charge(one, 10).event, version=2))
        execute(place, "UPDATE outbox SET payload = ?", newer)
        assert (await hot.settle_pending(10)).quarantined == 1


class TestCancel:
    async def test_drops_the_hold_and_charges_nothing(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1000)])
        one = new_id()
        await hot.reserve(hold(one))
        await hot.cancel(cancelled(one))
        await hot.cancel(cancelled(one))
        assert held(place) == (1000, 0)
        assert rows(place, "SELECT revision, cancelled, amount, reason FROM usage") == [
            (2, 1, 0, "not_reached")
        ]
        assert rows(place, "SELECT count(*) FROM outbox") == [(0,)]

    async def test_takes_back_an_estimate_that_is_posted(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1000)])
        one = new_id()
        await hot.record(estimate(one, 40))
        await hot.settle_pending(10)
        await hot.cancel(cancelled(one))
        await hot.settle_pending(10)
        assert held(place) == (1000, 0)
        assert rows(
            place, "SELECT event_id, amount FROM ledger_entries WHERE source = 'charge' ORDER BY 1"
        ) == [(one, -40), (f"{one}:final", 40)]

    async def test_drops_an_estimate_that_still_waits(self, hot: Engine, place: Place) -> None:
        one = new_id()
        await hot.record(estimate(one, 40))
        await hot.cancel(cancelled(one))
        assert (await hot.settle_pending(10)).settled == 2
        assert rows(place, "SELECT count(*) FROM ledger_entries") == [(0,)]

    async def test_contradicts_a_charge(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1000)])
        paid, free = new_id(), new_id()
        for event_id, amount in ((paid, 30), (free, 0)):
            await hot.reserve(hold(event_id))
            await hot.record(charge(event_id, amount))
            with pytest.raises(EventConflictError):
                await hot.cancel(cancelled(event_id))
        await hot.settle_pending(10)
        assert held(place) == (970, 0)

    async def test_a_charge_contradicts_it(self, hot: Engine) -> None:
        one = new_id()
        await hot.cancel(cancelled(one))
        with pytest.raises(EventConflictError):
            await hot.record(charge(one, 30))
        with pytest.raises(EventConflictError):
            await hot.record(charge(one, 0))


class TestAdoptOrphans:
    async def test_charges_the_last_progress_of_other_processes(
        self, hot: Engine, place: Place
    ) -> None:
        await hot.post([purchase(1000)])
        dead, ours, done = new_id(), new_id(), new_id()
        await hot.reserve(hold(dead, process="old"))
        await hot.reserve(hold(ours, process="new"))
        await hot.reserve(hold(done, process="old"))
        await hot.heartbeat([HoldBeat(dead, 100, 35)])
        await hot.record(charge(done, 50))
        assert await hot.adopt_orphans("new", T0 + 9) == 1
        assert await hot.adopt_orphans("new", T0 + 9) == 0
        await hot.settle_pending(10)
        assert rows(
            place,
            "SELECT event_id, revision, amount, quality, usage_source, ceiling, reason FROM usage"
            " WHERE revision = 1",
        ) == [(dead, 1, 35, "partial", "hold", 100, "orphaned")]
        # 1000 - 35 - 50, and only our own hold stands: the residual of an estimate is 0 here.
        assert held(place) == (915, 100)
        assert rows(place, "SELECT hold_id FROM holds") == [(ours,)]

    async def test_a_final_from_the_spool_corrects_it(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1000)])
        dead = new_id()
        await hot.reserve(hold(dead, process="old"))
        await hot.adopt_orphans("new", T0)
        await hot.settle_pending(10)
        await hot.record(charge(dead, 80))
        await hot.settle_pending(10)
        assert held(place) == (920, 0)

    async def test_a_hold_that_cannot_be_read_is_set_aside_and_stays(
        self, hot: Engine, place: Place
    ) -> None:
        await hot.post([purchase(1000)])
        dead = new_id()
        await hot.reserve(hold(dead, process="old"))
        execute(place, "UPDATE holds SET context = ?", b"garbage")
        await hot.adopt_orphans("new", T0)
        await hot.adopt_orphans("new", T0)
        assert rows(place, "SELECT event_id, origin FROM quarantine") == [(dead, "hold")]
        assert held(place) == (1000, 100)


class TestPost:
    async def test_each_entry_has_its_own_outcome(self, hot: Engine, place: Place) -> None:
        one = purchase(1000, event_id="order:1")
        results = await hot.post([one, one, purchase(0, account="")])
        assert [type(result) for result in results] == [Posted, Repeated, EntryRefused]
        assert [type(r) for r in await hot.post([one])] == [Repeated]
        assert held(place) == (1000, 0)

    async def test_first_entries_at_once_make_one_account(self, hot: Engine, place: Place) -> None:
        await asyncio.gather(*(hot.post([purchase(2)]) for _ in range(50)))
        assert rows(place, "SELECT balance, seq FROM accounts") == [(100, 50)]
        assert rows(place, "SELECT count(DISTINCT account_seq) FROM ledger_entries") == [(50,)]

    async def test_an_admins_suspension_survives_a_post(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(1)])
        execute(place, "UPDATE accounts SET suspended = TRUE, name = 'A'")
        await hot.post([purchase(1)])
        assert rows(place, "SELECT suspended, name, balance FROM accounts") == [(1, "A", 2)]

    async def test_text_is_trimmed_before_it_is_looked_up(self, hot: Engine, place: Place) -> None:
        await hot.post([purchase(5, event_id="x")])
        spaced = Entry(
            event_id=" x ", account=" alice ", source="PURCHASE", direction="income", amount=5
        )
        assert [type(r) for r in await hot.post([spaced])] == [Repeated]
        assert held(place) == (5, 0)
