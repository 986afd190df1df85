"""`llm-gateway worker`: settles charges and minds the dead, in a process of its own; several are safe."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import uvloop

from billing.db.hot import DatabaseUnavailableError
from billing.settlement.registry import AWAY
from llm_gateway.api.litestar import Dependency, OpsState, create_watch_api
from llm_gateway.app import build_worker, secrets_of
from llm_gateway.garbage import collect_rarely
from llm_gateway.logs import configure, writer_for_stderr
from llm_gateway.readiness import broker_rows, database_row, guard_rows, registry_rows
from llm_gateway.servers import Served, close_all, make_server
from llm_gateway.start import StartError, check_schema, listen

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

    from billing.settlement.registry import Pace
    from llm_gateway.app import WorkerParts
    from llm_gateway.config import Config


def work(config: Config, *, pace: Pace | None = None) -> int:
    """Settle until told to stop; the exit status. `pace`: of the registry.

    0 after SIGINT or SIGTERM, 2 if it cannot start (one line on stderr says why).
    """
    try:
        _check_shared(config)
        address = config.ledger_worker.metrics_address
        listener = listen(*address, choose="[ledger_worker] metrics_host") if address else None
        check_schema(config)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(config, pace, listener))
    except StartError as error:
        sys.stderr.write(f"llm-gateway: {error}\n")
        return 2
    return 0


def _check_shared(config: Config) -> None:
    if config.database.is_sqlite:
        raise StartError(
            "a worker of its own needs PostgreSQL: with SQLite `llm-gateway serve` settles"
        )


async def _work(config: Config, pace: Pace | None, listener: socket.socket | None) -> None:
    async with AsyncExitStack() as stack:
        log = writer_for_stderr(secrets_of(config))
        configure(log)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its starts and stops are ours
        stack.callback(log.close)
        try:
            parts = await build_worker(config, stack, pace=pace)
        except (DatabaseUnavailableError, *AWAY) as error:
            first = str(error).partition("\n")[0] or type(error).__name__
            raise StartError(f"something the worker needs is away: {first}") from error
        collect_rarely()
        service = parts.service
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, service.stop)
        print(f"llm-gateway worker: settling on {config.database.shown}", flush=True)  # noqa: T201 - for people
        async with _watched(parts, listener):
            await service.run()


@contextlib.asynccontextmanager
async def _watched(parts: WorkerParts, listener: socket.socket | None) -> AsyncIterator[None]:
    """Health and metrics on `listener` meanwhile, if there is one."""
    if listener is None:
        yield
        return

    async def figures() -> str:
        return parts.metrics.render()

    async def readiness() -> list[Dependency]:
        guard, registry = guard_rows(parts.holds), registry_rows(parts.registration)
        return [await database_row(parts.hot), *broker_rows(parts.delivery), *guard, *registry]

    state = OpsState(metrics=figures, readiness=readiness)
    served = Served(make_server(create_watch_api(state)), listener)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(served.run(), name="server")
        try:
            yield
        finally:
            await close_all([served], [running])
