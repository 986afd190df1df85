"""The admin API, for administrators by their tokens; each address says which permission it needs.

What is only looked at is a GET; each act is a POST or PATCH and leaves a row in the audit trail.
"""

from litestar import Router
from litestar.di import Provide
from litestar.routes import HTTPRoute

from llm_gateway.api.admin.accounts import AccountsController
from llm_gateway.api.admin.audit import AuditController
from llm_gateway.api.admin.charges import ChargesController
from llm_gateway.api.admin.corrections import CorrectionsController
from llm_gateway.api.admin.grants import GrantsController
from llm_gateway.api.admin.guard import GuardController
from llm_gateway.api.admin.holds import HoldsController
from llm_gateway.api.admin.keys import KeysController
from llm_gateway.api.admin.orders import OrdersController
from llm_gateway.api.admin.outbox import OutboxController
from llm_gateway.api.admin.price_books import BooksController
from llm_gateway.api.admin.products import ProductsController
from llm_gateway.api.admin.quarantine import QuarantineController
from llm_gateway.api.admin.reconcile import ReconcileController
from llm_gateway.api.admin.rerating import ReratingController
from llm_gateway.api.admin.rewards import RewardRulesController, RewardsController
from llm_gateway.api.admin.simulations import SimulationsController
from llm_gateway.api.admin.statements import OutstandingController, StatementsController
from llm_gateway.api.admin.tokens import TokensController
from llm_gateway.api.admin.usage import UsageController
from llm_gateway.api.deps import permission_of, provide_admin, provide_listing, require_permission


def admin_router() -> Router:
    """Everything below /admin; raises LookupError for an address without a permission."""
    router = Router(
        "/admin",
        route_handlers=[
            AccountsController,
            GrantsController,
            KeysController,
            BooksController,
            SimulationsController,
            ReratingController,
            AuditController,
            HoldsController,
            OutboxController,
            QuarantineController,
            GuardController,
            ReconcileController,
            TokensController,
            ProductsController,
            OrdersController,
            RewardRulesController,
            RewardsController,
            CorrectionsController,
            ChargesController,
            StatementsController,
            OutstandingController,
            UsageController,
        ],
        guards=[require_permission],
        dependencies={
            "listing": Provide(provide_listing, sync_to_thread=False),
            "admin": Provide(provide_admin, sync_to_thread=False),
        },
        tags=["admin"],
    )
    check_permissions(router)
    return router


def check_permissions(router: Router) -> None:
    """Raise LookupError unless every address below a router says what it needs."""
    for route in router.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                if handler.http_methods != {"OPTIONS"}:  # Litestar's own
                    permission_of(handler)
