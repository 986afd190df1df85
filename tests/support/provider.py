"""A provider that answers by script: a real server on loopback, in a thread of its own.

A request picks its script by the top-level field `x_script`, which the gateway passes on unread.
A script is a list of steps: bytes are sent as they are, a Gate waits until the test opens it.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self, cast

WAIT_SECONDS = 15.0


class Gate:
    """A place in a script where the provider waits; the test sees it reached, then opens it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()
        self._waiters: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def wait_reached(self) -> None:
        assert self.reached.wait(WAIT_SECONDS), "the provider never got to this point"

    def open(self) -> None:
        with self._lock:
            self._opened.set()
            waiters, self._waiters = self._waiters, []
        for wake in waiters:
            wake()

    async def pass_through(self) -> None:
        """In the provider's loop: tell the test, wait until it opens."""
        loop = asyncio.get_running_loop()
        opened = asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(opened.set)

        with self._lock:
            if self._opened.is_set():
                opened.set()
            else:
                self._waiters.append(wake)
        self.reached.set()
        await opened.wait()


class Close:
    """Step: close the connection, in order (FIN)."""


class Reset:
    """Step: drop the connection, out of order (RST)."""


Step = bytes | Gate | Close | Reset


@dataclass
class Seen:
    """One request as it came in, and whether its sender closed the connection before the end."""

    head: bytes
    body: bytes
    connection: int
    left: threading.Event = field(default_factory=threading.Event)
    answered: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self) -> dict[str, object]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines if line)}


class ScriptedProvider:
    """Serves scripts until closed; keeps what it saw."""

    def __init__(self) -> None:
        self.scripts: dict[str, Sequence[Step]] = {}
        self.default: Sequence[Step] = json_answer()
        self.seen: list[Seen] = []
        self._by_script: dict[str, list[Seen]] = {}
        self._changed = threading.Condition()
        self._counter = 0
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._open: set[_Connection] = set()
        self.port = 0
        self._thread = threading.Thread(target=self._run, name="provider", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(WAIT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_SECONDS)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def script(self, *steps: Step) -> str:
        """Register a script; the name returned goes into a request's `x_script`."""
        self._counter += 1
        name = f"script-{self._counter}"
        self.scripts[name] = steps
        return name

    def calls(self, script: str) -> list[Seen]:
        """The requests that asked for this script so far."""
        with self._changed:
            return list(self._by_script.get(script, ()))

    def wait_call(self, script: str, count: int = 1) -> Seen:
        """The latest request for this script, once `count` of them have come."""
        with self._changed:
            came = self._changed.wait_for(
                lambda: len(self._by_script.get(script, ())) >= count, WAIT_SECONDS
            )
            assert came, f"the provider saw {len(self._by_script.get(script, ()))} of {count} calls"
            return self._by_script[script][-1]

    def note(self, script: str, seen: Seen) -> None:
        with self._changed:
            self.seen.append(seen)
            self._by_script.setdefault(script, []).append(seen)
            self._changed.notify_all()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        def connect() -> "_Connection":
            self.connections += 1
            return _Connection(self, self.connections, self._open)

        async def start() -> asyncio.Server:
            return await self._loop.create_server(connect, "127.0.0.1", 0, backlog=1024)

        server = self._loop.run_until_complete(start())
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        for connection in list(self._open):
            connection.drop()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        # One more turn, so that aborted transports are closed for good.
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


class _Connection(asyncio.Protocol):
    """One connection from the gateway: requests in, scripted bytes out."""

    def __init__(
        self, provider: ScriptedProvider, number: int, connections: "set[_Connection]"
    ) -> None:
        self._provider = provider
        self._number = number
        self._connections = connections
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._current: Seen | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._current is not None:
            self._current.left.set()
        if self._task is not None:
            self._task.cancel()

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def _next(self) -> None:
        if self._current is not None or b"\r\n\r\n" not in self._buffer:
            return
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        seen = Seen(head, b"", self._number)
        length = int(seen.headers.get("content-length", "0"))
        if len(rest) < length:
            return
        seen.body, self._buffer = rest[:length], rest[length:]
        self._current = seen
        name = str(seen.json.get("x_script", "")) if seen.body else ""
        steps = self._provider.scripts.get(name, self._provider.default)
        self._provider.note(name, seen)
        self._task = asyncio.get_running_loop().create_task(self._play(steps, seen))

    async def _play(self, steps: Sequence[Step], seen: Seen) -> None:
        transport = self._transport
        assert transport is not None
        for step in steps:
            if transport.is_closing():
                return
            if isinstance(step, bytes):
                transport.write(step)
            elif isinstance(step, Gate):
                await step.pass_through()
            elif isinstance(step, Close):
                self._current = None
                transport.close()
                return
            else:
                self._current = None
                transport.abort()
                return
        self._current = None
        self._task = None
        seen.answered.set()
        self._next()


def head(status: int = 200, *headers: str, content_type: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status} Something", f"Content-Type: {content_type}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def usage(
    prompt: int = 12, completion: int = 5, cached: int = 0, reasoning: int = 0
) -> dict[str, object]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def completion(
    content: str = "Hello there", used: dict[str, object] | None = None, n: int = 1
) -> dict[str, object]:
    """A chat completion as OpenAI answers it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "m-small-2026",
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": content},
                "logprobs": None,
                "finish_reason": "stop",
            }
            for i in range(n)
        ],
        "usage": used if used is not None else usage(),
    }


def json_answer(
    body: object = None, *, status: int = 200, headers: Sequence[str] = ()
) -> list[Step]:
    """A whole answer with its length, as the only step."""
    return [json_bytes(body, status=status, headers=headers)]


def json_bytes(body: object = None, *, status: int = 200, headers: Sequence[str] = ()) -> bytes:
    """A whole answer with its length."""
    data = json.dumps(completion() if body is None else body).encode()
    return head(status, f"Content-Length: {len(data)}", *headers) + data


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
STREAM_HEAD = head(200, "Transfer-Encoding: chunked", content_type="text/event-stream")


def event(value: object) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return http_chunk(f"data: {text}\n\n".encode())


def delta(
    content: str | None, *, index: int = 0, finish: str | None = None, usage_null: bool = True
) -> dict[str, object]:
    chunk: dict[str, object] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": "m-small-2026",
        "choices": [
            {
                "index": index,
                "delta": {} if content is None else {"content": content},
                "finish_reason": finish,
            }
        ],
    }
    if usage_null:
        chunk["usage"] = None
    return chunk


def usage_event(used: dict[str, object] | None = None) -> bytes:
    return event(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_760_000_000,
            "model": "m-small-2026",
            "choices": [],
            "usage": used if used is not None else usage(),
        }
    )


DONE = event("[DONE]")


def stream_answer(
    words: Sequence[str] = ("Hello", " there"), used: dict[str, object] | None = None
) -> list[Step]:
    """A whole stream: words, the end of the choice, usage, [DONE]."""
    return [
        STREAM_HEAD,
        *(event(delta(word)) for word in words),
        event(delta(None, finish="stop")),
        usage_event(used),
        DONE + LAST_CHUNK,
    ]
