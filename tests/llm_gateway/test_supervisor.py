"""The link between a supervisor and its children, on both kinds of event loop."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator

import pytest
import uvloop

from llm_gateway.supervisor import HURRY, READY, STOP, Link

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
DEADLINE_SECONDS = 5.0


class Ears:
    """What a child hears on its link."""

    def __init__(self, link: Link) -> None:
        self.stop, self.hurry = asyncio.Event(), asyncio.Event()
        link.listen(asyncio.get_running_loop(), on_stop=self.stop.set, on_hurry=self.hurry.set)

    async def hears_stop(self) -> None:
        await asyncio.wait_for(self.stop.wait(), DEADLINE_SECONDS)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The supervisor's end and the child's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[object, object, None]], None]:
    def run(main: Coroutine[object, object, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main)

    return run


Run = Callable[[Coroutine[object, object, None]], None]
Ends = tuple[socket.socket, socket.socket]


def test_supervisor_that_ends_asks_to_stop(run: Run, ends: Ends) -> None:
    async def main() -> None:
        ears = Ears(Link(ends[1]))
        ends[0].close()
        await ears.hears_stop()

    run(main())


def test_supervisor_that_ends_before_it_read_ready_asks_to_stop(run: Run, ends: Ends) -> None:
    """What it did not read makes its end a reset, which a loop tells of only once."""

    async def main() -> None:
        link = Link(ends[1])
        ears = Ears(link)
        link.tell_ready()
        ends[0].close()
        await ears.hears_stop()

    run(main())


def test_supervisor_that_ended_before_anybody_listened_asks_to_stop(run: Run, ends: Ends) -> None:
    async def main() -> None:
        link = Link(ends[1])
        link.tell_ready()
        ends[0].close()
        await Ears(link).hears_stop()

    run(main())


def test_words_of_the_supervisor_are_told_apart(run: Run, ends: Ends) -> None:
    async def main() -> None:
        link = Link(ends[1])
        ears = Ears(link)
        link.tell_ready()
        assert ends[0].recv(16) == READY
        ends[0].send(STOP)
        await ears.hears_stop()
        assert not ears.hurry.is_set()
        ends[0].send(HURRY)
        await asyncio.wait_for(ears.hurry.wait(), DEADLINE_SECONDS)

    run(main())
