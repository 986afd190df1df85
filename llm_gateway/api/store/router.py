"""The credit store, for the owner of an account: a user's key, or an app's key and X-Billing-User."""

from litestar import Router
from litestar.di import Provide

from llm_gateway.api.deps import provide_caller, provide_listing
from llm_gateway.api.store.balance import BalanceController
from llm_gateway.api.store.charges import ChargesController
from llm_gateway.api.store.price_rules import PriceRulesController
from llm_gateway.api.store.transactions import TransactionsController


def store_router() -> Router:
    """Everything below /credit-store."""
    return Router(
        "/credit-store",
        route_handlers=[
            BalanceController,
            TransactionsController,
            ChargesController,
            PriceRulesController,
        ],
        dependencies={
            "caller": Provide(provide_caller),
            "listing": Provide(provide_listing, sync_to_thread=False),
        },
        tags=["credit store"],
    )
