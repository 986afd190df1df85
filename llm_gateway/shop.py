"""The credit store of a process: products, orders and how they are paid, rewards, corrections."""

from collections.abc import Callable

import msgspec

from billing.books import PriceBooks
from billing.corrections import Corrections
from billing.db.hot import HotDatabase
from billing.db.session import Database
from billing.holds import HoldStore
from billing.rerating.runs import Runs
from billing.shop.orders import Orders
from billing.shop.postings import OnPosted
from billing.shop.products import Products
from billing.shop.rewards import RewardRules, Rewards
from llm_gateway.payments.checkout import Checkout, payment_modes


class Shop(msgspec.Struct, frozen=True, kw_only=True):
    """What the store's addresses work on."""

    products: Products
    orders: Orders
    checkout: Checkout
    reward_rules: RewardRules
    rewards: Rewards
    corrections: Corrections
    rerating: Runs  # its own chore carries it on, for that may take long

    async def resume(self) -> None:
        """Carry out what was decided and, after a crash, not posted."""
        await self.orders.resume()
        await self.rewards.resume()
        await self.corrections.resume()


def open_shop(  # noqa: PLR0913 - what it stands on, each by name
    database: Database,
    hot: HotDatabase,
    books: PriceBooks,
    *,
    holds: HoldStore,
    process: Callable[[], str],
    now_ms: Callable[[], int],
    new_id: Callable[[int], str],
    on_posted: OnPosted | None = None,
    call_seconds_max: float = 3600,
    mock_payments: bool = False,
) -> Shop:
    """The store on a database. `holds`, `process`: see Corrections; `mock_payments`: for development."""
    orders = Orders(database, hot, now_ms=now_ms, new_id=new_id, on_posted=on_posted)
    return Shop(
        products=Products(database, now_ms=now_ms, new_id=new_id),
        orders=orders,
        checkout=Checkout(orders, payment_modes(mock=mock_payments)),
        reward_rules=RewardRules(database, now_ms=now_ms, new_id=new_id),
        rewards=Rewards(database, hot, now_ms=now_ms, on_posted=on_posted),
        corrections=Corrections(
            database,
            hot,
            holds=holds,
            process=process,
            now_ms=now_ms,
            new_id=new_id,
            on_posted=on_posted,
            call_seconds_max=call_seconds_max,
        ),
        rerating=Runs(
            database,
            hot,
            books,
            holds=holds,
            process=process,
            now_ms=now_ms,
            new_id=new_id,
            on_posted=on_posted,
        ),
    )
