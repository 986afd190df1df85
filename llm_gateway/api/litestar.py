"""The Litestar application: everything that is served over HTTP except the calls themselves."""

from typing import Final

from litestar import Litestar, Response, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ControllerRouterHandler, Message, Scope

from billing.shop.fields import FieldProblem
from llm_gateway import errors
from llm_gateway.api import problems
from llm_gateway.api.admin.router import admin_router
from llm_gateway.api.bodies import StrictRequest
from llm_gateway.api.documented import JsonDocument, YamlDocument
from llm_gateway.api.estimates import estimate_router
from llm_gateway.api.models import models_router
from llm_gateway.api.ops import HealthController, MetricsController
from llm_gateway.api.state import ApiState, Dependency, ModelOffer, OpsState, Surface
from llm_gateway.api.store.router import store_router

__all__ = [
    "ApiState",
    "Dependency",
    "ModelOffer",
    "OpsState",
    "Surface",
    "create_api",
    "create_watch_api",
]

BODY_BYTES_MAX: Final = 256 * 1024  # price books and calls have limits of their own


def create_api(state: ApiState, surface: Surface = Surface.ALL) -> Litestar:
    """The application with the endpoints of `surface`.

    With `admin_host` set, make one with PUBLIC for the main address and one with OPERATIONS for the
    other; health is on both.
    """
    return Litestar(
        route_handlers=_handlers(surface, state),
        dependencies={
            "api": Provide(_api, sync_to_thread=False),
            "ops": Provide(_ops, sync_to_thread=False),
        },
        state=State({"api": state, "ops": state.ops}),
        exception_handlers={Exception: problems.answer},
        before_send=[_add_request_id],
        before_request=_refuse_nul,
        openapi_config=_openapi() if Surface.OPERATIONS in surface else None,
        request_class=StrictRequest,
        request_max_body_size=BODY_BYTES_MAX,
        logging_config=None,
        debug=False,
    )


def _api(state: State) -> ApiState:
    api: ApiState = state.api
    return api


def _ops(state: State) -> OpsState:
    ops: OpsState = state.ops
    return ops


async def _add_request_id(message: Message, scope: Scope) -> None:
    if message["type"] == "http.response.start":
        api: ApiState = scope["litestar_app"].state.api
        event_id = api.new_event_id(api.now_ms())
        message["headers"] = [*message["headers"], (b"x-request-id", event_id.encode())]


def _refuse_nul(request: problems.ApiRequest) -> None:
    """PostgreSQL stores no NUL, and nothing has a name with one."""
    if "\0" in request.scope["path"]:
        raise errors.NotFoundError
    for name, values in request.query_params.dict().items():
        if any("\0" in value for value in (name, *values)):
            raise problems.wrong_fields(
                [FieldProblem(field=name.replace("\0", ""), message="holds a NUL")]
            )


def create_watch_api(state: OpsState) -> Litestar:
    """Health and metrics alone, for a process that takes no calls."""
    return Litestar(
        route_handlers=[HealthController, MetricsController],
        dependencies={"ops": Provide(_ops, sync_to_thread=False)},
        state=State({"ops": state}),
        exception_handlers={Exception: problems.answer},
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


def _handlers(surface: Surface, state: ApiState) -> list[ControllerRouterHandler]:
    handlers: list[ControllerRouterHandler] = [HealthController]
    if Surface.PUBLIC in surface:
        estimates = estimate_router(state.estimator.body_bytes_max)
        handlers += [models_router(), estimates, store_router()]
    if Surface.OPERATIONS in surface:
        handlers += [MetricsController, admin_router()]
    return handlers


def _openapi() -> OpenAPIConfig:
    """/schema as JSON and YAML: pages that draw it would load their code from the internet."""
    return OpenAPIConfig(
        title="llm-gateway",
        version="1",
        render_plugins=[JsonDocument(path=["/", "/openapi.json"]), YamlDocument()],
        openapi_router=Router(
            "/schema", route_handlers=[], include_in_schema=False, after_request=_no_page
        ),
        use_handler_docstrings=True,
        components=Components(
            security_schemes={"bearer": SecurityScheme(type="http", scheme="bearer")}
        ),
        security=[{"bearer": []}],
    )


def _no_page(response: Response[bytes]) -> Response[bytes]:
    # Litestar answers an unknown address below /schema with a page of HTML.
    if response.status_code != errors.NotFoundError.status:
        return response
    return Response(
        errors.NotFoundError().envelope(),
        status_code=errors.NotFoundError.status,
        media_type="application/json",
    )
