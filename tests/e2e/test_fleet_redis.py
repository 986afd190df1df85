"""Several gateways and workers that hold credit in Redis: deaths and zombies as with the database."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, Stream, fleet
from tests.support.gateway import until
from tests.support.provider import ScriptedProvider, json_answer
from tests.support.rawhttp import chat
from tests.support.redis_server import RedisServer, redis_server
from tests.support.services import PostgresServer

WORKER_APART = "\n[ledger_worker]\nembedded = false\n"
WHOLE_PRICE = 360
JSON_PRICE = 64


@pytest.fixture
def guard() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def processes(
    durable_postgres: PostgresServer,
    guard: RedisServer,
    provider: ScriptedProvider,
    tmp_path: Path,
) -> Iterator[Fleet]:
    url = durable_postgres.new_database()
    config = f'\n[guard]\nstore = "redis"\nredis_url = "{guard.url}"\n'
    with fleet(tmp_path, provider.base_url, url, config) as started:
        yield started
    durable_postgres.drop_database(url)


def held_in(guard: RedisServer) -> int:
    """Micro-credits that Redis holds for all accounts."""
    keys = guard.command("KEYS", "*")
    assert isinstance(keys, list)
    total = 0
    for key in keys:
        if guard.command("TYPE", key) in (b"hash", "hash"):
            value = guard.command("HGET", key, "held")
            total += int(value) if isinstance(value, bytes | str) and value else 0
    return total


def test_calls_of_a_killed_gateway_become_estimates_and_others_go_on(
    processes: Fleet, provider: ScriptedProvider
) -> None:
    doomed, other = processes.gateway(WORKER_APART), processes.gateway(WORKER_APART)
    processes.worker()
    processes.worker()
    account = doomed.account()
    with contextlib.ExitStack() as stack:
        lost = [Stream(doomed, provider, account, f"lost-{n}", stack) for n in range(2)]
        kept = Stream(other, provider, account, "kept", stack)
        doomed.kill9()
        processes.wait_estimates(2)
        assert b"[DONE]" in kept.finish()
    until(lambda: len(processes.usage(account)) == 3 or None, "three words")
    processes.wait_settled()
    by_name = {name: (revision, amount) for name, revision, amount in processes.usage(account)}
    assert by_name["kept"] == (2, WHOLE_PRICE)
    assert {by_name[each.name][0] for each in lost} == {1}
    assert processes.spent(account) == sum(amount for _, amount in by_name.values())
    script = provider.script(*json_answer())
    assert other.call(chat(x_script=script), account.key).status == 200
    processes.wait_settled()


def test_a_zombie_is_estimated_then_corrected_by_its_final(
    processes: Fleet, provider: ScriptedProvider, guard: RedisServer
) -> None:
    zombie = processes.gateway(WORKER_APART)
    processes.worker()
    account = zombie.account()
    with contextlib.ExitStack() as stack:
        call = Stream(zombie, provider, account, "stalled", stack)
        zombie.pause()
        processes.wait_estimates(1)
        processes.wait_settled()
        [(_, _, estimate)] = processes.usage(account)
        assert held_in(guard) > 0
        zombie.resume()
        assert b"[DONE]" in call.finish()
        until(lambda: len(processes.usage(account)) == 2 or None, "the final")
        processes.wait_settled()
        assert processes.usage(account) == [
            ("stalled", 1, estimate),
            ("stalled", 2, WHOLE_PRICE),
        ]
        assert processes.spent(account) == WHOLE_PRICE
        until(lambda: held_in(guard) == 0 or None, "Redis to hold nothing")
        until(lambda: zombie.get("/readyz").status == 200 or None, "the zombie to serve again")
        script = provider.script(*json_answer())
        assert zombie.call(chat(x_script=script), account.key).status == 200
    processes.wait_settled()
    assert processes.spent(account) == WHOLE_PRICE + JSON_PRICE
    assert "Traceback" not in zombie.output


def test_readyz_names_redis_while_it_is_away(processes: Fleet, guard: RedisServer) -> None:
    gateway = processes.gateway()
    assert gateway.get("/readyz").status == 200
    guard.kill()

    def told() -> bool | None:
        reply = gateway.get("/readyz")
        rows = {row["name"]: row["status"] for row in reply.json["dependencies"]}  # type: ignore[attr-defined]
        return (reply.status == 503 and rows["redis"] == "down") or None

    until(told, "the row of Redis to be down")
    guard.start()
    until(lambda: gateway.get("/readyz").status == 200 or None, "Redis to be back")
    assert gateway.stop() == 0


@pytest.mark.parametrize("apart", [True, False])
def test_charges_travel_through_a_broker(
    processes: Fleet, provider: ScriptedProvider, guard: RedisServer, *, apart: bool
) -> None:
    broker = f'\n[broker]\nkind = "redis"\nurl = "{guard.url}"\n'
    gateway = processes.gateway(broker + (WORKER_APART if apart else ""))
    worker = processes.worker() if apart else None
    account = gateway.account()
    script = provider.script(*json_answer())
    for _ in range(5):
        assert gateway.call(chat(x_script=script), account.key).status == 200
    processes.wait_settled()
    assert processes.spent(account) == 5 * JSON_PRICE
    until(lambda: held_in(guard) == 0 or None, "Redis to hold nothing")
    assert gateway.stop() == 0, gateway.output
    assert worker is None or worker.stop() == 0
    assert "Traceback" not in gateway.output
