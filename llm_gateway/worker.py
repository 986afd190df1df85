"""`llm-gateway worker`: settles charges and minds the dead, in a process of its own; several are safe."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import uvloop

from billing.db.hot import DatabaseUnavailableError
from billing.settlement.registry import AWAY
from llm_gateway.app import build_worker, secrets_of
from llm_gateway.logs import configure, writer_for_stderr
from llm_gateway.start import StartError, check_schema

if TYPE_CHECKING:
    from billing.settlement.registry import Pace
    from llm_gateway.config import Config


def work(config: Config, *, pace: Pace | None = None) -> int:
    """Settle until told to stop; the exit status. `pace`: of the registry.

    0 after SIGINT or SIGTERM, 2 if it cannot start (one line on stderr says why).
    """
    try:
        _check_shared(config)
        check_schema(config)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(config, pace))
    except StartError as error:
        sys.stderr.write(f"llm-gateway: {error}\n")
        return 2
    return 0


def _check_shared(config: Config) -> None:
    if config.database.is_sqlite:
        raise StartError(
            "a worker of its own needs PostgreSQL: with SQLite `llm-gateway serve` settles"
        )


async def _work(config: Config, pace: Pace | None) -> None:
    async with AsyncExitStack() as stack:
        log = writer_for_stderr(secrets_of(config))
        configure(log)
        stack.callback(log.close)
        try:
            service = await build_worker(config, stack, pace=pace)
        except (DatabaseUnavailableError, *AWAY) as error:
            first = str(error).partition("\n")[0] or type(error).__name__
            raise StartError(f"something the worker needs is away: {first}") from error
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, service.stop)
        print(f"llm-gateway worker: settling on {config.database.shown}", flush=True)  # noqa: T201 - for people
        await service.run()
