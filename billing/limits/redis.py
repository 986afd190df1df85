"""Limits of many processes on one Redis: a script for each call, on the connection of the holds.

Time is the server's. What Redis loses (a restart, a FLUSHALL) is derived state: buckets come back
full, and calls that run then are counted no more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Final, cast

import hiredis

from billing.holds.redis_connection import (
    RedisConnection,
    RedisLine,
    RedisUnavailableError,
    Reply,
    Word,
    Words,
    pack,
)
from billing.limits import Allowed, Limited, LimitsUnavailableError, TakeRequest
from billing.limits.bucket import (
    FULL,
    LIMIT_MAX,
    Level,
    Levels,
    allowed,
    counted_tokens,
    decide,
    refused,
)
from billing.limits.scripts import DIGESTS, SOURCES, Script, keys_of

ANSWER_SECONDS: Final = 2.0  # then whoever asked is told, whatever still becomes of it
REGISTRY_SECONDS: Final = (
    1.0  # for the question who lives; also between two such questions of a key
)
RETRY_SECONDS: Final = 1.0
AGAIN_SECONDS: Final = 10.0  # later than any command of a lost connection can still run
ENDS_MAX: Final = 100_000  # kept while Redis is away; beyond it leases run out by themselves
ASKED_KEYS_MAX: Final = 10_000

_TAKE: Final = (b"EVALSHA", DIGESTS[Script.TAKE], b"2")
_GIVE: Final = (b"EVALSHA", DIGESTS[Script.GIVE], b"2")
_DROP: Final = (b"EVALSHA", DIGESTS[Script.DROP], b"1")


class RedisLimitStore:
    """The LimitStore port on a Redis; `line` belongs to the hold store, which keeps it open.

    `living` gives the processes that the registry knows to be alive.
    """

    def __init__(
        self,
        line: RedisLine,
        *,
        call_seconds_max: float,
        living: Callable[[], Awaitable[AbstractSet[str]]],
    ) -> None:
        self._line = line
        self._call_ms_max = round(call_seconds_max * 1000)
        self._living = living
        self._asked: dict[str, float] = {}  # key -> when the registry was asked about its calls
        self._untold: dict[str, Words] = {}  # ends that Redis has not confirmed, by event
        self._telling: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Nothing to do: the hold store keeps the connection."""

    async def close(self) -> None:
        """Tell once more what is untold, then give up."""
        tasks = [*self._tasks, *([self._telling] if self._telling is not None else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._tell_again()

    async def take(self, request: TakeRequest) -> Allowed | Limited:
        limits = request.limits
        if 0 in (limits.requests, limits.tokens, limits.calls):
            return decide(Levels(), request, 0, 0)[1]  # nothing to ask: it never fits
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer, processes = await self._take(request)
                if processes and await self._dropped(request.key_id, processes):
                    answer, _ = await self._take(request)
                return answer
        except (RedisUnavailableError, TimeoutError) as error:
            self._release_in_doubt(request)
            raise LimitsUnavailableError(str(error) or "no answer in time") from None
        except asyncio.CancelledError:
            self._release_in_doubt(request)
            raise

    def settle(self, request: TakeRequest, tokens: int) -> None:
        self._give(request, max(0, min(tokens, LIMIT_MAX)))

    def release(self, request: TakeRequest) -> None:
        self._give(request, -1)

    # -- taking ------------------------------------------------------------------------------

    async def _take(self, request: TakeRequest) -> tuple[Allowed | Limited, list[str]]:
        limits = request.limits
        words: Words = (
            *_TAKE,
            *keys_of(request.key_id),
            request.event_id,
            request.process,
            self._call_ms_max,
            -1 if limits.requests is None else limits.requests,
            -1 if limits.tokens is None else limits.tokens,
            -1 if limits.calls is None else limits.calls,
            counted_tokens(request),
        )
        reply = await self._ask(words)
        assert isinstance(reply, list)
        return _answer(request, reply)

    async def _ask(self, words: Words) -> Reply:
        """The script's answer; raises RedisUnavailableError. Not repeated where it may stand."""
        connection = await self._line.ready()
        reply = await connection.send_packed(pack(words))
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            await _load(connection)
            reply = await connection.send_packed(pack(words))
        return _checked(reply)

    async def _dropped(self, key_id: str, processes: Collection[str]) -> bool:
        """Whether leases of dead processes stood in the way, and do no more."""
        now = asyncio.get_running_loop().time()
        if now - self._asked.get(key_id, -REGISTRY_SECONDS) < REGISTRY_SECONDS:
            return False
        if len(self._asked) >= ASKED_KEYS_MAX:
            self._asked.clear()
        self._asked[key_id] = now
        try:
            async with asyncio.timeout(REGISTRY_SECONDS):
                living = await self._living()
        except Exception:  # noqa: BLE001 - whatever keeps the registry from answering, leases count on
            return False
        dead = [process for process in processes if process not in living]
        if not dead:
            return False
        return bool(await self._ask((*_DROP, keys_of(key_id)[1], *dead)))

    # -- giving back -------------------------------------------------------------------------

    def _give(self, request: TakeRequest, used: int) -> None:
        limits = request.limits
        words: tuple[Word, ...] = (
            *_GIVE,
            *keys_of(request.key_id),
            request.event_id,
            -1 if limits.requests is None else limits.requests,
            -1 if limits.tokens is None else limits.tokens,
            used,
        )
        if len(self._untold) < ENDS_MAX:
            self._untold[request.event_id] = words
        connection = self._line.connection
        if connection is None:
            self._tell_later()
            return
        future = connection.send_packed(pack(words))
        future.add_done_callback(lambda done: self._told(request.event_id, done))

    def _told(self, event_id: str, done: asyncio.Future[Reply]) -> None:
        failed = done.cancelled() or done.exception() is not None
        if failed or isinstance(done.result(), hiredis.ReplyError):
            self._tell_later()
        else:
            self._untold.pop(event_id, None)

    def _tell_later(self) -> None:
        if self._untold and (self._telling is None or self._telling.done()):
            self._telling = asyncio.get_running_loop().create_task(self._keep_telling())

    async def _keep_telling(self) -> None:
        while self._untold:
            await asyncio.sleep(RETRY_SECONDS)
            await self._tell_again()

    async def _tell_again(self) -> None:
        for event_id, words in list(self._untold.items()):
            with suppress(RedisUnavailableError):  # one that is refused holds up no other
                await self._ask(words)
                self._untold.pop(event_id, None)
            if self._line.connection is None:
                return

    def _release_in_doubt(self, request: TakeRequest) -> None:
        """It may have been counted, or be counted yet, by a command that is still on its way."""
        self.release(request)
        task = asyncio.get_running_loop().create_task(self._release_again(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _release_again(self, request: TakeRequest) -> None:
        await asyncio.sleep(AGAIN_SECONDS)
        self.release(request)


def _answer(request: TakeRequest, reply: list[Reply]) -> tuple[Allowed | Limited, list[str]]:
    """The script decides and tells the levels; what they mean is for the pure rules to say."""
    ok, now, requests, tokens, running, processes = reply
    assert isinstance(now, int)
    assert isinstance(running, int)
    levels = Levels(requests=_level(requests, now), tokens=_level(tokens, now))
    if ok:
        return allowed(levels, request.limits, now), []
    refusal = refused(levels, request, running, now)
    assert refusal is not None, "the script and the rules count alike"
    names = cast("list[bytes]", processes)
    return refusal, [name.decode() for name in names]


def _level(parts: Reply, now: int) -> Level:
    return Level(int(parts), now) if isinstance(parts, bytes) and parts else FULL


async def _load(connection: RedisConnection) -> None:
    for source in SOURCES.values():
        _checked(await connection.send("SCRIPT", "LOAD", source))


def _checked(reply: Reply) -> Reply:
    """Raises RedisUnavailableError for an error of the server, naming its code alone."""
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"Redis refuses: {str(reply).partition(' ')[0]}")
    return reply
