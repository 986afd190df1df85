"""A dump restored under load: the ledger goes back, and whoever still runs must notice and not spend credit twice."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.bout import Bout, bout
from tests.faults.machines import start
from tests.support.services import PostgresServer

pytestmark = pytest.mark.slow

NOTICED = "the registry went back: was the database restored?"
REBUILT = "the database was restored from a backup"


@pytest.fixture(params=[pytest.param("database", marks=pytest.mark.soak), "redis"])
async def fight(
    request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path: Path
) -> AsyncIterator[Bout]:
    redis = request.getfixturevalue("own_redis") if request.param == "redis" else None
    url = await asyncio.to_thread(postgres.new_database)
    async with bout(tmp_path, url, postgres, redis=redis) as begun:
        yield begun
    await asyncio.to_thread(postgres.drop_database, url)


async def test_the_restored_ledger_is_not_overspent(
    fight: Bout, postgres: PostgresServer, tmp_path: Path
) -> None:
    """Calls made between dump and restoration are in no ledger; all others are, once, and within their credit."""

    async def story() -> None:
        dump = await asyncio.to_thread(postgres.dump, fight.url)
        await fight.answers(40)
        await asyncio.to_thread(postgres.restore, fight.url, dump)
        # What began before this moment may have been recorded in the ledger that is gone.
        fight.forgiven |= {outcome.plan.call for outcome in fight.load.outcomes}
        fight.load.grants.clear()
        await fight.until(
            lambda: all(NOTICED in output for output in fight.machines.all_outputs),
            "every process to notice",
        )
        await fight.answers(20)
        # Whoever stays alive keeps holding for calls that only the lost ledger knew to have ended.
        for gateway in fight.gateways:
            assert await asyncio.to_thread(gateway.stop) == 0
            await start(gateway)

    await fight.play(story)
    rebuilt = sum(REBUILT in output for output in fight.machines.all_outputs)
    assert (rebuilt > 0) == (fight.machines.redis is not None)
