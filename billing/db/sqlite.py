"""SQLite on the hot path: one writer thread, and one transaction for all that is queued at a time.

The queue empties into a turn; the turn runs as one transaction, and one call into the event loop
resolves all its futures. While it commits, the next turn gathers: a group commit without a timer.
"""

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

from billing.db import sqlite_outbox, sqlite_sql
from billing.db.hot import ANSWER_SECONDS, DatabaseUnavailableError, SettleReport
from billing.db.outbox import EventKey, SettledKeys, StrayMessage, WaitingEvent
from billing.db.rows import quarantine_row
from billing.events import Finish, Revision
from billing.failpoints import reach
from billing.holds import Granted, HoldBeat, HoldRequest, Refused
from billing.ledger import Entry, PostResult

TURN_OPERATIONS_MAX: Final = 64
BUSY_SECONDS: Final = 2  # as long as the outbox waits before it turns to the spool
WATCH_SECONDS: Final = 0.25

_PRAGMAS: Final = (
    f"busy_timeout = {BUSY_SECONDS * 1000}",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "recursive_triggers = ON",
    "secure_delete = OFF",  # no secret is stored, and zeroing deleted holds costs writes
    "cache_size = -32000",  # 32 MB
    "wal_autocheckpoint = 4000",  # pages: hot pages are written to the file once for many commits
    "journal_size_limit = 67108864",
)


class _Kind(IntEnum):
    """Operations that a turn runs together, in the order in which it runs them."""

    RECORD = 0
    RESERVE = 1
    OTHER = 2
    GUARD = 3  # of the holds alone, like RESERVE


_OF_HOLDS: Final = (_Kind.RESERVE, _Kind.GUARD)
_FUNCTIONS: Final = (_Kind.OTHER, _Kind.GUARD)


class _Operation:
    """Something asked of the writer, and the future that its answer goes to."""

    __slots__ = ("argument", "future", "kind", "outcome")

    def __init__(self, kind: _Kind, argument: Any, future: "asyncio.Future[Any]") -> None:  # noqa: ANN401 - what the kind takes
        self.kind = kind
        self.argument = argument
        self.future = future
        self.outcome: object = None  # the answer, or the exception to raise

    def is_moot(self) -> bool:
        """A hold for a caller who left before it was granted; all else is done even so."""
        return self.kind is _Kind.RESERVE and self.future.done()


