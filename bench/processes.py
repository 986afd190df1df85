"""The processes under test, each pinned to the core it is given, and what the kernel says they used."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.load import Target
from tests.support.redis_server import RedisServer, redis_server
from tests.support.services import PostgresServer

ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 30.0

GATEWAY_TOML = """
[server]
port = {port}
data_dir = "data"
[pricing]
book = "prices.toml"
{stores}
[[scenes]]
name = "default"
[[providers]]
name = "bench"
kind = "openai"
base_url = "http://127.0.0.1:{upstream}/v1"
api_key = "env:BENCH_API_KEY"
enforces_output_limit = true
connections_max = 8192
idle_seconds = 600
[[models]]
name = "bench"
max_output_tokens = 4096
targets = [{{ provider = "bench", model = "bench" }}]
"""

PRICES_TOML = """
[book]
name = "bench"
currency = "USD"
credits_per_unit = "1"
[[rule]]
id = "bench"
description = "made up for the benchmark"
scene = "*"
provider = "*"
model = "*"
input = "0.25"
cached_input = "0.125"
output = "1.00"
"""

REDIS_POSTGRES_TOML = """
[database]
url = "{database}"
[guard]
store = "redis"
redis_url = "{redis}"
"""

NGINX_CONF = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 100000000;
    upstream mock {{
        server 127.0.0.1:{upstream};
        keepalive 512;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        client_body_buffer_size 64k;
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def family_cpu(pid: int) -> float:
    """What a process and its children have used, in seconds: main threads, in nanoseconds."""
    total = 0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (pid, *map(int, children)):
        with contextlib.suppress(OSError):  # it ended meanwhile
            total += int(Path(f"/proc/{each}/schedstat").read_text().split()[0])
    return total / 1e9


class Measured:
    """A process and its children, looked at through /proc; beside it the servers that it uses."""

    def __init__(self, target: Target, pid: int, servers: tuple[int, ...] = ()) -> None:
        self.target = target
        self._pid = pid
        self._servers = servers

    def server_cpu_seconds(self) -> float | None:
        """User and system time of its servers so far; None: it has none."""
        return sum(map(family_cpu, self._servers)) if self._servers else None

    def _pids(self) -> list[int]:
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text()
        return [self._pid, *map(int, children.split())]

    def cpu_seconds(self) -> float:
        """User and system time of all threads so far."""
        total = 0
        for pid in self._pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def memory_bytes(self) -> int:
        """Resident memory, parts shared with other processes divided among them."""
        total = 0
        for pid in self._pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total


@contextlib.contextmanager
def running(
    command: list[str], cores: set[int], folder: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    def pin() -> None:
        os.sched_setaffinity(0, cores)

    with (folder / "output.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=pin,  # noqa: PLW1509 - threads inherit the core only if it is set before
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_port(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise SystemExit("did not start:\n" + (folder / "output.log").read_text()[-4000:])


@contextlib.contextmanager
def upstream(folder: Path, cores: set[int]) -> Iterator[Target]:
    port = free_port()
    command = [sys.executable, "-m", "bench.upstream", str(port)]
    with running(command, cores, folder) as process:
        wait_for_port(process, port, folder)
        yield Target("direct", port)


@dataclass(frozen=True)
class Stack:
    """Servers that a gateway keeps its money in, and how it is told of them."""

    name: str
    toml: str
    pids: tuple[int, ...]


@contextlib.contextmanager
def redis_postgres(folder: Path) -> Iterator[Stack]:
    """Holds in Redis, charges and ledger in a PostgreSQL that waits for its disk; on any core."""
    folder.mkdir()
    folder.chmod(0o755)
    server = PostgresServer(folder, durable=True)
    server.create()
    try:
        with redis_server() as redis:
            yield Stack(
                "llm-gateway, Redis and PostgreSQL",
                REDIS_POSTGRES_TOML.format(database=server.new_database(), redis=redis.url),
                (postgres_pid(folder), redis_pid(redis)),
            )
    finally:
        server.stop("immediate")


def postgres_pid(folder: Path) -> int:
    """The postmaster, whose children are all there is of the server."""
    return int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])


def redis_pid(server: RedisServer) -> int:
    """What the server says of itself."""
    told = server.command("INFO", "server")
    assert isinstance(told, bytes)
    (pid,) = [line[11:] for line in told.split() if line.startswith(b"process_id:")]
    return int(pid)


@contextlib.contextmanager
def gateway(
    folder: Path, cores: set[int], upstream_port: int, stack: Stack | None = None
) -> Iterator[Measured]:
    """On SQLite alone, or on the servers of a `stack`."""
    port = free_port()
    stack = stack or Stack("llm-gateway", "", ())
    (folder / "prices.toml").write_text(PRICES_TOML)
    (folder / "gateway.toml").write_text(
        GATEWAY_TOML.format(port=port, upstream=upstream_port, stores=stack.toml)
    )
    command = [sys.executable, "-c", "from llm_gateway.cli import main; main()", "serve"]
    with running(command, cores, folder, BENCH_API_KEY="none") as process:
        wait_for_port(process, port, folder)
        credentials = tomllib.loads((folder / "data" / "credentials").read_text())
        target = Target(stack.name, port, str(credentials["demo_key"]))
        yield Measured(target, process.pid, stack.pids)


@contextlib.contextmanager
def nginx(folder: Path, cores: set[int], upstream_port: int) -> Iterator[Measured | None]:
    """None where nginx is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        yield None
        return
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        NGINX_CONF.format(user=user, folder=folder, port=port, upstream=upstream_port)
    )
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running(command, cores, folder) as process:
        wait_for_port(process, port, folder)
        yield Measured(Target("nginx", port), process.pid)
