"""Limits of many processes on one PostgreSQL: what waits goes together into one transaction.

Each turn locks the rows of its keys in their order, reads the server's clock and the leases, lets
the pure rules decide, and writes. While it runs, the next gathers. It has a connection of its own,
made when the first call of a limited key comes; a database without such keys never sees one.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

import asyncpg
import msgspec

from billing.db.postgres_url import Connection, connect
from billing.limits import Allowed, Limited, LimitsUnavailableError, TakeRequest
from billing.limits.bucket import Level, Levels, counted_tokens, decide, released, settled

TAKES_AT_ONCE: Final = 256
ANSWER_SECONDS: Final = 2.0  # then whoever asked is told, whatever still becomes of it
CLOSE_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 0.5
SWEEP_SECONDS: Final = 60.0  # between two times that leases are deleted which count no more
SWEPT_AT_ONCE: Final = 1_000
COLLISIONS_MAX: Final = 5
ENDS_MAX: Final = 100_000  # kept while the database is away; beyond it the oldest leases run out

_SETTINGS: Final = {
    "statement_timeout": "5s",
    "lock_timeout": "1500ms",
    "idle_in_transaction_session_timeout": "10s",
    "jit": "off",
    # Limits are no money: what a crash of the server takes back is a moment of one minute.
    "synchronous_commit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
}
_COLLISIONS: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)

_MAKE: Final = """
INSERT INTO limit_buckets (key_id) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"""
_LOCK: Final = """
SELECT key_id, requests_level, requests_at, tokens_level, tokens_at FROM limit_buckets
WHERE key_id = ANY($1::text[]) ORDER BY key_id FOR UPDATE"""
_END: Final = """
DELETE FROM limit_leases WHERE event_id = ANY($1::text[]) RETURNING event_id, tokens"""
# A statement of its own, behind the locks: it sees the leases of whoever held them before. The row
# without a key is the server's clock, by which nobody before can have written anything later.
_LOOK: Final = """
SELECT NULL, (extract(epoch FROM clock_timestamp()) * 1000)::bigint
UNION ALL
(SELECT l.key_id, count(*) FROM limit_leases l JOIN processes p ON p.process = l.process
 WHERE l.key_id = ANY($1::text[]) AND p.ended_at IS NULL
  AND l.until_at > (extract(epoch FROM clock_timestamp()) * 1000)::bigint GROUP BY l.key_id)"""
_WRITE: Final = """
WITH leases AS (
 INSERT INTO limit_leases (event_id, key_id, process, until_at, tokens)
 SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[]))
UPDATE limit_buckets b SET requests_level = n.requests_level, requests_at = n.requests_at,
 tokens_level = n.tokens_level, tokens_at = n.tokens_at
