"""Addresses of brokers, and a connection that comes back however often it is lost."""

import asyncio
from collections.abc import Callable

import pytest

from billing.settlement.broker_address import (
    BrokerAddressError,
    check_address,
    check_redis,
    parse_kafka,
)
from billing.settlement.brokers import BrokerConnection, BrokerUnavailableError
from billing.settlement.messages import Outgoing
from tests.support.fake_link import FakeLink

MESSAGE = Outgoing(topic="t", key="k", payload=b"p")


class TestKafkaAddress:
    def test_plain(self) -> None:
        address = parse_kafka("kafka://one:9092,10.0.0.2:9093,[::1]:9094")
        assert address.servers == ("one:9092", "10.0.0.2:9093", "[::1]:9094")
        assert (address.tls, address.user, address.partitions) == (False, "", 12)

    def test_everything(self) -> None:
        address = parse_kafka(
            "kafkas://bill%40ing:p%2Fw%3A@h:9093/?mechanism=PLAIN&ca=/ca.pem"
            "&partitions=48&replication=3"
        )
        assert (address.user, address.password) == ("bill@ing", "p/w:")
        assert (address.tls, address.ca, address.mechanism) == (True, "/ca.pem", "PLAIN")
        assert (address.partitions, address.replication) == (48, 3)

    def test_shows_no_password(self) -> None:
        assert "hush" not in repr(parse_kafka("kafka://u:hush@h:1"))

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "h:9092",
            "http://h:9092",
            "kafka://",
            "kafka://h",
            "kafka://h:0",
            "kafka://h:70000",
            "kafka://h:1,",
            "kafka://h:1/topic",
            "kafka://h:1?partitions=0",
            "kafka://h:1?partitions=many",
            "kafka://h:1?replication=-1",
            "kafka://h:1?mechanism=GSSAPI",
            "kafka://h:1?ca=/ca.pem",
            "kafka://h:1?acks=0",
        ],
    )
    def test_refuses(self, url: str) -> None:
        with pytest.raises(BrokerAddressError):
            parse_kafka(url)

    def test_an_error_repeats_no_secret(self) -> None:
        with pytest.raises(BrokerAddressError) as caught:
            parse_kafka("kafka://u:hush@h")
        assert "hush" not in str(caught.value)


class TestRedisAddress:
    @pytest.mark.parametrize(
        "url",
        ["redis://h:6379", "rediss://u:p@h:6380/3", "redis://:p@h/0", "unix:///run/redis.sock"],
    )
    def test_takes(self, url: str) -> None:
        check_redis(url)

    @pytest.mark.parametrize(
        "url", ["", "h:6379", "redis://", "redis://h:0", "redis://h:x", "redis://h/zero", "unix://"]
    )
    def test_refuses(self, url: str) -> None:
        with pytest.raises(BrokerAddressError):
            check_address("redis", url)


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


class TestConnection:
    async def test_sends_once_it_is_up(self, link: FakeLink) -> None:
        connection = BrokerConnection(lambda: link)
        assert not connection.up
        with pytest.raises(BrokerUnavailableError):
            await connection.send([MESSAGE])
        async with asyncio.TaskGroup() as group:
            group.create_task(connection.run())
            await connection.wait_up()
            await connection.send([MESSAGE])
            connection.stop()
        assert link.sent == [MESSAGE]
        assert (link.opened, link.closed) == (1, 1)
        assert not connection.up

    async def test_comes_back_after_a_send_that_failed(self, link: FakeLink) -> None:
        connection = BrokerConnection(lambda: link)
        async with asyncio.TaskGroup() as group:
            group.create_task(connection.run())
            await connection.wait_up()
            link.works = False
            with pytest.raises(BrokerUnavailableError):
                await connection.send([MESSAGE])
            assert not connection.up, "nobody else must try the same link"
            link.works = True
            await connection.wait_up()
            await connection.send([MESSAGE])
            connection.stop()
        assert link.sent == [MESSAGE]
        assert connection.outages == 1
        assert link.opened == link.closed >= 2

    async def test_finds_out_by_itself(self, link: FakeLink) -> None:
        connection = BrokerConnection(lambda: link)
        async with asyncio.TaskGroup() as group:
            group.create_task(connection.run())
            await connection.wait_up()
            link.works = False
            await until(lambda: not connection.up)
            connection.stop()

    async def test_keeps_trying_and_says_so_once(
        self, link: FakeLink, caplog: pytest.LogCaptureFixture
    ) -> None:
        link.works = False
        connection = BrokerConnection(lambda: link)
        async with asyncio.TaskGroup() as group:
            group.create_task(connection.run())
            await until(lambda: link.opened >= 3)
            assert not connection.up
            link.works = True
            await connection.wait_up()
            connection.stop()
        assert sum("broker is away" in line for line in caplog.messages) == 1

    async def test_stops_while_the_broker_is_away(self, link: FakeLink) -> None:
        link.works = False
        connection = BrokerConnection(lambda: link)
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(connection.run())
            await until(lambda: link.opened >= 1)
            connection.stop()
        assert link.opened == link.closed
