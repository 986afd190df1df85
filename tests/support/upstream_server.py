r"""A provider in the test's own loop that sends raw bytes by script, one script a request.

async with ScriptedUpstream([[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"hi"]]) as server:
    ...  # server.base_url, server.requests, server.connections
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Self


class Step(Enum):
    """What a script does besides sending bytes."""

    EARLY = auto()  # first step: run the script on the head, never read the body
    READ_BODY = auto()  # after EARLY: read the body now
    CLOSE = auto()  # close in order (FIN)
    RESET = auto()  # drop the connection (RST)
    WAIT_GONE = auto()  # until the client closes


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request as it came."""

    connection: int  # counted from 0
    line: bytes
    headers: list[tuple[bytes, bytes]]  # names as sent
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The field's value, None without it; a repeated field fails the test."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, f"{name!r} came {len(values)} times"
        return values[0] if values else None


Script = Sequence[bytes | asyncio.Event | Step]


class ScriptedUpstream:
    """Answers the requests, over all connections, with one script after the other.

    The last script is repeated. With a function, it is asked for each request's script.
    """

    def __init__(
        self,
        scripts: Sequence[Script] | Callable[[Received], Script],
        *,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.requests: list[Received] = []
        self.connections = 0
        self.closed = 0  # connections that have ended
        self.sent = asyncio.Event()  # set whenever a script has run to its end
        self._changed = asyncio.Condition()
        self._scripts = scripts
        self._tls = tls
        self._host = host
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        assert isinstance(port, int)
        return port

    @property
    def base_url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{scheme}://{host}:{self.port}/v1"

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until the condition on this server's attributes holds."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(condition)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, 0, ssl=self._tls)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        await self._tell()
        try:
            while await self._one(number, reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client left
        finally:
            writer.transport.abort()
            self.closed += 1
            await self._tell()

    async def _one(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head[:-4].split(b"\r\n")
        headers = [(name, value.strip()) for name, _, value in (f.partition(b":") for f in fields)]
        lengths = [int(value) for name, value in headers if name.lower() == b"content-length"]
        assert len(lengths) == 1
        received = Received(connection=number, line=line, headers=headers, body=b"")
        early = callable(self._scripts) is False and self._next()[:1] == [Step.EARLY]
        if not early:
            body = await reader.readexactly(lengths[0])
            received = Received(connection=number, line=line, headers=headers, body=body)
        script = self._scripts(received) if callable(self._scripts) else self._next()
        self.requests.append(received)
        await self._tell()
        for step in script:
            if step is Step.READ_BODY:
                await reader.readexactly(lengths[0])
            elif not await self._do(step, reader, writer):
                return False
        self.sent.set()
        return True

    def _next(self) -> Script:
        assert not callable(self._scripts)
        return list(self._scripts[min(len(self.requests), len(self._scripts) - 1)])

    async def _do(
        self,
        step: bytes | asyncio.Event | Step,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
        elif isinstance(step, asyncio.Event):
            await step.wait()
        elif step is Step.CLOSE:
            writer.close()
            await writer.wait_closed()
            return False
        elif step is Step.RESET:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        elif step is Step.WAIT_GONE:
            await reader.read()
            return False
        return True

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
