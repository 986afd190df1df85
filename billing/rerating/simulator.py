"""Runs simulations, one at a time, each in a process of its own: see billing.rerating.child."""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Final

import msgspec

from billing.books import BookRefusedError, PriceBooks
from billing.db.hot import DatabaseUnavailableError
from billing.db.session import Database
from billing.rerating.calls import Window
from billing.rerating.child import Job, Step
from billing.rerating.simulate import Progress
from billing.rerating.tally import Simulation
from pricing_rules.lint import lint

SIMULATION_SECONDS_MAX: Final = 1800.0  # at about 30,000 calls a second, 50 million
ABANDONED_SECONDS: Final = 30.0  # nobody asked what has come of it for so long
LINE_BYTES_MAX: Final = 4 * 1024 * 1024  # a report with the longest names has a tenth of it

_log: Final = logging.getLogger(__name__)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls by which book: a stored `version`, or a `toml` that is not to be stored.

    `charged`: against what the ledger charges now, else against what was recorded.
    """

    window: Window
    version: int = 0
    toml: str = ""
    charged: bool = False


class SimulationBusyError(Exception):
    """This process simulates already; one at a time is enough for a machine."""


class SimulationFailedError(Exception):
    """It did not come to an end: it took too long, or its process was killed."""


class _Run:
    """One simulation: the process, and what it last said."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.asked_at = monotonic()
        self.news = asyncio.Event()
        self.progress = Progress(calls=0, percent=0)
        self.simulation: Simulation | None = None
        self.task: asyncio.Task[None] | None = None


class Simulator:
    """Simulations of one gateway process. `monotonic` gives seconds."""

    def __init__(
        self, database: Database, books: PriceBooks, *, monotonic: Callable[[], float]
    ) -> None:
        self._database = database
        self._books = books
        self._monotonic = monotonic
        self._run: _Run | None = None

    async def run(self, question: Question) -> AsyncGenerator[Progress | Simulation, None]:
        """What has come of it, about each second; the result at last.

        To be closed if it is not read to its end. Raises SimulationBusyError, UnknownBookError and
        BookRefusedError before anything else; later DatabaseUnavailableError, SimulationFailedError.
        """
        if self._run is not None:
            raise SimulationBusyError
        run = self._run = _Run(self._monotonic)
        try:
            job = await self._job(question)
            task = asyncio.create_task(self._attend(run, job), name="simulation")
        except BaseException:
            self._run = None
            raise
        run.task = task
        # However it ends, and should it be cancelled before it began.
        task.add_done_callback(self._free)
        try:
            while not task.done():
                run.asked_at = self._monotonic()
                yield run.progress
                with suppress(TimeoutError):
                    await asyncio.wait_for(run.news.wait(), 1.0)
                run.news.clear()
            await task
            assert run.simulation is not None, "a task that ends well has a result"
            yield run.progress
            yield run.simulation
        finally:
            task.cancel()  # which ends its process, and frees the place

    async def close(self) -> None:
        """End what runs."""
        run = self._run
        if run is not None and run.task is not None:
            run.task.cancel()
            await asyncio.wait([run.task])

    async def _job(self, question: Question) -> Job:
        toml = question.toml
        if question.version:
            toml = await self._books.text(question.version)
        else:
            # Of a long book a second of work; it is a person's request, and a rare one.
            problems = tuple(await asyncio.to_thread(lint, toml))
            if any(problem.level == "error" for problem in problems):
                raise BookRefusedError(problems)
        return Job(
            database_url=self._database.url,
            toml=toml,
            version=question.version,
            window=question.window,
            charged=question.charged,
        )

    async def _attend(self, run: _Run, job: Job) -> None:
        """Follow the process to its end, or end it."""
        try:
            async with asyncio.timeout(SIMULATION_SECONDS_MAX):
                await self._follow(run, job)
        except TimeoutError:
            raise SimulationFailedError("it took too long; ask for fewer days") from None
        finally:
            run.news.set()

    def _free(self, task: asyncio.Task[None]) -> None:
        self._run = None
        if not task.cancelled():
            task.exception()  # whoever asked is told, if he still waits

    async def _follow(self, run: _Run, job: Job) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "billing.rerating.child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # a traceback may quote a row
            limit=LINE_BYTES_MAX,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(ConnectionError):
                process.stdin.write(msgspec.json.encode(job))
                await process.stdin.drain()
            process.stdin.close()
            async for line in process.stdout:
                self._note(run, _step_decoder.decode(line))
            if run.simulation is None:
                raise SimulationFailedError("its process ended early")
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    def _note(self, run: _Run, step: Step) -> None:
        if step.failed:
            _log.error("a simulation failed: %s", step.failed)
            raise SimulationFailedError("it met a fault of the gateway itself")
        if step.database_away:
            raise DatabaseUnavailableError(step.database_away)
        if self._monotonic() - run.asked_at > ABANDONED_SECONDS:
            raise SimulationFailedError("nobody waits for it any more")
        run.progress = step.progress or run.progress
        run.simulation = step.simulation
        run.news.set()


_step_decoder: Final = msgspec.json.Decoder(Step)
