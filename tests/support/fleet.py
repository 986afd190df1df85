"""Gateways and workers on one PostgreSQL, each a process of its own, and the one who audits them."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from typing_extensions import override

from billing.db.session import Database
from billing.settlement.reconcile import Reconciler
from llm_gateway import clock
from tests.support.gateway import (
    DEADLINE_SECONDS,
    REPOSITORY,
    GatewayProcess,
    TestAccount,
    until,
)
from tests.support.provider import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Gate,
    ScriptedProvider,
    delta,
    event,
    usage,
    usage_event,
)
from tests.support.rawhttp import RawClient, chat, request
from tests.support.services import pg_rows
from tests.support.warm import WarmProcess

# The registry of these tests: quicker than the product's, and slow enough for a busy machine.
PACE = ("0.4", "3.0", "4.0")
RUN_PACED = REPOSITORY / "tests" / "support" / "run_paced.py"


FIRST = event(delta("one"))
REST = [
    event(delta("two")),
    event(delta(None, finish="stop")),
    usage_event(usage(100, 20)),
    DONE + LAST_CHUNK,
]


class FleetGateway(GatewayProcess):
    """A gateway of a fleet: with its own address and data, on the shared database."""

    def __init__(
        self,
        folder: Path,
        base_url: str,
        url: str,
        config: str,
        processes: int,
        *,
        shutdown_seconds: float = 5,
    ) -> None:
        folder.mkdir()
        super().__init__(
            folder,
            base_url,
            config=f'\n[database]\nurl = "{url}"\n{config}',
            shutdown_seconds=shutdown_seconds,
        )
        self._processes = processes

    @override
    def program(self) -> tuple[Path | None, list[str]]:
        return RUN_PACED, [*PACE, "serve", str(self._processes)]

    @property
    @override
    def environment(self) -> dict[str, str]:
        """Uncounted: most of a fleet is killed, and counting makes each start half as long again."""
        return {n: v for n, v in super().environment.items() if not n.startswith("COVERAGE_")}

    def pause(self) -> None:
        """Freeze it, as a machine that swaps does."""
        self.interrupt(signal.SIGSTOP)

    def resume(self) -> None:
        self.interrupt(signal.SIGCONT)


class Stream:
    """A streamed call that waits in its middle until the test opens its gate."""

    def __init__(
        self,
        gateway: FleetGateway,
        provider: ScriptedProvider,
        account: TestAccount,
        name: str,
        stack: contextlib.ExitStack,
    ) -> None:
        self.name = name
        self.gate = Gate()
        script = provider.script(STREAM_HEAD, FIRST, self.gate, *REST)
        self.client: RawClient = stack.enter_context(gateway.connect())
        self.client.send(
            request(
                body=chat(stream=True, x_script=script),
                key=account.key,
                headers={"X-Request-Id": name},
            )
        )
        self.client.read_until(b'"one"')

    def finish(self) -> bytes:
        """Let it go on to its end, whichever that is; all that came after the first word."""
        self.gate.open()
        reply = b""
        with contextlib.suppress(AssertionError):  # it ends before
            reply = self.client.read_until(LAST_CHUNK)
        return reply


class Worker:
    """`llm-gateway worker` as a process of its own, with the settings of a gateway."""

    def __init__(self, gateway: FleetGateway, *, paced: bool = True) -> None:
        self._log = gateway.folder / f"worker-{id(self)}.log"
        with self._log.open("ab") as log:
            self.process = WarmProcess(
                [*PACE, "worker"] if paced else ["worker"],
                script=RUN_PACED if paced else None,
                folder=gateway.folder,
                environment=gateway.environment,
                output=log.fileno(),
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_settling(self) -> None:
        until(lambda: "settling on" in self.output or None, "the worker to start")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)


class Fleet:
    """The processes on one database."""

    def __init__(self, folder: Path, base_url: str, url: str, config: str = "") -> None:
        self.url = url
        self._config = config
        self._folder = folder
        self._base_url = base_url
        self._stack = ExitStack()
        self._gateways: list[FleetGateway] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def gateway(
        self, config: str = "", *, processes: int = 1, shutdown_seconds: float = 5
    ) -> FleetGateway:
        """Another gateway, running."""
        folder = self._folder / f"gateway-{len(self._gateways) + 1}"
        gateway = FleetGateway(
            folder,
            self._base_url,
            self.url,
            self._config + config,
            processes,
            shutdown_seconds=shutdown_seconds,
        )
        self._gateways.append(gateway)
        self._stack.enter_context(gateway)
        gateway.start()
        return gateway

    def worker(self) -> Worker:
        """Another worker, running."""
        worker = Worker(self._gateways[0])
        self._stack.callback(worker.kill9)
        worker.wait_settling()
        return worker

    # -- as an auditor -----------------------------------------------------------------------

    def rows(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """What the database says, asked from outside of the product."""
        return pg_rows(self.url, statement, *values)

    def number(self, statement: str, *values: object) -> int:
        value = self.rows(statement, *values)[0][0]
        assert isinstance(value, int)
        return value

    def usage(self, account: TestAccount) -> list[tuple[str, int, int]]:
        """Client's request id, revision and amount of every word on the account's calls."""
        rows = self.rows(
            "SELECT client_request_id, revision, amount FROM usage WHERE account = $1"
            " AND NOT cancelled ORDER BY event_id, revision",
            account.id,
        )
        return [
            (str(name), int(str(revision)), int(str(amount))) for name, revision, amount in rows
        ]

    def spent(self, account: TestAccount, bought: int = 1_000_000_000) -> int:
        return bought - self.number("SELECT balance FROM accounts WHERE account = $1", account.id)

    def held(self, account: TestAccount) -> int:
        return self.number("SELECT held FROM accounts WHERE account = $1", account.id)

    def wait_settled(self) -> None:
        """Until no charge waits and nobody's call is held."""

        def settled() -> bool | None:
            waiting = self.number(
                "SELECT (SELECT count(*) FROM outbox)"
                " + (SELECT count(*) FROM holds WHERE state = 'live')"
            )
            return waiting == 0 or None

        until(settled, "outbox and live holds to empty")

    def wait_progress(self, calls: int) -> None:
        """Until so many holds know what their call has cost so far."""
        until(
            lambda: self.number("SELECT count(*) FROM holds WHERE progress > 0") >= calls or None,
            f"the progress of {calls} calls",
        )

    def wait_estimates(self, calls: int) -> None:
        """Until so many calls of dead processes were estimated."""
        until(
            lambda: self.number("SELECT count(*) FROM usage WHERE revision = 1") >= calls or None,
            f"{calls} estimates",
        )

    def audit(self) -> None:
        """Everything adds up."""

        async def check() -> list[str]:
            database = Database(self.url)
            try:
                report = await Reconciler(database, now_ms=clock.now_ms).run()
            finally:
                await database.dispose()
            return [repr(finding) for finding in report.findings if finding.count or finding.error]

        wrong = asyncio.run(check())
        assert not wrong, wrong


@contextlib.contextmanager
def fleet(folder: Path, base_url: str, url: str, config: str = "") -> Iterator[Fleet]:
    """A fleet whose processes are gone at the end, whatever happened; `config` is for all."""
    with Fleet(folder, base_url, url, config) as processes:
        yield processes
