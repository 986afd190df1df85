"""What handlers ask for: the caller behind a key, an administrator, a page of a list."""

import hmac
from typing import Annotated

from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.handlers.base import BaseRouteHandler
from litestar.params import HeaderParameter, QueryParameter

from billing.admins import OWNER, Admin, Permission
from billing.lists import PAGE_SIZE_MAX, PageRequest
from llm_gateway import errors
from llm_gateway.api.problems import ApiRequest, RoleNotAllowedError
from llm_gateway.api.state import ApiState
from llm_gateway.identity import Caller, bearer_value, identify

PAGE_MAX = 1_000_000  # SQLite's OFFSET takes 64 bits; nobody turns so many pages

IdempotencyKey = Annotated[
    str, HeaderParameter(name="Idempotency-Key", max_length=128, pattern=r"^[ -~]*$")
]

_ADMIN = "admin"  # its place in the state of a request

Connection = ASGIConnection[BaseRouteHandler, None, None, State]


async def provide_caller(request: ApiRequest, api: NamedDependency[ApiState]) -> Caller:
    """The caller, by key and X-Billing-User as for a call; never blocked by balance."""
    return await identify(request.scope["headers"], api.keys, api.now_ms())


async def provide_reader(request: ApiRequest, api: NamedDependency[ApiState]) -> Caller:
    """The caller of what concerns no account: an app key need not name one."""
    headers = request.scope["headers"]
    return await identify(headers, api.keys, api.now_ms(), needs_account=False)


def provide_listing(
    page: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX)] = 1,
    page_size: Annotated[int, QueryParameter(ge=1, le=PAGE_SIZE_MAX)] = 20,
    after: Annotated[str, QueryParameter(max_length=20)] = "",
) -> PageRequest:
    """Which part of a list: a page number, or what follows the cursor `after`."""
    if not after:
        return PageRequest(page=page, page_size=page_size)
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        raise errors.InvalidRequestError("after: send a next_after of this list.", param="after")
    return PageRequest(page=page, page_size=page_size, after=int(after))


async def require_permission(connection: Connection, handler: BaseRouteHandler) -> None:
    """Let only administrators pass whose role has the handler's permission.

    Keys of the data plane open nothing here. Raises InvalidApiKeyError, RoleNotAllowedError, and
    DatabaseUnavailableError for a token that only the database knows.
    """
    admin = await _admin(connection)
    permission = permission_of(handler)
    if not admin.may(permission):
        raise RoleNotAllowedError(admin, permission)
    connection.state[_ADMIN] = admin


def provide_admin(request: ApiRequest) -> Admin:
    """Who acts, as `require_permission` found."""
    admin = request.state[_ADMIN]
    assert isinstance(admin, Admin)
    return admin


def permission_of(handler: BaseRouteHandler) -> Permission:
    """What an address of the admin API asks for; raises LookupError if it does not say."""
    if isinstance(permission := handler.opt.get("permission"), Permission):
        return permission
    raise LookupError(f"{handler} has no permission: give its decorator `permission=...`")


async def _admin(connection: Connection) -> Admin:
    api: ApiState = connection.app.state.api
    values = [value for name, value in connection.scope["headers"] if name == b"authorization"]
    sent = bearer_value(values[0]) if len(values) == 1 else ""
    token = api.admin_token.reveal() if api.admin_token else ""
    if token and hmac.compare_digest(sent.encode(), token.encode()):
        return OWNER
    if (admin := await api.admins.find(sent)) is None:
        raise errors.InvalidApiKeyError("The admin token is missing, unknown, expired or revoked.")
    return admin
