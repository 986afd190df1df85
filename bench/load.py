"""The clients of the benchmark: raw connections that send one prepared request again and again."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True)
class Target:
    """Where a load goes: a port and the key it takes there."""

    name: str
    port: int
    key: str = ""


def request(target: Target, *, stream: bool = False, hold: bool = False, size: int = 2048) -> bytes:
    """A chat call whose body has `size` bytes."""
    fields: dict[str, object] = {"model": "bench", "messages": [{"role": "user", "content": ""}]}
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    if hold:
        fields["x_hold"] = 1
    padding = size - len(json.dumps(fields))
    fields["messages"] = [{"role": "user", "content": ("some words " * size)[:padding]}]
    body = json.dumps(fields).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\n"
        b"authorization: Bearer %b\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (target.key.encode(), len(body), body)
    )


class Client(asyncio.Protocol):
    """One connection; `call` resolves with the seconds that an answer took, whole."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[float] | None = None
        self._started = 0.0
        self.first_chunk: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("closed before the answer was whole"))

    def call(self, data: bytes) -> asyncio.Future[float]:
        self._done = asyncio.get_running_loop().create_future()
        self.send(data)
        return self._done

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer = b""
        self._started = time.perf_counter()
        self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        # A stream is only looked at by its last bytes: the client must cost next to nothing.
        buffer = self._buffer + data if len(self._buffer) < 4096 else self._buffer[-64:] + data
        self._buffer = buffer
        if buffer.endswith(b"0\r\n\r\n"):
            self._finish()
            return
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = buffer.lower().find(b"content-length:", 0, end)
        if at >= 0:
            length = int(buffer[at + 15 : buffer.index(b"\r", at)])
            if len(buffer) >= end + 4 + length:
                self._finish()
        elif len(buffer) > end + 4 and not self.first_chunk.done():
            self.first_chunk.set_result(None)

    def _finish(self) -> None:
        if self._done is None or self._done.done():
            return
        if self._buffer.startswith(b"HTTP/1.1 ") and self._buffer[9:12] != b"200":
            self._done.set_exception(RuntimeError(self._buffer[:300].decode("latin-1")))
            return
        self._done.set_result(time.perf_counter() - self._started)


async def connect(target: Target) -> Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(Client, "127.0.0.1", target.port)
    return client


async def closed_loop(target: Target, connections: int, seconds: float) -> list[float]:
    """Each connection sends its next JSON call when it has its answer; the seconds of each."""
    data = request(target)
    until = time.perf_counter() + seconds
    took: list[float] = []

    async def one(client: Client) -> None:
        while time.perf_counter() < until:
            took.append(await client.call(data))

    clients = [await connect(target) for _ in range(connections)]
    try:
        await asyncio.gather(*map(one, clients))
    finally:
        for client in clients:
            client.close()
    return took


async def streams(target: Target, at_once: int, rounds: int) -> int:
    """`at_once` paced streams, begun 10 ms / at_once apart, a few times over; how many."""
    data = request(target, stream=True)
    clients = [await connect(target) for _ in range(at_once)]

    async def one(number: int, client: Client) -> None:
        await asyncio.sleep(number % 10 / 1000)
        for _ in range(rounds):
            await client.call(data)

    try:
        await asyncio.gather(*(one(i, client) for i, client in enumerate(clients)))
    finally:
        for client in clients:
            client.close()
    return at_once * rounds


async def open_streams(target: Target, count: int) -> list[Client]:
    """Streams that have had their first chunk and stay open."""
    data = request(target, stream=True, hold=True)
    clients: list[Client] = []
    for start in range(0, count, 50):
        group = [await connect(target) for _ in range(min(50, count - start))]
        for client in group:
            client.send(data)
        async with asyncio.timeout(30):
            for client in group:
                await client.first_chunk
        clients += group
    return clients
