"""A real gateway process on loopback with its own data, and the two who look at it: admin and auditor."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

from tests.support.migrated import migrated
from tests.support.rawhttp import RawClient, Reply, request
from tests.support.warm import WarmProcess

T = TypeVar("T")

REPOSITORY = Path(__file__).parents[2]
ADMIN_TOKEN = "admin-token-of-the-tests-0123456789abcdef"
KEPT = ("PATH", "HOME", "TMPDIR")
LLM_GATEWAY = (sys.executable, "-c", "from llm_gateway.cli import main; main()")
DEADLINE_SECONDS = 45.0
POLL_SECONDS = 0.01

# One micro-credit per token and unit: 2 for input, 1 for cached input, 8 for output and reasoning.
PRICES = """
[book]
name = "tests"
currency = "USD"
credits_per_unit = "1"

[[rule]]
id = "small"
description = "made up for the tests"
scene = "*"
provider = "*"
model = "m-*"
input = "2"
cached_input = "1"
output = "8"

[[rule]]
id = "fee"
description = "made up for the tests: a fee for each call and tokens"
scene = "*"
provider = "*"
model = "m-fee*"
priority = 10
per_call = "0.001"
input = "2"
cached_input = "1"
output = "8"

[[rule]]
id = "free"
description = "made up for the tests"
scene = "*"
provider = "*"
model = "m-free*"
priority = 10
free = true
"""

CONFIG = """
[server]
port = {port}
data_dir = "data"
shutdown_seconds = {shutdown_seconds}
body_bytes_max = 1000000

[auth]
admin_token = "env:GATEWAY_ADMIN_TOKEN"

[pricing]
book = "prices.toml"

[[scenes]]
name = "agent"

[[scenes]]
name = "drained"
on_client_gone = "drain"

[[scenes]]
name = "stopped"
on_client_gone = "stop"

[[scenes]]
name = "finished"
on_exhausted = "finish"

[[scenes]]
name = "graceful"
on_exhausted = "grace:1"

[[providers]]
name = "lax"
kind = "openai"
base_url = "{base_url}"
api_key = "env:SCRIPTED_API_KEY"
enforces_output_limit = false

[[providers]]
name = "scripted"
kind = "openai"
base_url = "{base_url}"
api_key = "env:SCRIPTED_API_KEY"
output_limit_field = "max_tokens"
enforces_output_limit = true
connect_seconds = 2
first_byte_seconds = 20
idle_seconds = 20

[[providers]]
name = "hasty"
kind = "openai"
base_url = "{base_url}"
api_key = "env:SCRIPTED_API_KEY"
enforces_output_limit = true
connect_seconds = 1
first_byte_seconds = 0.4
idle_seconds = 0.4

[[providers]]
name = "nobody"
kind = "openai"
base_url = "http://127.0.0.1:9/v1"
api_key = "env:SCRIPTED_API_KEY"
enforces_output_limit = true
connect_seconds = 1

[[models]]
name = "m-small"
max_output_tokens = 1000
image_tokens_max = 1000
audio_tokens_max = 1000
targets = [{{ provider = "scripted", model = "m-small-2026" }}]

[[models]]
name = "m-fee"
max_output_tokens = 1000
targets = [{{ provider = "scripted", model = "m-fee" }}]

[[models]]
name = "m-free"
max_output_tokens = 1000
targets = [{{ provider = "scripted", model = "m-free" }}]

[[models]]
name = "m-hasty"
max_output_tokens = 1000
targets = [{{ provider = "hasty", model = "m-hasty" }}]

[[models]]
name = "m-nobody"
max_output_tokens = 1000
targets = [{{ provider = "nobody", model = "m-nobody" }}]

[[models]]
name = "m-lax"
max_output_tokens = 1000
targets = [{{ provider = "lax", model = "m-lax" }}]

[[models]]
name = "m-fallback"
max_output_tokens = 1000
targets = [
    {{ provider = "nobody", model = "m-nobody" }},
    {{ provider = "scripted", model = "m-second" }},
]

