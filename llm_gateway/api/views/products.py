"""Products: credit that is for sale."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from billing.kinds import ProductStatus
from llm_gateway.api.views.shared import Amount, Line, Listing, Prose, Time, moment

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.shop.products import Product

Sku = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)")]
ProductName = Annotated[Line, Meta(min_length=1)]
Cents = Annotated[int, Meta(ge=0, le=2**53 - 1)]
OriginalCents = Annotated[int, Meta(ge=-1, le=2**53 - 1)]
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}$(?!\n)")]
SortOrder = Annotated[int, Meta(ge=-1_000_000, le=1_000_000)]


class ProductView(msgspec.Struct, frozen=True, kw_only=True):
    """A product as buyers see it. Prices are cents of the currency."""

    product_id: str
    name: str
    description: str
    credit_amount_micro_credits: int
    price_cent: int
    original_price_cent: int
    price_text: str
    currency: str
    badge: str
    status: ProductStatus
    sort_order: int


class ProductList(Listing, frozen=True, kw_only=True):
    """The products that are for sale, in their order."""

    items: list[ProductView]


class SnapshotView(ProductView, frozen=True, kw_only=True):
    """A product as it was when it was ordered."""

    sku: str


class AdminProductView(SnapshotView, frozen=True, kw_only=True):
    """A product as an administrator sees it."""

    created_at: Time
    updated_at: Time


class AdminProductList(Listing, frozen=True, kw_only=True):
    """A page of all products, in their order."""

    items: list[AdminProductView]


class ProductRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A product to make. An original price of 0 or less reads as the price."""

    sku: Sku
    name: ProductName
    credit_amount_micro_credits: Amount
    price_cent: Cents
    currency: Currency
    original_price_cent: OriginalCents = 0
    description: Prose = ""
    badge: Line = ""
    sort_order: SortOrder = 0
    status: Literal["active", "inactive"] = "active"


class ProductPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of a product; what is not sent stays. Orders keep what they say."""

    sku: Sku | UnsetType = UNSET
    name: ProductName | UnsetType = UNSET
    credit_amount_micro_credits: Amount | UnsetType = UNSET
    price_cent: Cents | UnsetType = UNSET
    currency: Currency | UnsetType = UNSET
    original_price_cent: OriginalCents | UnsetType = UNSET
    description: Prose | UnsetType = UNSET
    badge: Line | UnsetType = UNSET
    sort_order: SortOrder | UnsetType = UNSET
    status: Literal["active", "inactive"] | UnsetType = UNSET


def product_view(product: "Product") -> ProductView:
    """A product as buyers see it."""
    return msgspec.convert(_values(product), ProductView)


def snapshot_view(product: "Product") -> SnapshotView:
    """A product as it was ordered."""
    return msgspec.convert(_values(product), SnapshotView)


def admin_product_view(product: "Product") -> AdminProductView:
    """A product with what only administrators need."""
    times = {
        "created_at": moment(product.created_at),
        "updated_at": moment(product.updated_at),
    }
    return msgspec.convert(_values(product) | times, AdminProductView)


def _values(product: "Product") -> dict[str, object]:
    values = msgspec.structs.asdict(product)
    return values | {
        "credit_amount_micro_credits": product.credit_amount,
        "price_text": product.price_text,
    }
