"""PostgreSQL loses replies, freezes, crashes or only reads, and clocks jump, under the load of whole gateways."""

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.bout import Bout, bout
from tests.faults.machines import spool_of
from tests.support.fleet import PACE
from tests.support.services import PostgresServer
from tests.support.tcp_proxy import TcpProxy

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.slow,
]

DEAD_SECONDS = float(PACE[2])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def road(durable_postgres: PostgresServer) -> AsyncIterator[TcpProxy]:
    """Between gateways and database."""
    async with TcpProxy(durable_postgres.port) as proxy:
        yield proxy


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fight(
    road: TcpProxy, durable_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bout]:
    url = await asyncio.to_thread(durable_postgres.new_database)
    through = url.replace(f":{durable_postgres.port}/", f":{road.port}/")
    folder = tmp_path_factory.mktemp("postgres")
    async with bout(folder, url, durable_postgres, through=through) as begun:
        yield begun
    await asyncio.to_thread(durable_postgres.drop_database, url)


async def test_commits_whose_reply_never_arrives(fight: Bout, road: TcpProxy) -> None:
    """What was committed and what was not looks the same from here: all of it is asked again."""
    before = road.dropped

    async def story() -> None:
        for _ in range(12):
            road.drop_replies += 1
            await fight.answers(3)

    await fight.play(story)
    assert road.dropped >= before + 12


async def test_charges_go_to_the_disk_while_the_database_is_frozen(
    fight: Bout, durable_postgres: PostgresServer
) -> None:
    async def story() -> None:
        durable_postgres.pause()
        try:
            await spooled(fight)
            await fight.falls_silent()
        finally:
            durable_postgres.resume()

    await fight.play(story)


async def test_a_database_that_crashes(fight: Bout, durable_postgres: PostgresServer) -> None:
    async def story() -> None:
        await asyncio.to_thread(durable_postgres.stop, "immediate")
        await asyncio.to_thread(durable_postgres.start)
        await fight.answers(20)
        durable_postgres.kill()
        await asyncio.to_thread(durable_postgres.start)

    await fight.play(story)


async def test_a_database_that_only_reads(fight: Bout, durable_postgres: PostgresServer) -> None:
    """As a standby does to which the address leads."""

    async def story() -> None:
        await read_only(durable_postgres, fight.url, "on")
        await spooled(fight)
        await fight.falls_silent()
        await read_only(durable_postgres, fight.url, "off")

    await fight.play(story)


async def test_database_and_disk_away_at_once(
    fight: Bout, durable_postgres: PostgresServer
) -> None:
    """Ends of answers are withheld, and the charges kept, until one of the two takes them."""
    processes = [gateway.pid for gateway in fight.gateways]

    async def story() -> None:
        durable_postgres.pause()
        try:
            for process in processes:
                limit_files(process, 0)
            await fight.served_within(2.5)  # every call under way has come to its end
            whole = fight.whole()
            assert await fight.served_within(1) == 0
            assert fight.whole() == whole
            assert await fight.ready(fight.gateways) == [503, 503]
            assert not any(any(spool_of(gateway)) for gateway in fight.gateways)
            # The disk has room again, the database is away still.
            for process in processes:
                limit_files(process, resource.RLIM_INFINITY)
            await spooled(fight)
        finally:
            for process in processes:
                limit_files(process, resource.RLIM_INFINITY)
            durable_postgres.resume()

    await fight.play(story)


def limit_files(process: int, size: int) -> None:
    """From now on it writes no file beyond `size` bytes, as on a disk that is full."""
    resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def spooled(fight: Bout) -> None:
    """Until a charge lies in a spool."""
    await fight.until(
        lambda: any(any(spool_of(gateway)) for gateway in fight.gateways), "a charge in a spool"
    )


async def read_only(server: PostgresServer, url: str, value: str) -> None:
    database = url.rpartition("/")[2]
    for statement in (
        f"ALTER SYSTEM SET default_transaction_read_only = {value}",
        "SELECT pg_reload_conf()",
    ):
        await asyncio.to_thread(server.execute, statement, database=database)


async def test_a_gateway_that_hangs_longer_than_death(fight: Bout) -> None:
    zombie = fight.gateways[0]
    open_calls = (
        "SELECT count(*) FROM processes p JOIN holds h USING (process) WHERE p.pid = $1"
        " AND p.ended_at IS NULL AND NOT EXISTS"
        " (SELECT FROM usage u WHERE u.event_id = h.hold_id)"
    )
    estimates = "SELECT count(*) FROM usage WHERE revision = 1"
    before = await fight.number(estimates)

    async def story() -> None:
        zombie.pause()
        await fight.served_within(0.2)  # what it sent is done
        while await fight.number(open_calls, zombie.pid) == 0:
            zombie.resume()
            await fight.answers(1)
            zombie.pause()
            await fight.served_within(0.2)
        try:
            await fight.until_number(estimates, lambda count: count > before)
        finally:
            zombie.resume()

    findings = await fight.play(story)
    assert findings.totals["estimates"] > before
    assert findings.totals["  corrected by a final"] > 0
    assert "declared dead" in zombie.output


async def test_the_clock_of_one_process_jumps(fight: Bout) -> None:
    """An hour back nothing is priced, as no book is in effect yet; nothing is lost or charged twice."""

    async def story() -> None:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR2, signal.SIGUSR1):
            for process in (fight.gateways[1].pid, fight.machines.workers[0].process.pid):
                os.kill(process, number)
                await fight.answers(8)

    await fight.play(story)
