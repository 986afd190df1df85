"""`make soak`: gateways and workers killed, frozen and cut off at random under load; then an audit.

Exit status 1 if anything is wrong. The same seed plans the same calls and faults, though not the
same timing of them.
"""

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg

from tests.faults.machines import Machines, check_machines, quiet, start
from tests.faults.soak_audit import Findings, audit
from tests.faults.soak_load import Load, Outcome, SoakProvider
from tests.support.fleet import PACE, FleetGateway, Worker
from tests.support.redis_server import RedisServer
from tests.support.services import PostgresServer, pg_dsn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

GATEWAYS: Final = 3
WORKERS: Final = 2
CLIENTS: Final = 16
DEAD_SECONDS: Final = float(PACE[2])
PAUSE_SECONDS: Final = (0.7, 3.5)  # between two faults
# A killed gateway's calls are known from their holds alone, until a sweeper has estimated them; after
# Redis was lost, those are back once the gateways have told it of them. Both at once is the double
# fault that is the operator's: now and then it is made, else one is given the time to end.
EVIDENCE_SECONDS: Final = (DEAD_SECONDS + 4, 5.0)  # after a kill; after a loss of Redis
DOUBLE_FAULTS: Final = 0.15
# Redis lost: so long before it last spoke, or so long after its death was seen, the holds were nowhere.
LOST_WITHIN_SECONDS: Final = (6.0, 5.0)
HOT_CREDIT: Final = 1_000_000_000_000
THIN_CREDIT: Final = 12_000  # one call at once, or two
SHOWN: Final = 40


@dataclass(frozen=True)
class Settings:
    """What a soak is."""

    seed: int
    seconds: float
    redis: bool = False
    call_seconds_max: float = 60


@dataclass
class Report:
    """What came of one."""

    settings: Settings
    findings: Findings
    faults: Counter[str]
    ending: float  # seconds after the load was told to stop, until the last call ended
    settling: float  # and until nothing was held or waiting any more

    @property
    def text(self) -> str:
        """For people: one table, and what is wrong."""
        store = "redis" if self.settings.redis else "database"
        lines = [f"seed {self.settings.seed}, {self.settings.seconds:g} s, holds in {store}"]
        totals = {"faults": sum(self.faults.values())}
        totals |= {f"  {name}": count for name, count in sorted(self.faults.items())}
        totals |= self.findings.totals
        totals["seconds for the last calls to end"] = round(self.ending)
        totals["seconds for all to be settled"] = round(self.settling)
        totals["VIOLATIONS"] = len(self.findings.violations)
        width = max(len(name) for name in totals)
        lines += [f"{name:<{width}}  {count:>14,}" for name, count in totals.items()]
        lines += self.findings.violations[:SHOWN]
        return "\n".join(lines)


class Kill(NamedTuple):
    """A gateway that was killed."""

    at: float  # seconds since the epoch, as are the other moments here
    gone_at: float
    port: int
    pid: int


class Silence(NamedTuple):
    """From a process's last heartbeat until it was declared dead."""

    since: float
    until: float


