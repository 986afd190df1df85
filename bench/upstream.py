"""The provider of the benchmark: answers at once, paces streams, holds streams open; as light as can be.

Usage: python -m bench.upstream PORT. It answers any request as a chat completion:
a body with "stream" true gets CHUNKS chunks CHUNK_MS apart, one with "x_hold" keeps the
stream open after its first chunk until GET /release.
"""

import asyncio
import json
import sys
from typing import cast

import uvloop

CHUNKS = 100
CHUNK_MS = 10

_USAGE = {
    "prompt_tokens": 480,
    "completion_tokens": 100,
    "total_tokens": 580,
    "prompt_tokens_details": {"cached_tokens": 128},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


def _json_answer() -> bytes:
    body = json.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_760_000_000,
            "model": "bench",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "word " * 100},
                    "finish_reason": "stop",
                }
            ],
            "usage": _USAGE,
        }
    ).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def _event(**fields: object) -> bytes:
    chunk = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": "bench",
        **fields,
    }
    data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _choice(delta: dict[str, str], finish: str | None = None) -> list[dict[str, object]]:
    return [{"index": 0, "delta": delta, "finish_reason": finish}]


JSON_ANSWER = _json_answer()
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
CHUNK = _event(choices=_choice({"content": "word "}), usage=None)
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
END = _event(choices=_choice({}, "stop"), usage=None) + _event(choices=[], usage=_USAGE) + DONE


class Pacer:
    """A wheel with a slot per millisecond: one timer writes the chunks of all streams."""

    def __init__(self) -> None:
        self._slots: list[dict[Connection, int]] = [{} for _ in range(CHUNK_MS)]
        self._turn = 0
        self._next = 0.0
        self.held: set[Connection] = set()

    def start(self) -> None:
        self._next = asyncio.get_running_loop().time()
        self._tick()

    def add(self, connection: "Connection") -> None:
        self._slots[self._turn % CHUNK_MS][connection] = CHUNKS

    def drop(self, connection: "Connection") -> None:
        self.held.discard(connection)
        for slot in self._slots:
            slot.pop(connection, None)

    def release(self) -> None:
        for connection in self.held:
            connection.write(END)
        self.held.clear()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while self._next <= loop.time():
            self._turn += 1
            self._next += 0.001
            slot = self._slots[self._turn % CHUNK_MS]
            for connection, left in list(slot.items()):
                if left:
                    connection.write(CHUNK)
                    slot[connection] = left - 1
                else:
                    connection.write(END)
                    del slot[connection]
        loop.call_at(self._next, self._tick)


class Connection(asyncio.Protocol):
    """One connection; requests with a Content-Length or without a body."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.write = self._transport.write

    def connection_lost(self, exc: Exception | None) -> None:
        self._pacer.drop(self)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 : (head + b"\r").find(b"\r", at)]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get /release"):
            self._pacer.release()
            self.write(JSON_ANSWER)
        elif b'"x_hold"' in body:
            self.write(STREAM_HEAD + CHUNK)
            self._pacer.held.add(self)
        elif b'"stream":true' in body or b'"stream": true' in body:
            self.write(STREAM_HEAD)
            self._pacer.add(self)
        else:
            self.write(JSON_ANSWER)


async def main(port: int) -> None:
    pacer = Pacer()
    pacer.start()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(pacer), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
