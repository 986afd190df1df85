"""A simulation as an answer: the result alone, or line by line with its progress."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

import msgspec
from litestar.response import Stream

from billing.rerating.simulate import Progress
from billing.rerating.simulator import Question, SimulationFailedError, Simulator
from billing.rerating.tally import Simulation
from llm_gateway.api.problems import as_gateway_error
from llm_gateway.api.views.rerating import (
    ProgressLine,
    ResultLine,
    SimulationView,
    progress_view,
    simulation_view,
)

NDJSON: Final = "application/x-ndjson"


async def result_of(simulator: Simulator, question: Question) -> SimulationView:
    """Wait for the result; raises what the simulator raises."""
    async with aclosing(simulator.run(question)) as steps:
        async for step in steps:
            if isinstance(step, Simulation):
                return simulation_view(question, step)
    raise SimulationFailedError("it came to no end")


async def lines_of(simulator: Simulator, question: Question) -> Stream:
    """Lines of JSON; raises what the simulator raises before it begins."""
    steps = simulator.run(question)
    first = await anext(steps)  # what is wrong with the question fails here, while it can be told

    async def body() -> AsyncIterator[bytes]:
        async with aclosing(steps):
            yield _line(question, first)
            try:
                async for step in steps:
                    yield _line(question, step)
            except Exception as error:  # noqa: BLE001 - the status is sent; the line tells
                yield as_gateway_error(error).envelope() + b"\n"

    return Stream(body, media_type=NDJSON)


def _line(question: Question, step: Progress | Simulation) -> bytes:
    line: ProgressLine | ResultLine
    if isinstance(step, Progress):
        line = ProgressLine(progress=progress_view(step))
    else:
        line = ResultLine(result=simulation_view(question, step))
    return msgspec.json.encode(line) + b"\n"
