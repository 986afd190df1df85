"""Losing Redis: FLUSHALL, restart, failover to a lagging replica, a restored ledger; nobody is admitted twice over."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from billing.db.tables import accounts, meta, processes
from billing.holds import Applied, Granted, GuardUnavailableError, HoldBeat, Refused, redis_recovery
from billing.holds.ledger_view import GUARD_KEY, GuardState, Phase, SqlLedgerView
from billing.holds.redis import RedisHoldStore
from billing.holds.scripts import SOURCES, Script, keys_of
from tests.support.money import T0, charge, estimate, hold, new_id
from tests.support.redis_guard import Guards, guards, held, until_open
from tests.support.redis_server import Proxy, RedisServer, redis_server
from tests.support.services import free_port

# Every test below sets out from 1,000 bought and holds of all kinds; see `everything`.
LEFT = 1_000 - 300 - 200 - 55 - 25 - 70 - 30 - 40


async def everything(money: Guards) -> None:
    """Two processes' calls; an event that waits, one that is aside, an estimate, a settled call."""
    await money.buy(1_000)
    await money.reserve(300)
    await money.reserve(200, store=money.stores[1])
    waiting, aside, orphaned, settled = [await money.reserve(100) for _ in range(4)]
    await money.finish(charge(settled, 40))  # 40 gone
    await money.hot.record(estimate(orphaned, 30))  # 30 gone, 70 may follow
    await money.settle()
    await money.finish(charge(waiting, 55))
    await money.hot.quarantine(charge(aside, 25), origin="owner", reason="a test")
    for done in (waiting, aside, orphaned):
        money.store._mine.pop(done, None)


async def most(money: Guards, index: int = 0) -> int:
    """All that can be held now; a recovery may take its time on a slow machine."""
    store = money.stores[index]
    asked = hold(new_id(), minimum=0, wanted=10**6, process=store.process)
    async with asyncio.timeout(60):
        while True:
            with suppress(GuardUnavailableError):
                answer = await store.reserve(asked)
                assert isinstance(answer, Granted)
                return answer.amount


async def state(money: Guards) -> GuardState:
    found = await money.ledger.guard()
    assert found is not None
    return found


async def test_after_flushall_everything_is_held_as_before(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path, stores=2) as money:
        await everything(money)
        await redis.ask("FLUSHALL")
        assert await most(money) == LEFT
        assert (await state(money)).epoch == 2
        assert sum((await held(redis)).values()) == 960 - 30