FROM unnest($6::text[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[])
 AS n (key_id, requests_level, requests_at, tokens_level, tokens_at) WHERE b.key_id = n.key_id"""
_SWEEP: Final = """
DELETE FROM limit_leases WHERE event_id IN (
 SELECT l.event_id FROM limit_leases l LEFT JOIN processes p ON p.process = l.process
 WHERE l.until_at <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint
  OR p.process IS NULL OR p.ended_at IS NOT NULL
 LIMIT $1 FOR UPDATE OF l SKIP LOCKED)"""

_log: Final = logging.getLogger(__name__)


class _Take:
    """A call that asks to begin."""

    __slots__ = ("answer", "future", "request")

    def __init__(self, request: TakeRequest, future: "asyncio.Future[Allowed | Limited]") -> None:
        self.request = request
        self.future = future
        self.answer: Allowed | Limited | None = None


class _End(msgspec.Struct, frozen=True):
    """A call that ends; `used` None: it did not begin."""

    request: TakeRequest
    used: int | None


class PostgresLimitStore:
    """The LimitStore port on a migrated PostgreSQL; `processes` says which leases count."""

    def __init__(self, url: str, *, call_seconds_max: float) -> None:
        self._url = url
        self._call_ms_max = round(call_seconds_max * 1000)
        self._takes: deque[_Take] = deque()
        self._ends: deque[_End] = deque(maxlen=ENDS_MAX)
        self._wake = asyncio.Event()
        self._closing = False
        self._connection: Connection | None = None
        self._known: set[str] = set()  # keys that have a row
        self._swept_at: float | None = None
        self._said = ""
        self._run: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve; the connection is made when the first limited call comes."""
        self._run = asyncio.create_task(self._serve(), name="limits")

    async def close(self) -> None:
        """Tell what is still to be told, for a moment, and close the connection."""
        self._closing = True
        self._wake.set()
        if self._run is not None:
            done, _ = await asyncio.wait([self._run], timeout=CLOSE_SECONDS)
            if not done:
                self._run.cancel()
                await asyncio.wait([self._run])
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with asyncio.timeout(1):
                    await connection.close()

    async def take(self, request: TakeRequest) -> Allowed | Limited:
        future: asyncio.Future[Allowed | Limited] = asyncio.get_running_loop().create_future()
        self._takes.append(_Take(request, future))
        self._wake.set()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await future
        except TimeoutError:
            self.release(request)
            raise LimitsUnavailableError("no answer in time") from None
        except asyncio.CancelledError:
            self.release(request)
            raise

    def settle(self, request: TakeRequest, tokens: int) -> None:
        self._ends.append(_End(request, tokens))
        self._wake.set()

    def release(self, request: TakeRequest) -> None:
        self._ends.append(_End(request, None))
        self._wake.set()

    # -- turns -------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._takes or self._ends:
                if not await self._turn():
                    if self._closing:
                        return
                    await asyncio.sleep(RETRY_SECONDS)
            if self._closing:
                return

    async def _turn(self) -> bool:
        """One transaction for what waits; False: the database is away."""
        ends = [self._ends.popleft() for _ in range(min(len(self._ends), TAKES_AT_ONCE))]
        takes = [self._takes.popleft() for _ in range(min(len(self._takes), TAKES_AT_ONCE))]
        takes = [take for take in takes if not take.future.done()]
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._transact(takes, ends)
        except Exception as error:  # noqa: BLE001 - whoever serves must outlive it
            self._drop()
            # What stands is unknown: leases tell what is done already.
            self._ends.extendleft(reversed(ends))
            for take in takes:
                if not take.future.done():
                    self.release(take.request)
                    take.future.set_exception(LimitsUnavailableError(type(error).__name__))
            self._say(f"the limits of keys cannot be counted: {type(error).__name__}: {error}")
            return False
        self._say("")
        for take in takes:
            if not take.future.done() and take.answer is not None:
                take.future.set_result(take.answer)
        return True

    async def _transact(self, takes: Sequence[_Take], ends: Sequence[_End]) -> None:
        connection = await self._connected()
        await self._sweep(connection)
        requests = [end.request for end in ends] + [take.request for take in takes]
        if not requests:
            return
        for attempt in range(COLLISIONS_MAX):
            try:
                await self._make(connection, {request.key_id for request in requests})
                await connection.execute("BEGIN")
                try:
                    await self._work(connection, requests, takes, ends)
                except Exception:
                    if not connection.is_closed():
                        await connection.execute("ROLLBACK")
                    raise
                await connection.execute("COMMIT")
            except (*_COLLISIONS, _GoneError):
                if attempt == COLLISIONS_MAX - 1:
                    raise
            else:
                return

    async def _work(
        self,
        connection: Connection,
        requests: Iterable[TakeRequest],
        takes: Sequence[_Take],
        ends: Sequence[_End],
    ) -> None:
        key_ids = sorted({request.key_id for request in requests})
        levels = {
            str(row[0]): Levels(requests=Level(row[1], row[2]), tokens=Level(row[3], row[4]))
            for row in await connection.fetch(_LOCK, key_ids)
        }
        if len(levels) < len(key_ids):
            self._known.difference_update(key_ids)
            raise _GoneError("the row of a key is gone")
        held = await self._end(connection, ends)
        now, running = await self._look(connection, takes)
        changed: dict[str, Levels] = {}
        for end in ends:
            key_id = end.request.key_id
            # Each ends once, as its lease is there once.
            if (tokens := held.pop(end.request.event_id, None)) is not None:
                levels[key_id] = changed[key_id] = _ended(levels[key_id], end, tokens, now)
        admitted: list[TakeRequest] = []
        for take in takes:
            key_id = take.request.key_id
            after, take.answer = decide(levels[key_id], take.request, running.get(key_id, 0), now)
            if isinstance(take.answer, Allowed):
                levels[key_id] = changed[key_id] = after
                running[key_id] = running.get(key_id, 0) + 1
                admitted.append(take.request)
        if changed:  # a refusal leaves everything as it was
            await self._write(connection, changed, admitted, now)

    async def _end(self, connection: Connection, ends: Sequence[_End]) -> dict[str, int]:
        """Delete the leases of calls that end; what each had taken."""
        if not ends:
            return {}
        rows = await connection.fetch(_END, [end.request.event_id for end in ends])
        return {str(row[0]): int(row[1]) for row in rows}

    async def _look(
        self, connection: Connection, takes: Sequence[_Take]
    ) -> tuple[int, dict[str, int]]:
        """The server's time, and how many calls run, of the keys for which it matters."""
        limited = {t.request.key_id for t in takes if t.request.limits.calls is not None}
        rows = await connection.fetch(_LOOK, sorted(limited))
        now = next(int(row[1]) for row in rows if row[0] is None)
        return now, {str(row[0]): int(row[1]) for row in rows if row[0] is not None}

    async def _write(
        self,
        connection: Connection,
        levels: dict[str, Levels],
        admitted: Sequence[TakeRequest],
        now: int,
    ) -> None:
        await connection.execute(
            _WRITE,
            [request.event_id for request in admitted],
            [request.key_id for request in admitted],
            [request.process for request in admitted],
            [now + self._call_ms_max] * len(admitted),
            [counted_tokens(request) for request in admitted],
            list(levels),
            [each.requests.parts for each in levels.values()],
            [each.requests.at for each in levels.values()],
            [each.tokens.parts for each in levels.values()],
            [each.tokens.at for each in levels.values()],
        )

    async def _make(self, connection: Connection, key_ids: set[str]) -> None:
        """Give new keys their rows, apart from the turn: it locks in one order only."""
        if new := sorted(key_ids - self._known):
            await connection.execute(_MAKE, new)
            self._known.update(new)

    async def _sweep(self, connection: Connection) -> None:
        """Delete leases that count no more, now and then."""
        now = asyncio.get_running_loop().time()
        if self._swept_at is not None and now - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = now
        await connection.execute(_SWEEP, SWEPT_AT_ONCE)

    # -- the connection ----------------------------------------------------------------------

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._url, _SETTINGS)
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _say(self, problem: str) -> None:
        """Log a change, not its repetition."""
        if problem and not self._said:
            _log.error("%s", problem)
        elif self._said and not problem:
            _log.warning("the limits of keys are counted again")
        self._said = problem


class _GoneError(Exception):
    """A row that was there is not any more."""


def _ended(levels: Levels, end: _End, held: int, now: int) -> Levels:
    if end.used is None:
        return released(levels, end.request.limits, held, now)
    return settled(levels, end.request.limits, held, end.used, now)
