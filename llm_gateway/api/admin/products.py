"""/admin/products: what is for sale."""

from typing import Literal

import msgspec
from litestar import Controller, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from billing.admins import Admin, Permission
from billing.lists import PageRequest
from billing.shop.products import NewProduct, ProductChange
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.products import (
    AdminProductList,
    AdminProductView,
    ProductPatch,
    ProductRequest,
    admin_product_view,
)


class ProductsController(Controller):
    """Products, also those that are not for sale."""

    path = "/products"

    @get("/", permission=Permission.READ)
    async def list_products(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        status: FromQuery[Literal["active", "inactive"] | None] = None,
    ) -> AdminProductList:
        """List products in their order."""
        page = await api.shop.products.page(listing, status=status or "")
        return AdminProductList(
            items=[admin_product_view(product) for product in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @post("/", permission=Permission.PRODUCTS)
    async def create_product(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        data: JSONBody[ProductRequest],
    ) -> AdminProductView:
        """Make a product; 409 if another has its SKU."""
        values = msgspec.structs.asdict(data)
        values["credit_amount"] = values.pop("credit_amount_micro_credits")
        product = await api.shop.products.create(NewProduct(**values), actor=admin.name)
        return admin_product_view(product)

    @get("/{product_id:str}", permission=Permission.READ)
    async def get_product(
        self, api: NamedDependency[ApiState], product_id: FromPath[str]
    ) -> AdminProductView:
        """Get one product."""
        return admin_product_view(await api.shop.products.get(product_id))

    @patch("/{product_id:str}", permission=Permission.PRODUCTS)
    async def update_product(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        product_id: FromPath[str],
        data: JSONBody[ProductPatch],
    ) -> AdminProductView:
        """Change a product, or take it off sale; orders keep what they say."""
        values = msgspec.structs.asdict(data)
        values["credit_amount"] = values.pop("credit_amount_micro_credits")
        change = ProductChange(**values)
        product = await api.shop.products.update(product_id, change, actor=admin.name)
        return admin_product_view(product)
