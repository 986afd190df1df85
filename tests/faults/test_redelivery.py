"""A broker that delivers everything again and again, out of order, while gateways and a worker are under load."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from billing.settlement.messages import REQUESTED_TOPIC
from tests.faults.bout import Bout, bout
from tests.support.broker_servers import SERVERS, BrokerServer
from tests.support.services import PostgresServer, pg_rows

pytestmark = pytest.mark.slow

# A broker that delivered a message deletes it: what was ever sent is kept on the side.
KEEP = (
    "CREATE TABLE kept (payload bytea NOT NULL)",
    (
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO kept VALUES (NEW.payload); RETURN NEW; END $$"
    ),
    "CREATE TRIGGER keep AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION keep()",
)


@pytest.fixture
async def fight(
    postgres: PostgresServer, tmp_path: Path
) -> AsyncIterator[tuple[Bout, BrokerServer]]:
    url = await asyncio.to_thread(postgres.new_database)
    folder = tmp_path / "broker"
    folder.mkdir()
    with SERVERS["redis"](folder) as broker:
        config = f'\n[broker]\nkind = "redis"\nurl = "{broker.url}"\n'
        async with bout(tmp_path, url, postgres, config=config) as begun:
            yield begun, broker
    await asyncio.to_thread(postgres.drop_database, url)


async def test_every_message_comes_again_under_load(fight: tuple[Bout, BrokerServer]) -> None:
    match, broker = fight
    for statement in KEEP:
        await asyncio.to_thread(pg_rows, match.url, statement)
    chance = random.Random(5)
    again = 0
    enough = asyncio.Event()

    async def redeliver() -> None:
        nonlocal again
        while not enough.is_set():
            sent = await asyncio.to_thread(pg_rows, match.url, "SELECT payload FROM kept")
            some = [row[0] for row in chance.sample(sent, min(len(sent), 40))]
            repeated = [payload for payload in some if isinstance(payload, bytes)]
            await broker.write(REQUESTED_TOPIC, repeated)
            again += len(repeated)
            await asyncio.sleep(0.1)

    async def story() -> None:
        meddler = asyncio.create_task(redeliver())
        await match.answers(60)
        enough.set()
        await meddler

    await match.play(story)
    assert again > 60
