"""Redis streams, through FastStream: a consumer group of the workers; settled messages are deleted.

What a worker took and did not settle is handed to another after a while. The stream is cut at a
length that no outage may pass: what falls off is still in the outbox, and sent again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from faststream import AckPolicy
from faststream.exceptions import FastStreamException
from faststream.redis import RedisBroker, StreamSub
from faststream.redis.message import DATA_KEY, RedisMessage
from faststream.redis.parser import MessageFormat
from redis.exceptions import RedisError, ResponseError
from typing_extensions import override

from billing.settlement.brokers import (
    BATCH_MAX,
    GROUP,
    SEND_SECONDS,
    BrokerUnavailableError,
    Handler,
)
from billing.settlement.messages import REQUESTED_TOPIC, Outgoing

STREAM_LENGTH_MAX: Final = 100_000  # messages of about 1 kB, each topic
BLOCK_MS: Final = 500
ABANDONED_MS: Final = 30_000  # a batch that nobody settled for so long goes to another worker
CONSUMER_IDLE_MS: Final = (
    3_600_000  # a worker that has nothing and asks nothing for so long is gone
)
OPEN_SECONDS: Final = 10.0
CHECK_SECONDS: Final = 5.0

_DATA: Final = DATA_KEY.encode()
_Raw = dict[str, Any]


class _Plain(MessageFormat):
    """The message as it is, without an envelope of the library's own."""

    @override
    @classmethod
    async def encode(cls, *, message: Any, **_ignored: Any) -> bytes:
        return bytes(message)

    @override
    @classmethod
    def parse(cls, data: bytes) -> tuple[bytes, dict[str, Any]]:
        return data, {}


class _Delivery(msgspec.Struct, frozen=True):
    payloads: list[bytes]
    ids: list[bytes]


class RedisLink:
    """One connection; see `Link`."""

    def __init__(self, url: str, *, process: str, handler: Handler | None) -> None:
        self._process = process
        self._handler = handler
        self._broker = RedisBroker(
            url,
            message_format=_Plain,
            graceful_timeout=SEND_SECONDS,
            socket_connect_timeout=CHECK_SECONDS,
            apply_types=False,
            logger=None,  # type: ignore[arg-type]  # it says what we say ourselves
        )
        self._subscriber = None
        if handler is not None:
            self._subscriber = self._broker.subscriber(
                stream=StreamSub(
                    REQUESTED_TOPIC,
                    group=GROUP,
                    consumer=process,
                    batch=True,
                    max_records=BATCH_MAX,
                    polling_interval=BLOCK_MS,
                    last_id=">",
                ),
                ack_policy=AckPolicy.NACK_ON_ERROR,
                no_reply=True,
                parser=_parse,
                decoder=_decode,
            )
            self._subscriber(self._receive)

    async def open(self) -> None:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                client: Any = await self._broker.connect()
                await client.ping()
                if self._handler is not None:
                    await self._make_group()
                await self._broker.start()
        except (RedisError, FastStreamException, OSError, TimeoutError) as error:
            raise BrokerUnavailableError(f"{type(error).__name__}: {error}"[:200]) from error

    async def close(self) -> None:
        with suppress(RedisError, FastStreamException, OSError, TimeoutError):
            async with asyncio.timeout(OPEN_SECONDS):
                await self._broker.stop()

    async def send(self, messages: Sequence[Outgoing]) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                pipeline = self._client.pipeline(transaction=False)
                for each in messages:
                    await self._broker.publish(
                        each.payload,
                        stream=each.topic,
                        maxlen=STREAM_LENGTH_MAX,
                        pipeline=pipeline,
                    )
                await pipeline.execute()
        except (RedisError, FastStreamException, OSError, TimeoutError) as error:
            raise BrokerUnavailableError(f"{type(error).__name__}: {error}"[:200]) from error

    async def check(self) -> None:
        if not await self._broker.ping(CHECK_SECONDS):
            raise BrokerUnavailableError("Redis does not answer")
        if self._subscriber is None:
            return
        if not self._subscriber.running:
            raise BrokerUnavailableError("the stream's consumer group is gone")
        try:
            await self._adopt_abandoned()
        except (RedisError, OSError) as error:
            raise BrokerUnavailableError(f"{type(error).__name__}: {error}"[:200]) from error

    @property
    def _client(self) -> Any:  # noqa: ANN401 - the library's types know half of its commands
        return self._broker.config.broker_config.connection.client

    async def _make_group(self) -> None:
        """From the stream's beginning: what was sent before there was a worker is for us as well."""
        try:
            await self._client.xgroup_create(REQUESTED_TOPIC, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _receive(self, delivery: _Delivery) -> None:
        assert self._handler is not None
        await self._handler(delivery.payloads)
        await self._client.xack(REQUESTED_TOPIC, GROUP, *delivery.ids)
        await self._client.xdel(REQUESTED_TOPIC, *delivery.ids)

    async def _adopt_abandoned(self) -> None:
        """Settle what another worker left behind, and forget workers that are gone."""
        _, entries, *_ = await self._client.xautoclaim(
            REQUESTED_TOPIC, GROUP, self._process, ABANDONED_MS, count=BATCH_MAX
        )
        if entries:
            await self._receive(
                _Delivery(
                    [fields.get(_DATA, b"") for _, fields in entries], [each[0] for each in entries]
                )
            )
        for consumer in await self._client.xinfo_consumers(REQUESTED_TOPIC, GROUP):
            if consumer["pending"] == 0 and consumer["idle"] > CONSUMER_IDLE_MS:
                await self._client.xgroup_delconsumer(REQUESTED_TOPIC, GROUP, consumer["name"])


async def _parse(raw: _Raw, original: Callable[[_Raw], Awaitable[RedisMessage]]) -> RedisMessage:
    """The payloads as they came: the library would read them as JSON, and may fail."""
    message = await original({**raw, "data": []})
    message.raw_message = raw  # type: ignore[assignment]
    return message


async def _decode(message: RedisMessage) -> _Delivery:
    raw: Any = message.raw_message
    return _Delivery([each.get(_DATA, b"") for each in raw["data"]], list(raw["message_ids"]))
