"""Charges over a real Kafka and a real Redis that die, repeat, forget and lie: each is settled once."""

import asyncio
import json
import random
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from aiokafka.conn import AIOKafkaConnection

from billing.db.invariants import check_invariants
from billing.db.sqlite import SqliteHotDatabase
from billing.settlement.brokers import LinkMaker, link_maker
from billing.settlement.delivery import Delivery, make_delivery
from billing.settlement.messages import REQUESTED_TOPIC, SETTLED_TOPIC
from billing.settlement.subscriber import BrokerWorker
from tests.support.broker_servers import SERVERS, BrokerServer
from tests.support.migrated import migrated
from tests.support.money import T0, charge, new_id, outbox_payloads, purchase, rows

ACCOUNTS = ("alice", "bob", "carol", "dave", "erin")
BOUGHT = 1_000_000


class Clock:
    """Milliseconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> int:
        return self.now


@pytest.fixture(autouse=True)
async def _sockets_of_aiokafka(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Close what aiokafka leaves open of a broker that died, or it fails whatever test comes next."""
    made: list[AIOKafkaConnection] = []
    connect = AIOKafkaConnection.connect

    async def connect_noted(connection: AIOKafkaConnection) -> object:
        made.append(connection)
        return await connect(connection)

    monkeypatch.setattr(AIOKafkaConnection, "connect", connect_noted)
    yield
    if left := [gone for gone in (each.close() for each in made) if gone is not None]:
        await asyncio.wait(left, timeout=5)


