"""Holds kept in Redis: one round trip to admit a call, whatever number of processes admits.

Redis is derived state; the ledger and the processes' own knowledge of their calls bring it back
(billing.holds.redis_recovery). A hold is removed only by a settlement's `apply`, whose balance
contains the charge, or because its owner decided that nothing is charged.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import hiredis

from billing.db.hot import DatabaseUnavailableError, HotDatabase
from billing.holds import (
    Applied,
    Granted,
    GuardUnavailableError,
    HoldBeat,
    HoldRequest,
    Refused,
)
from billing.holds.redis_connection import (
    RedisAddress,
    RedisConnection,
    RedisLine,
    RedisUnavailableError,
    Reply,
    Word,
    Words,
)
from billing.holds.redis_recovery import AWAY, DATABASE_SECONDS, Recovery
from billing.holds.redis_replies import (
    RedisEntry,
    checked,
    entry_of,
    forget,
    held_call,
    is_orphan,
    numbers_of,
)
from billing.holds.redis_words import Make, OwnHold, by_account, load_words
from billing.holds.scripts import (
    ACCOUNTS_PATTERN,
    DIGESTS,
    HOLDS_PATTERN,
    MAX_EXACT,
    SOURCES,
    Code,
    Script,
    account_of,
    keys_of,
    saturated,
)
from billing.settlement.late_finals import oldest_late_final

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Callable,
        Collection,
        Coroutine,
        Iterable,
        Mapping,
        Sequence,
    )
    from collections.abc import Set as AbstractSet

    from billing.events import Finish
    from billing.holds.ledger_view import LedgerView
    from billing.settlement.orphans import HeldCall

PATIENCE_SECONDS: Final = 2.0  # the most that a call waits for Redis or a recovery
LOADS_AT_ONCE: Final = 4  # each may keep two connections to the database
RESEND_MS: Final = 5_000
RETELL_MS: Final = 300_000  # between two looks at accounts that hold nothing
RECHECK_SECONDS: Final = 1.0  # of a refusal against the ledger, for each account
SCAN_KEYS: Final = 1_000
DROP_AGAIN_SECONDS: Final = (0.0, 5.0, 30.0)

_SELECT: Final = {script: (b"EVALSHA", digest, b"2") for script, digest in DIGESTS.items()}
_AGAIN: Final = -9
_RESERVE: Final = _SELECT[Script.RESERVE]

_log: Final = logging.getLogger(__name__)
_pack: Final[Callable[[Words], bytes]] = hiredis.pack_command  # type: ignore[assignment]
_keys: Final = lru_cache(maxsize=65_536)(keys_of)


class RedisHoldStore:
    """The HoldStore port on one Redis; what only the ledger can tell comes through `ledger`.

    `process` is the registry's id of this process, `now_ms` gives milliseconds since the epoch.
    `allow`: micro-credits that an account may hold, for each process, while Redis is away.
    `may_hold`: as the registry says of the process; no recovery waits for one that may not.
    """

    def __init__(  # noqa: PLR0913 - its parts, each by name
        self,
        address: RedisAddress,
        ledger: LedgerView,
        hot: HotDatabase,
        *,
        process: str,
        now_ms: Callable[[], int],
        call_seconds_max: float,
        allow: int = 0,
        may_hold: bool = True,
    ) -> None:
        self._ledger = ledger
        self._hot = hot
        self._now_ms = now_ms
        self._call_ms_max = round(call_seconds_max * 1000)
        self._allow = allow
        self.line = self._line = RedisLine(address, self._line_changed)  # the limits use it too
        self._recovery = Recovery(
            ledger,
            self,
            process=process,
            identity=lambda: self._line.identity,
            reconnect=self._line.reconnect,
        )
        self._mine: dict[str, OwnHold] = {}  # not known to be recorded in the database
        self._unheld: dict[
            str, OwnHold
        ] = {}  # granted while Redis was away, and not told to it yet
        self._allowed: dict[str, int] = {}  # of an account, granted while Redis was away
        self._dropping: dict[str, object] = {}  # nobody's, should Redis come to hold them yet
        self._loading: dict[str, asyncio.Task[bool]] = {}
        self._loads = asyncio.Semaphore(LOADS_AT_ONCE)
        self._rechecked: dict[str, float] = {}
        self._told_all_at: int | None = None
        self._may_hold = may_hold
        self._tasks: set[asyncio.Task[None]] = set()
        self._run: asyncio.Task[None] | None = None

    # -- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, and take part in keeping to the epoch; waits a moment for admission to open.

        The registry must know the process. Raises RedisRefusedError if Redis must not keep holds
        as it is set up; one that is only away is waited for in the background.
        """
        await self._line.start()
        self._run = asyncio.create_task(self._recovery.run(), name="guard")
        self._recovery.wake()
        if self._line.connection is not None:
            with suppress(RedisUnavailableError):
                await self._recovery.opened()

    async def close(self) -> None:
        """Let go of Redis; the holds stay."""
        tasks = [*self._tasks, *self._loading.values()]
        if self._run is not None:
            tasks.append(self._run)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._line.close()

    @property
    def process(self) -> str:
        """The registry's id of this process; settable, for one that goes on under a new id."""
        return self._recovery.process

    @process.setter
    def process(self, process: str) -> None:
        self._recovery.process = process

    @property
    def problem(self) -> str | None:
        """Why nobody can be admitted now; None: all is well."""
        if self._line.connection is None:
            return self._line.problem
        return "holds are being brought back" if self._recovery.word is None else None

    @property
    def recoveries(self) -> int:
        """How often this process declared the holds in Redis lost."""
        return self._recovery.recoveries

    async def rebuild(self, reason: str) -> None:
        """Bring all holds back as after a loss: an admin asks, or a backup was restored.

        Raises GuardUnavailableError: nothing is done, ask again.
        """
        try:
            await self._recovery.fence(reason)
        except RedisUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error
        except AWAY as error:
            raise GuardUnavailableError("the database is away") from error

    # -- the port ----------------------------------------------------------------------------

    async def reserve(self, request: HoldRequest) -> Granted | Refused:
        """Grant min(wanted, balance - held) if that is at least the minimum."""
        if not self._may_hold:
            raise GuardUnavailableError("this process is registered as one that holds nothing")
        if self._dropping:
            self._dropping.pop(request.hold_id, None)
        epoch, connection = self._recovery.word, self._line.connection
        try:
            if epoch is None or connection is None or self._may_not_begin(request):
                return await self._reserve_patiently(request)
            reply = await connection.send_packed(_pack(_reserve_words(request, epoch)))
            if type(reply) is int and reply >= 0:
                self._mine[request.hold_id] = OwnHold(request, reply)
                return Granted(reply)
            return await self._reserve_patiently(request)
        except RedisUnavailableError:
            return await self._reserve_patiently(request)
        except asyncio.CancelledError:
            # Granted or not, it is nobody's.
            self._drop(request.account, request.hold_id, DROP_AGAIN_SECONDS)
            raise

    async def extend(self, hold_id: str, new_total: int) -> Granted | Refused:
        """Raise a hold to `new_total` micro-credits, whole or not at all; never lowers it."""
        hold = self._mine.get(hold_id)
        if hold is None:
            return Refused(reason="insufficient", balance=0, held=0, needed=new_total)
        if hold_id in self._unheld:
            return self._extend_allowed(hold, new_total)
        suspended = int(hold.account in self._recovery.suspended)
        total = min(new_total, MAX_EXACT)
        try:
            reply = await self._insist(hold.account, Script.EXTEND, (hold_id, total, suspended))
        except RedisUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error
        if isinstance(reply, int):
            hold.amount = max(hold.amount, reply)
            return Granted(reply)
        if not reply:
            return Refused(reason="insufficient", balance=0, held=0, needed=new_total)
        more = new_total - hold.amount
        return self._refused(numbers_of(reply), more, suspended=bool(suspended))

    async def heartbeat(self, beats: list[HoldBeat]) -> None:
        """Note the progress of running calls; one script for each account, all in one write."""
        by_account: dict[str, list[Word]] = {}
        for beat in beats:
            hold = self._mine.get(beat.hold_id)
            if hold is None:
                continue
            hold.amount = max(hold.amount, beat.amount)
            hold.progress = max(hold.progress, beat.progress)
            if beat.hold_id not in self._unheld:
                by_account.setdefault(hold.account, []).extend(
                    (beat.hold_id, beat.amount, beat.progress)
                )
        if not by_account:
            return
        try:
            await self._tell(Script.HEARTBEAT, by_account)
        except RedisUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error

    async def cancel(self, finish: Finish) -> None:
        """Record that nothing is charged, then drop the hold.

        Raises GuardUnavailableError if the database does not take it; Redis being away is no
        hindrance, for what is recorded is applied by `resend`.
        """
        try:
            await self._hot.cancel(finish)
        except DatabaseUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error
        self.recorded(finish)

    def recorded(self, finish: Finish) -> None:
        """The end of a call stands in the database (not only in the spool): to be told by the outbox.

        From here on the database brings the hold back if Redis loses it.
        """
        context = finish.event.context
        hold = self._mine.pop(context.event_id, None)
        if not finish.cancelled:
            return
        if hold is not None and self._unheld.pop(context.event_id, None) is not None:
            self._give_back(hold)
        self._drop(context.account, context.event_id, (0.0,))

    async def release(self, account: str, hold_id: str) -> None:
        """Drop a hold that is no call's, once Redis has seen a balance from after its debit.

        Redis or database away: the hold stays meanwhile, and goes in the background.
        """
        try:
            await self._release(account, hold_id)
        except (GuardUnavailableError, *AWAY):
            self._start(self._release_later(account, hold_id))

    async def apply(self, applied: Sequence[Applied]) -> None:
        """The word of a settlement, after its commit; balances only if newer, ids always."""
        if not applied:
            return
        words: dict[str, list[Word]] = {}
        for each in applied:
            said: list[Word] = [
                saturated(each.balance),
                each.seq,
                len(each.final_ids),
                *each.final_ids,
            ]
            for hold_id, residual in each.estimates:
                said += (hold_id, residual)
            words[each.account] = said
        try:
            await self._tell(Script.APPLY, words)
        except RedisUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error

    async def resend(self) -> int:
        """Apply what was lost on its way, for holds older than five seconds.

        Also tells balances that Redis was not told of, of accounts that hold nothing too every five
        minutes, and finds a ledger that is behind Redis, which only a restored backup can be: then
        all is brought back. Raises GuardUnavailableError.
        """
        now, done = self._now_ms(), 0
        try:
            all_of_them = self._told_all_at is None or now - self._told_all_at >= RETELL_MS
            pattern = ACCOUNTS_PATTERN if all_of_them else HOLDS_PATTERN
            async for entries in self._scan(pattern, started_before=now - RESEND_MS):
                await self._compare_balances(entries)
                done += await self._apply_verdicts(entries, now)
            if all_of_them:
                self._told_all_at = now
        except RedisUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error
        except AWAY as error:
            raise GuardUnavailableError("the database is away") from error
        return done

    async def refresh(self, accounts: Collection[str]) -> None:
        """Tell Redis the balances of these accounts, after an entry that was no call's.

        Raises GuardUnavailableError, and what a database that is away raises.
        """
        await self.apply(
            [
                Applied(account=account, balance=balance, seq=seq, final_ids=(), estimates=())
                for account, (balance, seq) in (await self._ledger.balances(accounts)).items()
            ]
        )

    # -- what a sweeper asks: billing.settlement.orphans.OrphanHolds ---------------------------

    async def held_by_others(self, alive: AbstractSet[str], limit: int) -> list[HeldCall]:
        """Holds of processes that are not `alive`; from now on nobody raises them.

        Residuals, and calls with a charge or a cancellation recorded, are left out.
        """
        found: list[HeldCall] = []
        try:
            async for entries in self._scan(started_before=MAX_EXACT):
                for entry in entries:
                    ids = [hold_id for hold_id, head in entry.holds if is_orphan(head, alive)]
                    recorded = await self._ledger.recorded(ids) if ids else frozenset()
                    unrecorded = [hold_id for hold_id in ids if hold_id not in recorded]
                    if unrecorded:
                        found += await self._claim(entry.account, unrecorded[: limit - len(found)])
                    if len(found) >= limit:
                        return found
        except RedisUnavailableError as error:
            raise GuardUnavailableError(str(error)) from error
        return found

    async def release_residuals(self, started_before: int) -> int:
        """Nothing to do: `resend` drops residuals once no final can come any more."""
        return 0

    # -- what the recovery asks --------------------------------------------------------------

    async def register(self, epoch: int) -> int:
        """Write this process's holds into Redis; how many of their accounts are not there.

        Somebody else brought those in first, and makes them any moment, or they are lost.
        """
        return await self._register(epoch, self._unheld | self._mine)

    async def verify(self, epoch: int) -> int:
        """Of how many accounts registered holds are gone.

        Makes nothing: if the answer is lost on its way, asking again must tell the same.
        """
        holds = {name: each for name, each in self._mine.items() if name not in self._unheld}
        words = by_account(holds, self.process)
        replies = await self._tell_holds(epoch, words, dict.fromkeys(words, Make.NOTHING))
        return await self._with_row(name for name, reply in replies.items() if reply != 0)

    async def _register(self, epoch: int, holds: Mapping[str, OwnHold]) -> int:
        """As `register`.

        Room for an account is made by the first one to bring it in alone: made by anybody else, or
        a second time, it would hide that others' holds were lost.
        """
        told = {hold_id: hold.amount for hold_id, hold in holds.items()}
        words = by_account(holds, self.process)
        first = await self._note_epoch(words, epoch)
        make = {name: Make.ACCOUNT if name in first else Make.HOLDS for name in words}
        replies = await self._tell_holds(epoch, words, make)
        absent = await self._with_row(n for n, reply in replies.items() if reply == Code.ABSENT)
        if not absent:
            self._told(told)
        return absent

    async def _with_row(self, names: Iterable[str]) -> int:
        """How many of these are accounts; nothing is owed by what has no row."""
        async with asyncio.timeout(DATABASE_SECONDS):
            known = [await self._ledger.guard_epoch(name) for name in names]
        return sum(each is not None for each in known)

    def _told(self, told: Mapping[str, int]) -> None:
        """Redis knows of these amounts: what was allowed without it is free again."""
        for hold_id, amount in told.items():
            hold = self._unheld.get(hold_id)
            if hold is not None and hold.amount == amount:  # not raised meanwhile
                del self._unheld[hold_id]
                self._give_back(hold)

    async def _note_epoch(self, accounts: Collection[str], epoch: int) -> frozenset[str]:
        if not accounts:
            return frozenset()
        async with asyncio.timeout(DATABASE_SECONDS):
            return await self._ledger.raise_guard_epoch(accounts, epoch)

    async def _tell_holds(
        self, epoch: int, words: Mapping[str, list[Word]], make: Mapping[str, Make]
    ) -> dict[str, int]:
        """Of each account how many holds were not here; ABSENT: it was not, and may not be made."""
        if not words:
            return {}
        connection = await self._line.ready()
        select = _SELECT[Script.REGISTER]
        asked = [
            (name, connection.send(*select, *_keys(name), epoch, int(make[name]), *said))
            for name, said in words.items()
        ]
        replies: dict[str, int] = {}
        for account, future in asked:
            reply = checked(await future, connection)
            assert isinstance(reply, int)
            if reply == Code.LATER:
                found = await connection.send("HGET", _keys(account)[0], "epoch")
                self._recovery.heard(int(found) if isinstance(found, bytes) else 0)
                raise RedisUnavailableError("a later epoch has begun")
            replies[account] = reply
        return replies

    def _line_changed(self) -> None:
        self._recovery.wake()

    # -- asking Redis ------------------------------------------------------------------------

    async def _reserve_patiently(self, request: HoldRequest) -> Granted | Refused:
        account = request.account
        suspended = self._may_not_begin(request)
        least = MAX_EXACT if suspended else min(request.minimum, MAX_EXACT)
        words: Words = (
            request.hold_id,
            least,
            min(request.wanted, MAX_EXACT),
            request.process,
            request.started_at,
            request.context,
        )
        try:
            reply = await self._insist(account, Script.RESERVE, words)
            if isinstance(reply, list) and await self._was_stale(account, numbers_of(reply)):
                reply = await self._insist(account, Script.RESERVE, words)
        except RedisUnavailableError as error:
            return self._allow_or_raise(request, error)
        if isinstance(reply, int):
            self._mine[request.hold_id] = OwnHold(request, reply)
            return Granted(reply)
        balance_and_held = numbers_of(reply)
        if reply is None and request.minimum <= 0 and not suspended:
            return Granted(0)  # no account, and nothing to hold
        return self._refused(balance_and_held, request.minimum, suspended=suspended)

    def _may_not_begin(self, request: HoldRequest) -> bool:
        return request.account in self._recovery.suspended and not request.while_suspended

    @staticmethod
    def _refused(balance_and_held: tuple[int, int], needed: int, *, suspended: bool) -> Refused:
        balance, held = balance_and_held
        if suspended:
            return Refused(reason="suspended", balance=balance, held=held, needed=needed)
        if balance >= needed:
            return Refused(reason="held", balance=balance, held=held, needed=needed)
        return Refused(reason="insufficient", balance=balance, held=held, needed=needed)

    async def _insist(self, account: str, script: Script, words: Words) -> Reply:
        """The script's answer, through reconnects, recoveries and accounts that are to be loaded.

        None: the account has no row. Raises RedisUnavailableError.
        """
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    connection = await self._line.ready()
                    try:
                        reply = await self._try(connection, account, script, words)
                    except RedisUnavailableError:
                        if connection.is_open:
                            raise
                        continue  # idempotent; `ready` says when it is enough
                    if reply != _AGAIN:
                        return reply
        except TimeoutError:
            raise RedisUnavailableError("Redis is too slow") from None
        except AWAY as error:
            raise RedisUnavailableError("the database is away") from error

    async def _try(
        self, connection: RedisConnection, account: str, script: Script, words: Words
    ) -> Reply:
        """Ask once; _AGAIN after mending what stood in the way."""
        epoch = await self._recovery.opened()
        reply = await connection.send(*_SELECT[script], *_keys(account), epoch, *words)
        if isinstance(reply, hiredis.ReplyError):
            await self._mend(connection, reply)
        elif not isinstance(reply, int) or reply >= 0:
            return reply
        elif reply == Code.LATER:
            await self._follow(connection, account)
        elif not await self._load(account):
            return None
        return _AGAIN

    async def _mend(self, connection: RedisConnection, reply: hiredis.ReplyError) -> None:
        """After an error that may be gone at the next try; raises RedisUnavailableError if not."""
        if not str(reply).startswith("NOSCRIPT"):
            checked(reply, connection)
        for source in SOURCES.values():
            checked(await connection.send("SCRIPT", "LOAD", source), connection)

    async def _follow(self, connection: RedisConnection, account: str) -> None:
        """Redis knows a later epoch of an account than this process."""
        found = await connection.send("HGET", keys_of(account)[0], "epoch")
        await self._recovery.behind(int(found) if isinstance(found, bytes) else 0)

    async def _tell(self, script: Script, words: Mapping[str, Sequence[Word]]) -> None:
        """A script for each account, in one write; what is not admitted now is left out."""
        connection, epoch = self._line.connection, self._recovery.word
        if connection is None:
            raise RedisUnavailableError(self._line.problem)
        if epoch is None:
            raise RedisUnavailableError("holds are being brought back into Redis")
        select = _SELECT[script]
        asked = [
            (account, connection.send(*select, *_keys(account), epoch, *said))
            for account, said in words.items()
        ]
        for account, future in asked:
            reply = await future
            if isinstance(reply, hiredis.ReplyError):
                await self._mend(connection, reply)
                raise RedisUnavailableError("Redis had to be given its scripts again")
            if reply == Code.LATER:
                self._recovery.wake()
            elif reply == Code.ABSENT and script is Script.HEARTBEAT:
                self._start(self._suspect(account))

    async def _suspect(self, account: str) -> None:
        """A running call's account is absent: load it, which finds out whether Redis lost it."""
        with suppress(RedisUnavailableError, *AWAY):
            await self._load(account)

    async def _release(self, account: str, hold_id: str) -> None:
        await self.refresh([account])
        hold = self._mine.pop(hold_id, None)
        if hold is not None and self._unheld.pop(hold_id, None) is not None:
            self._give_back(hold)
        self._drop(account, hold_id, DROP_AGAIN_SECONDS)

    async def _release_later(self, account: str, hold_id: str) -> None:
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            with suppress(GuardUnavailableError, *AWAY):
                await self._release(account, hold_id)
                return

    def _drop(self, account: str, hold_id: str, after: Iterable[float]) -> None:
        """Drop a hold that is nobody's, without waiting.

        More than once where a command that would make it may still be on its way.
        """
        self._mine.pop(hold_id, None)
        first, *later = after
        connection = self._line.connection
        if connection is not None and first == 0:
            future = connection.send(*_SELECT[Script.CANCEL], *_keys(account), hold_id)
            future.add_done_callback(forget)
        if later:
            self._dropping[hold_id] = since = object()
            self._start(self._drop_again(account, hold_id, later, since))

    async def _drop_again(
        self, account: str, hold_id: str, after: list[float], since: object
    ) -> None:
        """Each time until Redis answers: what it was asked before it was away may be done after it.

        Not if the hold is asked for again: then it is somebody's, or dropped anew.
        """
        for seconds in after:
            await asyncio.sleep(seconds)
            while self._dropping.get(hold_id) is since:
                if await self._dropped(account, hold_id):
                    break
                await asyncio.sleep(RECHECK_SECONDS)
        if self._dropping.get(hold_id) is since:
            del self._dropping[hold_id]

    async def _dropped(self, account: str, hold_id: str) -> bool:
        connection = self._line.connection
        if connection is None:
            return False
        try:
            checked(
                await connection.send(*_SELECT[Script.CANCEL], *_keys(account), hold_id), connection
            )
        except RedisUnavailableError:
            return False
        return True

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- loading accounts --------------------------------------------------------------------

    async def _load(self, account: str) -> bool:
        """Bring an account into Redis, once for all who wait; False: it has no row."""
        task = self._loading.get(account)
        if task is None:
            task = asyncio.create_task(self._load_locked(account))
            self._loading[account] = task
            task.add_done_callback(lambda done: self._loaded(account, done))
        # Each waits by itself: who leaves does not end it for the others.
        await asyncio.wait([task])
        return task.result()

    def _loaded(self, account: str, task: asyncio.Task[bool]) -> None:
        self._loading.pop(account, None)
        if not task.cancelled():
            task.exception()  # whoever waits has it; nobody may be left

    async def _load_locked(self, account: str) -> bool:
        async with (
            self._loads,
            asyncio.timeout(DATABASE_SECONDS),
            self._ledger.account_lock(account),
        ):
            return await self._judge_and_load(account)

    async def _judge_and_load(self, account: str) -> bool:
        """Tell an account that was never here from one that was lost; see DESIGN, MISS."""
        connection = await self._line.ready()
        word = await self._recovery.opened()
        epoch = int(word)
        known = await self._ledger.guard_epoch(account)
        if known is None:
            return False
        entry = await self._entry(connection, account)
        is_here = entry.epoch == epoch
        if is_here and entry.balance is not None:
            return True  # somebody was quicker
        guard = await self._ledger.guard()
        if known > epoch or guard is None or guard.epoch != epoch:
            await self._recovery.look()
        elif known == epoch and not is_here:
            await self._vanished(epoch)
        elif known == epoch or await self._ledger.raise_guard_epoch([account], epoch) or is_here:
            return await self._mark_and_load(connection, account, word, may_make=not is_here)
        return (
            True  # or somebody else is bringing it in for the first time: whoever waits asks anew
        )

    async def _mark_and_load(
        self, connection: RedisConnection, account: str, word: bytes, *, may_make: bool
    ) -> bool:
        """Read the account between leaving a mark in Redis and writing onto it.

        Between the two nothing passes unseen: a settlement's word is noted at the mark, and a loss
        takes the mark along. `may_make`: the account is brought in for the first time, by nobody
        else. Otherwise it is here, or it was lost: a mark that made it would hide that.
        """
        mark = secrets.token_hex(8)
        here = await self._load_step(connection, Script.MARK, account, word, (mark, int(may_make)))
        if here == Code.ABSENT:
            await self._vanished(int(word))
        if here not in (0, 1):
            return True
        since = oldest_late_final(self._now_ms(), self._call_ms_max)
        snapshot = await self._ledger.snapshot(account, residuals_since=since)
        if snapshot is None:
            return False
        words = load_words(snapshot, mark)
        await self._load_step(connection, Script.LOAD, account, word, words)
        return True  # unless the mark was gone: then whoever waits asks anew

    async def _load_step(
        self,
        connection: RedisConnection,
        script: Script,
        account: str,
        word: bytes,
        words: Sequence[Word],
    ) -> Reply:
        sent = connection.send(*_SELECT[script], *_keys(account), word, *words)
        reply = checked(await sent, connection)
        if reply == Code.LATER:
            await self._recovery.look()
        return reply

    async def _vanished(self, epoch: int) -> None:
        await self._recovery.lost(epoch, "an account vanished from Redis")
        await self._recovery.look()

    async def _was_stale(self, account: str, balance_and_held: tuple[int, int]) -> bool:
        """Whether a refusal rested on a balance that the ledger has left behind; now and then."""
        now = asyncio.get_running_loop().time()
        if now - self._rechecked.get(account, -RECHECK_SECONDS) < RECHECK_SECONDS:
            return False
        if len(self._rechecked) > 10_000:
            self._rechecked.clear()
        self._rechecked[account] = now
        try:
            async with asyncio.timeout(PATIENCE_SECONDS / 2):
                found = (await self._ledger.balances([account])).get(account)
                if found is None or saturated(found[0]) == balance_and_held[0]:
                    return False
                balance, seq = found
                await self.apply(
                    [Applied(account=account, balance=balance, seq=seq, final_ids=(), estimates=())]
                )
        except (GuardUnavailableError, *AWAY):
            return False
        return True

    # -- Redis away: allow -------------------------------------------------------------------

    def _allow_or_raise(
        self, request: HoldRequest, error: RedisUnavailableError
    ) -> Granted | Refused:
        """Grant out of what the settings allow while Redis is away, else refuse to decide."""
        account = request.account
        used = self._allowed.get(account, 0)
        amount = min(request.wanted, self._allow - used)
        known = self._mine.get(request.hold_id)
        if known is not None:
            return Granted(known.amount)
        if amount < request.minimum or self._may_not_begin(request) or not self._allow:
            self._drop(account, request.hold_id, DROP_AGAIN_SECONDS)
            raise GuardUnavailableError(str(error)) from error
        self._allowed[account] = used + amount
        hold = self._mine[request.hold_id] = OwnHold(request, amount)
        if not self._unheld:
            self._start(self._hold_later())
        self._unheld[request.hold_id] = hold
        return Granted(amount)

    def _extend_allowed(self, hold: OwnHold, new_total: int) -> Granted:
        more = max(0, new_total - hold.amount)
        used = self._allowed.get(hold.account, 0)
        if used + more > self._allow:
            raise GuardUnavailableError("Redis is away, and what is allowed meanwhile is used up")
        self._allowed[hold.account] = used + more
        hold.amount += more
        return Granted(hold.amount)

    def _give_back(self, hold: OwnHold) -> None:
        left = self._allowed.get(hold.account, 0) - hold.amount
        if left > 0:
            self._allowed[hold.account] = left
        else:
            self._allowed.pop(hold.account, None)

    async def _hold_later(self) -> None:
        """Once Redis is back: tell it what was granted without it."""
        while self._unheld:
            await asyncio.sleep(RECHECK_SECONDS / 2)
            word = self._recovery.word
            if self._line.connection is None or word is None:
                continue
            with suppress(RedisUnavailableError, *AWAY):
                if await self._register(int(word), dict(self._unheld)):
                    await self._vanished(int(word))

    # -- looking through Redis ---------------------------------------------------------------

    async def ask(self, *words: Word) -> Reply:
        """The reply to one command of an operator's look; raises RedisUnavailableError."""
        connection = await self._line.ready()
        return checked(await connection.send(*words), connection)

    async def _scan(
        self, pattern: bytes = HOLDS_PATTERN, *, started_before: int
    ) -> AsyncIterator[list[RedisEntry]]:
        """All accounts that hold something, and those of their holds that began before."""
        cursor: Word = 0
        while True:
            connection = await self._line.ready()
            reply = checked(
                await connection.send("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_KEYS),
                connection,
            )
            assert isinstance(reply, list)
            assert isinstance(reply[0], bytes)
            assert isinstance(reply[1], list)
            cursor = reply[0]
            names = [account_of(key) for key in reply[1] if isinstance(key, bytes)]
            asked = [
                connection.send(*_SELECT[Script.LIST], *_keys(name), started_before)
                for name in names
            ]
            entries = [
                entry_of(name, checked(await future, connection))
                for name, future in zip(names, asked, strict=True)
            ]
            if entries:
                yield entries
            if cursor == b"0":
                return

    async def _entry(self, connection: RedisConnection, account: str) -> RedisEntry:
        reply = await connection.send(*_SELECT[Script.LIST], *_keys(account), 0)
        return entry_of(account, checked(reply, connection))

    async def _compare_balances(self, entries: list[RedisEntry]) -> None:
        epoch = self._recovery.epoch
        known = {e.account: e.seq for e in entries if e.seq is not None and e.epoch == epoch}
        found = await self._ledger.balances(known)
        ahead = [name for name, seq in known.items() if seq > found.get(name, (0, 0))[1]]
        if ahead:
            await self._recovery.lost(epoch, "Redis is ahead of the ledger: was a backup restored?")
            return
        behind = [
            Applied(account=name, balance=balance, seq=seq, final_ids=(), estimates=())
            for name, (balance, seq) in found.items()
            if seq > known[name]
        ]
        await self.apply(behind)

    async def _apply_verdicts(self, entries: list[RedisEntry], now: int) -> int:
        ids = [hold_id for entry in entries for hold_id, _ in entry.holds]
        if not ids:
            return 0
        recorded = await self._ledger.recorded(ids)
        wanted: dict[str, list[str]] = {}
        for entry in entries:
            mine = [hold_id for hold_id, _ in entry.holds if hold_id in recorded]
            if mine:
                wanted[entry.account] = mine
        if not wanted:
            return 0
        # Of an earlier epoch: no word of a settlement reaches them before they are loaded.
        epoch = self._recovery.epoch
        late = [e.account for e in entries if e.account in wanted and e.epoch != epoch]
        await asyncio.gather(*map(self._load, late))
        since = oldest_late_final(now, self._call_ms_max)
        said = await self._ledger.verdicts(wanted, residuals_since=since)
        await self.apply(said)
        return sum(len(each.final_ids) for each in said)

    async def _claim(self, account: str, ids: list[str]) -> list[HeldCall]:
        connection = await self._line.ready()
        reply = checked(
            await connection.send(*_SELECT[Script.CLAIM], *_keys(account), *ids), connection
        )
        assert isinstance(reply, list)
        words = [word for word in reply if isinstance(word, bytes)]
        return [
            held_call(account, hold_id.decode(), value)
            for hold_id, value in zip(words[::2], words[1::2], strict=True)
        ]


def _reserve_words(request: HoldRequest, epoch: bytes) -> Words:
    return (
        *_RESERVE,
        *_keys(request.account),
        epoch,
        request.hold_id,
        request.minimum,
        min(request.wanted, MAX_EXACT),
        request.process,
        request.started_at,
        request.context,
    )
