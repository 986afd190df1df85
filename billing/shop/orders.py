"""Orders: what an account buys, frozen when it is ordered; paid once, credited once, or cancelled.

An order moves by the table of transitions, each in a transaction of its own. Between being paid and
being credited lies the posting of the ledger's entry, whose event id is the order's: whoever comes
again, after a crash or at the same time, posts the same entry and goes on.
"""

import datetime as dt
import hashlib
import os
from collections.abc import Callable
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import ledger
from billing.accounts import (
    ACCOUNT_ID_RULE,
    EntryConflictError,
    EntryRefusedError,
    is_account_id,
)
from billing.audit import Act, Detail, note
from billing.db.hot import HotDatabase
from billing.db.pages import each_row, read_page
from billing.db.session import Database
from billing.db.tables import orders
from billing.failpoints import reach
from billing.kinds import QUANTITY_MAX, OrderStatus
from billing.lists import Page, PageRequest
from billing.shop.fields import KEY_MAX, TEXT_MAX, Fields
from billing.shop.locks import lock_account
from billing.shop.postings import OnPosted, post_one
from billing.shop.prices import price_text
from billing.shop.products import Product, read_product
from billing.shop.rows import fields_of

PENDING_MAX: Final = (
    100  # of an account: whoever orders pays nothing yet, and each is a row for ever
)


TRANSITIONS: Final[dict[OrderStatus, frozenset[OrderStatus]]] = {
    OrderStatus.PENDING: frozenset({OrderStatus.PAID, OrderStatus.CANCELLED}),
    OrderStatus.PAID: frozenset({OrderStatus.CREDITED}),
    OrderStatus.CREDITED: frozenset(),
    OrderStatus.CANCELLED: frozenset(),
}


class NewOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be ordered. The same key with the same content is the same order."""

    account: str  # needs no row yet
    product_id: str
    quantity: int = 1
    payment_mode: str = "manual"
    idempotency_key: str | None = None


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """That an order was paid, as a payment mode or an administrator confirms it."""

    payment_ref: str = ""  # the payment's id where the money was taken
    amount_cent: int | None = None  # what was paid; None: nobody counted, an admin's word
    currency: str | None = None


UNCOUNTED: Final = Payment()


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An order as it stands."""

    order_id: str
    order_no: str
    account: str
    product_id: str
    product_snapshot: Product  # as it was when it was ordered
    product_name: str
    quantity: int
    credit_amount: int  # micro-credits, of the whole order
    amount_cent: int  # the price of the whole order
    currency: str
    payment_mode: str
    status: OrderStatus
    created_at: int  # milliseconds since the epoch
    paid_at: int | None
    credited_at: int | None
    cancelled_at: int | None
    created_by: str
    paid_by: str | None
    payment_ref: str | None

    @property
    def price_text(self) -> str:
        """The price of the whole order, as it is shown."""
        return price_text(self.amount_cent, self.currency)

    @property
    def event_id(self) -> str:
        """The id of its entry in the ledger."""
        return credit_event_id(self.order_id)


class OrderDone(msgspec.Struct, frozen=True, kw_only=True):
    """The order; `repeated`: it was like this before."""

    order: Order
    repeated: bool


class UnknownOrderError(Exception):
    """There is no such order, or it is another account's."""


class ProductUnavailableError(Exception):
    """The product is not for sale."""


class OrderConflictError(Exception):
    """The idempotency key stands for another order."""


class TooManyPendingError(Exception):
    """The account has as many unpaid orders as it may have."""


class TransitionRefusedError(Exception):
    """The order does not go from one state to the other."""

    def __init__(self, was: OrderStatus, wanted: OrderStatus) -> None:
        super().__init__(f"an order that is {was} cannot become {wanted}")
        self.was = was
        self.wanted = wanted


class PaymentMismatchError(Exception):
    """What was paid is not what the order costs, or it is another payment than that of before."""


def credit_event_id(order_id: str) -> str:
    """The event id of the entry that credits an order."""
    return f"credit-order:{order_id}:paid"


def check_transition(was: OrderStatus, wanted: OrderStatus) -> None:
    """Raise TransitionRefusedError unless the table has it."""
    if wanted not in TRANSITIONS[was]:
        raise TransitionRefusedError(was, wanted)


