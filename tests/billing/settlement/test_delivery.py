"""Publisher and worker around a broker that works, or does not: nothing is sent twice for nothing, nothing lost."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from billing.db.hot import DatabaseUnavailableError, SettleReport
from billing.db.sqlite import SqliteHotDatabase
from billing.settlement.brokers import BrokerConnection, BrokerUnavailableError
from billing.settlement.delivery import Delivery, make_delivery
from billing.settlement.messages import REQUESTED_TOPIC, SETTLED_TOPIC
from billing.settlement.publisher import ChargePublisher
from billing.settlement.subscriber import BrokerWorker
from tests.support.fake_link import FakeLink
from tests.support.migrated import migrated
from tests.support.money import T0, charge, new_id, outbox_payloads, purchase, rows


class Clock:
    """Milliseconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return migrated(tmp_path)


@pytest.fixture
async def hot(path: Path, clock: Clock) -> AsyncIterator[SqliteHotDatabase]:
    hot = SqliteHotDatabase(path, clock=clock)
    await hot.start()
    await hot.post([purchase(1000)])
    yield hot
    await hot.close()


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@asynccontextmanager
async def connected(link: FakeLink) -> AsyncIterator[BrokerConnection]:
    connection = BrokerConnection(lambda: link)
    async with asyncio.TaskGroup() as group:
        group.create_task(connection.run())
        await connection.wait_up()
        yield connection
        connection.stop()


async def recorded(hot: SqliteHotDatabase, count: int = 1) -> list[str]:
    ids = [new_id() for _ in range(count)]
    await asyncio.gather(*(hot.record(charge(event_id, 7)) for event_id in ids))
    return ids


def ids_of(link: FakeLink, topic: str) -> list[str]:
    found = [json.loads(each.payload) for each in link.sent if each.topic == topic]
    return [
        each["event_id"] if topic == SETTLED_TOPIC else each["context"]["event_id"]
        for each in found
    ]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


class TestPublisher:
    async def test_sends_each_row_once_with_its_account_as_key(
        self, hot: SqliteHotDatabase, link: FakeLink, clock: Clock
    ) -> None:
        ids = await recorded(hot, 3)
        async with connected(link) as connection:
            publisher = ChargePublisher(hot, connection, clock=clock)
            await publisher.drain()
            await publisher.drain()
        assert ids_of(link, REQUESTED_TOPIC) == ids
        assert {each.key for each in link.sent} == {"alice"}
        assert publisher.published == 3

    async def test_sends_again_after_a_minute_not_before(
        self, hot: SqliteHotDatabase, link: FakeLink, clock: Clock
    ) -> None:
        (event_id,) = await recorded(hot)
        async with connected(link) as connection:
            publisher = ChargePublisher(hot, connection, clock=clock)
            await publisher.drain()
            clock.now = T0 + 60_000
            await publisher.drain()
            assert ids_of(link, REQUESTED_TOPIC) == [event_id]
            clock.now = T0 + 60_001
            await publisher.drain()
            await publisher.drain()
        assert ids_of(link, REQUESTED_TOPIC) == [event_id] * 2

    async def test_two_share_the_rows(
        self, hot: SqliteHotDatabase, link: FakeLink, clock: Clock
    ) -> None:
        ids = await recorded(hot, 700)
        async with connected(link) as connection:
            both = [ChargePublisher(hot, connection, clock=clock) for _ in range(2)]
            await asyncio.gather(*(publisher.drain() for publisher in both))
        assert sorted(ids_of(link, REQUESTED_TOPIC)) == ids

    async def test_what_the_broker_refuses_waits_and_is_sent_later(
        self, hot: SqliteHotDatabase, link: FakeLink, clock: Clock, path: Path
    ) -> None:
        ids = await recorded(hot, 2)
        async with connected(link) as connection:
            publisher = ChargePublisher(hot, connection, clock=clock)
            link.works = False
            await publisher.drain()
            assert publisher.failures == 1
            assert rows(path, "SELECT count(*) FROM outbox WHERE published_at IS NULL") == [(2,)]
            link.works = True
            await connection.wait_up()
            await publisher.drain()
        assert ids_of(link, REQUESTED_TOPIC) == ids

    async def test_touches_nothing_while_the_broker_is_away(
        self, hot: SqliteHotDatabase, link: FakeLink, clock: Clock, path: Path
    ) -> None:
        await recorded(hot)
        await ChargePublisher(hot, BrokerConnection(lambda: link), clock=clock).drain()
        assert rows(path, "SELECT published_at FROM outbox") == [(None,)]


