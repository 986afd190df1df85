"""What handlers ask for: the caller behind a key, an administrator, a page of a list."""

import hmac
from typing import Annotated

from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.handlers.base import BaseRouteHandler
from litestar.params import QueryParameter

from billing.lists import PAGE_SIZE_MAX, PageRequest
from llm_gateway import errors
from llm_gateway.api.problems import ApiRequest
from llm_gateway.api.state import ApiState
from llm_gateway.identity import Caller, bearer_value, identify

ADMIN_ACTOR = "admin"
PAGE_MAX = 1_000_000  # SQLite's OFFSET takes 64 bits; nobody turns so many pages

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


def require_admin(connection: Connection, _handler: BaseRouteHandler) -> None:
    """Let only the bearer of the admin token pass; keys of the data plane open nothing here."""
    api: ApiState = connection.app.state.api
    values = [value for name, value in connection.scope["headers"] if name == b"authorization"]
    sent = bearer_value(values[0]).encode() if len(values) == 1 else b""
    token = api.admin_token.reveal().encode() if api.admin_token else b""
    if not (token and hmac.compare_digest(sent, token)):
        raise errors.InvalidApiKeyError("The admin token is missing or wrong.")