@pytest.fixture(params=["kafka", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerServer]:
    with SERVERS[request.param](tmp_path) as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def path(tmp_path: Path, clock: Clock) -> Path:
    path = migrated(tmp_path)
    async with hot_database(path, clock) as hot:
        await hot.post([purchase(BOUGHT, account=account) for account in ACCOUNTS])
    return path


def maker(server: BrokerServer, process: str = "p1") -> LinkMaker:
    if server.scheme == "kafka":
        return link_maker("kafka", server.url, process=process)
    return link_maker("redis", server.url, process=process)


@asynccontextmanager
async def hot_database(path: Path, clock: Callable[[], int]) -> AsyncIterator[SqliteHotDatabase]:
    hot = SqliteHotDatabase(path, clock=clock)
    await hot.start()
    try:
        yield hot
    finally:
        await hot.close()
    with closing(sqlite3.connect(path)) as connection:
        assert check_invariants(connection) == []


@asynccontextmanager
async def delivering(
    hot: SqliteHotDatabase,
    server: BrokerServer,
    *,
    process: str = "p1",
    clock: Callable[[], int],
    resend_seconds: float = 60,
) -> AsyncIterator[Delivery]:
    worker = BrokerWorker(hot, clock=clock)
    delivery = make_delivery(
        maker(server, process), hot, clock=clock, worker=worker, resend_seconds=resend_seconds
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(delivery.run())
        try:
            yield delivery
        finally:
            delivery.stop()


async def record(hot: SqliteHotDatabase, count: int) -> dict[str, int]:
    """Finished calls; what each costs."""
    costs = {new_id(): number % 90 + 1 for number in range(count)}
    finishes = [
        charge(event_id, cost, account=ACCOUNTS[number % len(ACCOUNTS)])
        for number, (event_id, cost) in enumerate(costs.items())
    ]
    await asyncio.gather(*(hot.record(finish) for finish in finishes))
    return costs


async def until(true: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def charged(path: Path) -> dict[str, int]:
    found = rows(path, "SELECT event_id, amount FROM ledger_entries WHERE source = 'charge'")
    return {str(event_id): -int(str(amount)) for event_id, amount in found}


def assert_settled_once(path: Path, costs: dict[str, int]) -> None:
    assert charged(path) == costs
    assert rows(path, "SELECT count(*) FROM outbox") == [(0,)]
    total = rows(path, "SELECT sum(balance) FROM accounts")
    assert total == [(BOUGHT * len(ACCOUNTS) - sum(costs.values()),)]


async def test_charges_arrive_and_others_are_told(
    path: Path, clock: Clock, server: BrokerServer
) -> None:
    async with hot_database(path, clock) as hot:
        async with delivering(hot, server, clock=clock) as delivery:
            costs = await record(hot, 700)
            delivery.notify()
            await until(lambda: charged(path) == costs)
        told = [json.loads(each) for each in await server.read(SETTLED_TOPIC)]
    assert_settled_once(path, costs)
    assert {each["event_id"]: -each["amount"] for each in told} == costs
    assert all(each["version"] == 1 for each in told)
    for account in ACCOUNTS:
        sequence = {each["account_seq"] for each in told if each["account"] == account}
        assert sequence == set(range(2, 142)), "the purchase was the first entry"


async def test_every_message_comes_again_and_out_of_order(
    path: Path, clock: Clock, server: BrokerServer
) -> None:
    async with hot_database(path, clock) as hot:
        costs = await record(hot, 300)
        again = outbox_payloads(path) * 3
        random.Random(7).shuffle(again)
        async with delivering(hot, server, clock=clock) as delivery:
            await delivery.connection.wait_up()
            await server.write(REQUESTED_TOPIC, again)
            delivery.notify()
            await until(lambda: charged(path) == costs)
            more = await record(hot, 1)  # what comes after all of them was taken in
            delivery.notify()
            await until(lambda: charged(path) == costs | more)
    assert_settled_once(path, costs | more)
    assert rows(path, "SELECT count(*) FROM quarantine") == [(0,)]


async def test_poison_goes_to_quarantine_and_blocks_nobody(
    path: Path, clock: Clock, server: BrokerServer
) -> None:
    async with hot_database(path, clock) as hot:
        costs = await record(hot, 100)
        good = outbox_payloads(path)
        newer = json.loads(good[0]) | {"version": 2}
        newer["context"]["event_id"] = "from-the-future"
        poison = [
            b"",
            b"\xff\xfe\x00",
            b"{",
            b"[]",
            b'{"version":1}',
            json.dumps(newer).encode(),
            b'{"version":99,"anything":1}',
        ]
        # Not published by us: among the poison is the only word on these charges.
        messages = [*good[:50], *poison, *good[50:], *poison]
        worker = BrokerWorker(hot, clock=clock)
        link = maker(server)(worker.receive)
        await link.open()
        try:
            await server.write(REQUESTED_TOPIC, messages)
            await until(lambda: charged(path) == costs and worker.strays == 2 * len(poison))
        finally:
            await link.close()
    assert_settled_once(path, costs)
    reasons = Counter(
        str(row[0]) for row in rows(path, "SELECT reason FROM quarantine WHERE origin = 'broker'")
    )
    assert reasons == {
        "the message cannot be read": 5,
        "unknown version 2": 1,
        "unknown version 99": 1,
    }


@pytest.mark.slow
async def test_broker_killed_under_load_and_back_without_its_memory(
    path: Path, clock: Clock, server: BrokerServer
) -> None:
    async with (
        hot_database(path, clock) as hot,
        delivering(hot, server, clock=clock, resend_seconds=0.5) as delivery,
    ):
        await delivery.connection.wait_up()
        costs: dict[str, int] = {}
        for _ in range(2):
            costs |= await record(hot, 1_500)
            delivery.notify()
            await until(lambda: delivery.publisher.published > 0)
            server.kill()
            costs |= await record(hot, 200)
            delivery.notify()
            await until(lambda: not delivery.connection.up)
            server.start()
            clock.now += 1_000  # what was sent and is gone may be sent again
            await delivery.connection.wait_up()
        await until(lambda: charged(path) == costs, 45)
    assert_settled_once(path, costs)


async def test_broker_away_is_a_warning_not_a_loss(
    path: Path, clock: Clock, tmp_path: Path
) -> None:
    """The outbox grows; after a while the database settles by itself."""
    server = SERVERS["redis"](tmp_path)  # never started
    async with (
        hot_database(path, clock) as hot,
        delivering(hot, server, clock=clock) as delivery,
    ):
        assert delivery.worker is not None
        costs = await record(hot, 50)
        delivery.notify()
        assert await delivery.worker.settle_overdue() == 0
        assert len(outbox_payloads(path)) == 50
        clock.now += 9_000
        assert await delivery.worker.settle_overdue() == 0
        clock.now += 2_000  # 11 s: credit of people who pay is held meanwhile
        await until(lambda: charged(path) == costs)
    assert_settled_once(path, costs)
    assert delivery.publisher.published == 0


@pytest.mark.slow
async def test_broker_that_hangs_holds_up_nothing_for_long(
    path: Path, clock: Clock, server: BrokerServer
) -> None:
    async with hot_database(path, clock) as hot, delivering(hot, server, clock=clock) as delivery:
        await delivery.connection.wait_up()
        server.pause()
        try:
            await until(lambda: not delivery.connection.up)
            costs = await record(hot, 50)
            delivery.notify()
        finally:
            server.resume()
        await until(lambda: charged(path) == costs)
    assert_settled_once(path, costs)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["settled_unacknowledged", "settled_uncommitted"])
async def test_worker_killed_between_settling_and_acknowledging(
    path: Path, clock: Clock, server: BrokerServer, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from billing.settlement import redis_link

    monkeypatch.setattr(redis_link, "ABANDONED_MS", 1_000)
    async with hot_database(path, clock) as hot:
        costs = await record(hot, 400)
    doomed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.broker_worker"),
        *(server.scheme, server.url, str(path), point),
        cwd=Path(__file__).parents[2],
    )
    assert await asyncio.wait_for(doomed.wait(), 30) == -signal.SIGKILL
    was_charged = charged(path)
    assert (was_charged == {}) is (point == "settled_uncommitted")
    async with hot_database(path, clock) as hot:
        # Nobody sends anything again: the messages that were not acknowledged come to another.
        worker = BrokerWorker(hot, clock=clock)
        delivery = make_delivery(maker(server, "p2"), hot, clock=clock, worker=worker)
        async with asyncio.TaskGroup() as group:
            group.create_task(delivery.run())
            await until(lambda: charged(path) == costs, 40)

            async def all_told() -> bool:
                told = [json.loads(each) for each in await server.read(SETTLED_TOPIC)]
                return {each["event_id"] for each in told} == costs.keys()

            async with asyncio.timeout(40):
                while not await all_told():
                    await asyncio.sleep(0.1)
            delivery.stop()
    assert_settled_once(path, costs)
