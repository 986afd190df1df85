"""Losing Redis at the worst moment: what could hide the loss, drop a living hold, or stop a recovery for ever."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from billing.db.session import Database
from billing.db.tables import accounts, meta, processes
from billing.holds import Granted, GuardUnavailableError
from billing.holds import redis as redis_module
from billing.holds.ledger_view import GUARD_KEY, SqlLedgerView
from tests.billing.holds.test_redis_recovery import Registrar, most, state
from tests.support.money import hold, new_id
from tests.support.redis_guard import guards, held, until_open
from tests.support.redis_server import Proxy, RedisServer
from tests.support.services import free_port


async def test_a_registration_repeated_after_its_note_hides_no_loss(
    redis: RedisServer, tmp_path: Path
) -> None:
    """The commit of note_step stands, its answer is lost: registered once more, and meanwhile all verify."""
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        first, second = money.stores
        await money.reserve(100, store=first)
        await money.reserve(800, store=second)
        again = asyncio.Event()
        first._recovery._ledger = view = SqlLedgerView(money.database)
        really, lost = view.note_step, False

        async def note(process: str, done: int) -> bool:
            nonlocal lost
            noted = await really(process, done)
            if not lost and done % 2 == 0:
                lost = True
                raise OSError("the connection broke after the commit")
            return noted

        view.note_step = note  # type: ignore[method-assign]
        times = 0

        class First(Registrar):
            async def register(self, epoch: int) -> int:
                nonlocal times
                times += 1
                if times == 2:
                    again.set()
                    while second.process in await money.ledger.waiting_for(2 * epoch + 1):
                        await asyncio.sleep(0.01)
                    await redis.ask("FLUSHALL")
                return await super().register(epoch)

        class Second(Registrar):
            async def register(self, epoch: int) -> int:
                await again.wait()
                return await super().register(epoch)

        first._recovery._registrar = First(first)
        second._recovery._registrar = Second(second)
        await money.store.rebuild("a test")
        async with asyncio.timeout(20):
            while times < 2:
                await asyncio.sleep(0.01)
        await until_open(*money.stores)
        assert await most(money) == 100


async def test_a_zombie_that_registers_late_hides_no_loss(
    redis: RedisServer, tmp_path: Path
) -> None:
    """It stood still in the midst of a recovery, was declared dead, and goes on after the opening."""
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        zombie, other = money.stores
        await money.reserve(100, store=zombie)
        await money.reserve(800, store=other)
        stopped, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        class Stopped(Registrar):
            async def register(self, epoch: int) -> int:
                stopped.set()
                await go_on.wait()
                try:
                    return await super().register(epoch)
                finally:
                    done.set()

        zombie._recovery._registrar = Stopped(zombie)
        await other.rebuild("a test")
        await stopped.wait()
        await money.declare_dead(zombie)
        await until_open(other)
        await redis.ask("FLUSHALL")
        go_on.set()
        await done.wait()
        # The zombie is waited for no more; if it brought its own in all the same, they are held too.
        assert await most(money, 1) in (100, 200)


async def test_a_process_reborn_while_a_recovery_registers_hides_no_loss(
    redis: RedisServer, tmp_path: Path
) -> None:
    """It reads REGISTER under its new id, entered after the others stopped waiting."""
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        renamed, other = money.stores
        await money.reserve(100, store=renamed)
        await money.reserve(800, store=other)
        entered = asyncio.Event()

        class Reborn(Registrar):
            async def register(self, epoch: int) -> int:
                if not entered.is_set():
                    entered.set()
                    while other.process in await money.ledger.waiting_for(2 * epoch + 1):
                        await asyncio.sleep(0.01)
                    await redis.ask("FLUSHALL")
                return await super().register(epoch)

        renamed._recovery._registrar = Reborn(renamed)
        await money.declare_dead(renamed)
        other._recovery._ledger = view = SqlLedgerView(money.database)
        really = view.waiting_for

        async def waiting_for(done: int) -> list[str]:
            waits = await really(done)
            if not entered.is_set():
                async with money.database.write() as connection:
                    values = {"process": "reborn", "started_at": 1, "heartbeat_at": 1}
                    await connection.execute(processes.insert().values(**values))
                renamed.process = "reborn"
                await entered.wait()
            return waits

        view.waiting_for = waiting_for  # type: ignore[method-assign]
        await other.rebuild("a test")
        await entered.wait()
        await until_open(*money.stores)
        assert await most(money, 1) == 100


async def test_what_was_allowed_is_brought_in_though_redis_knows_a_later_epoch(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money, Proxy(free_port()) as proxy:
        await money.buy(1_000)
        for _ in range(3):
            await money.store.rebuild("a test")
            await until_open(money.store)
        await money.reserve(100)
        old = money.store
        await money.kill(old)
        await money.declare_dead(old)
        async with money.database.write() as connection:  # a backup is restored
            await connection.execute(delete(meta).where(meta.c.key == GUARD_KEY))
            await connection.execute(update(accounts).values(guard_epoch=0))
            await connection.execute(update(processes).values(guard_step=0))
        newcomer = await money.add(url=proxy.url, allow=50)
        await money.reserve(50, store=newcomer)
        proxy.target = redis.port
        await until_open(newcomer, seconds=8)
        assert newcomer._recovery.epoch > 4


async def test_a_rebuild_while_redis_is_away_is_refused(redis: RedisServer, tmp_path: Path) -> None:
    async with Proxy(redis.port) as proxy, guards(proxy.url, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(100)
        proxy.target = free_port()
        proxy.cut()
        async with asyncio.timeout(5):
            while money.store._line.connection is not None:
                await asyncio.sleep(0)
        with pytest.raises(GuardUnavailableError, match="Redis is away"):
            await money.store.rebuild("the database was restored from a backup")
        proxy.target = redis.port
        await until_open(money.store)
        await money.store.rebuild("the database was restored from a backup")
        await until_open(money.store)
        assert (await state(money)).epoch == 2


@pytest.mark.parametrize("seconds", [1.0, 0.0], ids=["due later", "tried while away"])
async def test_a_hold_that_is_asked_for_again_is_not_dropped(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """A correction that could not be held is carried out again under the same id (corrections.resume)."""
    monkeypatch.setattr(redis_module, "DROP_AGAIN_SECONDS", (0.0, seconds, 1.0))
    async with Proxy(redis.port) as proxy, guards(proxy.url, tmp_path) as money:
        await money.buy(1_000)
        proxy.target = free_port()
        proxy.cut()
        debit = new_id()
        asked = hold(debit, minimum=0, wanted=1_000, process=money.store.process)
        with pytest.raises(GuardUnavailableError):
            await money.store.reserve(asked)
        proxy.target = redis.port
        await until_open(money.store)
        assert await money.store.reserve(asked) == Granted(1_000)
        while money.store._tasks:
            await asyncio.wait(money.store._tasks)
        assert await held(redis) == {debit: 1_000}
        await money.refusal(1)


async def test_an_extension_while_redis_is_told_reaches_it(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with Proxy(redis.port) as proxy, guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(0, minimum=0)
        store = await money.add(url=proxy.url, allow=900)
        proxy.target = free_port()
        proxy.cut()
        one = await money.reserve(100, store=store)
        really = store._note_epoch
        raised: list[object] = []

        async def note(names: object, epoch: int) -> frozenset[str]:
            if one in store._unheld and not raised:
                raised.append(await store.extend(one, 900))
            return await really(names, epoch)  # type: ignore[arg-type]

        store._note_epoch = note  # type: ignore[method-assign,assignment]
        proxy.target = redis.port
        async with asyncio.timeout(15):
            while store._unheld:
                await asyncio.sleep(0.01)
        assert raised == [Granted(900)]
        assert (await held(redis))[one] == 900


async def test_a_frozen_loader_blocks_nobody_for_ever(
    redis: RedisServer, tmp_path: Path, postgres_url: str
) -> None:
    """A process stands still with an account's lock (SIGSTOP, a suspended machine), and is declared dead."""
    async with guards(redis, tmp_path, url=postgres_url) as money:
        await money.buy(1_000)
        frozen = Database(postgres_url)
        granted = False
        async with SqlLedgerView(frozen).account_lock("alice"), asyncio.timeout(60):
            while not granted:
                with suppress(GuardUnavailableError):
                    await money.reserve(100)
                    granted = True
        await frozen.dispose()
        assert granted


async def test_what_was_allowed_is_told_once(redis: RedisServer, tmp_path: Path) -> None:
    async with Proxy(redis.port) as proxy, guards(redis, tmp_path) as money:
        await money.buy(1_000)
        store = await money.add(url=proxy.url, allow=900)
        proxy.target = free_port()
        proxy.cut()
        for _ in range(50):
            await money.reserve(10, store=store)
        really, told = store._note_epoch, 0

        async def note(names: object, epoch: int) -> frozenset[str]:
            nonlocal told
            told += 1
            return await really(names, epoch)  # type: ignore[arg-type]

        store._note_epoch = note  # type: ignore[method-assign,assignment]
        proxy.target = redis.port
        async with asyncio.timeout(15):
            while store._tasks:
                await asyncio.wait(store._tasks)
        assert not store._unheld
        assert (told, (await state(money)).epoch) == (1, 1)
