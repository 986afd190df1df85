"""A full disk under database and spool at once: ends are withheld, nobody is admitted, nothing is lost."""

import asyncio
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.soak_audit import WORDS, Findings, Word, check_calls, check_words
from tests.faults.soak_load import Load, Outcome, SoakProvider
from tests.support.gateway import GatewayProcess
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.slow

MEGABYTES = 8
CLIENTS = 8

FillAndFree = tuple[Callable[[], None], Callable[[], None]]


@contextmanager
def full_disk(gateway: GatewayProcess) -> Iterator[FillAndFree]:
    with small_disk(gateway.folder / "data", MEGABYTES) as disk:
        yield disk.fill, disk.free


@contextmanager
def file_limit(gateway: GatewayProcess) -> Iterator[FillAndFree]:
    """No file can be written; what the process logs is lost as well."""

    def limit(size: int) -> None:
        if gateway.running:
            resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    yield lambda: limit(0), lambda: limit(resource.RLIM_INFINITY)


@pytest.mark.parametrize(
    ("cause", "killed"),
    [
        (full_disk, False),
        (file_limit, True),
        pytest.param(full_disk, True, marks=pytest.mark.soak),
        pytest.param(file_limit, False, marks=pytest.mark.soak),
    ],
)
async def test_nothing_is_lost(
    tmp_path: Path,
    cause: Callable[[GatewayProcess], AbstractContextManager[FillAndFree]],
    killed: bool,
) -> None:
    async with SoakProvider() as provider:
        with GatewayProcess(tmp_path, provider.base_url) as gateway, cause(gateway) as (fill, free):
            await asyncio.to_thread(gateway.start)
            load = await make_load(gateway)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(load.run(CLIENTS))
                await until(lambda: whole(load) > 20)
                begun = len(load.outcomes)
                fill()
                while (await ready(gateway)) == 200:
                    await asyncio.sleep(0.02)
                await no_call_under_way(load)
                seen = sum(map(len, provider.served.values()))
                ended = whole(load)
                await asyncio.sleep(0.7)  # nothing tells that nothing happens
                assert await ready(gateway) == 503
                assert whole(load) == ended
                assert any(withheld(outcome) for outcome in load.outcomes[begun - CLIENTS :])
                assert sum(map(len, provider.served.values())) == seen
                if killed:
                    await asyncio.to_thread(gateway.kill9)
                    free()
                    await asyncio.to_thread(gateway.start)
                else:
                    free()
                await until(lambda: whole(load) > ended + 20)
                assert await ready(gateway) == 200
                load.stopping = True
            await asyncio.to_thread(gateway.audit)
            findings = Findings()
            words = read_words(gateway)
            check_calls(findings, load, provider.served, words)
            check_words(findings, words)
            assert not findings.violations
            assert not provider.errors
            if not killed:
                assert {word.revision for word in words} == {2}
                assert await asyncio.to_thread(gateway.stop) == 0
            assert "Traceback" not in gateway.output


async def make_load(gateway: GatewayProcess) -> Load:
    hot, *others = [await asyncio.to_thread(gateway.account) for _ in range(3)]
    thin = [await asyncio.to_thread(gateway.account, 12_000) for _ in range(2)]
    return Load(lambda: [gateway.port], hot, others, thin, seed=1, call_ms_max=600)


def read_words(gateway: GatewayProcess) -> list[Word]:
    with closing(sqlite3.connect(gateway.database)) as connection:
        rows = connection.execute(WORDS).fetchall()
    return [replace(word, cancelled=bool(word.cancelled)) for word in (Word(*row) for row in rows)]


def whole(load: Load) -> int:
    """Answers that clients got to their end."""
    return sum(outcome.ended for outcome in load.outcomes)


def withheld(outcome: Outcome) -> bool:
    """The end of an answer that was there never came."""
    broken = outcome.left or outcome.plan.kind.startswith("broken")
    return outcome.status in (0, 200) and not outcome.ended and not broken


async def ready(gateway: GatewayProcess) -> int:
    return (await asyncio.to_thread(gateway.get, "/readyz")).status


async def no_call_under_way(load: Load) -> None:
    """Until every call that was admitted has come to its end, whichever."""
    longest = (load.call_ms_max + 1500) / 1000
    await asyncio.sleep(longest)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)
