"""The credit store, for the owner of an account: a user's key, or an app's key and X-Billing-User."""

from litestar import Router
from litestar.di import Provide

from llm_gateway.api.deps import provide_caller, provide_listing, provide_reader
from llm_gateway.api.store.balance import BalanceController
from llm_gateway.api.store.charges import ChargesController
from llm_gateway.api.store.consumption import ConsumptionController
from llm_gateway.api.store.orders import OrdersController
from llm_gateway.api.store.price_rules import PriceRulesController
from llm_gateway.api.store.products import ProductsController
from llm_gateway.api.store.transactions import TransactionsController


def store_router() -> Router:
    """Everything below /credit-store."""
    return Router(
        "/credit-store",
        route_handlers=[
            BalanceController,
            ConsumptionController,
            TransactionsController,
            ChargesController,
            PriceRulesController,
            ProductsController,
            OrdersController,
        ],
        dependencies={
            "caller": Provide(provide_caller),
            "reader": Provide(provide_reader),
            "listing": Provide(provide_listing, sync_to_thread=False),
        },
        tags=["credit store"],
    )
