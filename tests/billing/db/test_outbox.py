"""The outbox port on both engines: claimed once, settled once, whoever asks how often."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from billing.db.engine import Engine
from billing.db.outbox import StrayMessage
from billing.events import Revision
from tests.support.migrated import migrated
from tests.support.money import (
    T0,
    Place,
    charge,
    estimate,
    execute,
    hold,
    hot_database,
    new_id,
    outbox_payloads,
    purchase,
    rows,
)

FINAL, ESTIMATE = Revision.FINAL, Revision.ESTIMATE


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return migrated(tmp_path)
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def hot(place: Place) -> AsyncIterator[Engine]:
    async with hot_database(place) as started:
        await started.post([purchase(1000)])
        yield started


async def recorded(hot: Engine, count: int) -> list[str]:
    ids = [new_id() for _ in range(count)]
    await asyncio.gather(*(hot.record(charge(event_id, 7)) for event_id in ids))
    return ids


class TestClaim:
    async def test_gives_each_row_once_oldest_first(self, hot: Engine) -> None:
        ids = await recorded(hot, 5)
        first = await hot.claim_unpublished(3, sent_before=T0)
        second = await hot.claim_unpublished(3, sent_before=T0)
        assert [event.event_id for event in (*first, *second)] == ids
        assert await hot.claim_unpublished(3, sent_before=T0) == []

    async def test_gives_the_event_as_it_was_written(self, hot: Engine, place: Place) -> None:
        (event_id,) = await recorded(hot, 1)
        (event,) = await hot.claim_unpublished(9, sent_before=T0)
        assert (event.event_id, event.revision, event.account) == (event_id, FINAL, "alice")
        assert [event.payload] == outbox_payloads(place)

    async def test_gives_again_what_was_sent_long_ago(self, hot: Engine) -> None:
        (event_id,) = await recorded(hot, 1)
        await hot.claim_unpublished(9, sent_before=T0)  # sent at T0
        assert await hot.claim_unpublished(9, sent_before=T0) == []
        again = await hot.claim_unpublished(9, sent_before=T0 + 1)
        assert [event.event_id for event in again] == [event_id]

    async def test_a_row_that_was_not_sent_is_given_at_once(self, hot: Engine) -> None:
        (event_id,) = await recorded(hot, 1)
        (event,) = await hot.claim_unpublished(9, sent_before=T0)
        await hot.unclaim([event.key])
        again = await hot.claim_unpublished(9, sent_before=T0)
        assert [each.event_id for each in again] == [event_id]

    async def test_a_settled_row_is_not_given(self, hot: Engine) -> None:
        (event_id,) = await recorded(hot, 1)
        await hot.settle_keys([(event_id, FINAL)])
        await hot.unclaim([(event_id, FINAL)])
        assert await hot.claim_unpublished(9, sent_before=T0 + 1) == []


class TestSettleKeys:
    async def test_settles_what_is_named_and_nothing_else(self, hot: Engine, place: Place) -> None:
        ids = await recorded(hot, 3)
        done = await hot.settle_keys([(ids[1], FINAL)])
        assert (done.report.settled, done.report.quarantined) == (1, 0)
        assert [(entry.event_id, entry.amount) for entry in done.entries] == [(ids[1], -7)]
        assert rows(place, "SELECT event_id FROM outbox ORDER BY 1") == [(ids[0],), (ids[2],)]
        assert rows(place, "SELECT balance FROM accounts") == [(993,)]

    async def test_drops_the_hold(self, hot: Engine, place: Place) -> None:
        event_id = new_id()
        await hot.reserve(hold(event_id))
        await hot.record(charge(event_id, 7))
        await hot.settle_keys([(event_id, FINAL)])
        assert rows(place, "SELECT balance, held FROM accounts") == [(993, 0)]

    async def test_again_answers_with_the_entry_and_changes_nothing(
        self, hot: Engine, place: Place
    ) -> None:
        (event_id,) = await recorded(hot, 1)
        first = await hot.settle_keys([(event_id, FINAL)])
        second = await hot.settle_keys([(event_id, FINAL), (event_id, FINAL)])
        assert second.report.settled == 0
        assert second.entries == first.entries
        assert rows(place, "SELECT balance FROM accounts") == [(993,)]

    async def test_an_unknown_event_is_nothing(self, hot: Engine, place: Place) -> None:
        done = await hot.settle_keys([(new_id(), FINAL)])
        assert (done.report.settled, done.entries) == (0, ())
        assert rows(place, "SELECT balance FROM accounts") == [(1000,)]

    async def test_a_purchase_cannot_be_named_like_a_call(self, hot: Engine) -> None:
        await hot.post([purchase(5, event_id="bought")])
        done = await hot.settle_keys([("bought", FINAL)])
        assert done.entries == ()

    async def test_nothing_named_is_nothing(self, hot: Engine) -> None:
        await recorded(hot, 1)
        assert (await hot.settle_keys([])).report.settled == 0

    async def test_the_revision_that_was_asked_for_is_told(self, hot: Engine) -> None:
        event_id = new_id()
        await hot.record(estimate(event_id, 5))
        first = await hot.settle_keys([(event_id, ESTIMATE)])
        await hot.record(charge(event_id, 7))
        second = await hot.settle_keys([(event_id, FINAL)])
        assert [(e.event_id, e.amount) for e in first.entries] == [(event_id, -5)]
        assert [(e.event_id, e.amount) for e in second.entries] == [(f"{event_id}:final", -2)]
        again = await hot.settle_keys([(event_id, FINAL)])
        assert again.entries == second.entries

    async def test_a_poison_row_goes_alone(self, hot: Engine, place: Place) -> None:
        ids = await recorded(hot, 5)
        execute(place, "UPDATE outbox SET payload = ? WHERE event_id = ?", b"{", ids[2])
        done = await hot.settle_keys([(event_id, FINAL) for event_id in ids])
        assert (done.report.settled, done.report.quarantined) == (4, 1)
        assert {entry.event_id for entry in done.entries} == {*ids} - {ids[2]}
        assert rows(place, "SELECT event_id FROM quarantine") == [(ids[2],)]
        assert rows(place, "SELECT count(*) FROM outbox") == [(0,)]

    async def test_a_row_of_a_newer_version_is_set_aside(self, hot: Engine, place: Place) -> None:
        (event_id,) = await recorded(hot, 1)
        (payload,) = outbox_payloads(place)
        newer = payload.replace(b'"version":1', b'"version":2')
        assert newer != payload
        execute(place, "UPDATE outbox SET payload = ?", newer)
        done = await hot.settle_keys([(event_id, FINAL)])
        assert (done.report.settled, done.report.quarantined) == (0, 1)
        ((reason,),) = rows(place, "SELECT reason FROM quarantine")
        assert "unknown version 2" in str(reason)

    async def test_many_at_once_settle_each_once(self, hot: Engine, place: Place) -> None:
        ids = await recorded(hot, 20)
        keys = [(event_id, FINAL) for event_id in ids]
        done = await asyncio.gather(*(hot.settle_keys(keys) for _ in range(5)))
        assert sum(each.report.settled for each in done) == 20
        assert rows(place, "SELECT balance FROM accounts") == [(1000 - 20 * 7,)]


class TestSettleOverdue:
    async def test_leaves_what_is_young(self, hot: Engine) -> None:
        await recorded(hot, 2)  # at T0
        done = await hot.settle_overdue(9, created_before=T0)
        assert (done.report.settled, done.report.remaining) == (0, False)
        assert done.report.oldest_at == T0

    async def test_settles_sent_or_not_as_many_as_asked(self, hot: Engine, place: Place) -> None:
        ids = await recorded(hot, 5)
        await hot.claim_unpublished(2, sent_before=T0)
        done = await hot.settle_overdue(3, created_before=T0 + 1)
        assert (done.report.settled, done.report.remaining) == (3, True)
        assert [entry.event_id for entry in done.entries] == ids[:3]
        done = await hot.settle_overdue(3, created_before=T0 + 1)
        assert (done.report.settled, done.report.remaining) == (2, False)
        assert done.report.oldest_at is None
        assert rows(place, "SELECT balance FROM accounts") == [(1000 - 5 * 7,)]


class TestSetAside:
    async def test_a_message_is_kept_once_however_often_it_comes(
        self, hot: Engine, place: Place
    ) -> None:
        stray = StrayMessage(reason="the message cannot be read", payload=b"\xff{")
        await hot.set_aside_messages([stray, stray])
        await hot.set_aside_messages([stray])
        execute(place, "UPDATE quarantine SET resolved_at = ?", T0)
        await hot.set_aside_messages([stray])
        assert rows(place, "SELECT origin, event_id, revision, account FROM quarantine") == [
            ("broker", "", 0, "")
        ]

    async def test_other_messages_are_others(self, hot: Engine, place: Place) -> None:
        await hot.set_aside_messages(
            [StrayMessage(reason="r", payload=payload) for payload in (b"", b"a", b"b")]
        )
        assert rows(place, "SELECT count(*) FROM quarantine") == [(3,)]
