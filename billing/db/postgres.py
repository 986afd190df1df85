"""PostgreSQL on the hot path: three lanes, each one connection and one transaction at a time.

What is asked while a lane's transaction runs gathers, and goes together into the next: a group
commit without a timer. Holds, charges and settlement have lanes of their own, so that a long batch
of the ledger holds up no call; half of such a batch may go over a fourth connection, beside the
other. Any number of processes may do so on one database.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Any, Final, TypeVar

import asyncpg
import msgspec

from billing.db import postgres_sql as sql
from billing.db.hot import ANSWER_SECONDS, DatabaseUnavailableError, SettleReport
from billing.db.outbox import EventKey, SettledKeys, StrayMessage, WaitingEvent
from billing.db.postgres_sql import Claimed, Race, StolenError
from billing.db.postgres_url import Connection, connect
from billing.db.rows import quarantine_row, quarantine_row_of
from billing.events import Finish, Revision
from billing.failpoints import reach
from billing.holds import Applied, Granted, HoldBeat, HoldRequest, Refused
from billing.ledger import Entry, PostResult

TURN_OPERATIONS_MAX: Final = 64
WATCH_SECONDS: Final = 0.25
RACES_MAX: Final = 5
ATTEMPTS_ALONE: Final = 3  # a row claimed so often in vain is posted by itself
ATTEMPTS_MAX: Final = 6  # and then set aside: it ends whoever tries
HALF_MIN: Final = 100  # rows for which a second transaction beside the first pays
DOUBT_SECONDS: Final = 10.0  # later than any statement of a lost connection can still run

T = TypeVar("T")

_SETTINGS: Final = {
    "idle_in_transaction_session_timeout": "10s",
    "jit": "off",
    # Every statement looks up a few hundred keys by an index, whatever the statistics of tables
    # that are empty one moment and long the next; a plan made once is the right one for ever.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


def _settings(answer_seconds: float) -> dict[str, str]:
    """Of a session whose askers wait so long: a lock that is waited for in vain is told before that."""
    return _SETTINGS | {
        "statement_timeout": f"{round(answer_seconds * 2500)}ms",
        "lock_timeout": f"{round(answer_seconds * 750)}ms",
    }


# The operation itself is to blame: its values break a rule of the schema or no column takes them.
_TO_BLAME: Final = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.RaiseError,
    ArithmeticError,
    ValueError,  # asyncpg's own refusal of a value is one
    AssertionError,
)
_COLLISIONS: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)

_log: Final = logging.getLogger(__name__)


_UNKNOWN: Final = object()  # of what became of an operation


class _Kind(Enum):
    """Operations that a turn runs together."""

    RESERVE = "reserve"
    HEARTBEAT = "heartbeat"
    RECORD = "record"
    CANCEL = "cancel"
    OTHER = "other"


class _Operation:
    """Something asked of a lane, and the future that its answer goes to."""

    __slots__ = ("argument", "future", "kind", "outcome")

    def __init__(self, kind: _Kind, argument: Any, future: "asyncio.Future[Any]") -> None:  # noqa: ANN401 - what the kind takes
        self.kind = kind
        self.argument = argument
        self.future = future
        self.outcome: object = _UNKNOWN  # the answer, or the exception to raise

    def is_moot(self) -> bool:
        """A hold for a caller who left before it was granted; all else is done even so."""
        return self.kind is _Kind.RESERVE and self.future.done()


class _Lane:
    """A queue, a connection and the task that takes one turn after the other."""

    def __init__(
        self,
        url: str,
        name: str,
        turn: "Callable[[_Lane, list[_Operation]], Awaitable[None]]",
        resolve: Callable[[list[_Operation]], None],
        *,
        answer_seconds: float,
        operations_max: int = TURN_OPERATIONS_MAX,
    ) -> None:
        self.name = name
        self._url = url
        self._answer_seconds = answer_seconds
        self._turn = turn
        self._resolve = resolve
        self._operations_max = operations_max
        self._queue: deque[_Operation] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take turns."""
        self._task = asyncio.create_task(self._run(), name=f"postgres-{self.name}")

    def put(self, operation: _Operation) -> None:
        """Into the next turn; one tick of the loop comes to one turn."""
        self._queue.append(operation)
        if not self._wake.is_set():
            self._wake.set()

    async def close(self) -> None:
        """Finish what is queued, then close."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with asyncio.timeout(1):
                    await connection.close()

    async def connection(self) -> Connection:
        """The lane's connection, made anew if it was lost."""
        if self._connection is None or self._connection.is_closed():
            try:
                self._connection = await connect(self._url, _settings(self._answer_seconds))
            except Exception as error:
                # Whatever it is, no operation is to blame: an untrusted certificate is a ValueError.
                reason = str(error) or type(error).__name__
                raise DatabaseUnavailableError(f"cannot connect: {reason}") from error
        return self._connection

    def drop(self) -> None:
        """Leave a connection of which nothing is known any more."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def transact(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do `work` in one transaction; once more after a deadlock or a Race."""
        for attempt in range(RACES_MAX):
            try:
                return await self._transact_once(work)
            except (*_COLLISIONS, Race):
                if attempt == RACES_MAX - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _transact_once(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        connection = await self.connection()
        await connection.execute("BEGIN")
        try:
            result = await work(connection)
            reach("turn_uncommitted")
        except Exception:
            if not connection.is_closed():
                await connection.execute("ROLLBACK")
            raise
        await connection.execute("COMMIT")
        reach("turn_committed")
        return result

    async def at_once(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do `work` that is one statement, its own transaction; once more after a deadlock."""
        for attempt in range(RACES_MAX):
            try:
                connection = await self.connection()
                reach("turn_uncommitted")
                result = await work(connection)
            except _COLLISIONS:
                if attempt == RACES_MAX - 1:
                    raise
            else:
                reach("turn_committed")
                return result
        raise AssertionError("the last attempt returns or raises")

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                count = min(len(self._queue), self._operations_max)
                operations = [self._queue.popleft() for _ in range(count)]
                await self._take(operations)
                self._resolve(operations)
            if self._closing:
                return

    async def _take(self, operations: list[_Operation]) -> None:
        """Take a turn; whatever breaks it, all are told and the lane goes on."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                await self._turn(self, [op for op in operations if not op.is_moot()])
        except Exception as error:  # noqa: BLE001 - the lane must outlive it
            self.drop()
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            for operation in operations:
                if operation.outcome is _UNKNOWN:
                    operation.outcome = DatabaseUnavailableError(f"database unavailable: {reason}")


class PostgresHotDatabase:
    """The HotDatabase and OutboxDatabase ports on a PostgreSQL that many processes share.

    `clock` gives milliseconds since the epoch. The database must be migrated already. Without
    `holds_here` holds live elsewhere: charges, cancellations and settlement touch none.
    `answer_seconds`: how long anything may take.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], int],
        holds_here: bool = True,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._clock = clock
        self._holds_here = holds_here
        self._answer_seconds = answer_seconds
        lane = partial(_Lane, url, resolve=self._resolve, answer_seconds=answer_seconds)
        self._guard = lane("holds", self._guard_turn)
        self._charges = lane("charges", self._charge_turn)
        self._ledger = lane("ledger", self._ledger_turn, operations_max=1)
        self._lanes = (self._guard, self._charges, self._ledger)
        # No queue of its own: the half of a batch that is settled beside the other.
        self._beside = lane("ledger beside", self._ledger_turn)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = False
        self._worker = secrets.token_hex(8)
        self._in_hand: dict[
            EventKey, Claimed
        ] = {}  # claimed, and not posted for want of a database
        self._doubtful: deque[tuple[float, list[str]]] = deque()
        self._in_flight: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._watch: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Connect; raises DatabaseUnavailableError if that fails."""
        self._loop = asyncio.get_running_loop()
        self._open = True
        for lane in self._lanes:
            lane.start()
        asked = [self._ask(lane, _look) for lane in self._lanes]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                await self.close()
                raise answer

    async def close(self) -> None:
        """Finish what is queued, then close."""
        if not self._open:
            return
        self._open = False
        for lane in (*self._lanes, self._beside):
            await lane.close()
        if self._watch is not None:
            self._watch.cancel()

    def reserve(self, request: HoldRequest) -> "asyncio.Future[Granted | Refused]":
        return self._submit(self._guard, _Kind.RESERVE, request)

    def extend(self, hold_id: str, new_total: int) -> "asyncio.Future[Granted | Refused]":
        return self._ask(
            self._guard,
            lambda lane, _now: lane.transact(lambda c: sql.extend(c, hold_id, new_total)),
        )

    def heartbeat(self, beats: list[HoldBeat]) -> "asyncio.Future[None]":
        return self._submit(self._guard, _Kind.HEARTBEAT, beats)

    def record(self, finish: Finish) -> "asyncio.Future[None]":
        if finish.cancelled:
            return self.cancel(finish)
        return self._submit(self._charges, _Kind.RECORD, finish)

    def cancel(self, finish: Finish) -> "asyncio.Future[None]":
        event = finish.event
        assert finish.cancelled, "only a finish that says so cancels"
        assert event.amount == 0, "a cancelled call costs nothing"
        assert event.revision == Revision.FINAL, "only the owner cancels"
        return self._submit(self._charges, _Kind.CANCEL, finish)

    def quarantine(self, finish: Finish, *, origin: str, reason: str) -> "asyncio.Future[None]":
        return self._ask(
            self._charges,
            lambda lane, now: lane.at_once(
                lambda c: sql.set_aside(c, [quarantine_row(finish, origin, reason, now)])
            ),
        )

    def ping(self) -> "asyncio.Future[None]":
        return self._ask(self._charges, lambda lane, now: lane.at_once(lambda c: sql.ping(c, now)))

    def settle_pending(self, limit: int) -> "asyncio.Future[SettleReport]":
        return self._ask(self._ledger, partial(self._settle_pending, limit))

    def post(self, entries: list[Entry]) -> "asyncio.Future[list[PostResult]]":
        return self._ask(
            self._ledger, lambda lane, now: lane.transact(lambda c: sql.post(c, entries, now))
        )

    def release(self, hold_id: str) -> "asyncio.Future[None]":
        return self._ask(
            self._ledger,
            lambda lane, _now: lane.transact(lambda c: sql.release(c, [hold_id])),
        )

    def adopt_orphans(self, process: str, now: int) -> "asyncio.Future[int]":
        return self._ask(self._ledger, lambda lane, _now: _adopt(lane, process, now))

    # --- the port OutboxDatabase ---

    def claim_unpublished(
        self, limit: int, *, sent_before: int
    ) -> "asyncio.Future[list[WaitingEvent]]":
        return self._ask(
            self._ledger,
            lambda lane, now: lane.at_once(
                lambda c: sql.claim_unpublished(c, limit, sent_before, now)
            ),
        )

    def unclaim(self, keys: Sequence[EventKey]) -> "asyncio.Future[None]":
        return self._ask(
            self._ledger, lambda lane, _now: lane.at_once(lambda c: sql.unclaim(c, keys))
        )

    def settle_keys(self, keys: Sequence[EventKey]) -> "asyncio.Future[SettledKeys]":
        return self._ask(self._ledger, partial(self._settle_keys, list(keys)))

    def settle_overdue(self, limit: int, *, created_before: int) -> "asyncio.Future[SettledKeys]":
        return self._ask(self._ledger, partial(self._settle_overdue, limit, created_before))

    def set_aside_messages(self, messages: Sequence[StrayMessage]) -> "asyncio.Future[None]":
        return self._ask(
            self._ledger,
            lambda lane, now: lane.at_once(lambda c: sql.set_aside_messages(c, messages, now)),
        )

    # --- futures ---

    def _ask(self, lane: _Lane, work: Callable[[_Lane, int], Awaitable[T]]) -> "asyncio.Future[T]":
        return self._submit(lane, _Kind.OTHER, work)

    def _submit(self, lane: _Lane, kind: _Kind, argument: object) -> "asyncio.Future[Any]":
        assert self._loop is not None, "start() comes first"
        future = self._loop.create_future()
        if not self._open:
            future.set_exception(DatabaseUnavailableError("the database is closed"))
            return future
        lane.put(_Operation(kind, argument, future))
        self._in_flight.append((self._loop.time() + self._answer_seconds, future))
        if self._watch is None:
            self._watch = self._loop.call_later(WATCH_SECONDS, self._look_after)
        return future

    def _look_after(self) -> None:
        """Tell those who waited too long; one timer for all instead of one for each."""
        assert self._loop is not None
        late = self._loop.time()
        waiting = self._in_flight
        while waiting and (waiting[0][1].done() or waiting[0][0] <= late):
            future = waiting.popleft()[1]
            if not future.done():
                future.set_exception(DatabaseUnavailableError("no answer in time"))
        self._watch = None
        if waiting:
            self._watch = self._loop.call_later(WATCH_SECONDS, self._look_after)

    def _resolve(self, operations: list[_Operation]) -> None:
        for operation in operations:
            future = operation.future
            if future.done():
                self._forget(operation)
            elif isinstance(operation.outcome, BaseException):
                future.set_exception(operation.outcome)
            else:
                future.set_result(operation.outcome)

    def _forget(self, operation: _Operation) -> None:
        """Nobody waits for the answer any more: a hold granted too late is nobody's, and goes."""
        if isinstance(operation.outcome, Granted) and operation.kind is _Kind.RESERVE:
            self._release_later([operation.argument.hold_id], 0)

    def _release_later(self, hold_ids: list[str], seconds: float) -> None:
        assert self._loop is not None
        at = self._loop.time() + seconds
        self._doubtful.append((at, hold_ids))
        nothing = _Operation(_Kind.OTHER, _nothing, self._loop.create_future())
        self._loop.call_at(at, self._guard.put, nothing)

    # --- holds ---

    async def _guard_turn(self, lane: _Lane, operations: list[_Operation]) -> None:
        await self._release_doubtful(lane)
        reserves = [op for op in operations if op.kind is _Kind.RESERVE]
        if reserves:
            await self._reserve(lane, reserves)
        beats = [op for op in operations if op.kind is _Kind.HEARTBEAT]
        if beats:
            await _beat(lane, beats)
        await self._others(lane, operations)

    async def _reserve(self, lane: _Lane, operations: list[_Operation]) -> None:
        await lane.connection()  # until here nothing was sent that could be in doubt
        requests = {op.argument.hold_id: op.argument for op in operations}
        try:
            answers = await _reserve_all(lane, list(requests.values()))
        except _TO_BLAME as error:
            if len(requests) == 1:
                _tell(operations, error)
                return
            for hold_id in requests:
                await self._reserve(lane, [o for o in operations if o.argument.hold_id == hold_id])
            return
        except BaseException:
            self._release_later(list(requests), DOUBT_SECONDS)
            raise
        granted = dict(zip(requests, answers, strict=True))
        for operation in operations:
            operation.outcome = granted[operation.argument.hold_id]

    async def _release_doubtful(self, lane: _Lane) -> None:
        """Drop holds that nobody was told of, in case they were granted."""
        assert self._loop is not None
        now = self._loop.time()
        while self._doubtful and self._doubtful[0][0] <= now:
            hold_ids = self._doubtful[0][1]
            await lane.transact(partial(sql.release, hold_ids=hold_ids))
            self._doubtful.popleft()

    # --- charge events ---

    async def _charge_turn(self, lane: _Lane, operations: list[_Operation]) -> None:
        now = self._clock()
        for kind in (_Kind.RECORD, _Kind.CANCEL):
            chosen = [op for op in operations if op.kind is kind]
            if chosen:
                await self._finish(lane, chosen, now)
        await self._others(lane, operations)

    async def _finish(self, lane: _Lane, operations: list[_Operation], now: int) -> None:
        """Record or cancel all; if the schema refuses, each by itself."""
        finishes = [op.argument for op in operations]
        try:
            if operations[0].kind is _Kind.RECORD:
                answers = await lane.at_once(lambda c: sql.record_all(c, finishes, now))
            else:
                answers = await lane.transact(
                    lambda c: sql.cancel_all(c, finishes, now, holds_here=self._holds_here)
                )
        except _TO_BLAME as error:
            if len(operations) == 1:
                _tell(operations, error)
                return
            for operation in operations:
                await self._finish(lane, [operation], now)
            return
        for operation, answer in zip(operations, answers, strict=True):
            operation.outcome = answer

    # --- the ledger ---

    async def _ledger_turn(self, lane: _Lane, operations: list[_Operation]) -> None:
        await self._others(lane, operations)

    async def _others(self, lane: _Lane, operations: list[_Operation]) -> None:
        for operation in operations:
            if operation.kind is _Kind.OTHER:
                try:
                    operation.outcome = await operation.argument(lane, self._clock())
                except _TO_BLAME as error:
                    operation.outcome = error

    async def _settle_pending(self, limit: int, lane: _Lane, now: int) -> SettleReport:
        claimed = list(self._in_hand.values())[:limit]
        more = bool(claimed)
        if not claimed:
            claimed = self._take_in_hand(
                await lane.at_once(lambda c: sql.claim(c, self._worker, limit))
            )
            more = len(claimed) == limit
        settled = await self._settle(lane, claimed, now)
        return settled.report(settled.oldest_at if more else None)

    async def _settle_keys(self, keys: list[EventKey], lane: _Lane, now: int) -> SettledKeys:
        claimed = self._take_in_hand(
            await lane.at_once(lambda c: sql.claim_keys(c, self._worker, keys))
        )
        settled = await self._settle(lane, claimed, now)
        return await self._told(lane, settled, keys)

    async def _settle_overdue(
        self, limit: int, created_before: int, lane: _Lane, now: int
    ) -> SettledKeys:
        claimed = self._take_in_hand(
            await lane.at_once(
                lambda c: sql.claim(c, self._worker, limit, created_before=created_before)
            )
        )
        settled = await self._settle(lane, claimed, now)
        told = await self._told(lane, settled, [each.key for each in claimed])
        report = msgspec.structs.replace(
            told.report,
            remaining=len(claimed) == limit,
            oldest_at=await lane.at_once(sql.oldest_at),
        )
        return msgspec.structs.replace(told, report=report)

    async def _told(self, lane: _Lane, settled: "_Settled", keys: list[EventKey]) -> SettledKeys:
        """What stands for the keys, whoever posted it."""
        ids = [event_id for event_id, _ in keys]
        found = await lane.at_once(lambda c: sql.entries_of_calls(c, ids))
        named = set(keys)
        return SettledKeys(
            report=settled.report(None),
            entries=tuple(e for e in found if (e.usage_event_id, e.usage_revision) in named),
        )

    def _take_in_hand(self, claimed: list[Claimed]) -> list[Claimed]:
        """Should the database go away now, they are tried again without counting another attempt."""
        self._in_hand.update((each.key, each) for each in claimed)
        return claimed

    async def _settle(self, lane: _Lane, claimed: list[Claimed], now: int) -> "_Settled":
        settled = _Settled()
        calm = [each for each in claimed if each.attempts <= ATTEMPTS_ALONE]
        if calm:
            settled += await self._settle_halves(lane, calm, now)
        for each in claimed:
            if each.attempts > ATTEMPTS_MAX:
                settled += await self._bury(lane, each, "its settlement never came to an end", now)
            elif each.attempts > ATTEMPTS_ALONE:
                settled += await self._settle_or_split(lane, [each], now)
        return settled

    async def _settle_halves(self, lane: _Lane, claimed: list[Claimed], now: int) -> "_Settled":
        """Settle rows in two transactions at once, if their accounts allow.

        What one comes to is decided here while the other is written there.
        """
        first, second = halves(claimed)
        if len(first) < HALF_MIN or len(second) < HALF_MIN:
            return await self._settle_or_split(lane, claimed, now)
        try:
            one, other = await asyncio.gather(
                self._settle_or_split(lane, first, now),
                self._settle_or_split(self._beside, second, now),
                return_exceptions=True,
            )
        except BaseException:  # out of time: both were cancelled
            self._beside.drop()
            raise
        for outcome in (one, other):
            if isinstance(outcome, BaseException):
                self._beside.drop()
                raise outcome
        assert isinstance(one, _Settled)
        assert isinstance(other, _Settled)
        return one + other

    async def _settle_or_split(self, lane: _Lane, claimed: list[Claimed], now: int) -> "_Settled":
        """Settle rows; halve them until a row that breaks stands alone, and set that one aside."""
        waiting = [each.row for each in claimed]
        try:
            settlement, oldest_at = await lane.transact(
                lambda c: sql.settle(c, waiting, now, holds_here=self._holds_here)
            )
        except StolenError:
            left = await lane.at_once(lambda c: sql.still_there(c, claimed))
            for each in claimed:
                if each not in left:
                    self._in_hand.pop(each.key, None)
            return await self._settle_or_split(lane, left, now) if left else _Settled()
        except _TO_BLAME as error:
            if len(claimed) == 1:
                reason = f"{type(error).__name__}: cannot be posted"
                return await self._bury(lane, claimed[0], reason, now)
            half = len(claimed) // 2
            settled = await self._settle_or_split(lane, claimed[:half], now)
            return settled + await self._settle_or_split(lane, claimed[half:], now)
        for each in claimed:
            self._in_hand.pop(each.key, None)
        aside = len(settlement.set_aside)
        return _Settled(len(claimed) - aside, aside, settlement.applied(), oldest_at)

    async def _bury(self, lane: _Lane, claimed: Claimed, reason: str, now: int) -> "_Settled":
        """Set a row aside instead of posting it; its hold stays."""
        row = quarantine_row_of(claimed.row, reason, now)
        await lane.transact(lambda c: sql.bury(c, claimed.key, row))
        self._in_hand.pop(claimed.key, None)
        return _Settled(0, 1)


def halves(claimed: Sequence[Claimed]) -> tuple[list[Claimed], list[Claimed]]:
    """Two parts of about one size without a common account; the last row is in the second."""
    parts: tuple[list[Claimed], list[Claimed]] = ([], [])
    part_of: dict[str, list[Claimed]] = {}
    for each in reversed(claimed):
        account = each.row.account
        part = part_of.get(account)
        if part is None:
            part = part_of[account] = parts[0] if len(parts[0]) < len(parts[1]) else parts[1]
        part.append(each)
    return parts[0][::-1], parts[1][::-1]


class _Settled:
    """What became of rows of the outbox."""

    __slots__ = ("applied", "oldest_at", "quarantined", "settled")

    def __init__(
        self,
        settled: int = 0,
        quarantined: int = 0,
        applied: tuple[Applied, ...] = (),
        oldest_at: int | None = None,
    ) -> None:
        self.settled = settled
        self.quarantined = quarantined
        self.applied = applied
        self.oldest_at = oldest_at

    def __add__(self, other: "_Settled") -> "_Settled":
        return _Settled(
            self.settled + other.settled,
            self.quarantined + other.quarantined,
            self.applied + other.applied,
            other.oldest_at,
        )

    def report(self, oldest_at: int | None) -> SettleReport:
        """As the port gives it."""
        return SettleReport(
            settled=self.settled,
            quarantined=self.quarantined,
            remaining=oldest_at is not None,
            oldest_at=oldest_at,
            applied=self.applied,
        )


def _tell(operations: list[_Operation], outcome: object) -> None:
    for operation in operations:
        operation.outcome = outcome


async def _reserve_all(lane: _Lane, requests: list[HoldRequest]) -> list[Granted | Refused]:
    careful = False

    async def reserve(connection: Connection) -> list[Granted | Refused]:
        nonlocal careful
        looked, careful = careful, True  # the second time, after a Race, it looks first
        return await sql.reserve_all(connection, requests, careful=looked)

    return await lane.transact(reserve)


async def _beat(lane: _Lane, operations: list[_Operation]) -> None:
    beats = [beat for operation in operations for beat in operation.argument]
    higher = await lane.at_once(lambda c: sql.heartbeat(c, beats))
    if higher:
        await lane.transact(lambda c: sql.raise_holds(c, higher))
    _tell(operations, None)


async def _adopt(lane: _Lane, process: str, now: int) -> int:
    adopted, after = 0, ""
    while True:
        some, last = await lane.transact(
            partial(sql.adopt_some, process=process, after=after, now=now)
        )
        adopted += some
        if last is None:
            return adopted
        after = last


async def _nothing(_lane: _Lane, _now: int) -> None:
    pass


async def _look(lane: _Lane, _now: int) -> None:
    await lane.at_once(lambda c: c.fetchval("SELECT 1 FROM accounts LIMIT 1"))
