"""Products: amounts of credit that are for sale at a price; made and changed by admins, read by all."""

from collections.abc import Callable
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, Select, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.audit import Act, note
from billing.db.pages import read_page
from billing.db.session import Database
from billing.db.tables import products
from billing.kinds import ProductStatus
from billing.lists import Page, PageRequest
from billing.shop.fields import SORT_ORDER_MAX, Fields
from billing.shop.prices import price_text
from billing.shop.rows import of_row

STATUSES: Final = ("active", "inactive")


class NewProduct(msgspec.Struct, frozen=True, kw_only=True):
    """A product to be made. Amounts: micro-credits; prices: cents of the currency."""

    sku: str
    name: str
    credit_amount: int  # micro-credits, above 0
    price_cent: int
    currency: str
    original_price_cent: int = 0  # 0 or less reads as the price
    description: str = ""
    badge: str = ""
    sort_order: int = 0
    status: ProductStatus = "active"


class ProductChange(msgspec.Struct, frozen=True, kw_only=True):
    """What to change of a product; what is unset stays. Orders made before keep what they say."""

    sku: str | msgspec.UnsetType = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    credit_amount: int | msgspec.UnsetType = msgspec.UNSET
    price_cent: int | msgspec.UnsetType = msgspec.UNSET
    currency: str | msgspec.UnsetType = msgspec.UNSET
    original_price_cent: int | msgspec.UnsetType = msgspec.UNSET
    description: str | msgspec.UnsetType = msgspec.UNSET
    badge: str | msgspec.UnsetType = msgspec.UNSET
    sort_order: int | msgspec.UnsetType = msgspec.UNSET
    status: ProductStatus | msgspec.UnsetType = msgspec.UNSET


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """A product as it stands; `original_price_cent` is the price where none was set."""

    product_id: str
    sku: str
    name: str
    description: str
    credit_amount: int  # micro-credits
    price_cent: int
    original_price_cent: int
    currency: str
    badge: str
    sort_order: int
    status: ProductStatus
    created_at: int  # milliseconds since the epoch
    updated_at: int

    @property
    def price_text(self) -> str:
        """The price as it is shown."""
        return price_text(self.price_cent, self.currency)

    @property
    def original_price_text(self) -> str:
        """The price before it was lowered, as it is shown."""
        return price_text(self.original_price_cent, self.currency)


class UnknownProductError(Exception):
    """There is no product by this id."""


class SkuTakenError(Exception):
    """Another product has this SKU."""


class Products:
    """All products of one database. `new_id` makes an id at a time in milliseconds."""

    def __init__(
        self, database: Database, *, now_ms: Callable[[], int], new_id: Callable[[int], str]
    ) -> None:
        self._database = database
        self._now_ms = now_ms
        self._new_id = new_id

    async def create(self, new: NewProduct, *, actor: str) -> Product:
        """Make a product; raises InvalidFieldsError, SkuTakenError."""
        new = _tidy(new)
        _check(new)
        now_ms = self._now_ms()
        product_id = self._new_id(now_ms)
        async with self._database.write(alone=True) as connection:
            await _refuse_taken(connection, new.sku, product_id)
            await connection.execute(
                insert(products).values(
                    product_id=product_id,
                    created_at=now_ms,
                    updated_at=now_ms,
                    **msgspec.structs.asdict(new),
                )
            )
            act = Act(
                actor=actor,
                action="product.create",
                target=product_id,
                detail=msgspec.structs.asdict(new),
            )
            await note(connection, act, now_ms)
            return await read_product(connection, product_id)

    async def update(self, product_id: str, change: ProductChange, *, actor: str) -> Product:
        """Change a product; raises UnknownProductError, InvalidFieldsError, SkuTakenError."""
        changed = {
            name: value.strip() if isinstance(value, str) else value
            for name, value in msgspec.structs.asdict(change).items()
            if value is not msgspec.UNSET
        }
        now_ms = self._now_ms()
        async with self._database.write(alone=True) as connection:
            row = (await connection.execute(_stored(product_id))).one_or_none()
            if row is None:
                raise UnknownProductError
            stored = {name: getattr(row, name) for name in NewProduct.__struct_fields__}
            after = NewProduct(**(stored | changed))
            _check(after)
            await _refuse_taken(connection, after.sku, product_id)
            if changed:
                await connection.execute(
                    update(products)
                    .where(products.c.product_id == product_id)
                    .values(updated_at=now_ms, **changed)
                )
            act = Act(actor=actor, action="product.update", target=product_id, detail=changed)
            await note(connection, act, now_ms)
            return await read_product(connection, product_id)

    async def get(self, product_id: str, *, active_only: bool = False) -> Product:
        """A product; raises UnknownProductError (so for one not for sale, if only those count)."""
        async with self._database.read() as connection:
            product = await read_product(connection, product_id)
        if active_only and product.status != "active":
            raise UnknownProductError
        return product

    async def page(self, request: PageRequest, *, status: str = "") -> Page[Product]:
        """Products in their sort order; `status` filters exactly. By page number only."""
        conditions: list[ColumnElement[bool]] = []
        if status:
            conditions.append(products.c.status == status)
        wanted = select(products).where(*conditions)
        # The cheaper first where no order is said; the id makes it one order for all pages.
        ordered = wanted.order_by(
            products.c.sort_order, products.c.price_cent, products.c.product_id
        )
        return await read_page(self._database, ordered, request, _product)

    async def offered(self, request: PageRequest) -> Page[Product]:
        """What users can buy: active products, in their sort order."""
        return await self.page(request, status="active")


async def read_product(connection: AsyncConnection, product_id: str) -> Product:
    """A product; raises UnknownProductError."""
    row = (await connection.execute(_stored(product_id))).one_or_none()
    if row is None:
        raise UnknownProductError
    return _product(row)


def _stored(product_id: str) -> Select[*tuple[object, ...]]:
    return select(products).where(products.c.product_id == product_id)


def _product(row: Row[*tuple[object, ...]]) -> Product:
    product = of_row(row, Product)
    if product.original_price_cent > 0:
        return product
    return msgspec.structs.replace(product, original_price_cent=product.price_cent)


async def _refuse_taken(connection: AsyncConnection, sku: str, product_id: str) -> None:
    taken = select(products.c.product_id).where(
        products.c.sku == sku, products.c.product_id != product_id
    )
    if await connection.scalar(taken) is not None:
        raise SkuTakenError(sku)


def _tidy(new: NewProduct) -> NewProduct:
    texts = ("sku", "name", "description", "badge", "currency")
    return msgspec.structs.replace(new, **{name: getattr(new, name).strip() for name in texts})


def _check(new: NewProduct) -> None:
    fields = Fields()
    fields.sku("sku", new.sku)
    fields.text("name", new.name, least=1)
    fields.prose("description", new.description)
    fields.whole("credit_amount", new.credit_amount, 1)
    fields.whole("price_cent", new.price_cent, 0)
    fields.whole("original_price_cent", new.original_price_cent, -1)
    fields.currency("currency", new.currency)
    fields.text("badge", new.badge)
    fields.whole("sort_order", new.sort_order, -SORT_ORDER_MAX, SORT_ORDER_MAX)
    fields.one_of("status", new.status, STATUSES)
    fields.done()
