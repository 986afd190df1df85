"""/credit-store/products: what can be bought."""

from litestar import Controller, get
from litestar.di import NamedDependency

from billing.lists import PageRequest
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.products import ProductList, product_view
from llm_gateway.identity import Caller


class ProductsController(Controller):
    """Products that are for sale; the same for all, so an app key need not name an account."""

    path = "/products"

    @get("/")
    async def list_products(
        self,
        api: NamedDependency[ApiState],
        reader: NamedDependency[Caller],
        listing: NamedDependency[PageRequest],
    ) -> ProductList:
        """What is for sale, in the order of the store."""
        page = await api.shop.products.offered(listing)
        return ProductList(
            items=[product_view(product) for product in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )
