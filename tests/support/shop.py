"""The credit store on either engine: its clock stands where the test puts it; its invariants are checked at the end."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from itertools import count, cycle, islice

from sqlalchemy import text

from billing.accounts import AccountInfo, Accounts
from billing.books import PriceBooks
from billing.corrections import Corrections
from billing.db import engine as engines
from billing.db.session import Database
from billing.events import Finish
from billing.holds import HoldStore
from billing.holds.database import DatabaseHoldStore
from billing.rerating.runs import Runs
from billing.settlement.reconcile import Reconciler
from billing.shop.orders import NewOrder, Order, Orders
from billing.shop.products import NewProduct, Product, Products
from billing.shop.rewards import RewardRules, Rewards
from llm_gateway import clock
from tests.support.money import (
    PATIENT_SECONDS,
    T0,
    Place,
    charge,
    hold,
    purchase,
    url_of,
    violations,
)

CREDIT = 1_000_000  # micro-credits
PROCESS = "process-of-the-test"
ADMIN = "ops"

_numbers = count(1)


class Shop:
    """One process of the store: a database, a hot database, and all that moves money on them."""

    def __init__(self, place: Place, *, now: int = T0) -> None:
        self.place = place
        self.now = now
        self.told: list[str] = []  # the accounts that the guard was told of
        url = url_of(place)
        self.database = Database(url)
        self.hot = engines.hot_database(url, clock=lambda: self.now, answer_seconds=PATIENT_SECONDS)
        self.holds: HoldStore = DatabaseHoldStore(self.hot)
        self.accounts = Accounts(self.database, self.hot, now_ms=self.now_ms)
        self.reconciler = Reconciler(self.database, now_ms=self.now_ms)
        self.products = Products(self.database, now_ms=self.now_ms, new_id=clock.new_event_id)
        self.orders = Orders(
            self.database,
            self.hot,
            now_ms=self.now_ms,
            new_id=clock.new_event_id,
            on_posted=self._tell,
        )
        self.rules = RewardRules(self.database, now_ms=self.now_ms, new_id=clock.new_event_id)
        self.rewards = Rewards(self.database, self.hot, now_ms=self.now_ms, on_posted=self._tell)
        self.corrections = self.corrections_with(self.holds)
        self.books = PriceBooks(
            self.database, now_ms=self.now_ms, monotonic=lambda: self.now / 1000
        )
        self.rerating = self.rerating_with(self.holds)

    def now_ms(self) -> int:
        return self.now

    def corrections_with(self, holds: HoldStore) -> Corrections:
        return Corrections(
            self.database,
            self.hot,
            holds=holds,
            process=lambda: PROCESS,
            now_ms=self.now_ms,
            new_id=clock.new_event_id,
            on_posted=self._tell,
        )

    def rerating_with(self, holds: HoldStore, calls_at_once: int = 3) -> Runs:
        """Runs of re-rating, so few calls on a page that every test has several."""
        return Runs(
            self.database,
            self.hot,
            self.books,
            holds=holds,
            process=lambda: PROCESS,
            now_ms=self.now_ms,
            new_id=clock.new_event_id,
            on_posted=self._tell,
            calls_at_once=calls_at_once,
        )

    async def _tell(self, accounts: Collection[str]) -> None:
        self.told += accounts

    # -- what tests begin with -----------------------------------------------------------------

    async def product(self, **fields: object) -> Product:
        """Ten credits for ¥9.90, unless told otherwise."""
        values: dict[str, object] = {
            "sku": f"credits-{next(_numbers)}",
            "name": "Ten credits",
            "credit_amount": 10 * CREDIT,
            "price_cent": 990,
            "currency": "CNY",
        }
        return await self.products.create(NewProduct(**(values | fields)), actor=ADMIN)  # type: ignore[arg-type]

    async def order(self, product: Product, account: str = "ada", **fields: object) -> Order:
        new = NewOrder(account=account, product_id=product.product_id, **fields)  # type: ignore[arg-type]
        return (await self.orders.create(new)).order

    async def bought(self, amount: int, account: str = "ada") -> Order:
        """An order of `amount` micro-credits, paid and credited."""
        order = await self.order(await self.product(credit_amount=amount), account)
        return (await self.orders.pay(order.order_id, paid_by=ADMIN)).order

    async def give(self, amount: int, account: str = "ada") -> None:
        await self.hot.post([purchase(amount, account=account)])

    async def call(self, amount: int, account: str = "ada") -> str:
        """A call that was charged; its id."""
        return await self.settled(charge(self.new_id(), amount, account=account))

    async def settled(self, finish: Finish) -> str:
        event = finish.event
        await self.hot.reserve(hold(event.context.event_id, account=event.context.account))
        await self.hot.record(finish)
        await self.hot.settle_pending(100)
        return event.context.event_id

    def new_id(self) -> str:
        return clock.new_event_id(self.now)

    # -- what tests look at --------------------------------------------------------------------

    async def account(self, account: str = "ada") -> AccountInfo:
        return await self.accounts.read(account)

    async def entries(self, like: str = "%") -> list[tuple[str, int]]:
        """Event id and amount of the entries, by id."""
        rows = await self.rows(
            "SELECT event_id, amount FROM ledger_entries WHERE event_id LIKE :like ORDER BY 1",
            like=like,
        )
        return [(str(event_id), int(str(amount))) for event_id, amount in rows]

    async def rows(self, query: str, **values: object) -> list[tuple[object, ...]]:
        async with self.database.read() as connection:
            return [tuple(row) for row in (await connection.execute(text(query), values)).all()]

    async def change(self, statement: str, **values: object) -> None:
        async with self.database.write() as connection:
            await connection.execute(text(statement), values)

    async def wrong(self) -> list[str]:
        """The checks that found something, one by one with the ids."""
        report = await self.reconciler.run()
        assert not any(finding.error for finding in report.findings), report
        return [f"{each.check} {one.id}" for each in report.findings for one in each.examples]


@asynccontextmanager
async def open_shop(place: Place, *, check: bool = True) -> AsyncIterator[Shop]:
    """A store on a migrated database."""
    shop = Shop(place)
    await shop.hot.start()
    try:
        yield shop
    finally:
        await shop.hot.close()
        await shop.database.dispose()
    if check:
        assert await asyncio.to_thread(violations, place) == []


@asynccontextmanager
async def many_shops(place: Place, number: int) -> AsyncIterator[list[Shop]]:
    """As many processes on one database, each with connections of its own.

    On SQLite, which takes one writer at a time and lets the others wait for two seconds at most, they
    are a few, named over and over: more are no case of the product's, and a slow disk's undoing.
    """
    own = [Shop(place) for _ in range(number if isinstance(place, str) else min(number, 3))]
    for shop in own:
        await shop.hot.start()
        # Connections are opened at first use, and forty at once are a rush that no process makes.
        await shop.hot.release("nothing")
        await shop.hot.post([])
    try:
        yield [*islice(cycle(own), number)]
    finally:
        for shop in own:
            await shop.hot.close()
            await shop.database.dispose()


class Gone(BaseException):
    """As if the process had ended here."""


def end() -> None:
    """A hook for billing.failpoints."""
    raise Gone


async def die(place: Place, point: str, act: str, what: str) -> None:
    """Do an act in a process that is killed at a point: see tests.support.doomed_shop."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.doomed_shop", url_of(place), point, act, what,
        stdout=asyncio.subprocess.DEVNULL, env=dict(os.environ),
    )  # fmt: skip
    assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL
