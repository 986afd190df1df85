"""/admin/rerating: charge calls of the past by another book. Look first, then post."""

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from litestar.response import Stream

from billing.admins import Admin, Permission
from billing.lists import PageRequest
from billing.rerating.calls import Window
from billing.rerating.runs import NewRun
from billing.rerating.simulator import Question
from billing.shop.fields import FieldProblem
from llm_gateway.api.deps import IdempotencyKey
from llm_gateway.api.problems import wrong_fields
from llm_gateway.api.simulating import NDJSON, lines_of, result_of
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.rerating import (
    PreviewRequest,
    RerateRequest,
    RunList,
    RunStartedView,
    RunView,
    SimulationView,
    run_view,
)
from llm_gateway.api.views.shared import milliseconds


class ReratingController(Controller):
    """Runs of re-rating."""

    path = "/rerating"

    @get("/", permission=Permission.READ)
    async def list_runs(
        self, api: NamedDependency[ApiState], listing: NamedDependency[PageRequest]
    ) -> RunList:
        """List runs, newest first."""
        page = await api.shop.rerating.page(listing)
        return RunList(
            items=[run_view(run) for run in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @get("/{run_id:str}", permission=Permission.READ)
    async def get_run(self, api: NamedDependency[ApiState], run_id: FromPath[str]) -> RunView:
        """Get a run as it stands."""
        return run_view(await api.shop.rerating.get(run_id))

    @post("/preview", status_code=200, permission=Permission.READ)
    async def preview(
        self, api: NamedDependency[ApiState], data: JSONBody[PreviewRequest]
    ) -> SimulationView:
        """Tell what a run would post, against what the ledger charges now; post nothing.

        One at a time in a process, as simulations are: else 429.
        """
        return await result_of(api.simulator, _question(data))

    @post("/preview.ndjson", status_code=200, media_type=NDJSON, permission=Permission.READ)
    async def preview_telling(
        self, api: NamedDependency[ApiState], data: JSONBody[PreviewRequest]
    ) -> Stream:
        """As without .ndjson, telling the progress meanwhile."""
        return await lines_of(api.simulator, _question(data))

    @post("/", status_code=202, permission=Permission.RERATING)
    async def post_run(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        data: JSONBody[RerateRequest],
        idempotency_key: IdempotencyKey = "",
    ) -> RunStartedView:
        """Charge calls by a book: each difference becomes an entry that names the charge it corrects.

        It is done in the background, and outlasts a restart: look at the run. The Idempotency-Key is
        the run's id (1 to 64 of A-Z a-z 0-9 . _ -); the same one is the same run. One at a time.
        """
        asked = NewRun(
            book=data.book,
            window=_window(data),
            reason=data.reason,
            run_id=idempotency_key.strip() or None,
        )
        run, repeated = await api.shop.rerating.start(asked, actor=admin.name)
        return RunStartedView(repeated=repeated, run=run_view(run))


def _question(data: PreviewRequest) -> Question:
    return Question(window=_window(data), version=data.book, charged=True)


def _window(data: PreviewRequest) -> Window:
    window = Window(from_at=max(0, milliseconds(data.from_)), to_at=milliseconds(data.to))
    if window.from_at >= window.to_at:
        raise wrong_fields([FieldProblem(field="to", message="must be later than from")])
    return window