async def test_flushall_is_seen_by_a_heartbeat(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(300)
        await redis.ask("FLUSHALL")
        await money.store.heartbeat([HoldBeat(kept, 300, 10)])
        async with asyncio.timeout(5):
            while kept not in await try_held(redis):
                await asyncio.sleep(0.01)
        assert (await state(money)).epoch == 2


async def try_held(redis: RedisServer) -> dict[str, int]:
    if not await redis.ask("EXISTS", keys_of("alice")[0]):
        return {}
    return await held(redis)


async def test_flushall_in_the_middle_of_load(redis: RedisServer, tmp_path: Path) -> None:
    """Room for 40 calls; six flushes while 120 ask: never more than 40 are in."""
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(40 * 25)
        granted: list[str] = []

        async def ask(number: int) -> None:
            hold_id = new_id()
            request = hold(hold_id, minimum=25, wanted=25)
            try:
                answer = await money.stores[number % 2].reserve(request)
            except GuardUnavailableError:
                return
            if isinstance(answer, Granted):
                granted.append(hold_id)

        for _ in range(6):
            asked = [asyncio.create_task(ask(number)) for number in range(20)]
            await asyncio.sleep(0.002)
            await redis.ask("FLUSHALL")
            await asyncio.gather(*asked)
        await until_open(*money.stores)
        while isinstance(await money.store.reserve(hold(new_id(), minimum=25, wanted=25)), Granted):
            granted.append("")
        assert len(granted) == 40


async def test_an_account_that_vanishes_alone_is_a_loss_as_well(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path, stores=2) as money:
        await everything(money)
        await redis.ask("DEL", *keys_of("alice"))
        assert await most(money, 1) == LEFT


async def test_an_account_of_an_older_epoch_is_simply_loaded(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        for account in ("alice", "bob"):
            await money.buy(500, account=account)
        await money.reserve(100)
        await money.store.rebuild("a test")
        await until_open(money.store)
        assert (await state(money)).epoch == 2
        await money.reserve(500, account="bob")
        assert await money.store.reserve(hold(new_id(), minimum=1, wanted=500)) == Granted(400)
        assert (await state(money)).epoch == 2


async def test_many_who_miss_at_once_load_once(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path, stores=3) as money:
        await money.buy(1_000)
        answers = await asyncio.gather(
            *(
                money.stores[number % 3].reserve(hold(new_id(), minimum=100, wanted=100))
                for number in range(60)
            )
        )
        assert sum(isinstance(answer, Granted) for answer in answers) == 10
        assert (await state(money)).epoch == 1


async def test_nobody_is_admitted_before_every_living_process_has_spoken(
    redis: RedisServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_recovery, "LATE_SECONDS", 0.5)
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        silent = money.stores[1]
        await money.reserve(800, store=silent)
        await money.kill(silent)  # nobody knows yet
        await redis.ask("FLUSHALL")
        with pytest.raises(GuardUnavailableError):
            await money.reserve(900)
        assert (await state(money)).phase is Phase.REGISTER
        said = f"nobody is admitted before these processes reach Redis: {silent.process}"
        assert caplog.messages.count(said) == 1
        await money.declare_dead(silent)
        await until_open(money.store)
        # Process and Redis lost together: the one case in which a call leaves no trace.
        assert await most(money) == 1_000


async def test_a_restart_with_empty_data(own_redis: RedisServer, tmp_path: Path) -> None:
    async with guards(own_redis, tmp_path, stores=2) as money:
        await everything(money)
        own_redis.kill()
        await asyncio.to_thread(own_redis.start)
        assert await most(money) == LEFT
        assert (await state(money)).epoch == 2


async def test_calls_that_end_while_redis_is_away(own_redis: RedisServer, tmp_path: Path) -> None:
    async with guards(own_redis, tmp_path) as money:
        await money.buy(1_000)
        ended, running = await money.reserve(300), await money.reserve(200)
        own_redis.kill()
        await money.finish(charge(ended, 120, ceiling=300))
        report = await money.hot.settle_pending(10)
        with pytest.raises(GuardUnavailableError):
            await money.store.apply(report.applied)
        with pytest.raises(GuardUnavailableError):
            await money.store.heartbeat([HoldBeat(running, 200, 50)])
        await asyncio.to_thread(own_redis.start)
        assert await most(money) == 1_000 - 120 - 200
        known = await money.store.held_by_others(frozenset(), 10)
        assert (running, 50) in [(orphan.hold_id, orphan.progress) for orphan in known]


async def test_failover_to_a_replica_that_lags(tmp_path: Path) -> None:
    """The replica knows the first hold and not the others; promotion changes its replication id."""
    with redis_server() as first, redis_server() as second:
        async with Proxy(first.port) as proxy, guards(proxy.url, tmp_path, stores=2) as money:
            await money.buy(1_000)
            old = await money.reserve(100)
            await follow(second, first)
            await second.ask("REPLICAOF", "NO", "ONE")  # from here on it lags
            lost = [await money.reserve(200, store=store) for store in money.stores]
            await money.hot.record(charge(old, 60))
            money.store._mine.pop(old)
            await money.settle()
            proxy.target = second.port
            first.kill()
            proxy.cut()
            # 60 are settled; the replica still holds the 100 of that call, which is to our cost.
            assert await most(money) == 1_000 - 60 - 100 - 400
            assert set(lost) < set(await held(second))
            assert await money.store.resend() == 1
            assert await most(money, 1) == 100
            assert (await state(money)).epoch == 2


async def follow(replica: RedisServer, master: RedisServer) -> None:
    await replica.ask("REPLICAOF", "127.0.0.1", master.port)
    async with asyncio.timeout(10):
        while b"master_link_status:up" not in await info(replica):
            await asyncio.sleep(0.02)
    await master.ask("WAIT", 1, 5_000)


async def info(server: RedisServer) -> bytes:
    found = await server.ask("INFO", "replication")
    assert isinstance(found, bytes)
    return found


async def test_a_server_that_turns_into_a_replica_is_left(tmp_path: Path) -> None:
    with redis_server() as first, redis_server() as second:
        async with Proxy(first.port) as proxy, guards(proxy.url, tmp_path) as money:
            await money.buy(1_000)
            await money.reserve(300)
            await follow(first, second)  # it now has the other's data: none
            proxy.target = second.port
            assert await most(money) == 700


async def test_stale_clients_are_refused_by_epoch(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        await money.reserve(300)
        behind = money.stores[1]
        word = behind._recovery.word
        await money.store.rebuild("a test")
        await until_open(*money.stores)
        await money.reserve(100)
        behind._recovery.word = word
        stale = Applied(account="alice", balance=9_999, seq=99, final_ids=(), estimates=())
        await behind.apply([stale])
        behind._recovery.word = word
        assert await most(money, 1) == 600
        assert behind._recovery.word != word


async def test_what_is_registered_and_lost_before_the_opening(
    redis: RedisServer, tmp_path: Path
) -> None:
    """FLUSHALL between one process's registration and the other's: the second look sees it."""
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        early, late = money.stores
        await money.reserve(300, store=early)
        await money.reserve(200, store=late)
        entered, go_on = asyncio.Event(), asyncio.Event()

        class Slow(Registrar):
            async def register(self, epoch: int) -> int:
                entered.set()
                await go_on.wait()
                return await super().register(epoch)

        late._recovery._registrar = Slow(late)
        await money.store.rebuild("a test")
        await entered.wait()
        async with asyncio.timeout(5):
            while not (await held_or_nothing(redis)):
                await asyncio.sleep(0.01)
        await redis.ask("FLUSHALL")
        go_on.set()
        await until_open(*money.stores)
        assert await most(money) == 500
        assert (await state(money)).epoch == 3


class Registrar:
    """What a recovery asks a store, to be changed in part."""

    def __init__(self, store: RedisHoldStore) -> None:
        self.store = store

    async def register(self, epoch: int) -> int:
        return await self.store.register(epoch)

    async def verify(self, epoch: int) -> int:
        return await self.store.verify(epoch)


async def test_a_second_look_whose_answer_is_lost_looks_again(
    redis: RedisServer, tmp_path: Path
) -> None:
    """One process has looked, then all is lost, and the other's look mends nothing unheard."""
    async with Proxy(redis.port) as proxy, guards(redis, tmp_path) as money:
        await money.buy(1_000)
        first, second = money.store, await money.add(url=proxy.url)
        await money.reserve(800)
        await money.reserve(100, store=second)
        looked = 0

        class Unheard(Registrar):
            async def verify(self, epoch: int) -> int:
                nonlocal looked
                looked += 1
                if looked == 1:
                    step_of_first = 2 * epoch + 1
                    while first.process in await money.ledger.waiting_for(step_of_first):
                        await asyncio.sleep(0.01)
                    await redis.ask("FLUSHALL")
                    proxy.drop_replies = 1
                return await super().verify(epoch)

        second._recovery._registrar = Unheard(second)
        await money.store.rebuild("a test")
        async with asyncio.timeout(10):
            while looked < 2 or any(store.problem for store in money.stores):
                await asyncio.sleep(0.01)
        assert proxy.dropped == 1
        assert await most(money) == 100
        assert (await state(money)).epoch == 3


async def test_a_loader_that_dies_hides_no_loss(redis: RedisServer, tmp_path: Path) -> None:
    """It looked, everything was lost, it came to make the account anew, and never said so."""
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        kept = await money.reserve(800)
        await money.store.rebuild("a test")
        await until_open(*money.stores)
        dying = money.stores[1]
        dying._ledger = view = SqlLedgerView(money.database)
        really = view.guard

        async def lose() -> GuardState | None:
            await redis.ask("FLUSHALL")
            return await really()

        async def die(epoch: int, reason: str) -> None:
            raise OSError("killed")

        view.guard = lose  # type: ignore[method-assign]
        dying._recovery.lost = die  # type: ignore[method-assign]
        with pytest.raises(GuardUnavailableError):
            await money.reserve(900, store=dying)
        assert await most(money) == 200
        assert (await state(money)).epoch == 3
        assert kept in await held(redis)


async def test_who_is_first_to_bring_an_account_and_dies_costs_a_recovery_and_no_more(
    redis: RedisServer, tmp_path: Path
) -> None:
    """Nobody can tell its account from one that was lost."""
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        assert await money.ledger.raise_guard_epoch(["alice"], 1) == {"alice"}
        assert await most(money) == 1_000
        assert (await state(money)).epoch == 2


async def test_a_process_under_a_new_id_hides_no_loss(redis: RedisServer, tmp_path: Path) -> None:
    """It brings its holds where nobody waits for them, and finds that others' are gone."""
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        await money.reserve(800)
        renamed = money.stores[1]
        await money.reserve(100, store=renamed)
        async with money.database.write() as connection:
            values = {"process": "reborn", "started_at": T0, "heartbeat_at": T0}
            await connection.execute(processes.insert().values(**values))
        await money.declare_dead(renamed)
        await redis.ask("FLUSHALL")
        renamed.process = "reborn"
        await renamed._recovery.look()
        await until_open(*money.stores)
        assert await most(money) == 100
        assert (await state(money)).epoch == 2


async def test_what_was_allowed_without_redis_hides_no_loss(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with Proxy(redis.port) as proxy, guards(redis, tmp_path) as money:
        await money.buy(1_000)
        cut_off = await money.add(url=proxy.url, allow=50)
        await money.reserve(800)
        proxy.target = free_port()
        proxy.cut()
        await money.reserve(50, store=cut_off)
        assert cut_off._unheld
        await redis.ask("FLUSHALL")
        proxy.target = redis.port
        async with asyncio.timeout(10):
            while cut_off._unheld or any(store.problem for store in money.stores):
                await asyncio.sleep(0.01)
        assert await most(money) == 150
        assert (await state(money)).epoch == 2


async def test_scripts_that_are_lost_in_a_recovery_come_back(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(800)
        await redis.ask("SCRIPT", "FLUSH")
        await money.store.rebuild("a test")
        await until_open(money.store)
        assert await most(money) == 200


async def held_or_nothing(redis: RedisServer) -> object:
    return await redis.ask("HLEN", keys_of("alice")[1])


async def test_apply_between_registration_and_load(redis: RedisServer, tmp_path: Path) -> None:
    """A charge settled after the account's snapshot and before its load must not be forgotten."""
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        ending = await money.reserve(300)
        await money.store.rebuild("a test")
        await until_open(money.store)
        old = await money.ledger.snapshot("alice", residuals_since=0)
        assert old is not None
        await money.finish(charge(ending, 250, ceiling=300))
        await money.settle()
        view = money.ledger.snapshot

        async def outdated(account: str, *, residuals_since: int) -> object:
            return old

        money.store._ledger.snapshot = outdated  # type: ignore[method-assign,assignment]
        assert await most(money) == 750
        money.store._ledger.snapshot = view  # type: ignore[method-assign]


async def test_a_restored_ledger_is_noticed_by_its_seq(redis: RedisServer, tmp_path: Path) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(300)
        ahead = Applied(account="alice", balance=5_000, seq=7, final_ids=(), estimates=())
        await money.store.apply([ahead])
        await money.store.resend()
        await until_open(money.store)
        assert (await state(money)).epoch == 2
        assert await most(money) == 700
        assert kept in await held(redis)


async def test_a_restored_ledger_is_noticed_by_its_epoch(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(300)
        await money.store.rebuild("a test")
        await until_open(money.store)
        await money.reserve(100)
        async with money.database.write() as connection:
            await connection.execute(delete(meta).where(meta.c.key == GUARD_KEY))
            await connection.execute(update(accounts).values(guard_epoch=0))
            await connection.execute(update(processes).values(guard_step=0))
        newcomer = await money.add()
        answer = await newcomer.reserve(hold(new_id(), minimum=1, wanted=10**6))
        assert answer == Granted(600)
        assert (await state(money)).epoch > 2


async def test_a_process_that_nobody_registered_admits_nobody(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        async with money.database.write() as connection:
            await connection.execute(delete(processes))
        money.store.process = "unheard of"
        await money.store.rebuild("a test")
        with pytest.raises(GuardUnavailableError):
            await money.reserve(1)


async def test_a_zombie_under_a_new_id_keeps_its_calls(redis: RedisServer, tmp_path: Path) -> None:
    """Declared dead while alive: estimate, residual, a loss of Redis, then the owner's final."""
    async with guards(redis, tmp_path, stores=2) as money:
        await money.buy(1_000)
        sweeper, zombie = money.stores
        kept = await money.reserve(100, store=zombie)
        await zombie.heartbeat([HoldBeat(kept, 100, 30)])
        await money.declare_dead(zombie)
        (orphan,) = await sweeper.held_by_others({sweeper.process}, 10)
        await money.hot.record(estimate(orphan.hold_id, orphan.progress))
        await money.settle()
        async with money.database.write() as connection:
            values = {"process": "reborn", "started_at": T0, "heartbeat_at": T0}
            await connection.execute(processes.insert().values(**values))
        zombie.process = "reborn"
        await redis.ask("FLUSHALL")
        await most(money)
        assert kept in await held(redis)
        alive = {sweeper.process, "reborn"}
        assert await sweeper.held_by_others(alive, 10) == []
        await money.finish(charge(kept, 90), zombie)
        await money.settle()
        assert kept not in await held(redis)
        assert (await money.ledger.balances(["alice"]))["alice"][0] == 910


async def test_the_database_away_hinders_only_what_must_be_loaded(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        for account in ("alice", "bob"):
            await money.buy(1_000, account=account)
        await money.reserve(100)

        class Away:
            def __getattr__(self, name: str) -> object:
                raise OSError("away")

        store = money.store
        store._ledger = Away()  # type: ignore[assignment]
        store._recovery._ledger = Away()  # type: ignore[assignment]
        await money.reserve(100)
        with pytest.raises(GuardUnavailableError):
            await money.reserve(100, account="bob")
        await redis.ask("FLUSHALL")
        with pytest.raises(GuardUnavailableError):
            await money.reserve(100)


async def test_guard_epochs_are_noted_before_holds_are_written(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(100)
        await money.store.rebuild("a test")
        await until_open(money.store)
        async with money.database.read() as connection:
            assert await connection.scalar(select(accounts.c.guard_epoch)) == 2
        # Registered, not loaded yet, and then gone: still a loss.
        await redis.ask("FLUSHALL")
        assert await most(money) == 900
        assert isinstance(await money.refusal(1), Refused)


async def test_ended_holds_of_accounts_that_nobody_uses_go_after_a_recovery(
    redis: RedisServer, tmp_path: Path
) -> None:
    """No call brings these accounts back in: their ended calls are told of even so."""
    async with guards(redis, tmp_path) as money:
        for account in ("alice", "bob"):
            await money.buy(1_000, account=account)
        settled, orphaned = await money.reserve(100), await money.reserve(100, account="bob")
        await money.finish(charge(settled, 40))
        await money.hot.record(estimate(orphaned, 30, account="bob"))
        money.store._mine.clear()
        await money.store.rebuild("a test")
        await until_open(money.store)
        await money.settle()
        assert await held(redis) == {settled: 100}
        await money.store.resend()
        assert await held(redis) == {}
        assert await held(redis, "bob") == {orphaned: 70}
        assert (await state(money)).epoch == 2


async def test_a_recovery_waits_for_no_process_that_cannot_hold(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(100)
        worker = await money.add(may_hold=False)
        await money.kill(worker)  # nobody knows yet
        await redis.ask("FLUSHALL")
        assert await most(money) == 900
        assert (await state(money)).epoch == 2


async def test_a_newcomer_finds_another_server_than_that_of_the_epoch(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    """Nobody who saw the restart lives; what waits for settlement is held all the same."""
    async with guards(own_redis, tmp_path) as money:
        await money.buy(1_000)
        await money.finish(charge(await money.reserve(300), 250, ceiling=300))
        old = money.store
        await money.kill(old)
        await money.declare_dead(old)
        own_redis.kill()
        await asyncio.to_thread(own_redis.start)
        await money.add()
        assert await most(money) == 750
        assert (await state(money)).epoch == 2


async def test_holds_are_written_only_once_the_database_knows_of_it(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        await money.reserve(100)
        await redis.ask("FLUSHALL")

        async def away(wanted: object, epoch: int) -> frozenset[str]:
            raise OSError("away")

        money.store._ledger.raise_guard_epoch = away  # type: ignore[method-assign]
        with pytest.raises(OSError, match="away"):
            await money.store.register(1)
        assert await redis.ask("DBSIZE") == 0


@pytest.mark.parametrize("when", ["before the mark", "after the mark"])
async def test_a_loss_while_an_account_is_loaded(
    redis: RedisServer, tmp_path: Path, when: str
) -> None:
    """Registered holds vanish while somebody reads the ledger: nobody is admitted without them."""
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        kept = await money.reserve(800)
        await money.store.rebuild("a test")
        await until_open(money.store)
        lost = False
        name = "guard" if when == "before the mark" else "snapshot"
        really = getattr(money.store._ledger, name)

        async def lose(*words: object, **named: object) -> object:
            nonlocal lost
            if not lost:
                lost = True
                await redis.ask("FLUSHALL")
            return await really(*words, **named)

        setattr(money.store._ledger, name, lose)
        assert await most(money) == 200
        assert (await state(money)).epoch == 3
        assert kept in await held(redis)


async def test_a_load_without_its_mark_is_refused(redis: RedisServer, tmp_path: Path) -> None:
    """A loader that was stopped for long comes with an old balance: onto nothing, or another's mark."""
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        mark, load = SOURCES[Script.MARK], SOURCES[Script.LOAD]
        keys = keys_of("alice")
        assert await redis.ask("EVAL", load, 2, *keys, 1, "old", 5_000, 1) == -1
        assert await redis.ask("EVAL", mark, 2, *keys, 1, "old", 0) == -1
        assert await redis.ask("EXISTS", *keys) == 0
        assert await redis.ask("EVAL", mark, 2, *keys, 1, "old", 1) == 0
        assert await redis.ask("EVAL", mark, 2, *keys, 1, "new", 0) == 1
        assert await redis.ask("EVAL", load, 2, *keys, 1, "old", 5_000, 1) == -1
        assert await redis.ask("EVAL", mark, 2, *keys, 2, "later", 0) == -1
        assert await redis.ask("EVAL", mark, 2, *keys, 2, "later", 1) == 0
        assert await redis.ask("EVAL", mark, 2, *keys, 1, "new", 1) == -2
        assert await redis.ask("EVAL", load, 2, *keys, 1, "new", 5_000, 1) == -2
        assert await redis.ask("HEXISTS", keys[0], "balance") == 0


async def test_a_settlement_between_mark_and_load_is_not_undone(
    redis: RedisServer, tmp_path: Path
) -> None:
    """The account was of an older epoch, and of an estimate only the residual stays."""
    async with guards(redis, tmp_path) as money:
        await money.buy(1_000)
        orphaned = await money.reserve(100)
        money.store._mine.clear()
        await money.store.rebuild("a test")
        await until_open(money.store)
        view = money.store._ledger.snapshot

        async def then_settle(account: str, *, residuals_since: int) -> object:
            money.store._ledger.snapshot = view  # type: ignore[method-assign]
            found = await view(account, residuals_since=residuals_since)
            await money.hot.record(estimate(orphaned, 30))
            await money.settle()
            return found

        money.store._ledger.snapshot = then_settle  # type: ignore[method-assign,assignment]
        assert await most(money) == 1_000 - 30 - 70


async def test_a_drop_goes_on_until_redis_has_answered(redis: RedisServer, tmp_path: Path) -> None:
    """What was asked before Redis was away may be done once it is back, however long that takes."""
    async with Proxy(redis.port) as proxy, guards(proxy.url, tmp_path) as money:
        await money.buy(1_000)
        late = await money.reserve(100)
        proxy.target = free_port()
        proxy.cut()
        async with asyncio.timeout(5):
            while money.store._line.connection is not None:
                await asyncio.sleep(0)
        money.store._drop("alice", late, (0.0, 0.0))
        for _ in range(10):
            await asyncio.sleep(0)
        proxy.target = redis.port
        async with asyncio.timeout(10):
            while await held(redis):
                await asyncio.sleep(0.01)
