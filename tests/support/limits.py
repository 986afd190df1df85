"""Limit stores of several processes in one place, whose clock the test may move forward."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from billing.holds.redis_connection import RedisLine, parse_address
from billing.limits import Allowed, Limited, Limits, LimitStore, TakeRequest
from billing.limits.memory import MemoryLimitStore
from billing.limits.postgres import PostgresLimitStore
from billing.limits.redis import RedisLimitStore
from billing.limits.scripts import keys_of
from llm_gateway import clock
from tests.support.redis_server import RedisServer
from tests.support.services import pg_rows

CALL_SECONDS_MAX: Final = 3600


class Place:
    """Where stores keep what they count; one store at least."""

    def __init__(self) -> None:
        self.stores: list[LimitStore] = []

    @property
    def store(self) -> LimitStore:
        return self.stores[0]

    async def add(self, url: str = "") -> LimitStore:
        """One more process's store, at another address if one is given."""
        raise NotImplementedError

    async def forward(self, milliseconds: int) -> None:
        """As if so much time had passed for everything that is kept."""
        raise NotImplementedError

    async def kill(self, process: str) -> None:
        """The registry says that a process is over."""
        raise NotImplementedError

    async def leases(self) -> int:
        """How many there are, dead ones included."""
        raise NotImplementedError

    async def close(self) -> None:
        for store in self.stores:
            await store.close()


class MemoryPlace(Place):
    """One process alone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0

    async def add(self, url: str = "") -> LimitStore:
        self.stores.append(MemoryLimitStore(now_ms=lambda: self.now))
        return self.stores[-1]

    async def forward(self, milliseconds: int) -> None:
        self.now += milliseconds


class PostgresPlace(Place):
    """A migrated database; the processes `p1` to `p9` are registered."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.rows(
            "INSERT INTO processes (process, started_at, heartbeat_at)"
            " SELECT 'p' || n, 0, 0 FROM generate_series(1, 9) n"
        )

    def rows(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        return pg_rows(self.url, statement, *values)

    async def add(self, url: str = "") -> LimitStore:
        store = PostgresLimitStore(url or self.url, call_seconds_max=CALL_SECONDS_MAX)
        await store.start()
        self.stores.append(store)
        return store

    async def forward(self, milliseconds: int) -> None:
        self.rows(
            "UPDATE limit_buckets SET requests_at = requests_at - $1, tokens_at = tokens_at - $1",
            milliseconds,
        )
        self.rows("UPDATE limit_leases SET until_at = until_at - $1", milliseconds)

    async def kill(self, process: str) -> None:
        self.rows("UPDATE processes SET ended_at = 1 WHERE process = $1", process)

    async def leases(self) -> int:
        return len(self.rows("SELECT 1 FROM limit_leases"))


class RedisPlace(Place):
    """A Redis; the processes `p1` to `p9` are alive."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self.server = server
        self.alive = {f"p{number}" for number in range(1, 10)}
        self.registry_asked = 0
        self.registry_away = False
        self._lines: list[RedisLine] = []

    async def add(self, url: str = "") -> LimitStore:
        line = RedisLine(parse_address(url or self.server.url), lambda: None)
        await line.start()
        self._lines.append(line)
        store = RedisLimitStore(line, call_seconds_max=CALL_SECONDS_MAX, living=self._living)
        await store.start()
        self.stores.append(store)
        return store

    async def _living(self) -> set[str]:
        self.registry_asked += 1
        if self.registry_away:
            raise OSError("the database is away")
        return self.alive

    async def forward(self, milliseconds: int) -> None:
        found = await self.server.ask("KEYS", "lgw:*:limits")
        assert isinstance(found, list)
        for key in found:
            for field in ("requests_at", "tokens_at"):
                if await self.server.ask("HEXISTS", key, field):
                    await self.server.ask("HINCRBY", key, field, -milliseconds)
        for key, event_id, lease in await self._all_leases():
            until, rest = lease.split(b" ", 1)
            await self.server.ask(
                "HSET", key, event_id, b"%d %b" % (int(until) - milliseconds, rest)
            )

    async def kill(self, process: str) -> None:
        self.alive.discard(process)

    async def leases(self) -> int:
        return len(await self._all_leases())

    async def _all_leases(self) -> list[tuple[bytes, bytes, bytes]]:
        keys = await self.server.ask("KEYS", "lgw:*:leases")
        assert isinstance(keys, list)
        found = []
        for key in keys:
            pairs = await self.server.ask("HGETALL", key)
            assert isinstance(pairs, list)
            found += [(key, pairs[i], pairs[i + 1]) for i in range(0, len(pairs), 2)]
        return found

    async def time_to_live(self, key_id: str) -> tuple[int, int]:
        """Of the buckets and of the leases, in milliseconds; -2: there are none."""
        buckets, leases = [await self.server.ask("PTTL", key) for key in keys_of(key_id)]
        assert isinstance(buckets, int)
        assert isinstance(leases, int)
        return buckets, leases

    async def close(self) -> None:
        await super().close()
        for line in self._lines:
            await line.close()


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Place]:
    """A place with one store."""
    try:
        await place.add()
        yield place
    finally:
        await place.close()


def ask(
    *,
    requests: int | None = None,
    tokens: int | None = None,
    calls: int | None = None,
    needs: int = 0,
    key: str = "key_1",
    process: str = "p1",
) -> TakeRequest:
    """A new call of a key with these limits."""
    return TakeRequest(
        key_id=key,
        event_id=clock.new_event_id(clock.now_ms()),
        limits=Limits(requests=requests, tokens=tokens, calls=calls),
        tokens=needs,
        process=process,
    )


async def told(store: LimitStore) -> None:
    """Until the store has told all that it was asked to tell before: it keeps to the order."""
    await store.take(ask(requests=1, key="key_for_order"))


async def take_all(store: LimitStore, requests: list[TakeRequest]) -> list[Allowed | Limited]:
    """At once."""
    return list(await asyncio.gather(*map(store.take, requests)))
