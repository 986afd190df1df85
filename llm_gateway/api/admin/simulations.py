"""/admin/price-books/.../simulate: what calls of the past would have cost by a book. Nothing is written."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from litestar import Controller, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import QueryParameter
from litestar.response import Stream

from billing.admins import Permission
from billing.rerating.calls import Window
from billing.rerating.simulator import Question
from billing.shop.fields import FieldProblem
from billing.shop.periods import DAY_MS
from llm_gateway import errors
from llm_gateway.api.admin.params import Version
from llm_gateway.api.admin.price_books import BOOK_BYTES_MAX
from llm_gateway.api.periods import Range, provide_range
from llm_gateway.api.problems import ApiRequest, wrong_fields
from llm_gateway.api.simulating import NDJSON, lines_of, result_of
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.rerating import SimulationView

DAYS: Final = 7
DAYS_MAX: Final = 3_660

Days = Annotated[
    int | None,
    QueryParameter(
        ge=1, le=DAYS_MAX, description=f"So many days up to `to`; {DAYS}. Not with `from`."
    ),
]


def provide_window(
    api: NamedDependency[ApiState], times: NamedDependency[Range], days: Days = None
) -> Window:
    """From `from`, or so many days before, up to `to`, or now; raises InvalidRequestError."""
    if days is not None and times.from_at is not None:
        raise wrong_fields([FieldProblem(field="days", message="cannot be given with from")])
    to_at = api.now_ms() if times.to_at is None else times.to_at
    from_at = times.from_at
    if from_at is None:
        from_at = max(0, to_at - (days or DAYS) * DAY_MS)
    if from_at >= to_at:
        raise wrong_fields([FieldProblem(field="from", message="must be earlier than to")])
    return Window(from_at=from_at, to_at=to_at)


class SimulationsController(Controller):
    """What calls of the past would have cost. One simulation at a time in a process: else 429.

    With `.ndjson` at its end each address answers a line of JSON from time to time, with `progress`;
    the last one has the `result`, or the `error`.
    """

    path = "/price-books"
    dependencies: Mapping[str, Provide | Callable[..., Any]] | None = {
        "times": Provide(provide_range, sync_to_thread=False),
        "window": Provide(provide_window, sync_to_thread=False),
    }

    @get("/{version:int}/simulate", permission=Permission.READ)
    async def simulate(
        self,
        api: NamedDependency[ApiState],
        window: NamedDependency[Window],
        version: Version,
    ) -> SimulationView:
        """Tell what recorded calls would have cost by a version, in all and by whom."""
        return await result_of(api.simulator, Question(window=window, version=version))

    @get("/{version:int}/simulate.ndjson", media_type=NDJSON, permission=Permission.READ)
    async def simulate_telling(
        self,
        api: NamedDependency[ApiState],
        window: NamedDependency[Window],
        version: Version,
    ) -> Stream:
        """As without .ndjson, telling the progress meanwhile."""
        return await lines_of(api.simulator, Question(window=window, version=version))

    @post(
        "/simulate",
        request_max_body_size=BOOK_BYTES_MAX,
        status_code=200,
        permission=Permission.READ,
    )
    async def simulate_text(
        self,
        api: NamedDependency[ApiState],
        window: NamedDependency[Window],
        request: ApiRequest,
    ) -> SimulationView:
        """Tell what recorded calls would have cost by the TOML text in the body; it is not stored."""
        question = Question(window=window, toml=await _text(request))
        return await result_of(api.simulator, question)

    @post(
        "/simulate.ndjson",
        request_max_body_size=BOOK_BYTES_MAX,
        status_code=200,
        media_type=NDJSON,
        permission=Permission.READ,
    )
    async def simulate_text_telling(
        self,
        api: NamedDependency[ApiState],
        window: NamedDependency[Window],
        request: ApiRequest,
    ) -> Stream:
        """As without .ndjson, telling the progress meanwhile."""
        return await lines_of(api.simulator, Question(window=window, toml=await _text(request)))


async def _text(request: ApiRequest) -> str:
    try:
        return (await request.body()).decode()
    except UnicodeDecodeError:
        raise errors.InvalidRequestError("The body is not UTF-8 text.") from None