[[models]]
name = "unpriced"
max_output_tokens = 1000
targets = [{{ provider = "scripted", model = "unpriced" }}]
"""


def price(prompt: int, completion: int, cached: int = 0) -> int:
    """What PRICES asks for a call, in micro-credits."""
    return 2 * (prompt - cached) + 1 * cached + 8 * completion


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def until(question: Callable[[], T | None], what: str) -> T:
    """The first answer of `question` that is not None; fails with `what` after DEADLINE_SECONDS."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        if (answer := question()) is not None:
            return answer
        assert time.monotonic() < deadline, f"gave up waiting: {what}"
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class TestAccount:
    """An account of the tests with a key of its own."""

    __test__ = False

    id: str
    key: str
    key_id: str


class GatewayProcess:
    """`llm-gateway serve` as a process of its own, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        base_url: str,
        *,
        config: str = "",
        shutdown_seconds: float = 5,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.database = folder / "data" / "gateway.db"
        self._process: WarmProcess | None = None
        self._accounts = 0
        self._log = folder / "output.log"
        self._on_sqlite = "[database]" not in config
        (folder / "prices.toml").write_text(PRICES)
        (folder / "gateway.toml").write_text(
            CONFIG.format(port=self.port, base_url=base_url, shutdown_seconds=shutdown_seconds)
            + config
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill9()

    # -- the process -------------------------------------------------------------------------

    def start(self, *, failpoint: str = "", at: int = 1) -> None:
        """Start it and wait until it is ready; what a failed test left running is killed first."""
        if self.running:
            self.kill9()
        with self._log.open("ab") as log:
            self._process = self.begin(log, failpoint=failpoint, at=at)
        until(self._ready, "the gateway to get ready")

    def begin(
        self, output: BinaryIO, *, failpoint: str = "", at: int = 1, new_session: bool = False
    ) -> WarmProcess:
        """Start one, and leave it to the caller."""
        if self._on_sqlite and not self.database.exists():
            self.database.parent.mkdir(mode=0o700, exist_ok=True)
            migrated(self.database.parent)
        script, arguments = self.program()
        if failpoint:
            script = REPOSITORY / "tests" / "support" / "serve_with_failpoints.py"
            arguments = [failpoint, str(at), *arguments]
        return WarmProcess(
            arguments,
            script=script,
            folder=self.folder,
            environment=self.environment,
            output=output.fileno(),
            new_session=new_session,
        )

    def program(self) -> tuple[Path | None, list[str]]:
        """The script that is run, None for `llm-gateway` itself, and its arguments."""
        return None, ["serve"]

    @property
    def environment(self) -> dict[str, str]:
        """What the process sees: nothing of the caller's but what finding Python takes."""
        kept = {n: v for n, v in os.environ.items() if n in KEPT or n.startswith("COVERAGE_")}
        return kept | {
            "PYTHONPATH": str(REPOSITORY),
            "GATEWAY_ADMIN_TOKEN": ADMIN_TOKEN,
            "SCRIPTED_API_KEY": "key-of-the-provider",
        }

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int:
        """Ask it to end (SIGTERM); the exit status."""
        self.interrupt()
        return self.wait()

    def interrupt(self, number: int = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once it has ended; negative: the signal that killed it."""
        assert self._process is not None
        return self._process.wait(DEADLINE_SECONDS)

    def kill9(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE_SECONDS)

    def restart(self) -> None:
        """Start it again on the same data."""
        self.start()

    @property
    def output(self) -> str:
        return self._log.read_text()

    def _ready(self) -> bool | None:
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"ended with {code} at its start:\n{self.output}"
        try:
            with RawClient(self.port) as client:
                client.send(request("/readyz", method="GET"))
                return client.read_reply().status == 200 or None
        except OSError:
            return None

    # -- as a client -------------------------------------------------------------------------

    def connect(self) -> RawClient:
        return RawClient(self.port)

    def call(
        self,
        body: bytes,
        key: str,
        headers: Mapping[str, str] | None = None,
        path: str = "/v1/chat/completions",
    ) -> Reply:
        """One whole exchange on a connection of its own."""
        with self.connect() as client:
            client.send(request(path, body, key=key, headers=headers))
            return client.read_reply()

    def get(self, path: str, key: str = "") -> Reply:
        with self.connect() as client:
            client.send(request(path, key=key, method="GET"))
            return client.read_reply()

    # -- as an admin -------------------------------------------------------------------------

    def admin(self, path: str, value: object = None, method: str = "") -> dict[str, object]:
        """An admin's request, which must succeed."""
        body = None if value is None else json.dumps(value).encode()
        with self.connect() as client:
            client.send(
                request(
                    f"/admin/{path}",
                    body,
                    key=ADMIN_TOKEN,
                    method=method or ("GET" if body is None else "POST"),
                )
            )
            reply = client.read_reply()
        assert 200 <= reply.status < 300, (reply.status, reply.body)
        return reply.json

    def account(
        self,
        micro_credits: int = 1_000_000_000,
        *,
        scene: str = "agent",
        scenes: Sequence[str] = (),
    ) -> TestAccount:
        """A new account with that much credit, and a key for it."""
        self._accounts += 1
        account = f"user-{self._accounts}"
        self.admin("accounts", {"account": account})
        if micro_credits:
            self.admin(
                "grants",
                {
                    "account": account,
                    "event_id": f"grant:{account}",
                    "amount_micro_credits": micro_credits,
                },
            )
        made = self.admin(
            "keys",
            {
                "kind": "user",
                "account": account,
                "default_scene": scene,
                "scenes": list(scenes) or ["agent", "drained", "stopped"],
            },
        )
        key = made["key"]
        assert isinstance(key, dict)
        return TestAccount(account, str(made["token"]), str(key["key_id"]))

    admin_token = ADMIN_TOKEN

    def app_key(self, *accounts: str) -> str:
        """A key of an internal service that names the paying account itself."""
        value = {"kind": "app", "app": "forum", "default_scene": "agent", "accounts": accounts}
        return str(self.admin("keys", value)["token"])

    def suspend(self, account: str, reason: str) -> None:
        self.admin(f"accounts/{account}/suspend", {"reason": reason})

    def wait_refused(self, key: str) -> None:
        """Until a key that was revoked is known to be; keys are cached for up to a second."""
        until(lambda: self.get("/v1/models", key).status == 401 or None, "the key to be refused")

    # -- as an auditor -----------------------------------------------------------------------

    @contextlib.contextmanager
    def books(self) -> Iterator["Auditor"]:
        """The database, read-only, in one snapshot."""
        connection = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        try:
            connection.execute("BEGIN")
            yield Auditor(connection)
        finally:
            connection.close()

    def settle(self, account: str, charges: int) -> "list[Charge]":
        """The account's charges once that many are in the ledger and nothing is held any more."""

        def settled() -> "list[Charge] | None":
            with self.books() as books:
                found = books.charges(account)
                done = len(found) >= charges and not books.held(account)
                return found if done and not books.outbox(account) else None

        found = until(settled, f"{charges} charges of {account} to be settled")
        assert len(found) == charges
        return found

    def wait_held(self, account: str, micro_credits: int) -> None:
        """Until at least that much is held for the account."""

        def held() -> bool | None:
            with self.books() as books:
                return books.held_micro_credits(account) >= micro_credits or None

        until(held, f"{micro_credits} micro-credits to be held")

    def audit(self) -> None:
        """All that must hold once nothing is under way."""

        def quiet() -> bool | None:
            with self.books() as books:
                return books.is_quiet() or None

        until(quiet, "holds and outbox to empty")
        with self.books() as books:
            books.check()


@dataclass(frozen=True)
class Charge:
    """A finished call as the database has it: its final usage row."""

    event_id: str
    amount: int
    quality: str
    reason: str
    cancelled: bool
    scene: str
    rule: str
    client_request_id: str
    input: int
    cached_input: int
    output: int
    reasoning: int


class Auditor:
    """Reads the database and trusts nothing that the gateway says about it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def _rows(self, sql: str, *values: object) -> list[sqlite3.Row]:
        return self._connection.execute(sql, values).fetchall()

    def _number(self, sql: str, *values: object) -> int:
        value = self._rows(sql, *values)[0][0]
        assert isinstance(value, int)
        return value

    def charges(self, account: str) -> list[Charge]:
        """Charges that stand in the ledger, oldest first."""
        rows = self._rows(
            "SELECT u.* FROM usage u JOIN ledger_entries e ON e.usage_event_id = u.event_id"
            " AND e.usage_revision = u.revision WHERE u.account = ? ORDER BY e.account_seq",
            account,
        )
        return [_charge(row) for row in rows]

    def cancelled(self, account: str) -> list[Charge]:
        """Calls whose owner decided that nobody pays."""
        rows = self._rows(
            "SELECT * FROM usage WHERE account = ? AND cancelled ORDER BY finished_at", account
        )
        return [_charge(row) for row in rows]

    def balance(self, account: str) -> int:
        return self._number("SELECT balance FROM accounts WHERE account = ?", account)

    def held(self, account: str) -> int:
        """Open holds of the account."""
        return self._number("SELECT count(*) FROM holds WHERE account = ?", account)

    def held_micro_credits(self, account: str) -> int:
        return self._number("SELECT held FROM accounts WHERE account = ?", account)

    def progress(self, account: str) -> int:
        """What the account's open holds say has been spent."""
        return self._number(
            "SELECT coalesce(sum(progress), 0) FROM holds WHERE account = ?", account
        )

    def outbox(self, account: str) -> int:
        return self._number("SELECT count(*) FROM outbox WHERE account = ?", account)

    def is_quiet(self) -> bool:
        return not self._number(
            "SELECT (SELECT count(*) FROM holds) + (SELECT count(*) FROM outbox)"
            " + (SELECT sum(held <> 0) FROM accounts)"
        )

    def check(self) -> None:
        """Balances are the sums of their entries, each call has one effect, nothing is left over."""
        for row in self._rows(
            "SELECT a.account, a.balance, a.held, a.seq, count(e.event_id) AS entries,"
            " coalesce(sum(CASE WHEN e.status = 'applied' THEN e.amount END), 0) AS total"
            " FROM accounts a LEFT JOIN ledger_entries e"
            " ON e.account = a.account AND e.account_seq IS NOT NULL GROUP BY a.account"
        ):
            assert row["balance"] == row["total"], dict(row)
            assert row["seq"] == row["entries"], dict(row)
            assert row["held"] == 0, dict(row)
            assert row["balance"] >= 0, dict(row)
        unpaid = self._rows(
            "SELECT u.event_id FROM usage u LEFT JOIN ledger_entries e"
            " ON e.usage_event_id = u.event_id WHERE NOT u.cancelled"
            " GROUP BY u.event_id HAVING count(e.event_id) = 0"
        )
        assert not unpaid, [dict(row) for row in unpaid]
        wrong = self._rows(
            "SELECT u.event_id, u.amount, e.total FROM usage u JOIN (SELECT usage_event_id,"
            " sum(amount) AS total FROM ledger_entries WHERE usage_event_id IS NOT NULL"
            " GROUP BY usage_event_id) e ON e.usage_event_id = u.event_id"
            " WHERE u.revision = (SELECT max(revision) FROM usage WHERE event_id = u.event_id)"
            " AND e.total <> -u.amount"
        )
        assert not wrong, [dict(row) for row in wrong]
        assert self._number("SELECT count(*) FROM quarantine") == 0


def _charge(row: sqlite3.Row) -> Charge:
    names = Charge.__dataclass_fields__
    values = {name: row[name] for name in names}
    values["cancelled"] = bool(values["cancelled"])
    return Charge(**values)
