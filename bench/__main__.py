"""Runs the benchmark and prints a table: `python -m bench [--json FILE] [--quick] [--stack NAME]`."""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from bench import load, processes
from bench.load import Target
from bench.processes import Measured

CONNECTIONS = 32
STREAMS_AT_ONCE = 150
STREAM_BYTES_MAX = 40 * 1024  # the aim for each open stream
SQLITE, REDIS_POSTGRES = "sqlite", "redis-postgres"


@dataclass(frozen=True)
class Aim:
    """How many times nginx's CPU a call may cost."""

    json: float
    stream: float


AIMS = {SQLITE: Aim(10, 2), REDIS_POSTGRES: Aim(5, 1.5)}
SETTLE_SECONDS = 1.0  # what the ledger worker may still do after the last answer


@dataclass(frozen=True)
class Scale:
    """How long each part of the run takes."""

    json_seconds: float = 8.0
    stream_rounds: int = 5
    latency_seconds: float = 3.0
    open_streams: int = 2000


QUICK = Scale(json_seconds=2.0, stream_rounds=1, latency_seconds=1.0, open_streams=500)


@dataclass
class Figures:
    """What was measured for one target; None: not measured there."""

    name: str
    json_cpu_us: float | None = None
    json_calls_per_second: float | None = None
    stream_cpu_us: float | None = None
    latency_p50_us: float = 0.0
    latency_p99_us: float = 0.0
    open_stream_bytes: float | None = None
    stack: str | None = None  # of a gateway
    json_server_cpu_us: float | None = None  # of its database and Redis
    stream_server_cpu_us: float | None = None


async def measure_latency(target: Target, figures: Figures, seconds: float) -> None:
    """One call at a time: what the target itself adds, without queueing."""
    await load.closed_loop(target, 1, seconds / 4)
    took = await load.closed_loop(target, 1, seconds)
    cuts = statistics.quantiles(took, n=100)
    figures.latency_p50_us = cuts[49] * 1e6
    figures.latency_p99_us = cuts[98] * 1e6


async def measure_cpu(measured: Measured, figures: Figures, scale: Scale) -> None:
    await load.closed_loop(measured.target, CONNECTIONS, scale.json_seconds / 4)
    await asyncio.sleep(SETTLE_SECONDS)
    before, servers = measured.cpu_seconds(), measured.server_cpu_seconds()
    took = await load.closed_loop(measured.target, CONNECTIONS, scale.json_seconds)
    await asyncio.sleep(SETTLE_SECONDS)
    figures.json_cpu_us = (measured.cpu_seconds() - before) / len(took) * 1e6
    figures.json_server_cpu_us = since(servers, measured, len(took))
    figures.json_calls_per_second = len(took) / scale.json_seconds

    await load.streams(measured.target, STREAMS_AT_ONCE, 1)
    await asyncio.sleep(SETTLE_SECONDS)
    before, servers = measured.cpu_seconds(), measured.server_cpu_seconds()
    count = await load.streams(measured.target, STREAMS_AT_ONCE, scale.stream_rounds)
    await asyncio.sleep(SETTLE_SECONDS)
    figures.stream_cpu_us = (measured.cpu_seconds() - before) / count * 1e6
    figures.stream_server_cpu_us = since(servers, measured, count)


def since(before: float | None, measured: Measured, count: int) -> float | None:
    """Microseconds of the servers for each; a vacuum that ends takes its count with it."""
    now = measured.server_cpu_seconds()
    return None if before is None or now is None else max(0.0, now - before) / count * 1e6


async def measure_memory(
    measured: Measured, figures: Figures, upstream: Target, count: int
) -> None:
    """Resident memory before and while `count` streams are open."""
    await asyncio.sleep(SETTLE_SECONDS)
    before = measured.memory_bytes()
    clients = await load.open_streams(measured.target, count)
    await asyncio.sleep(SETTLE_SECONDS)
    figures.open_stream_bytes = (measured.memory_bytes() - before) / count
    control = await load.connect(upstream)
    await control.call(b"GET /release HTTP/1.1\r\nhost: bench\r\n\r\n")
    control.close()
    await asyncio.sleep(SETTLE_SECONDS)
    for client in clients:
        client.close()


async def measure(measured: Measured, upstream: Target, scale: Scale) -> Figures:
    figures = Figures(measured.target.name)
    await measure_latency(measured.target, figures, scale.latency_seconds)
    await measure_cpu(measured, figures, scale)
    await measure_memory(measured, figures, upstream, scale.open_streams)
    return figures