class Orders:
    """All orders of one database. `new_id` makes a UUIDv7 at a time in milliseconds."""

    def __init__(
        self,
        database: Database,
        hot: HotDatabase,
        *,
        now_ms: Callable[[], int],
        new_id: Callable[[int], str],
        on_posted: OnPosted | None = None,
    ) -> None:
        """`on_posted` is told the accounts whose balance changed: a guard with balances of its own."""
        self._database = database
        self._hot = hot
        self._now_ms = now_ms
        self._new_id = new_id
        self._on_posted = on_posted

    async def create(self, new: NewOrder, *, created_by: str = "") -> OrderDone:
        """Order a product; with an idempotency key, once.

        Raises InvalidFieldsError, UnknownProductError, ProductUnavailableError,
        TooManyPendingError, and OrderConflictError if the key was used for something else.
        """
        _check(new)
        digest = _digest(new)
        async with self._database.write() as connection:
            if (found := await _by_key(connection, new)) is not None:
                return _repeated(found, digest)
            product = await _product_for_sale(connection, new.product_id)
            await _refuse_too_many(connection, new)
            now_ms = self._now_ms()
            values = _values(new, product, self._new_id(now_ms), now_ms)
            values |= {"request_hash": digest, "created_by": created_by}
            into = (
                _insert(connection)
                .values(**values)
                .on_conflict_do_nothing(index_elements=["account", "idempotency_key"])
            )
            if (await connection.execute(into)).rowcount == 1:
                order = await _read(connection, str(values["order_id"]))
                return OrderDone(order=order, repeated=False)
            # Somebody else ordered under this key since we looked; it is committed by now.
            found = await _by_key(connection, new)
            assert found is not None, "only a key that is taken keeps an order from being written"
            return _repeated(found, digest)

    async def pay(
        self, order_id: str, payment: Payment = UNCOUNTED, *, paid_by: str, admin: bool = True
    ) -> OrderDone:
        """Note that an order is paid, and credit it; again, or at once by many: credited once.

        `paid_by` is an administrator's name, in the audit trail, or (`admin` False) whatever else
        confirmed the payment. Raises UnknownOrderError, TransitionRefusedError (cancelled),
        PaymentMismatchError, EntryRefusedError and EntryConflictError (it stays paid), and
        DatabaseUnavailableError (then ask again).
        """
        _check_payment(payment)
        async with self._database.write() as connection:
            order = await _locked(connection, order_id)
            repeated = order.status is OrderStatus.CREDITED
            if order.status is OrderStatus.CANCELLED:
                raise TransitionRefusedError(order.status, OrderStatus.PAID)
            _check_amount(order, payment)
            if order.status is not OrderStatus.PENDING:
                _check_same(order, payment)
            else:
                order = await self._move(
                    connection,
                    order,
                    OrderStatus.PAID,
                    paid_by=paid_by,
                    payment_ref=payment.payment_ref.strip() or None,
                )
                if admin:
                    act = _act(paid_by, "order.pay", order, payment_ref=order.payment_ref)
                    await note(connection, act, self._now_ms())
        reach("order_paid")
        return OrderDone(order=await self._credit(order), repeated=repeated)

    async def cancel(
        self, order_id: str, *, account: str | None = None, cancelled_by: str, admin: bool = True
    ) -> Order:
        """Cancel an order that is not paid; `account`: only if it is this one's.

        Raises UnknownOrderError, TransitionRefusedError.
        """
        async with self._database.write() as connection:
            order = await _locked(connection, order_id)
            if account is not None and order.account != account:
                raise UnknownOrderError
            order = await self._move(connection, order, OrderStatus.CANCELLED)
            if admin:
                await note(connection, _act(cancelled_by, "order.cancel", order), self._now_ms())
        return order

    async def get(self, order_id: str, *, account: str | None = None) -> Order:
        """An order; raises UnknownOrderError, also if it is not this account's."""
        async with self._database.read() as connection:
            order = await _read(connection, order_id)
        if account is not None and order.account != account:
            raise UnknownOrderError
        return order

    async def page(
        self, request: PageRequest, *, account: str | None = None, status: str = ""
    ) -> Page[Order]:
        """Orders, newest first, of one account or of all. By page number only."""
        conditions: list[ColumnElement[bool]] = []
        if account is not None:
            conditions.append(orders.c.account == account)
        if status:
            conditions.append(orders.c.status == status)
        wanted = select(orders).where(*conditions).order_by(orders.c.order_id.desc())
        return await read_page(self._database, wanted, request, _order)

    async def resume(self) -> int:
        """Credit orders that were paid and, after a crash, not credited; how many.

        For a start and once in a while after it; one that is refused does not hold up the others.
        """
        waiting = select(orders).where(orders.c.status == OrderStatus.PAID)
        credited = 0
        async for row in each_row(self._database, waiting, orders.c.order_id):
            try:
                await self._credit(_order(row))
            except (EntryRefusedError, EntryConflictError):
                continue
            credited += 1
        return credited

    async def _credit(self, order: Order) -> Order:
        """From paid to credited; nothing to do for one that is credited."""
        if order.status is OrderStatus.CREDITED:
            return order
        await post_one(self._hot, credit_entry(order), self._on_posted)
        reach("order_posted")
        async with self._database.write() as connection:
            now = await _locked(connection, order.order_id)
            if now.status is OrderStatus.CREDITED:
                return now
            return await self._move(connection, now, OrderStatus.CREDITED)

    async def _move(
        self,
        connection: AsyncConnection,
        order: Order,
        to: OrderStatus,
        **values: str | None,
    ) -> Order:
        """One transition of an order that is locked; raises TransitionRefusedError."""
        check_transition(order.status, to)
        moved = update(orders).where(
            orders.c.order_id == order.order_id, orders.c.status == order.status
        )
        done = await connection.execute(
            moved.values(status=to, **{f"{to}_at": self._now_ms()}, **values)
        )
        assert done.rowcount == 1, "the order is locked"
        return await _read(connection, order.order_id)


