"""The admin API, authorised by the admin token alone.

What is only looked at is a GET; each act is a POST and leaves a row in the audit trail.
"""

from litestar import Router
from litestar.di import Provide

from llm_gateway.api.admin.accounts import AccountsController
from llm_gateway.api.admin.audit import AuditController
from llm_gateway.api.admin.grants import GrantsController
from llm_gateway.api.admin.guard import GuardController
from llm_gateway.api.admin.holds import HoldsController
from llm_gateway.api.admin.keys import KeysController
from llm_gateway.api.admin.outbox import OutboxController
from llm_gateway.api.admin.price_books import BooksController
from llm_gateway.api.admin.quarantine import QuarantineController
from llm_gateway.api.admin.reconcile import ReconcileController
from llm_gateway.api.deps import provide_listing, require_admin


def admin_router() -> Router:
    """Everything below /admin, for the bearer of the admin token."""
    return Router(
        "/admin",
        route_handlers=[
            AccountsController,
            GrantsController,
            KeysController,
            BooksController,
            AuditController,
            HoldsController,
            OutboxController,
            QuarantineController,
            GuardController,
            ReconcileController,
        ],
        guards=[require_admin],
        dependencies={"listing": Provide(provide_listing, sync_to_thread=False)},
        tags=["admin"],
    )