class Faults:
    """Random faults until told to stop; each leaves its machine running."""

    def __init__(self, machines: Machines, seed: int) -> None:
        self._machines = machines
        self._chance = random.Random(f"{seed}/faults")
        self.counts: Counter[str] = Counter()
        self.kills: list[Kill] = []  # of gateways
        self.losses: list[float] = []  # of Redis: when
        self._evidence_at = 0.0  # until then it is in one place only
        self.stopping = False

    async def run(self) -> None:
        """Until `stopping`, and every machine runs again."""
        async with asyncio.TaskGroup() as tasks:
            while not self.stopping:
                tasks.create_task(self._one())
                await asyncio.sleep(self._chance.uniform(*PAUSE_SECONDS))

    async def _one(self) -> None:
        kinds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self._gateway),
            (4, self._worker),
            (2, self._database),
        ]
        if self._machines.redis is not None:
            kinds.append((4, self._redis))
        [fault] = self._chance.choices([f for _, f in kinds], [weight for weight, _ in kinds])
        await fault()

    async def _gateway(self) -> None:
        number = self._chance.randrange(GATEWAYS)
        kill, away = self._chance.random() < 0.5, self._away()
        gateway = self._machines.gateways[number]
        async with self._machines.lock(f"gateway {number}"):
            if kill and self._may_destroy(EVIDENCE_SECONDS[0]):
                self.counts["kill -9 of a gateway"] += 1
                at, pid = time.time(), gateway.pid
                await asyncio.to_thread(gateway.kill9)
                self.kills.append(Kill(at, time.time(), gateway.port, pid))
                await asyncio.sleep(away)
                await start(gateway)
            else:
                self.counts[f"gateway frozen, {_length(away)}"] += 1
                gateway.pause()
                await asyncio.sleep(away)
                gateway.resume()

    async def _worker(self) -> None:
        number = self._chance.randrange(WORKERS)
        kill, away = self._chance.random() < 0.5, self._away()
        async with self._machines.lock(f"worker {number}"):
            worker = self._machines.workers[number]
            if kill or worker.process.poll() is not None:
                self.counts["kill -9 of a worker"] += 1
                await asyncio.to_thread(worker.kill9)
                await asyncio.sleep(away)
                self._machines.outputs.append(worker.output)
                self._machines.workers[number] = Worker(self._machines.gateways[number])
            else:
                self.counts[f"worker frozen, {_length(away)}"] += 1
                worker.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(away)
                worker.process.send_signal(signal.SIGCONT)

    async def _database(self) -> None:
        seconds = self._chance.uniform(0.1, 3)
        async with self._machines.lock("database"):
            self.counts["PostgreSQL frozen"] += 1
            self._machines.postgres.pause()
            await asyncio.sleep(seconds)
            self._machines.postgres.resume()

    async def _redis(self) -> None:
        redis = self._machines.redis
        assert redis is not None
        flush, seconds = self._chance.random() < 0.5, self._chance.uniform(0, 1.5)
        async with self._machines.lock("redis"):
            # Who is frozen or gone tells Redis nothing, and nobody estimates while workers are.
            others = (
                lock
                for name, lock in self._machines.locks.items()
                if name not in ("redis", "database")
            )
            if not self._may_destroy(
                EVIDENCE_SECONDS[1], busy=any(each.locked() for each in others)
            ):
                return
            self.losses.append(time.time())
            if flush:
                self.counts["FLUSHALL of Redis"] += 1
                await redis.ask("FLUSHALL")
            else:
                self.counts["kill -9 of Redis"] += 1
                redis.kill()
                await asyncio.sleep(seconds)
                await asyncio.to_thread(redis.start)

    def _may_destroy(self, seconds: float, *, busy: bool = False) -> bool:
        """Whether no other fault's evidence is in one place only, as it is for `seconds` after this.

        `busy`: another fault is under way. Now and then it is done all the same.
        """
        if self._machines.redis is None:
            return True
        if self._chance.random() < DOUBLE_FAULTS:
            self.counts["(whatever else was lost)"] += 1
            return True
        now = time.monotonic()
        if busy or now < self._evidence_at:
            return False
        self._evidence_at = now + seconds
        return True

    def lost_twice(self, outcome: Outcome, silences: Mapping[int, Silence]) -> bool:
        """Whether a call's gateway was killed under it, and Redis lost while its holds were nowhere else.

        `silences` by the pid of the process. It may have been frozen before it was killed, and
        workers are killed too: it may take long until one sees it dead.
        """
        ended = outcome.began + outcome.seconds
        return any(
            kill.port == outcome.port
            and outcome.began <= kill.gone_at
            and kill.at <= ended + 1
            and any(self._lost(kill, silences.get(kill.pid)))
            for kill in self.kills
        )

    def _lost(self, kill: Kill, silence: Silence | None) -> Iterator[bool]:
        before, after = LOST_WITHIN_SECONDS
        since, until = silence or Silence(kill.at, kill.gone_at)
        for lost in self.losses:
            yield min(kill.at, since) - before <= lost <= max(kill.gone_at, until) + after

    def _away(self) -> float:
        """Seconds: as often shorter than what makes a process dead as longer."""
        if self._chance.random() < 0.5:
            return self._chance.uniform(0.05, DEAD_SECONDS * 0.6)
        return DEAD_SECONDS + self._chance.uniform(0.5, 2.5)


