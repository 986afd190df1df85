"""kill -9 in the middle of load, at named points; then recovery, and an audit of every promise."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from billing.settlement.outbox import Outbox
from billing.settlement.recovery import recover
from billing.settlement.spool import Spool
from billing.settlement.worker import LedgerWorker
from tests.support.migrated import migrated
from tests.support.money import T0, Place, execute, hot_database, purchase, rows, url_of

BOUGHT = 10**9


@pytest.mark.parametrize(
    ("point", "times"),
    [
        ("usage_written", 40),
        ("turn_uncommitted", 90),
        ("turn_committed", 90),
        ("settled_uncommitted", 25),
    ],
)
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_whoever_was_told_durable_is_charged_once(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str, point: str, times: int
) -> None:
    path: Place = (
        migrated(tmp_path) if engine == "sqlite" else request.getfixturevalue("postgres_url")
    )
    spool = tmp_path / "spool"
    async with hot_database(path) as hot:
        await hot.post([purchase(BOUGHT, event_id="bought")])

    told = await doomed(path, spool, point, times)
    assert told
    if engine == "postgres":
        # What the dead worker claimed is free once its lease ran out.
        execute(path, "UPDATE outbox SET claimed_at = 0 WHERE claimed_at IS NOT NULL")

    async with hot_database(path) as hot:
        outbox = Outbox(hot, Spool(spool, "next"))
        found = await recover(hot, outbox, process="next", clock=lambda: T0)
        await LedgerWorker(hot, clock=lambda: T0).drain()
        assert await recover(hot, outbox, process="next", clock=lambda: T0) == type(found)(0, 0)
        await outbox.close()

    entries = rows(path, "SELECT event_id, amount FROM ledger_entries WHERE source = 'charge'")
    charged = {str(event_id): -int(str(amount)) for event_id, amount in entries}
    assert {event_id: charged.get(event_id) for event_id in told} == told
    assert rows(path, "SELECT count(*) FROM holds") == [(0,)]
    assert rows(path, "SELECT balance, held FROM accounts") == [(BOUGHT - sum(charged.values()), 0)]


async def doomed(path: Place, spool: Path, point: str, times: int) -> dict[str, int]:
    """Run the process until it dies; what it was told is durable."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.doomed",
        url_of(path),
        str(spool),
        point,
        str(times),
        cwd=Path(__file__).parents[3],
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == -signal.SIGKILL
    lines = [line.split() for line in output.decode().splitlines()]
    return {event_id: int(amount) for event_id, amount in lines}
