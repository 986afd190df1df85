"""Three processes' calls while Redis is flushed, cut off and forgets its scripts: nobody spends credit twice."""

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import pytest

from billing.holds import Granted, GuardUnavailableError, HoldBeat
from billing.holds.redis import RedisHoldStore
from tests.support.money import cancelled, charge, hold, new_id
from tests.support.redis_guard import Guards, guards, held, until_open
from tests.support.redis_server import Proxy, RedisServer

BOUGHT = 5_000
CALLS = 200


class Load:
    """Calls, and what they hold or will have cost, as somebody knows who is told everything.

    `owed`: of a running call what it holds, and from the moment it is known what it costs. Not later:
    while its owner still waits for the database, the rest may be granted to others already.
    """

    def __init__(self, money: Guards, dice: random.Random) -> None:
        self.money = money
        self.dice = dice
        self.owed: dict[str, int] = {}

    def granted(self, hold_id: str, amount: int) -> None:
        self.owed[hold_id] = amount
        assert sum(self.owed.values()) <= BOUGHT

    async def call(self, store: RedisHoldStore) -> None:
        hold_id, wanted = new_id(), self.dice.randint(20, 300)
        asked = hold(hold_id, minimum=1, wanted=wanted, process=store.process)
        with suppress(GuardUnavailableError):
            answer = await store.reserve(asked)
            if isinstance(answer, Granted):
                self.granted(hold_id, answer.amount)
                await self.run(store, hold_id)

    async def run(self, store: RedisHoldStore, hold_id: str) -> None:
        await asyncio.sleep(self.dice.random() * 0.3)
        with suppress(GuardUnavailableError):
            if self.dice.random() < 0.2:
                answer = await store.extend(hold_id, self.owed[hold_id] + 50)
                if isinstance(answer, Granted):
                    self.granted(hold_id, answer.amount)
            await store.heartbeat([HoldBeat(hold_id, self.owed[hold_id], 1)])
        amount = self.owed[hold_id]
        if self.dice.random() < 0.2:
            self.owed[hold_id] = 0
            finish = cancelled(hold_id)
            await self.money.hot.cancel(finish)
            store.recorded(finish)
        else:
            self.owed[hold_id] = cost = self.dice.randint(0, amount)
            await self.money.finish(charge(hold_id, cost, ceiling=amount), store)

    async def settle(self) -> None:
        """Batches; three in ten are never told to Redis, some twice."""
        while True:
            report = await self.money.hot.settle_pending(50)
            if self.dice.random() < 0.7:
                for _ in range(self.dice.choice((1, 1, 2))):
                    with suppress(GuardUnavailableError):
                        await self.money.store.apply(report.applied)
            await asyncio.sleep(0.01)

    async def break_things(self, redis: RedisServer, proxy: Proxy) -> None:
        while True:
            await asyncio.sleep(self.dice.random() * 0.6)
            match self.dice.choices(("flush", "drop", "cut", "scripts", "resend"), (7, 5, 4, 2, 2)):
                case ["flush"]:
                    await redis.ask("FLUSHALL")
                case ["drop"]:
                    proxy.drop_replies = self.dice.randint(1, 3)
                case ["cut"]:
                    proxy.cut()
                case ["scripts"]:
                    await redis.ask("SCRIPT", "FLUSH")
                case _:
                    with suppress(GuardUnavailableError):
                        await self.money.stores[1].resend()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(3))
async def test_no_credit_is_spent_twice(redis: RedisServer, tmp_path: Path, seed: int) -> None:
    async with Proxy(redis.port) as proxy, guards(proxy.url, tmp_path, stores=3) as money:
        await money.buy(BOUGHT)
        load = Load(money, random.Random(seed))
        others = [
            asyncio.create_task(load.settle()),
            asyncio.create_task(load.break_things(redis, proxy)),
        ]
        async with asyncio.TaskGroup() as calls:
            for number in range(CALLS):
                calls.create_task(load.call(money.stores[number % 3]))
                await asyncio.sleep(0.01)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        proxy.drop_replies = 0
        await money.hot.settle_pending(500)
        await until_open(*money.stores)
        spent = sum(load.owed.values())
        assert (await money.ledger.balances(["alice"]))["alice"][0] == BOUGHT - spent
        await money.refusal(10**9)  # loads the account if need be
        # What was asked by a call that gave up is dropped at once, and again after 5 and 30 seconds.
        async with asyncio.timeout(60):
            while await held(redis):
                await money.store.resend()
                await asyncio.sleep(0.05)