def credit_entry(order: Order) -> ledger.Entry:
    """The entry that credits an order."""
    metadata = {"order_no": order.order_no, "sku": order.product_snapshot.sku}
    return ledger.Entry(
        event_id=order.event_id,
        account=order.account,
        source="purchase",
        direction=ledger.INCOME,
        amount=order.credit_amount,
        order_id=order.order_id,
        description=order.product_name,
        metadata_json=msgspec.json.encode(metadata | {"quantity": order.quantity}).decode(),
    )


def order_no(at_ms: int) -> str:
    """A number for people: `CS`, the UTC time to the second, 32 random hex digits."""
    moment = dt.datetime.fromtimestamp(at_ms // 1000, dt.UTC)
    return f"CS{moment:%Y%m%d%H%M%S}{os.urandom(16).hex()}"


def _values(new: NewOrder, product: Product, order_id: str, now_ms: int) -> dict[str, object]:
    credit_amount = product.credit_amount * new.quantity
    amount_cent = product.price_cent * new.quantity
    fields = Fields()
    fields.check(
        "quantity",
        f"the order would pass {ledger.AMOUNT_MAX} micro-credits or cents",
        ok=max(credit_amount, amount_cent) <= ledger.AMOUNT_MAX,
    )
    fields.done()
    return {
        "order_id": order_id,
        "order_no": order_no(now_ms),
        "account": new.account,
        "product_id": product.product_id,
        "product_snapshot": msgspec.json.encode(product).decode(),
        "product_name": product.name,
        "quantity": new.quantity,
        "credit_amount": credit_amount,
        "amount_cent": amount_cent,
        "currency": product.currency,
        "payment_mode": new.payment_mode,
        "status": OrderStatus.PENDING,
        "idempotency_key": new.idempotency_key,
        "created_at": now_ms,
    }


def _check(new: NewOrder) -> None:
    fields = Fields()
    fields.check("account", f"must be {ACCOUNT_ID_RULE}", ok=is_account_id(new.account))
    fields.reference("product_id", new.product_id)
    fields.whole("quantity", new.quantity, 1, QUANTITY_MAX)
    fields.source("payment_mode", new.payment_mode)
    if new.idempotency_key is not None:
        fields.text("idempotency_key", new.idempotency_key, least=1, most=KEY_MAX)
    fields.done()


def _check_payment(payment: Payment) -> None:
    fields = Fields()
    fields.text("payment_ref", payment.payment_ref, most=TEXT_MAX)
    if payment.amount_cent is not None:
        fields.whole("amount_cent", payment.amount_cent, 0)
    if payment.currency is not None:
        fields.currency("currency", payment.currency)
    fields.done()


def _check_amount(order: Order, payment: Payment) -> None:
    amount = order.amount_cent if payment.amount_cent is None else payment.amount_cent
    currency = order.currency if payment.currency is None else payment.currency
    if (amount, currency) != (order.amount_cent, order.currency):
        paid = price_text(amount, currency)
        raise PaymentMismatchError(f"paid was {paid}, the order costs {order.price_text}")


def _check_same(order: Order, payment: Payment) -> None:
    """Of an order that is paid: a second payment has to be given back, not to be taken for the first."""
    given = payment.payment_ref.strip()
    if given and given != order.payment_ref:
        before = f"as {order.payment_ref}" if order.payment_ref else "without a reference"
        raise PaymentMismatchError(f"the order was paid before, {before}")


def _digest(new: NewOrder) -> str:
    """Of what two orders of one key must agree on."""
    told = (new.product_id, new.quantity, new.payment_mode)
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()


def _repeated(row: Row[*tuple[object, ...]], digest: str) -> OrderDone:
    if row._mapping["request_hash"] != digest:  # noqa: SLF001 - SQLAlchemy's public name for it
        raise OrderConflictError("the idempotency key was used for another order")
    return OrderDone(order=_order(row), repeated=True)


async def _by_key(connection: AsyncConnection, new: NewOrder) -> Row[*tuple[object, ...]] | None:
    if new.idempotency_key is None:
        return None
    wanted = select(orders).where(
        orders.c.account == new.account, orders.c.idempotency_key == new.idempotency_key
    )
    return (await connection.execute(wanted)).one_or_none()


async def _refuse_too_many(connection: AsyncConnection, new: NewOrder) -> None:
    # Of one account, one order at a time: what is counted stays true until the order is there.
    await lock_account(connection, "order", new.account)
    if (await _by_key(connection, new)) is not None:
        return  # ordered meanwhile: it is told as it stands
    pending = select(orders.c.order_id).where(
        orders.c.account == new.account, orders.c.status == OrderStatus.PENDING
    )
    if len((await connection.execute(pending.limit(PENDING_MAX))).all()) == PENDING_MAX:
        raise TooManyPendingError(
            f"{PENDING_MAX} orders of the account wait to be paid; pay or cancel some"
        )


async def _product_for_sale(connection: AsyncConnection, product_id: str) -> Product:
    product = await read_product(connection, product_id)
    if product.status != "active":
        raise ProductUnavailableError(f"{product.name} is not for sale")
    return product


async def _locked(connection: AsyncConnection, order_id: str) -> Order:
    """An order that nobody else moves until this transaction ends; raises UnknownOrderError."""
    return await _read(connection, order_id, lock=True)


async def _read(connection: AsyncConnection, order_id: str, *, lock: bool = False) -> Order:
    wanted = select(orders).where(orders.c.order_id == order_id)
    if lock:
        wanted = wanted.with_for_update()  # on SQLite every write is alone
    row = (await connection.execute(wanted)).one_or_none()
    if row is None:
        raise UnknownOrderError
    return _order(row)


def _order(row: Row[*tuple[object, ...]]) -> Order:
    values = fields_of(row, Order)
    values["product_snapshot"] = msgspec.json.decode(str(values["product_snapshot"]))
    return msgspec.convert(values, Order)


def _act(actor: str, action: str, order: Order, **detail: str | int | bool | None) -> Act:
    told: Detail = {
        "account": order.account,
        "order_no": order.order_no,
        "credit_amount_micro_credits": order.credit_amount,
        "amount_cent": order.amount_cent,
        "currency": order.currency,
    }
    return Act(actor=actor, action=action, target=order.order_id, detail=told | detail)


def _insert(connection: AsyncConnection) -> postgresql.Insert | sqlite.Insert:
    """An INSERT of this engine that can say ON CONFLICT."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(orders)
    return sqlite.insert(orders)
