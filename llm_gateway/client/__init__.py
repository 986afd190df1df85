"""The typed Python client: GatewayClient for the credit store, AdminClient for the admin API, and both as async.

    with GatewayClient("http://127.0.0.1:8080", key) as gateway:
        print(gateway.balance().available_micro_credits)
        for entry in gateway.transactions.iterate(source="charge"):
            print(entry.created_at, entry.amount_micro_credits)

Calls to models are made with any OpenAI SDK. Answers are the API's own shapes
(llm_gateway.api.views), amounts integers of micro-credits; what goes wrong is a GatewayClientError.
"""

from msgspec import UNSET

from billing.kinds import KeyKind, OrderStatus, Role
from llm_gateway.client.clients import (
    AdminClient,
    AsyncAdminClient,
    AsyncGatewayClient,
    GatewayClient,
)
from llm_gateway.client.errors import (
    AccountSuspendedError,
    ActRefusedError,
    AlreadyExistsError,
    ConflictError,
    CreditHeldError,
    CreditSpentError,
    EventConflictError,
    GatewayClientError,
    InsufficientCreditError,
    InvalidKeyError,
    InvalidRequestError,
    NoAnswerError,
    NotAllowedError,
    NotConnectedError,
    NotFoundError,
    PriceBookConflictError,
    PriceBookRefusedError,
    RateLimitedError,
    RefusedError,
    RoleNotAllowedError,
    ServerError,
    TooLargeError,
    UnavailableError,
    UnreadableAnswerError,
    UnusableArgumentError,
)
from llm_gateway.client.retries import Retries

__all__ = [
    "UNSET",
    "AccountSuspendedError",
    "ActRefusedError",
    "AdminClient",
    "AlreadyExistsError",
    "AsyncAdminClient",
    "AsyncGatewayClient",
    "ConflictError",
    "CreditHeldError",
    "CreditSpentError",
    "EventConflictError",
    "GatewayClient",
    "GatewayClientError",
    "InsufficientCreditError",
    "InvalidKeyError",
    "InvalidRequestError",
    "KeyKind",
    "NoAnswerError",
    "NotAllowedError",
    "NotConnectedError",
    "NotFoundError",
    "OrderStatus",
    "PriceBookConflictError",
    "PriceBookRefusedError",
    "RateLimitedError",
    "RefusedError",
    "Retries",
    "Role",
    "RoleNotAllowedError",
    "ServerError",
    "TooLargeError",
    "UnavailableError",
    "UnreadableAnswerError",
    "UnusableArgumentError",
]
