"""Kafka, through FastStream: topics made at start, accounts as keys, batches acknowledged once settled."""

import asyncio
import dataclasses
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, NoError, TopicAlreadyExistsError, for_code
from faststream import AckPolicy
from faststream.exceptions import FastStreamException
from faststream.kafka import KafkaBroker
from faststream.kafka.message import KafkaMessage
from faststream.kafka.schemas import Topic
from faststream.kafka.security import parse_security
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from billing.settlement.broker_address import KafkaAddress
from billing.settlement.brokers import (
    BATCH_MAX,
    GROUP,
    SEND_SECONDS,
    BrokerUnavailableError,
    Handler,
)
from billing.settlement.messages import REQUESTED_TOPIC, SETTLED_TOPIC, Outgoing

TOPICS: Final = (REQUESTED_TOPIC, SETTLED_TOPIC)
OPEN_SECONDS: Final = 15.0
CHECK_SECONDS: Final = 5.0
LINGER_MS: Final = 5  # lets the messages of a batch travel together
BATCH_BYTES_MAX: Final = 512 * 1024
POLL_MS: Final = 50
SESSION_MS: Final = 6_000  # a worker that is silent for so long gives up its partitions

_MECHANISMS: Final = {
    "PLAIN": SASLPlaintext,
    "SCRAM-SHA-256": SASLScram256,
    "SCRAM-SHA-512": SASLScram512,
}

_log: Final = logging.getLogger(__name__)


class KafkaLink:
    """One connection; see `Link`."""

    def __init__(self, address: KafkaAddress, *, process: str, handler: Handler | None) -> None:
        self._address = address
        # aiokafka tells of every attempt to connect; we tell when the broker comes and goes.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
        self._client_id = f"llm-gateway-{process}"
        self._security = _security(address)
        self._broker = KafkaBroker(
            list(address.servers),
            client_id=self._client_id,
            security=self._security,
            acks="all",
            linger_ms=LINGER_MS,
            max_batch_size=BATCH_BYTES_MAX,
            request_timeout_ms=int(SEND_SECONDS * 1000),
            graceful_timeout=SEND_SECONDS,
            apply_types=False,
            logger=None,
        )
        if handler is not None:
            subscriber = self._broker.subscriber(
                Topic(REQUESTED_TOPIC, declare=False),
                batch=True,
                group_id=GROUP,
                max_records=BATCH_MAX,
                batch_timeout_ms=POLL_MS,
                auto_offset_reset="earliest",
                session_timeout_ms=SESSION_MS,
                heartbeat_interval_ms=SESSION_MS // 3,
                ack_policy=AckPolicy.NACK_ON_ERROR,
                no_reply=True,
                parser=_parse,
                decoder=_decode,
            )
            subscriber(handler)

    async def open(self) -> None:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._make_topics()
                await self._broker.start()
        except (KafkaError, FastStreamException, OSError, TimeoutError) as error:
            raise BrokerUnavailableError(_say(error)) from error

    async def close(self) -> None:
        with suppress(KafkaError, FastStreamException, OSError, TimeoutError):
            async with asyncio.timeout(OPEN_SECONDS):
                await self._broker.stop()

    async def send(self, messages: Sequence[Outgoing]) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                # Not publish_batch: it puts a batch on one partition, whatever the keys.
                sent = [
                    await self._broker.publish(
                        each.payload,
                        each.topic,
                        key=each.key.encode(),
                        headers={"content-type": "application/json"},
                        no_confirm=True,
                    )
                    for each in messages
                ]
                await asyncio.gather(*sent)
        except (KafkaError, FastStreamException, OSError, TimeoutError) as error:
            raise BrokerUnavailableError(_say(error)) from error

    async def check(self) -> None:
        if not await self._broker.ping(CHECK_SECONDS):
            raise BrokerUnavailableError("Kafka does not answer")

    async def _make_topics(self) -> None:
        """Also the proof that the cluster is there, by a client that is closed if it is not."""
        admin = AIOKafkaAdminClient(
            bootstrap_servers=list(self._address.servers),
            client_id=self._client_id,
            request_timeout_ms=int(SEND_SECONDS * 1000),
            **parse_security(self._security),
        )
        partitions, replication = self._address.partitions, self._address.replication
        topics = [NewTopic(name, partitions, replication) for name in TOPICS]
        try:
            await admin.start()
            answer = (await admin.create_topics(topics)).to_object()
        finally:
            await admin.close()
        for made in answer["topic_errors"]:
            error = for_code(made["error_code"])
            if error not in (NoError, TopicAlreadyExistsError):
                # Whoever may not make topics can use those that an operator made.
                _log.warning("topic %s was not made: %s", made["topic"], error.__name__)


Records = tuple[Any, ...]  # of aiokafka.ConsumerRecord, which has no types
_Original = Callable[[Records], Awaitable[KafkaMessage]]


async def _parse(records: Records, original: _Original) -> KafkaMessage:
    """Without the headers: we read none, and a malformed one would stop the whole batch."""
    return await original(tuple(dataclasses.replace(each, headers=()) for each in records))


async def _decode(message: KafkaMessage) -> list[bytes]:
    return [bytes(each) for each in message.body]


def _security(address: KafkaAddress) -> BaseSecurity | None:
    context = ssl.create_default_context(cafile=address.ca or None) if address.tls else None
    if address.user:
        kind = _MECHANISMS[address.mechanism]
        return kind(
            username=address.user,
            password=address.password,
            ssl_context=context,
            use_ssl=address.tls,
        )
    return BaseSecurity(ssl_context=context, use_ssl=True) if context else None


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