def _length(away: float) -> str:
    return "shorter than death" if away < DEAD_SECONDS else "longer than death"


def soak(settings: Settings) -> Report:
    """One whole soak; leaves its folder behind if anything is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-soak-"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        report = asyncio.run(_soak(settings, folder, stack))
    if report.findings.violations:
        report.findings.violations.append(f"logs are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return report


async def _soak(settings: Settings, folder: Path, stack: ExitStack) -> Report:
    (folder / "pg").mkdir()
    (folder / "pg").chmod(0o755)
    postgres = PostgresServer(folder / "pg", durable=True)
    stack.callback(lambda: postgres.stop("immediate"))
    await asyncio.to_thread(postgres.create)
    url = await asyncio.to_thread(postgres.new_database)
    redis = None
    guard = f"\n[guard]\ncall_seconds_max = {settings.call_seconds_max}\n"
    if settings.redis:
        (folder / "redis").mkdir()
        redis = RedisServer(folder / "redis")
        stack.callback(redis.kill)
        await asyncio.to_thread(redis.start)
        guard += f'store = "redis"\nredis_url = "{redis.url}"\n'
    config = guard + "\n[ledger_worker]\nembedded = false\n"
    async with SoakProvider() as provider:
        gateways = [
            stack.enter_context(
                FleetGateway(folder / f"gateway-{number}", provider.base_url, url, config, 1)
            )
            for number in range(GATEWAYS)
        ]
        machines = Machines(postgres, redis, gateways, [])
        stack.callback(machines.kill_workers)
        for gateway in gateways:
            await start(gateway)
        machines.workers += [Worker(gateways[number]) for number in range(WORKERS)]
        return await _torment(settings, url, machines, provider)


async def _torment(
    settings: Settings, url: str, machines: Machines, provider: SoakProvider
) -> Report:
    first = machines.gateways[0]
    hot = await asyncio.to_thread(first.account, HOT_CREDIT)
    others = [await asyncio.to_thread(first.account) for _ in range(12)]
    thin = [await asyncio.to_thread(first.account, THIN_CREDIT) for _ in range(3)]
    load = Load(
        lambda: [gateway.port for gateway in machines.gateways],
        hot,
        others,
        thin,
        settings.seed,
        call_ms_max=round(min(8.0, settings.call_seconds_max / 2) * 1000),
    )
    faults = Faults(machines, settings.seed)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run(CLIENTS))
        tasks.create_task(faults.run())
        await asyncio.sleep(settings.seconds)
        faults.stopping = load.stopping = True
        told_at = time.monotonic()
    ended_at = time.monotonic()
    await quiet(url, machines, settings.call_seconds_max)
    settled_at = time.monotonic()
    silences = await silences_of(url)
    findings = await audit(
        url,
        load,
        provider.served,
        call_seconds_max=settings.call_seconds_max,
        holds_in_redis=settings.redis,
        lost_twice=lambda outcome: faults.lost_twice(outcome, silences),
    )
    await check_machines(findings, machines)
    findings.violations += [f"the provider failed: {error}" for error in provider.errors]
    return Report(settings, findings, faults.counts, ended_at - told_at, settled_at - ended_at)


async def silences_of(url: str) -> dict[int, Silence]:
    """Of each process that was declared dead, the last one, by its pid."""
    connection = await asyncpg.connect(pg_dsn(url))
    try:
        rows = await connection.fetch(
            "SELECT pid, max(heartbeat_at), max(ended_at) FROM processes"
            " WHERE ended_at IS NOT NULL GROUP BY pid"
        )
    finally:
        await connection.close()
    return {pid: Silence(since / 1000, until / 1000) for pid, since, until in rows}


def main() -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="left out: a new one")
    parser.add_argument("--holds", choices=("database", "redis"), default="database")
    parser.add_argument("--call-seconds", type=float, default=60, help="guard.call_seconds_max")
    chosen = parser.parse_args()
    seed = random.randrange(1_000_000) if chosen.seed is None else chosen.seed
    report = soak(Settings(seed, chosen.minutes * 60, chosen.holds == "redis", chosen.call_seconds))
    print(report.text)
    return 1 if report.findings.violations else 0


if __name__ == "__main__":
    sys.exit(main())
