"""The HTTP API on a real socket and a fresh database, in a thread of its own."""

import asyncio
import socket
import threading
from pathlib import Path

import uvicorn

from billing.settlement.service import Chore, end_tasks
from llm_gateway import clock
from llm_gateway.api.litestar import ApiState, Dependency, OpsState, create_api
from llm_gateway.secret import Secret
from tests.support.control import BOOK, Control, control
from tests.support.estimates import estimator_of, quoter_of

ADMIN_TOKEN = "admin-token-of-the-test"


async def _no_metrics() -> str:
    return ""


async def _ready() -> list[Dependency]:
    return []


class AdminServer:
    """Runs from `start` to `stop`; `user_key` is a key of the account ada.

    `place`: a directory for a SQLite file, or the address of a migrated database.
    """

    def __init__(self, place: Path | str) -> None:
        self._place = place
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server: uvicorn.Server | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.user_key = ""

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(20)

    def stop(self) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()

    async def _run(self) -> None:
        async with control(self._place) as plane:
            await plane.books.load_first(BOOK, actor="test")
            plane.clock.ms = clock.now_ms() + 60_000  # the database's own clock starts books
            await plane.books.start()
            _, self.user_key = await plane.keys.create_user(
                "ada", default_scene="chat", actor="test"
            )
            state = _state(plane)
            config = uvicorn.Config(create_api(state), log_config=None, lifespan="off")
            self._server = uvicorn.Server(config)
            # As app.py has it, but for the time in between.
            chore = Chore(name="rerating", seconds=0.1, act=state.shop.rerating.carry_on)
            reratings = asyncio.create_task(chore.run())
            self._started.set()
            await self._server.serve(sockets=[self._socket])
            await end_tasks([reratings])
            await plane.simulator.close()


def _state(plane: Control) -> ApiState:
    return ApiState(
        database=plane.database,
        keys=plane.keys,
        books=plane.books,
        accounts=plane.accounts,
        audit=plane.audit,
        desk=plane.desk,
        reconciler=plane.reconciler,
        shop=plane.shop(mock_payments=True),
        simulator=plane.simulator,
        admins=plane.admins,
        admin_token=Secret(ADMIN_TOKEN),
        now_ms=plane.clock.now_ms,
        new_event_id=clock.new_event_id,
        offers=lambda: (),
        quoter=quoter_of(plane),
        estimator=estimator_of(plane),
        ops=OpsState(metrics=_no_metrics, readiness=_ready),
    )
