"""Any sequence of orders, payments, crashes, cancellations and resumptions: credited is what was paid, once."""

import asyncio
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from billing.failpoints import hooks
from billing.shop.orders import NewOrder, OrderConflictError, TransitionRefusedError
from billing.shop.products import Product, ProductChange
from tests.support.migrated import migrated
from tests.support.money import violations
from tests.support.shop import ADMIN, Gone, Shop, end

ACCOUNTS = ("ada", "bob")
POINTS = ("order_paid", "order_posted")


@dataclass
class Known:
    """What an order must be."""

    account: str
    credit: int
    content: tuple[str, int]
    status: str = "pending"
    posted: bool = False


class OrdersMachine(RuleBasedStateMachine):
    """The store against a dictionary."""

    orders = Bundle("orders")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.path = migrated(self.directory)
        self.runner = asyncio.Runner()
        self.shop = self.runner.run(self._open())
        self.products: list[Product] = [
            self.runner.run(self.shop.product(credit_amount=amount)) for amount in (7, 1_000)
        ]
        self.known: dict[str, Known] = {}
        self.by_key: dict[tuple[str, str], str] = {}

    async def _open(self) -> Shop:
        shop = Shop(self.path)
        await shop.hot.start()
        return shop

    async def _close(self) -> None:
        await self.shop.hot.close()
        await self.shop.database.dispose()

    def teardown(self) -> None:
        self.runner.run(self._close())
        self.runner.close()
        found = violations(self.path)
        shutil.rmtree(self.directory)
        assert found == []

    @rule(
        target=orders,
        account=st.sampled_from(ACCOUNTS),
        which=st.integers(0, 1),
        quantity=st.integers(1, 3),
        key=st.sampled_from([None, "k1", "k2"]),
    )
    def order(self, account: str, which: int, quantity: int, key: str | None) -> str:
        product = self.products[which]
        new = NewOrder(
            account=account,
            product_id=product.product_id,
            quantity=quantity,
            idempotency_key=key,
        )
        content = (product.product_id, quantity)
        there = self.by_key.get((account, key)) if key else None
        if there is not None and self.known[there].content != content:
            with pytest.raises(OrderConflictError):
                self.runner.run(self.shop.orders.create(new))
            return there
        done = self.runner.run(self.shop.orders.create(new))
        order_id = done.order.order_id
        assert done.repeated == (there is not None)
        if there is not None:
            assert order_id == there
            return there
        self.known[order_id] = Known(account, product.credit_amount * quantity, content)
        if key:
            self.by_key[account, key] = order_id
        return order_id

    @rule(which=st.integers(0, 1), amount=st.integers(1, 9))
    def change_product(self, which: int, amount: int) -> None:
        change = ProductChange(credit_amount=amount, price_cent=amount)
        product_id = self.products[which].product_id
        self.products[which] = self.runner.run(
            self.shop.products.update(product_id, change, actor=ADMIN)
        )

    @rule(order_id=orders, at_once=st.integers(1, 3))
    def pay(self, order_id: str, at_once: int) -> None:
        known = self.known[order_id]

        async def all_at_once() -> list[object]:
            pays = (self.shop.orders.pay(order_id, paid_by=ADMIN) for _ in range(at_once))
            return list(await asyncio.gather(*pays, return_exceptions=True))

        done = self.runner.run(all_at_once())
        if known.status == "cancelled":
            assert {type(each) for each in done} == {TransitionRefusedError}
        else:
            known.status, known.posted = "credited", True

    @rule(order_id=orders, point=st.sampled_from(POINTS))
    def die_while_paying(self, order_id: str, point: str) -> None:
        known = self.known[order_id]
        hooks[point] = end
        try:
            with suppress(Gone, TransitionRefusedError):
                self.runner.run(self.shop.orders.pay(order_id, paid_by=ADMIN))
        finally:
            hooks.clear()
        if known.status in {"pending", "paid"}:
            known.status = "paid"
            known.posted = known.posted or point == "order_posted"

    @rule(order_id=orders)
    def cancel(self, order_id: str) -> None:
        known = self.known[order_id]
        work = self.shop.orders.cancel(order_id, cancelled_by=ADMIN)
        if known.status == "pending":
            self.runner.run(work)
            known.status = "cancelled"
            return
        with pytest.raises(TransitionRefusedError, match=f"is {known.status} cannot become"):
            self.runner.run(work)

    @precondition(lambda self: any(known.status == "paid" for known in self.known.values()))
    @rule()
    def resume(self) -> None:
        waiting = [known for known in self.known.values() if known.status == "paid"]
        assert self.runner.run(self.shop.orders.resume()) == len(waiting)
        for known in waiting:
            known.status, known.posted = "credited", True

    @invariant()
    def credited_is_what_was_paid(self) -> None:
        for account in ACCOUNTS:
            posted = [
                known.credit
                for known in self.known.values()
                if known.account == account and known.posted
            ]
            found = self.runner.run(self.shop.account(account))
            assert (found.balance, found.total_recharged) == (sum(posted), sum(posted))
            assert found.seq == len(posted)

    @invariant()
    def every_order_is_where_it_was_brought(self) -> None:
        rows = self.runner.run(
            self.shop.rows("SELECT order_id, status, credit_amount, account FROM orders")
        )
        assert {row[0]: row[1:] for row in rows} == {
            order_id: (known.status, known.credit, known.account)
            for order_id, known in self.known.items()
        }


def test_any_sequence() -> None:
    run_state_machine_as_test(
        OrdersMachine, settings=settings(max_examples=30, stateful_step_count=25, deadline=None)
    )
