"""A fleet under load to which a test does something; then the audit of all that was ever called."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from tests.faults.machines import Machines, check_machines, quiet, start
from tests.faults.soak_audit import Findings, audit
from tests.faults.soak_load import Load, SoakProvider
from tests.support.fleet import FleetGateway, Worker
from tests.support.redis_server import RedisServer
from tests.support.services import PostgresServer, pg_rows

CALL_SECONDS_MAX: Final = 6.0  # what an estimate leaves held goes after it
CALL_MS_MAX: Final = 1500  # of a planned call
CLIENTS: Final = 10
HOT_CREDIT: Final = 1_000_000_000_000
THIN_CREDIT: Final = 12_000  # one call at once, or two
SHOWN: Final = 20
QUIET_SECONDS: Final = 15.0
PATIENCE_SECONDS: Final = 20.0


class Bout:
    """Gateways and workers on one database; `play` may be called again and again."""

    def __init__(
        self, url: str, machines: Machines, provider: SoakProvider, load: Load, *, redis: bool
    ) -> None:
        self.url = url
        self.machines = machines
        self.provider = provider
        self.load = load
        self.forgiven: set[str] = set()  # calls that a restored backup may lack
        self._redis = redis
        self._known: set[str] = set()  # what an earlier test was told of

    @property
    def gateways(self) -> list[FleetGateway]:
        """The gateways."""
        return self.machines.gateways

    async def play(self, story: Callable[[], Awaitable[None]]) -> Findings:
        """The story under load, and what the auditor found, which must be nothing wrong."""
        self.load.turn += 1
        self.load.stopping = False
        before = len(self.load.outcomes)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.load.run(CLIENTS))
            await self.answers(10)
            await story()
            # What was broken is whole again: everybody is served.
            await self.answers(10)
            self.load.stopping = True
        assert len(self.load.outcomes) > before
        await quiet(self.url, self.machines, CALL_SECONDS_MAX, QUIET_SECONDS, residuals_stay=True)
        findings = await audit(
            self.url,
            self.load,
            self.provider.served,
            call_seconds_max=CALL_SECONDS_MAX,
            holds_in_redis=self._redis,
            forgiven=self.forgiven,
            residuals_stay=True,
        )
        await check_machines(findings, self.machines, residuals_stay=True)
        wrong = findings.violations + self.provider.errors
        news = [sentence for sentence in wrong if sentence not in self._known]
        self._known |= set(news)
        assert not news, "\n".join([f"{len(news)} violations", *news[:SHOWN]])
        return findings

    async def answers(self, count: int) -> None:
        """Until so many more answers came whole from every gateway together."""
        wanted = self.whole() + count
        await self.until(lambda: self.whole() >= wanted, f"{count} more whole answers")

    def whole(self) -> int:
        """Answers that clients got whole so far."""
        return sum(outcome.ended and outcome.own_end for outcome in self.load.outcomes)

    def served(self) -> int:
        """Requests that the provider saw so far."""
        return sum(map(len, self.provider.served.values()))

    async def served_within(self, seconds: float) -> int:
        """How many requests the provider sees from now on, in so long."""
        before = self.served()
        await asyncio.sleep(seconds)  # nothing tells that nothing happens
        return self.served() - before

    async def falls_silent(self) -> None:
        """Until the provider saw nothing for a second; fails if it does not come to that in six.

        What was admitted before may still be sent, on a busy machine some seconds later.
        """
        for _ in range(6):
            if await self.served_within(1) == 0:
                return
        raise AssertionError("calls are admitted still")

    async def until(self, question: Callable[[], bool], what: str) -> None:
        """Poll; fails with `what` after PATIENCE_SECONDS."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not question():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"gave up waiting: {what}") from None

    async def number(self, statement: str, *values: object) -> int:
        """What the database answers, asked from outside of the product."""
        [(value,)] = await asyncio.to_thread(pg_rows, self.url, statement, *values)
        assert isinstance(value, int)
        return value

    async def until_number(
        self, statement: str, right: Callable[[int], bool], *values: object
    ) -> None:
        """Poll the database; fails after PATIENCE_SECONDS."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not right(await self.number(statement, *values)):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"gave up waiting: {statement}") from None

    async def ready(self, gateways: Iterable[FleetGateway]) -> list[int]:
        """What /readyz of each says."""
        replies = [asyncio.to_thread(gateway.get, "/readyz") for gateway in gateways]
        return [reply.status for reply in await asyncio.gather(*replies)]


@contextlib.asynccontextmanager
async def bout(
    folder: Path,
    url: str,
    postgres: PostgresServer,
    *,
    redis: RedisServer | None = None,
    redis_url: str = "",
    config: str = "",
    through: str = "",
    seed: int = 1,
) -> AsyncIterator[Bout]:
    """Two gateways and a worker; `through` and `redis_url` are the addresses that they are told."""
    config += (
        f"\n[ledger_worker]\nembedded = false\n[guard]\ncall_seconds_max = {CALL_SECONDS_MAX}\n"
    )
    if redis is not None:
        config += f'store = "redis"\nredis_url = "{redis_url or redis.url}"\n'
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(SoakProvider())
        gateways = [
            stack.enter_context(
                FleetGateway(
                    folder / f"gateway-{number}", provider.base_url, through or url, config, 1
                )
            )
            for number in range(2)
        ]
        machines = Machines(postgres, redis, gateways, [])
        stack.callback(machines.kill_workers)
        await asyncio.gather(*map(start, gateways))
        machines.workers.append(Worker(gateways[0]))
        await asyncio.to_thread(machines.workers[0].wait_settling)
        first = gateways[0]
        hot = await asyncio.to_thread(first.account, HOT_CREDIT)
        others = [await asyncio.to_thread(first.account) for _ in range(4)]
        thin = [await asyncio.to_thread(first.account, THIN_CREDIT) for _ in range(3)]
        load = Load(
            lambda: [gateway.port for gateway in gateways],
            hot,
            others,
            thin,
            seed,
            CALL_MS_MAX,
        )
        yield Bout(url, machines, provider, load, redis=redis is not None)
