"""Several gateways and workers on one PostgreSQL: each may die, or seem to, and the others go on."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typing_extensions import override

from tests.support.fleet import PACE, Fleet, FleetGateway, Stream, Worker, fleet
from tests.support.gateway import DEADLINE_SECONDS, free_port, until
from tests.support.provider import ScriptedProvider, json_answer
from tests.support.rawhttp import RawClient, Reply, chat, request
from tests.support.services import PostgresServer
from tests.support.warm import WarmProcess

WORKER_APART = "\n[ledger_worker]\nembedded = false\n"
WHOLE_PRICE = 360  # of a Stream: 2 for each of 100 tokens, 8 for each of 20
JSON_PRICE = 64  # of json_answer()


@pytest.fixture
def processes(
    durable_postgres: PostgresServer, provider: ScriptedProvider, tmp_path: Path
) -> Iterator[Fleet]:
    url = durable_postgres.new_database()
    with fleet(tmp_path, provider.base_url, url) as started:
        yield started
    durable_postgres.drop_database(url)


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
        processes.wait_progress(3)
        doomed.kill9()
        processes.wait_estimates(2)
        assert b"[DONE]" in kept.finish()
    processes.wait_settled()
    words = processes.usage(account)
    by_name = {name: (revision, amount) for name, revision, amount in words}
    assert len(words) == 3
    assert by_name["kept"] == (2, WHOLE_PRICE)
    assert {by_name[each.name][0] for each in lost} == {1}
    assert processes.spent(account) == sum(amount for _, _, amount in words)
    # What the estimates left is held until no call can last so long: a zombie may still come.
    assert processes.number("SELECT count(*) FROM holds WHERE state = 'residual'") == 2
    # The other one still serves, and its charges are settled.
    assert other.call(chat(x_script=provider.script(*json_answer())), account.key).status == 200
    processes.wait_settled()
    assert len(processes.usage(account)) == 4
    processes.audit()


def test_a_zombie_is_estimated_then_corrected_by_its_final(
    processes: Fleet, provider: ScriptedProvider
) -> None:
    zombie = processes.gateway(WORKER_APART)
    processes.worker()
    processes.worker()
    account = zombie.account()
    with contextlib.ExitStack() as stack:
        call = Stream(zombie, provider, account, "stalled", stack)
        processes.wait_progress(1)
        zombie.pause()
        processes.wait_estimates(1)
        processes.wait_settled()
        [(_, _, estimate)] = processes.usage(account)
        assert processes.spent(account) == estimate
        zombie.resume()
        assert b"[DONE]" in call.finish()
        processes.wait_settled()
        assert processes.usage(account) == [
            ("stalled", 1, estimate),
            ("stalled", 2, WHOLE_PRICE),
        ]
        assert processes.spent(account) == WHOLE_PRICE
        assert processes.held(account) == 0
        # It goes on under another id and takes calls again.
        until(lambda: zombie.get("/readyz").status == 200 or None, "the zombie to serve again")
        script = provider.script(*json_answer())
        assert zombie.call(chat(x_script=script), account.key).status == 200
    processes.wait_settled()
    assert processes.spent(account) == WHOLE_PRICE + JSON_PRICE
    # The gateway and two workers; the zombie's former id is over.
    assert processes.number("SELECT count(*) FROM processes WHERE ended_at IS NULL") == 3
    processes.audit()
    assert "declared dead" in zombie.output
    assert "Traceback" not in zombie.output


def test_killed_worker_leaves_its_work_to_the_other(
    processes: Fleet, provider: ScriptedProvider
) -> None:
    gateway = processes.gateway(WORKER_APART)
    first, second = processes.worker(), processes.worker()
    account = gateway.account()
    for number in range(10):
        if number == 5:
            first.kill9()
        script = provider.script(*json_answer())
        assert gateway.call(chat(x_script=script), account.key).status == 200
    processes.wait_settled()
    assert processes.spent(account) == 10 * JSON_PRICE
    assert processes.held(account) == 0
    assert second.stop() == 0
    assert "Traceback" not in second.output
    processes.audit()


def test_one_of_several_gateways_settles_and_another_follows(
    processes: Fleet, provider: ScriptedProvider
) -> None:
    gateways = [processes.gateway(), processes.gateway(), processes.gateway()]
    account = gateways[0].account()
    script = provider.script(*json_answer())
    for gateway in gateways:
        assert gateway.call(chat(x_script=script), account.key).status == 200
    processes.wait_settled()
    elected = [each for each in gateways if "has the duty" in each.output]
    assert len(elected) == 1
    elected[0].kill9()
    left = [each for each in gateways if each not in elected]
    for gateway in left:
        assert gateway.call(chat(x_script=script), account.key).status == 200
    processes.wait_settled()
    assert processes.spent(account) == 5 * JSON_PRICE
    processes.audit()
    assert [gateway.stop() for gateway in left] == [0, 0]


def test_processes_share_an_address_and_one_that_dies_is_replaced(
    processes: Fleet, provider: ScriptedProvider
) -> None:
    gateway = processes.gateway(processes=2)
    account = gateway.account()
    until(lambda: len(children(gateway)) == 2 or None, "two processes")
    script = provider.script(*json_answer())
    for _ in range(10):
        assert gateway.call(chat(x_script=script), account.key).status == 200
    with contextlib.ExitStack() as stack:
        streams = [Stream(gateway, provider, account, f"s-{n}", stack) for n in range(6)]
        processes.wait_progress(6)
        [owner, *_] = processes.rows("SELECT pid FROM processes ORDER BY started_at, process")
        before = children(gateway)
        assert owner[0] in before
        cut = processes.number(
            "SELECT count(*) FROM holds h JOIN processes p USING (process) WHERE p.pid = $1",
            owner[0],
        )
        kill(owner[0])
        whole = sum(b"[DONE]" in stream.finish() for stream in streams)
        assert whole == 6 - cut
    until(
        lambda: (len(children(gateway)) == 2 and children(gateway) != before) or None,
        "another process in its place",
    )
    processes.wait_estimates(cut)
    processes.wait_settled()
    assert gateway.call(chat(x_script=script), account.key).status == 200
    assert gateway.stop() == 0, gateway.output
    assert "was killed by signal 9; another takes its place" in gateway.output
    processes.wait_settled()
    processes.audit()
    assert "Traceback" not in gateway.output


def test_processes_end_with_the_one_that_looks_after_them(processes: Fleet) -> None:
    gateway = processes.gateway(processes=2)
    orphans = until(lambda: pids if len(pids := children(gateway)) == 2 else None, "two processes")
    gateway.kill9()
    wait_gone(orphans)


def one_forked(_: Fleet, parent: WarmProcess, _gateway: FleetGateway) -> None:
    until(lambda: children_of(parent.pid) or None, "a process")


def one_registered(fleet: Fleet, _: WarmProcess, _gateway: FleetGateway) -> None:
    until(lambda: fleet.number("SELECT count(*) FROM processes") or None, "a registration")


def ready_unheard(_: Fleet, parent: WarmProcess, gateway: FleetGateway) -> None:
    """A process says that it is ready, and the supervisor never gets to reading it."""
    until(lambda: len(children_of(parent.pid)) == 2 or None, "two processes")
    parent.send_signal(signal.SIGSTOP)
    until(lambda: not refuses(gateway) or None, "a process to listen")
    assert gateway.get("/readyz").status == 200


@pytest.mark.parametrize("moment", [one_forked, one_registered, ready_unheard])
def test_processes_end_with_a_supervisor_killed_while_they_start(
    processes: Fleet,
    tmp_path: Path,
    moment: Callable[[Fleet, WarmProcess, FleetGateway], None],
) -> None:
    gateway = FleetGateway(tmp_path / "starting", "http://127.0.0.1:9/v1", processes.url, "", 2)
    with (tmp_path / "output").open("wb") as output:
        parent = gateway.begin(output)
    try:
        moment(processes, parent, gateway)
        parent.send_signal(signal.SIGSTOP)  # so that it makes no other between look and kill
        orphans = children_of(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    assert orphans
    wait_gone(orphans)
    assert "Traceback" not in (tmp_path / "output").read_text()


class Swapping(FleetGateway):
    """One that starts more slowly than an entry in the registry holds."""

    @property
    @override
    def environment(self) -> dict[str, str]:
        return {**super().environment, "SLOW_START_SECONDS": str(float(PACE[1]) + 0.2)}


def test_who_started_slowly_admits_calls_from_its_first_moment(
    processes: Fleet, tmp_path: Path
) -> None:
    gateway = Swapping(tmp_path / "starting", "http://127.0.0.1:9/v1", processes.url, "", 1)

    def first_answer() -> Reply | None:
        with contextlib.suppress(ConnectionRefusedError):
            return gateway.get("/readyz")
        return None

    with (tmp_path / "output").open("wb") as output:
        process = gateway.begin(output)
    try:
        answer = until(first_answer, "it to listen")
    finally:
        process.kill()
        process.wait()
    assert answer.status == 200, answer.body


def test_stop_during_the_start_of_processes_ends_it_in_order(
    processes: Fleet, tmp_path: Path
) -> None:
    """As a terminal does it: the signal reaches all of them."""
    gateway = FleetGateway(tmp_path / "starting", "http://127.0.0.1:9/v1", processes.url, "", 2)
    with (tmp_path / "output").open("wb") as output:
        parent = gateway.begin(output, new_session=True)
    try:
        one_registered(processes, parent, gateway)
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.wait(DEADLINE_SECONDS) == 0, (tmp_path / "output").read_text()
    finally:
        parent.kill()
        parent.wait()
    assert "Traceback" not in (tmp_path / "output").read_text()


def counted(text: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """The samples of this name, by their labels."""
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_metrics_are_those_of_all_processes_whoever_answers(
    processes: Fleet, provider: ScriptedProvider
) -> None:
    gateway = processes.gateway(processes=2)
    account = gateway.account()
    script = provider.script(*json_answer())
    until(lambda: processes_up(gateway, 2) or None, "both processes")
    for _ in range(12):
        assert gateway.call(chat(x_script=script), account.key).status == 200
    for _ in range(6):  # whichever takes the connection
        text = gateway.get("/metrics").body.decode()
        calls = counted(text, "llm_gateway_calls_total")
        assert sum(calls.values()) == 12
        assert {dict(labels)["process"] for labels in calls} <= {"0", "1"}
        # What the database says stands there once.
        assert list(counted(text, "llm_gateway_quarantined_events")) == [()]
    [(pid,)] = processes.rows("SELECT max(pid) FROM processes")
    os.kill(int(str(pid)), signal.SIGSTOP)  # it does not answer, and holds up nobody
    try:
        until(lambda: processes_up(gateway, 1) or None, "one to be shown as down")
    finally:
        os.kill(int(str(pid)), signal.SIGCONT)
    kill(pid)
    until(lambda: processes_up(gateway, 2) or None, "another with its number")
    assert gateway.stop() == 0, gateway.output
    assert "Traceback" not in gateway.output


def processes_up(gateway: FleetGateway, count: int) -> bool:
    try:
        text = gateway.get("/metrics").body.decode()
    except (OSError, AssertionError):  # the one that was asked is stopped
        return False
    up = counted(text, "llm_gateway_process_up")
    return len(up) == 2 and sum(up.values()) == count


def test_a_worker_shows_its_health_and_figures(
    processes: Fleet, provider: ScriptedProvider, durable_postgres: PostgresServer
) -> None:
    port = free_port()
    gateway = processes.gateway(WORKER_APART + f'metrics_host = "127.0.0.1:{port}"\n')
    worker = processes.worker()
    account = gateway.account()
    script = provider.script(*json_answer())
    for _ in range(3):
        assert gateway.call(chat(x_script=script), account.key).status == 200
    processes.wait_settled()
    assert ask(port, "/healthz").status == 200
    ready = ask(port, "/readyz")
    assert ready.status == 200
    rows = ready.json["dependencies"]
    assert isinstance(rows, list)
    assert [row["name"] for row in rows] == ["database", "registry"]
    text = ask(port, "/metrics").body.decode()
    assert counted(text, "llm_gateway_settled_total") == {(): 3}
    assert counted(text, "llm_gateway_set_aside_total") == {(): 0}
    assert counted(text, "llm_gateway_unsettled_events") == {(): 0}
    assert not counted(text, "llm_gateway_call_seconds_count")
    for path in ("/admin/accounts", "/v1/models", "/v1/chat/completions", "/schema"):
        assert ask(port, path).status == 404
    durable_postgres.pause()
    try:
        reply = ask(port, "/readyz")
        assert reply.status == 503
    finally:
        durable_postgres.resume()
    assert worker.stop() == 0, worker.output
    assert "Traceback" not in worker.output


def ask(port: int, path: str) -> Reply:
    with RawClient(port) as client:
        client.send(request(path, method="GET"))
        return client.read_reply()


def test_a_worker_whose_address_is_taken_says_so(processes: Fleet) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        gateway = processes.gateway(WORKER_APART + f'metrics_host = "127.0.0.1:{port}"\n')
        worker = Worker(gateway)
        assert worker.process.wait(DEADLINE_SECONDS) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in worker.output
    assert "[ledger_worker] metrics_host" in worker.output


def test_second_signal_cuts_calls_of_all_processes(
    processes: Fleet, provider: ScriptedProvider
) -> None:
    gateway = processes.gateway(processes=2, shutdown_seconds=60)
    account = gateway.account()
    with contextlib.ExitStack() as stack:
        streams = [Stream(gateway, provider, account, f"s-{n}", stack) for n in range(3)]
        gateway.interrupt()
        until(lambda: refuses(gateway) or None, "the address to close")
        started = time.monotonic()
        gateway.interrupt()
        for stream in streams:
            assert b'"finish_reason":"length"' in stream.client.read_to_end()
        assert gateway.wait() == 0, gateway.output
        assert time.monotonic() - started < 30
    processes.wait_settled()
    processes.audit()


def test_what_a_dead_neighbour_spooled_is_adopted(
    processes: Fleet, provider: ScriptedProvider, durable_postgres: PostgresServer
) -> None:
    """Two processes share a data directory; one spools while the database is frozen, and dies."""
    gateway = processes.gateway(processes=2)
    account = gateway.account()
    with contextlib.ExitStack() as stack:
        stream = Stream(gateway, provider, account, "spooled", stack)
        [(pid,)] = processes.rows("SELECT p.pid FROM holds JOIN processes p USING (process)")
        durable_postgres.pause()
        try:
            assert b"[DONE]" in stream.finish()
            kill(pid)
        finally:
            durable_postgres.resume()
    assert list((gateway.folder / "data" / "spool").iterdir())
    until(
        lambda: not list((gateway.folder / "data" / "spool").iterdir()) or None,
        "the spool to be adopted",
    )
    processes.wait_settled()
    assert processes.spent(account) == WHOLE_PRICE
    assert processes.usage(account)[-1] == ("spooled", 2, WHOLE_PRICE)
    processes.audit()


def kill(pid: object) -> None:
    os.kill(int(str(pid)), signal.SIGKILL)


def wait_gone(pids: set[int]) -> None:
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids) or None, "their end")


def children(gateway: FleetGateway) -> set[int]:
    """The processes that a gateway started."""
    return children_of(gateway.pid)


def children_of(parent: int) -> set[int]:
    try:
        text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    except OSError:
        return set()
    return {int(pid) for pid in text.split()}


def refuses(gateway: FleetGateway) -> bool:
    try:
        gateway.connect().close()
    except OSError:
        return True
    return False
