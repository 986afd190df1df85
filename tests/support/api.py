"""The HTTP API in this event loop, on a real database, with its control plane at hand."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
from litestar import Litestar
from typing_extensions import override

from llm_gateway import clock
from llm_gateway.api.litestar import (
    ApiState,
    Dependency,
    ModelOffer,
    OpsState,
    Surface,
    create_api,
)
from llm_gateway.secret import Secret
from tests.support.control import BOOK, Control, control
from tests.support.estimates import SETTINGS, estimator_of, quoter_of

ADMIN_TOKEN = "admin-token-of-the-test"
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
OFFERS = (
    ModelOffer(name="mini", targets=(("echo", "mini"),)),
    ModelOffer(name="agent-model", targets=(("echo", "agent-model"),)),
    ModelOffer(name="disabled-model", targets=(("echo", "disabled-model"),)),
    ModelOffer(name="unpriced", targets=(("echo", "unpriced"),)),
)


# Apps that nobody uses at the moment, by what their routes are made of.
_idle: defaultdict[tuple[Surface, int], list[Litestar]] = defaultdict(list)


class _Borrowed(httpx2.ASGITransport):
    """An app until the client is closed; making one takes longer than what most tests ask of it."""

    def __init__(self, state: ApiState, surface: Surface) -> None:
        self._idle = _idle[surface, state.estimator.body_bytes_max]
        if self._idle:
            self._borrowed = self._idle.pop()
            self._borrowed.state.api, self._borrowed.state.ops = state, state.ops
        else:
            self._borrowed = create_api(state, surface)
        # Two spellings of ASGI.
        super().__init__(app=self._borrowed, raise_app_exceptions=False)  # type: ignore[arg-type]

    @override
    async def aclose(self) -> None:
        self._idle.append(self._borrowed)


class Api:
    """A client, and what stands behind it."""

    def __init__(self, plane: Control) -> None:
        self.plane = plane
        self.dependencies = [Dependency(name="database", up=True)]
        self.offers: tuple[ModelOffer, ...] = OFFERS
        self.metrics: Callable[[], str] = lambda: "gateway_calls_total 1\n"
        self.admin_token: Secret | None = Secret(ADMIN_TOKEN)
        self.mock_payments = False
        self.settings = SETTINGS

    def client(self, surface: Surface = Surface.ALL) -> httpx2.AsyncClient:
        """A client of an app of its own with the endpoints of `surface`."""

        async def readiness() -> list[Dependency]:
            return self.dependencies

        plane = self.plane

        async def metrics() -> str:
            return self.metrics()

        state = ApiState(
            database=plane.database,
            keys=plane.keys,
            books=plane.books,
            accounts=plane.accounts,
            audit=plane.audit,
            desk=plane.desk,
            reconciler=plane.reconciler,
            shop=plane.shop(mock_payments=self.mock_payments),
            simulator=plane.simulator,
            admins=plane.admins,
            admin_token=self.admin_token,
            now_ms=plane.clock.now_ms,
            new_event_id=clock.new_event_id,
            offers=lambda: self.offers,
            quoter=quoter_of(plane, self.settings),
            estimator=estimator_of(plane, self.settings),
            ops=OpsState(metrics=metrics, readiness=readiness),
        )
        return httpx2.AsyncClient(transport=_Borrowed(state, surface), base_url="http://gateway")

    async def load_book(self, book: str = BOOK) -> None:
        """Put a first book in effect, and the test's clock where it is."""
        await self.plane.books.load_first(book, actor="test")
        effective_from = (await self.plane.books.info(1)).effective_from
        assert effective_from is not None
        self.plane.clock.ms = effective_from
        await self.plane.books.refresh()

    async def user(self, account: str = "ada") -> dict[str, str]:
        """The headers of a new user key."""
        _, token = await self.plane.keys.create_user(account, default_scene="chat", actor="test")
        return {"Authorization": f"Bearer {token}"}

    async def app(self, *accounts: str) -> dict[str, str]:
        """The headers of a new app key, without X-Billing-User."""
        _, token = await self.plane.keys.create_app(
            "forum", default_scene="chat", accounts=accounts, actor="test"
        )
        return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def serve_api(directory: Path) -> AsyncIterator[Api]:
    """An API on a fresh database."""
    async with control(directory) as plane:
        yield Api(plane)