class TestWorker:
    async def test_settles_tells_the_store_and_tells_others(
        self, hot: SqliteHotDatabase, link: FakeLink, clock: Clock, path: Path
    ) -> None:
        ids = await recorded(hot, 3)
        reports: list[SettleReport] = []

        async def on_settled(report: SettleReport) -> None:
            assert link.sent == [], "the hold store hears of it first"
            reports.append(report)

        worker = BrokerWorker(hot, clock=clock, on_settled=on_settled)
        async with connected(link) as connection:
            worker.use(connection)
            await worker.receive(outbox_payloads(path))
        assert ids_of(link, SETTLED_TOPIC) == ids
        assert [report.settled for report in reports] == [3]
        assert reports[0].applied[0].final_ids == tuple(ids)
        assert worker.settled == 3

    async def test_a_batch_that_others_were_not_told_of_comes_again(
        self, hot: SqliteHotDatabase, link: FakeLink, clock: Clock, path: Path
    ) -> None:
        ids = await recorded(hot, 2)
        batch = outbox_payloads(path)
        worker = BrokerWorker(hot, clock=clock)
        async with connected(link) as connection:
            worker.use(connection)
            link.works = False
            with pytest.raises(BrokerUnavailableError):
                await worker.receive(batch)
            assert rows(path, "SELECT balance FROM accounts") == [(986,)], "it is settled"
            link.works = True
            await connection.wait_up()
            await worker.receive(batch)
        assert ids_of(link, SETTLED_TOPIC) == ids
        assert rows(path, "SELECT balance FROM accounts") == [(986,)]

    async def test_a_message_can_settle_only_what_is_in_the_outbox(
        self, hot: SqliteHotDatabase, clock: Clock, path: Path
    ) -> None:
        (event_id,) = await recorded(hot)
        forged = json.loads(outbox_payloads(path)[0]) | {"amount": 999}
        stranger = forged | {"context": forged["context"] | {"event_id": "not-ours"}}
        worker = BrokerWorker(hot, clock=clock)
        await worker.receive([json.dumps(each).encode() for each in (stranger, forged)])
        entries = rows(path, "SELECT event_id, amount FROM ledger_entries WHERE source = 'charge'")
        assert entries == [(event_id, -7)], "the row says what it costs, not the message"

    async def test_hands_a_batch_back_when_it_stops_without_a_database(
        self, hot: SqliteHotDatabase, clock: Clock, path: Path
    ) -> None:
        await recorded(hot)
        batch = outbox_payloads(path)
        await hot.close()
        worker = BrokerWorker(hot, clock=clock)
        worker.stop()
        with pytest.raises(DatabaseUnavailableError):
            await worker.receive(batch)
        assert len(outbox_payloads(path)) == 1

    async def test_overdue_rows_are_settled_sooner_while_the_broker_is_away(
        self, hot: SqliteHotDatabase, link: FakeLink, clock: Clock
    ) -> None:
        await recorded(hot, 2)
        worker = BrokerWorker(hot, clock=clock)
        async with connected(link) as connection:
            worker.use(connection)
            clock.now = T0 + 90_000
            assert await worker.settle_overdue() == 0
            assert worker.unsettled_age_ms() == 90_000
            clock.now = T0 + 90_001
            assert await worker.settle_overdue() == 2
            assert worker.unsettled_age_ms() == 0
        await recorded(hot)  # at T0 + 90,001
        clock.now = T0 + 100_001
        assert await worker.settle_overdue() == 0
        clock.now += 1
        assert await worker.settle_overdue() == 1
        assert worker.settled_overdue == 3

    async def test_what_was_settled_meanwhile_is_told_when_the_broker_is_back(
        self, hot: SqliteHotDatabase, link: FakeLink, clock: Clock
    ) -> None:
        ids = await recorded(hot, 2)
        link.works = False
        worker = BrokerWorker(hot, clock=clock)
        delivery = make_delivery(lambda _handler: link, hot, clock=clock, worker=worker)
        async with running(delivery):
            clock.now = T0 + 10_001
            await worker.settle_overdue()
            link.works = True
            await until(lambda: ids_of(link, SETTLED_TOPIC) == ids)
        assert worker.untold_dropped == 0


@asynccontextmanager
async def running(delivery: Delivery) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(delivery.run())
        yield
        delivery.stop()


async def test_the_last_events_are_sent_before_it_ends(
    hot: SqliteHotDatabase, link: FakeLink, clock: Clock
) -> None:
    delivery = make_delivery(lambda _handler: link, hot, clock=clock, worker=None)
    async with running(delivery):
        await delivery.connection.wait_up()
        ids = await recorded(hot, 3)
    assert ids_of(link, REQUESTED_TOPIC) == ids
    assert link.closed == link.opened


async def test_figures_tell_how_it_stands(
    hot: SqliteHotDatabase, link: FakeLink, clock: Clock, path: Path
) -> None:
    worker = BrokerWorker(hot, clock=clock)
    delivery = make_delivery(lambda _handler: link, hot, clock=clock, worker=worker)
    assert not delivery.figures().up
    async with running(delivery):
        await delivery.connection.wait_up()
        await recorded(hot, 2)
        delivery.notify()
        await until(lambda: delivery.publisher.published == 2)
        await worker.receive([b"{", *outbox_payloads(path)])
        found = delivery.figures()
    assert (found.up, found.outages, found.published, found.failures) == (True, 0, 2, 0)
    assert (found.unreadable, found.settled_overdue, found.untold) == (1, 0, 0)