class SqliteHotDatabase:
    """The HotDatabase port on one SQLite file that this process alone serves.

    `clock` gives milliseconds since the epoch. The file must be migrated already. Without
    `holds_here` holds live elsewhere: charges, cancellations and settlement touch none.
    `answer_seconds`: how long anything may take.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        clock: Callable[[], int],
        holds_here: bool = True,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._path = str(path)
        self._holds_here = holds_here
        self._answer_seconds = answer_seconds
        self._clock = clock
        self._queue: SimpleQueue[list[_Operation] | None] = SimpleQueue()
        self._tick: list[_Operation] = []  # asked during this tick of the loop
        self._in_flight: deque[tuple[float, list[_Operation]]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._syncs = True  # each transaction waits for the disk

    async def start(self) -> None:
        """Start the writer; raises DatabaseUnavailableError if the file cannot be opened."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()
        await self._submit(_Kind.OTHER, _look)

    async def close(self) -> None:
        """Finish what is queued, then close."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        self._flush()
        self._queue.put(None)
        await asyncio.to_thread(thread.join)
        if self._watch is not None:
            self._watch.cancel()

    def reserve(self, request: HoldRequest) -> "asyncio.Future[Granted | Refused]":
        return self._submit(_Kind.RESERVE, request)

    def record(self, finish: Finish) -> "asyncio.Future[None]":
        if finish.cancelled:
            return self.cancel(finish)
        return self._submit(_Kind.RECORD, finish)

    def cancel(self, finish: Finish) -> "asyncio.Future[None]":
        event = finish.event
        assert finish.cancelled, "only a finish that says so cancels"
        assert event.amount == 0, "a cancelled call costs nothing"
        assert event.revision == Revision.FINAL, "only the owner cancels"
        return self._submit(_Kind.OTHER, partial(_cancel, finish, holds_here=self._holds_here))

    def release(self, hold_id: str) -> "asyncio.Future[None]":
        return self._submit(
            _Kind.OTHER, lambda connection, _now: sqlite_sql.release(connection, [hold_id])
        )

    def extend(self, hold_id: str, new_total: int) -> "asyncio.Future[Granted | Refused]":
        return self._submit(
            _Kind.GUARD, lambda connection, _now: sqlite_sql.extend(connection, hold_id, new_total)
        )

    def heartbeat(self, beats: list[HoldBeat]) -> "asyncio.Future[None]":
        return self._submit(
            _Kind.GUARD, lambda connection, _now: sqlite_sql.heartbeat(connection, beats)
        )

    def settle_pending(self, limit: int) -> "asyncio.Future[SettleReport]":
        return self._submit(
            _Kind.OTHER,
            lambda connection, now: sqlite_sql.settle(
                connection, limit, now, holds_here=self._holds_here
            ),
        )

    def post(self, entries: list[Entry]) -> "asyncio.Future[list[PostResult]]":
        return self._submit(
            _Kind.OTHER, lambda connection, now: sqlite_sql.post(connection, entries, now)
        )

    def adopt_orphans(self, process: str, now: int) -> "asyncio.Future[int]":
        return self._submit(
            _Kind.OTHER, lambda connection, _: sqlite_sql.adopt_orphans(connection, process, now)
        )

    def quarantine(self, finish: Finish, *, origin: str, reason: str) -> "asyncio.Future[None]":
        return self._submit(
            _Kind.OTHER,
            lambda connection, now: sqlite_sql.set_aside(
                connection, quarantine_row(finish, origin, reason, now)
            ),
        )

    # --- the port OutboxDatabase ---

    def claim_unpublished(
        self, limit: int, *, sent_before: int
    ) -> "asyncio.Future[list[WaitingEvent]]":
        return self._submit(
            _Kind.OTHER,
            lambda connection, now: sqlite_outbox.claim_unpublished(
                connection, limit, sent_before, now
            ),
        )

    def unclaim(self, keys: Sequence[EventKey]) -> "asyncio.Future[None]":
        return self._submit(
            _Kind.OTHER, lambda connection, _now: sqlite_outbox.unclaim(connection, keys)
        )

    def settle_keys(self, keys: Sequence[EventKey]) -> "asyncio.Future[SettledKeys]":
        return self._submit(
            _Kind.OTHER,
            lambda connection, now: sqlite_outbox.settle_keys(
                connection, keys, now, holds_here=self._holds_here
            ),
        )

    def settle_overdue(self, limit: int, *, created_before: int) -> "asyncio.Future[SettledKeys]":
        return self._submit(
            _Kind.OTHER,
            lambda connection, now: sqlite_outbox.settle_overdue(
                connection, limit, created_before, now, holds_here=self._holds_here
            ),
        )

    def set_aside_messages(self, messages: Sequence[StrayMessage]) -> "asyncio.Future[None]":
        return self._submit(
            _Kind.OTHER,
            lambda connection, now: sqlite_outbox.set_aside_messages(connection, messages, now),
        )

    def ping(self) -> "asyncio.Future[None]":
        return self._submit(_Kind.OTHER, _ping)

    def _submit(self, kind: _Kind, argument: object) -> "asyncio.Future[Any]":
        assert self._loop is not None, "start() comes first"
        future = self._loop.create_future()
        if self._thread is None:
            future.set_exception(DatabaseUnavailableError("the database is closed"))
            return future
        if not self._tick:
            self._loop.call_soon(self._flush)
        self._tick.append(_Operation(kind, argument, future))
        return future

    def _flush(self) -> None:
        """Hand over what one tick asked for as a whole, or its first would make a turn alone."""
        if not self._tick:
            return
        assert self._loop is not None
        self._queue.put(self._tick)
        self._in_flight.append((self._loop.time() + self._answer_seconds, self._tick))
        self._tick = []
        if self._watch is None:
            self._watch = self._loop.call_later(WATCH_SECONDS, self._look_after)

    def _look_after(self) -> None:
        """Tell those who waited too long; one timer for all instead of one for each."""
        assert self._loop is not None
        late = self._loop.time()
        waiting = self._in_flight
        while waiting and (waiting[0][0] <= late or all(op.future.done() for op in waiting[0][1])):
            for operation in waiting.popleft()[1]:
                if not operation.future.done():
                    operation.future.set_exception(DatabaseUnavailableError("no answer in time"))
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
            self._tell(partial(_release, operation.argument.hold_id))

    def _tell(self, action: Callable[[sqlite3.Connection, int], object]) -> None:
        """Ask without waiting for the answer."""
        asked = self._submit(_Kind.OTHER, action)
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())

    # --- the writer's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        going = True
        while going:
            operations, going = self._gather()
            for first in range(0, len(operations), TURN_OPERATIONS_MAX):
                self._serve(operations[first : first + TURN_OPERATIONS_MAX])
        self._disconnect()

    def _gather(self) -> tuple[list[_Operation], bool]:
        """Wait for operations, then take all that wait; False: no more will come."""
        operations: list[_Operation] = []
        asked = self._queue.get()
        try:
            while asked is not None:
                operations += asked
                asked = self._queue.get_nowait()
        except Empty:
            return operations, True
        return operations, False

    def _serve(self, operations: list[_Operation]) -> None:
        self._turn([op for op in operations if not op.is_moot()])
        assert self._loop is not None
        # A closed loop means that nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._resolve, operations)

    def _turn(self, operations: list[_Operation]) -> None:
        """Run all in one transaction; if that breaks, each by itself in another."""
        try:
            try:
                self._transact(operations, _run_together)
            except Exception as error:
                if _is_unavailable(error):
                    raise
                # Which operation it was shows when each runs by itself.
                self._transact(operations, _run_singly)
        except Exception as error:  # noqa: BLE001 - the thread must outlive it; all are told
            self._disconnect()
            for operation in operations:
                operation.outcome = DatabaseUnavailableError(f"database unavailable: {error}")

    def _transact(
        self,
        operations: list[_Operation],
        run: Callable[[sqlite3.Connection, list[_Operation], int], None],
    ) -> None:
        connection = self._connection or self._connect()
        self._set_sync(connection, durable=any(op.kind not in _OF_HOLDS for op in operations))
        connection.execute("BEGIN IMMEDIATE")
        try:
            run(connection, operations, self._clock())
            reach("turn_uncommitted")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        reach("turn_committed")

    def _set_sync(self, connection: sqlite3.Connection, *, durable: bool) -> None:
        """Wait for the disk only where somebody was promised that what he wrote will outlast it.

        A hold guards against what runs on this machine, and ends with it: what a power cut takes
        back here is evidence of calls whose last seconds nobody has seen. Every charge, which is
        promised to be durable, syncs all that was written before it.
        https://sqlite.org/pragma.html#pragma_synchronous: in WAL mode NORMAL stays consistent.
        """
        if durable is not self._syncs:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._syncs = durable

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a file that is gone must not come back empty.
        connection = sqlite3.connect(
            f"{Path(self._path).absolute().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            cached_statements=256,
            check_same_thread=True,
        )
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        self._connection = connection
        self._syncs = True
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _run_together(connection: sqlite3.Connection, operations: list[_Operation], now: int) -> None:
    records = [op for op in operations if op.kind is _Kind.RECORD]
    reserves = [op for op in operations if op.kind is _Kind.RESERVE]
    if records:
        finishes = [op.argument for op in records]
        answers = sqlite_sql.record_all(connection, finishes, now, careful=False)
        for operation, recorded in zip(records, answers, strict=True):
            operation.outcome = recorded
    if reserves:
        requests = [op.argument for op in reserves]
        grants = sqlite_sql.reserve_all(connection, requests, careful=False)
        for operation, granted in zip(reserves, grants, strict=True):
            operation.outcome = granted
    for operation in operations:
        if operation.kind in _FUNCTIONS:
            operation.outcome = operation.argument(connection, now)


def _run_singly(connection: sqlite3.Connection, operations: list[_Operation], now: int) -> None:
    for operation in operations:
        connection.execute("SAVEPOINT operation")
        try:
            operation.outcome = _run_one(connection, operation, now)
        except Exception as error:
            if _is_unavailable(error):
                raise
            connection.execute("ROLLBACK TO operation")
            operation.outcome = error
        connection.execute("RELEASE operation")


def _run_one(connection: sqlite3.Connection, operation: _Operation, now: int) -> object:
    match operation.kind:
        case _Kind.RECORD:
            return sqlite_sql.record_all(connection, [operation.argument], now, careful=True)[0]
        case _Kind.RESERVE:
            return sqlite_sql.reserve_all(connection, [operation.argument], careful=True)[0]
        case _Kind.OTHER | _Kind.GUARD:
            return operation.argument(connection, now)


def _cancel(
    finish: Finish, connection: sqlite3.Connection, now: int, *, holds_here: bool
) -> object:
    return sqlite_sql.cancel(connection, finish, now, holds_here=holds_here)


def _release(hold_id: str, connection: sqlite3.Connection, _now: int) -> None:
    sqlite_sql.release(connection, [hold_id])


def _look(connection: sqlite3.Connection, _now: int) -> None:
    connection.execute("SELECT 1 FROM accounts LIMIT 1").fetchone()


def _ping(connection: sqlite3.Connection, now: int) -> None:
    connection.execute(
        "INSERT INTO meta (key, value) VALUES ('ping', ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (str(now),),
    )


def _is_unavailable(error: Exception) -> bool:
    """Locked, full, unreadable, gone: no fault of the operation, unlike IntegrityError and such."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