async def measure_direct(upstream: Target, scale: Scale) -> Figures:
    figures = Figures(upstream.name)
    await measure_latency(upstream, figures, scale.latency_seconds)
    return figures


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="llm-gateway-bench-") as name:
        Path(name).chmod(0o755)  # PostgreSQL runs as another user
        yield Path(name)


def made(path: Path) -> Path:
    path.mkdir()
    return path


def run(scale: Scale, stacks: list[str]) -> list[Figures]:
    """Direct, nginx (if installed) and the gateways, one after the other on the same core."""
    cores = sorted(os.sched_getaffinity(0))
    theirs, ours = {cores[0]}, {cores[-1]}
    os.sched_setaffinity(0, ours)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with (
        folder() as here,
        processes.upstream(made(here / "upstream"), ours) as upstream,
    ):
        found = [uvloop.run(measure_direct(upstream, scale))]
        with processes.nginx(made(here / "nginx"), theirs, upstream.port) as yardstick:
            if yardstick is not None:
                found.append(uvloop.run(measure(yardstick, upstream, scale)))
        for stack in stacks:
            with contextlib.ExitStack() as stores:
                # Its servers share the load's core, as they would be on other machines.
                servers = None
                if stack == REDIS_POSTGRES:
                    servers = stores.enter_context(processes.redis_postgres(here / "stores"))
                home = made(here / stack)
                gateway = processes.gateway(home, theirs, upstream.port, servers)
                figures = uvloop.run(measure(stores.enter_context(gateway), upstream, scale))
                figures.stack = stack
                found.append(figures)
    return found


def table(found: list[Figures]) -> str:
    """The figures as Markdown, with their ratios to nginx."""
    by_name = {figures.name: figures for figures in found}
    nginx, direct = by_name.get("nginx"), by_name["direct"]
    head = (
        "",
        "JSON call, CPU",
        "to nginx",
        "calls/s",
        "paced stream, CPU",
        "to nginx",
        "its servers' CPU, call / stream",
        "added p50",
        "added p99",
        "open stream",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for figures in found:
        cells = [
            figures.name,
            micros(figures.json_cpu_us),
            ratio(figures.json_cpu_us, nginx.json_cpu_us if nginx else None),
            plain(figures.json_calls_per_second),
            micros(figures.stream_cpu_us),
            ratio(figures.stream_cpu_us, nginx.stream_cpu_us if nginx else None),
            f"{micros(figures.json_server_cpu_us)} / {micros(figures.stream_server_cpu_us)}",
            added(figures.latency_p50_us, direct.latency_p50_us, figures),
            added(figures.latency_p99_us, direct.latency_p99_us, figures),
            kilobytes(figures.open_stream_bytes),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    if nginx is None:
        lines.append("nginx is not installed: no yardstick (on Debian: apt install nginx-light).")
        return "\n".join(lines)
    for figures in found:
        if figures.stack is not None:
            aim = AIMS[figures.stack]
            lines.append(
                f"Aims of {figures.name}: JSON <= {aim.json}x, stream <= {aim.stream}x, "
                f"open stream <= {STREAM_BYTES_MAX // 1024} KB."
            )
    return "\n".join(lines)


def micros(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} us"


def plain(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def added(value: float, direct: float, figures: Figures) -> str:
    if figures.name == "direct":
        return f"({value:,.0f} us in all)"
    return f"{value - direct:,.0f} us"


def kilobytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1024:,.1f} KB"


def ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.1f}x" if ours and theirs else "-"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well; - = only")
    parser.add_argument("--quick", action="store_true", help="a fifth of the time, less exact")
    parser.add_argument(
        "--stack",
        action="append",
        choices=[*AIMS],
        help="only the gateway on these stores; may be repeated",
    )
    arguments = parser.parse_args()
    found = run(QUICK if arguments.quick else Scale(), arguments.stack or [*AIMS])
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    machine += f", load {os.getloadavg()[0]:.1f}"
    text = json.dumps({"machine": machine, "figures": [asdict(f) for f in found]}, indent=2)
    if arguments.json == "-":
        print(text)
        return
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")
    print(
        f"One core for what is measured, one for load and provider; {machine}.\n"
        f"JSON: 2 kB body, {CONNECTIONS} connections. Stream: 100 chunks 10 ms apart, "
        f"{STREAMS_AT_ONCE} at once.\n"
    )
    print(table(found))


if __name__ == "__main__":
    main()
