"""POST /v1/estimate: what a call would cost, asked with the call's own body and key."""

from dataclasses import dataclass

from litestar import Controller, Router, post
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.openapi.spec import (
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    RequestBody,
    Schema,
)

from llm_gateway import errors
from llm_gateway.api.deps import provide_caller
from llm_gateway.api.problems import ApiRequest
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.estimates import EstimateView, estimate_view
from llm_gateway.identity import Caller


@dataclass
class _ChatOperation(Operation):
    """With the body of a call, which is read by the code of calls and by no decoder of Litestar's."""

    def __post_init__(self) -> None:
        message = Schema(
            type=OpenAPIType.OBJECT,
            required=["role"],
            properties={"role": Schema(type=OpenAPIType.STRING)},
        )
        body = Schema(
            type=OpenAPIType.OBJECT,
            required=["model", "messages"],
            properties={
                "model": Schema(type=OpenAPIType.STRING, min_length=1, max_length=256),
                "messages": Schema(type=OpenAPIType.ARRAY, items=message),
            },
            description="The body of POST /v1/chat/completions.",
        )
        self.request_body = RequestBody(
            content={"application/json": OpenAPIMediaType(schema=body)}, required=True
        )


class EstimateController(Controller):
    """Needs a key and an account, never credit."""

    @post("/", status_code=200, operation_class=_ChatOperation)
    async def estimate(
        self, api: NamedDependency[ApiState], caller: NamedDependency[Caller], request: ApiRequest
    ) -> EstimateView:
        """Say what a call would cost, and whether it would be admitted now; it is not made.

        A body that the call would be refused for is refused alike. Nothing is held, and nothing
        counts against the limits of the key, which are not looked at either.
        """
        estimator = api.estimator
        try:
            body = await request.body()
        except HTTPException as error:
            if error.status_code != errors.RequestTooLargeError.status:
                raise
            raise errors.RequestTooLargeError(estimator.body_bytes_max) from None
        return estimate_view(await estimator.estimate(caller, body))


def estimate_router(body_bytes_max: int) -> Router:
    """/v1/estimate, for bodies as large as those of calls."""
    return Router(
        "/v1/estimate",
        route_handlers=[EstimateController],
        dependencies={"caller": Provide(provide_caller)},
        request_max_body_size=body_bytes_max,
        tags=["models"],
    )
