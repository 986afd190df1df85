"""The processes and servers of a fault test: started, waited for, and looked at when all is over."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import asyncpg

from tests.support.services import pg_dsn

if TYPE_CHECKING:
    from tests.faults.soak_audit import Findings
    from tests.support.fleet import FleetGateway, Worker
    from tests.support.redis_server import RedisServer
    from tests.support.services import PostgresServer

START_TRIES: Final = 5
# Beyond the longest call, for all to be settled.
QUIET_SECONDS: Final = 45.0


@dataclass
class Machines:
    """Everything that can fail, with a lock each: one fault at a time for one of them."""

    postgres: "PostgresServer"
    redis: "RedisServer | None"
    gateways: "list[FleetGateway]"
    workers: "list[Worker]"
    outputs: list[str] = field(default_factory=list)  # of workers that are gone
    locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    def lock(self, name: str) -> asyncio.Lock:
        """The lock of one machine."""
        return self.locks.setdefault(name, asyncio.Lock())

    @property
    def all_outputs(self) -> list[str]:
        """What each of them logged."""
        outputs = [gateway.output for gateway in self.gateways]
        return outputs + [worker.output for worker in self.workers] + self.outputs

    def kill_workers(self) -> None:
        """At the end, whatever happened."""
        for worker in self.workers:
            worker.kill9()


async def start(gateway: "FleetGateway") -> None:
    """Start it; as a supervisor does, again if the database is away at the moment."""
    for attempt in range(START_TRIES):
        try:
            await asyncio.to_thread(gateway.start)
            return
        except AssertionError:
            if attempt == START_TRIES - 1:
                raise


async def quiet(
    url: str,
    machines: Machines,
    call_seconds_max: float,
    seconds: float = QUIET_SECONDS,
    *,
    residuals_stay: bool = False,
) -> None:
    """Until nothing waits and nothing is held, or it has had time enough; an audit tells which.

    What estimates leave held for a while counts unless `residuals_stay`.
    """
    deadline = time.monotonic() + call_seconds_max + seconds
    connection = await asyncpg.connect(pg_dsn(url))
    try:
        while time.monotonic() < deadline:
            left = await connection.fetchval(
                "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM holds"
                " WHERE state <> 'residual' OR NOT $1)",
                residuals_stay,
            )
            spooled = any(any(spool_of(gateway)) for gateway in machines.gateways)
            if (
                not left
                and not spooled
                and not await held_in(machines.redis, residuals=not residuals_stay)
            ):
                return
            await asyncio.sleep(0.2)
    finally:
        await connection.close()


def spool_of(gateway: "FleetGateway") -> list[int]:
    """Bytes of charges that wait on the disk."""
    folder = gateway.folder / "data" / "spool"
    sizes = []
    for path in folder.glob("*") if folder.exists() else ():
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sizes


async def held_in(redis: "RedisServer | None", *, residuals: bool = True) -> dict[str, int]:
    """Micro-credits that Redis holds, by the key of an account's holds.

    What is left of an earlier epoch counts for nothing: an account's next use replaces it.
    """
    found: dict[str, tuple[int, int]] = {}  # epoch and sum
    keys = [] if redis is None else await redis.ask("KEYS", "*:holds")
    assert isinstance(keys, list)
    for key in keys:
        assert redis is not None
        holds = await redis.ask("HVALS", key)
        epoch = await redis.ask("HGET", key.removesuffix(b":holds") + b":account", "epoch")
        assert isinstance(holds, list)
        assert isinstance(epoch, bytes | None)
        words = [hold.split(b" ") for hold in holds]
        amounts = [int(word[0]) for word in words if residuals or word[2] != b"r"]
        if amounts:
            found[str(key)] = int(epoch or 0), sum(amounts)
    present = await _epoch(redis) if found else 0
    return {key: held for key, (epoch, held) in found.items() if epoch == present}


async def _epoch(redis: "RedisServer | None") -> int:
    """The latest that any account is of."""
    assert redis is not None
    keys = await redis.ask("KEYS", "*:account")
    assert isinstance(keys, list)
    return max(
        [
            int(word)
            for key in keys
            if isinstance(word := await redis.ask("HGET", key, "epoch"), bytes)
        ],
        default=0,
    )


async def check_machines(
    findings: "Findings", machines: Machines, *, residuals_stay: bool = False
) -> None:
    """Nothing is left behind, nobody ended by itself, nobody stumbled."""
    held = await held_in(machines.redis, residuals=not residuals_stay)
    if held and machines.redis is not None:
        findings.wrong(f"Redis still holds {held}")
        dump = machines.gateways[0].folder / "redis-left"
        dump.write_text("\n".join(await _dump(machines.redis)))
    for gateway in machines.gateways:
        if any(spool_of(gateway)):
            findings.wrong(f"charges are left in the spool of {gateway.folder.name}")
        if not gateway.running:
            findings.wrong(f"{gateway.folder.name} ended by itself")
    for worker in machines.workers:
        if worker.process.poll() is not None:
            findings.wrong(f"a worker ended by itself: {worker.output[-500:]}")
    tracebacks = sum(output.count("Traceback") for output in machines.all_outputs)
    if tracebacks:
        findings.wrong(f"{tracebacks} tracebacks in the logs")


async def _dump(redis: "RedisServer") -> list[str]:
    """Every hash of it, for whoever looks into a violation."""
    keys = await redis.ask("KEYS", "*")
    assert isinstance(keys, list)
    return [
        f"{key}: {await redis.ask('HGETALL', key)}"
        for key in sorted(keys)
        if await redis.ask("TYPE", key) in (b"hash", "hash")
    ]
