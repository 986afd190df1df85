"""The command line: what it asks of a gateway, what it prints, and how it fails."""

import json
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from llm_gateway.banner import banner, curl_line, model_to_try, url_of
from llm_gateway.cli import cli
from llm_gateway.cli.failure import CommandError
from llm_gateway.cli.keys import parse_when
from llm_gateway.config import Overrides, load
from llm_gateway.credentials import (
    Credentials,
    CredentialsError,
    credentials_path,
    read_credentials,
    write_credentials,
)
from llm_gateway.doctor import Level, check_data, check_provider, examine
from llm_gateway.serving import command_name
from tests.support.admin_server import ADMIN_TOKEN, AdminServer

CLEAN_ENV: dict[str, str | None] = dict.fromkeys(
    (
        "LLM_GATEWAY_URL", "LLM_GATEWAY_BASE_URL", "LLM_GATEWAY_KEY", "LLM_GATEWAY_DATA_DIR",
        "LLM_GATEWAY_CONFIG", "GATEWAY_ADMIN_TOKEN", "OPENAI_API_KEY", "OPENAI_BASE_URL",
    )
)  # fmt: skip


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), env={**CLEAN_ENV, **(env or {})})


def failure(result: Result) -> str:
    """The one line of a failed command; there must be no other, and no traceback."""
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


# -- against the real API ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The data directory of a running gateway."""
    directory = tmp_path_factory.mktemp("data")
    server = AdminServer(directory)
    server.start()
    write_credentials(directory, Credentials(url=server.url, admin_token=ADMIN_TOKEN))
    yield str(directory)
    server.stop()


def ask(data_dir: str, *arguments: str) -> dict[str, object]:
    result = run(*arguments, "--data-dir", data_dir, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert isinstance(answer, dict)
    return answer


def test_an_account_is_made_granted_suspended_and_shown(data_dir: str) -> None:
    made = ask(data_dir, "accounts", "create", "alice", "--name", "Alice", "--credits", "2.5")
    assert made["balance_micro_credits"] == 2_500_000
    ask(data_dir, "accounts", "grant", "alice", "0.25", "--event-id", "g1")
    again = ask(data_dir, "accounts", "grant", "alice", "0.25", "--event-id", "g1")
    assert again["repeated"] is True
    assert ask(data_dir, "accounts", "suspend", "alice", "--reason", "late")["suspended"] is True
    shown = ask(data_dir, "accounts", "show", "alice")
    assert shown["balance_micro_credits"] == 2_750_000  # 2.5 + 0.25 once
    assert shown["suspended_reason"] == "late"
    assert ask(data_dir, "accounts", "unsuspend", "alice")["suspended"] is False
    table = run("accounts", "list", "--data-dir", data_dir).stdout
    assert "alice" in table
    assert "2.75" in table


def test_grants_without_an_event_id_are_two_grants(data_dir: str) -> None:
    for _ in range(2):
        ask(data_dir, "accounts", "grant", "twice", "1")
    assert ask(data_dir, "accounts", "show", "twice")["balance_micro_credits"] == 2_000_000


def test_a_user_key_is_made_used_listed_and_revoked(data_dir: str) -> None:
    ask(data_dir, "accounts", "create", "bob", "--credits", "3")
    made = msgspec.convert(
        ask(data_dir, "keys", "create", "--account", "bob", "--scene", "agent", "--scene", "chat",
            "--model", "mini", "--expires", "90d"),
        dict[str, object],
    )  # fmt: skip
    token, key = str(made["token"]), msgspec.convert(made["key"], dict[str, object])
    assert key["scenes"] == ["agent", "chat"]
    assert key["models"] == ["mini"]
    balance = run("balance", "--key", token, "--data-dir", data_dir)
    assert "balance    3\n" in balance.stdout
    transactions = run("transactions", "--data-dir", data_dir, env={"LLM_GATEWAY_KEY": token})
    assert "人工补发" in transactions.stdout
    listed = run("keys", "list", "--account", "bob", "--data-dir", data_dir)
    assert str(key["key_id"]) in listed.stdout
    assert token not in listed.stdout
    assert ask(data_dir, "keys", "revoke", str(key["key_id"]))["revoked"] is True
    refused = run("balance", "--key", token, "--data-dir", data_dir)
    assert refused.exit_code == 1
    assert "(HTTP 401)" in failure(refused)


def test_an_app_key_asks_for_the_account_it_is_told(data_dir: str) -> None:
    ask(data_dir, "accounts", "create", "carol", "--credits", "1")
    token = str(ask(data_dir, "keys", "create", "--app", "forum")["token"])
    balance = run("balance", "--key", token, "--account", "carol", "--data-dir", data_dir)
    assert "carol" in balance.stdout
    without = run("balance", "--key", token, "--data-dir", data_dir)
    assert (without.exit_code, "(HTTP 400)" in failure(without)) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("accounts", "show", "nobody"), 1, "(HTTP 404)"),
        (("accounts", "create", "a/b"), 1, "(HTTP 400)"),
        (("accounts", "grant", "alice", "1e5"), 2, "is no amount of credits"),
        (("accounts", "grant", "alice", "-1"), 2, ""),
        (("keys", "revoke", "nothing"), 1, "(HTTP 404)"),
        (("keys", "create"), 2, "give either --account"),
        (("keys", "create", "--account", "a", "--app", "b"), 2, "give either --account"),
        (("keys", "create", "--account", "a", "--bills", "b"), 2, "--bills is for app keys"),
        (("keys", "create", "--account", "a", "--expires", "soon"), 2, '"soon" is no time'),
        (("prices", "upload", "/no/where.toml"), 2, "cannot be read (No such file"),
        (("prices", "activate", "99"), 1, "(HTTP 404)"),
        (("accounts", "list", "--admin-token", "wrong"), 1, "(HTTP 401)"),
    ],
)
def test_what_is_refused_is_one_line_and_a_status(
    data_dir: str, arguments: tuple[str, ...], status: int, message: str
) -> None:
    result = run(*arguments, "--data-dir", data_dir)
    assert result.exit_code == status, result.output
    if message:
        assert message in failure(result)


# -- without a gateway ---------------------------------------------------------------------------


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("command", [("accounts", "list"), ("keys", "list"), ("prices", "list")])
def test_no_gateway_is_one_line_and_status_2(command: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    result = run(*command, "--url", url, "--admin-token", "t")
    assert result.exit_code == 2
    assert f"{url} cannot be reached" in failure(result)


@pytest.mark.parametrize("url", ["nonsense", "ftp://h", "http://", "http://h:0", "http://h:x"])
def test_what_is_no_address_is_told(url: str) -> None:
    result = run("accounts", "list", "--url", url, "--admin-token", "t")
    assert result.exit_code == 2
    assert "is no address" in failure(result)


@pytest.mark.parametrize("command", [("accounts", "list"), ("balance",), ("chat", "hi")])
def test_without_credentials_the_line_says_what_to_give(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    result = run(*command, "--data-dir", str(tmp_path))
    assert result.exit_code == 2
    assert "--key" in failure(result) or "--admin-token" in failure(result)


def test_stored_secrets_go_to_no_other_address(tmp_path: Path) -> None:
    stored = Credentials(url="http://127.0.0.1:1", admin_token="CANARY", demo_key="CANARY")
    write_credentials(tmp_path, stored)
    for command in (("accounts", "list"), ("balance",)):
        result = run(*command, "--url", "http://127.0.0.1:2", "--data-dir", str(tmp_path))
        assert result.exit_code == 2
        assert failure(result).startswith(("llm-gateway: no key", "llm-gateway: no admin token"))


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("accounts",), ("serve", "--port", "70000"), ("chat",)]
)
def test_bad_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_wrong_config_ends_the_start_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("[server]\nprot = 1\n")
    for command in ("serve", "migrate"):
        result = run(command, "--config", str(path))
        assert result.exit_code == 2
        expected = f'llm-gateway: {path}:2: server.prot: unknown key; did you mean "port"?'
        assert failure(result) == expected


def test_init_writes_the_defaults_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    assert run("init", str(path)).exit_code == 0
    assert msgspec.structs.replace(load(path, {}), path=None) == load(None, {})
    path.write_text("mine")
    again = run("init", str(path))
    assert (again.exit_code, path.read_text()) == (2, "mine")
    assert run("init", str(path), "--force").exit_code == 0
    assert path.read_text() != "mine"


def test_migrate_makes_the_database_and_says_so(tmp_path: Path) -> None:
    first = run("migrate", "--data-dir", str(tmp_path), "--json")
    answer = json.loads(first.stdout)
    assert answer["before"] is None
    assert answer["after"]
    assert "up to date" in run("migrate", "--data-dir", str(tmp_path)).stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2027-01-31T12:00Z", "2027-01-31T12:00:00+00:00"),
        ("2027-01-31", "2027-01-31T00:00:00+00:00"),
        ("2027-01-31T12:00+08:00", "2027-01-31T12:00:00+08:00"),
        ("90d", "1970-04-01T00:00:00+00:00"),  # 90 days after the epoch
        ("12h", "1970-01-01T12:00:00+00:00"),
    ],
)
def test_moments_are_read(text: str, expected: str) -> None:
    assert parse_when(text, 0).isoformat() == expected


@pytest.mark.parametrize("text", ["", "d", "-1d", "1w", "99999999d", "tomorrow", "٣d"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(CommandError):
        parse_when(text, 0)


# -- chat ----------------------------------------------------------------------------------------

EVENT_ID = "019a0000-0000-7000-8000-000000000001"
HEAD = '{"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
CHUNKS = (
    HEAD + '[{"index":0,"delta":{"role":"assistant","content":"Hel"},"finish_reason":null}]}',
    HEAD + '[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}',
    HEAD
    + '[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,'
    + '"prompt_tokens_details":{"cached_tokens":3}}}',
)
CHARGE = {
    "event_id": EVENT_ID, "account": "a", "key_id": "k", "app": "", "scene": "chat",
    "provider": "p", "model_requested": "m", "model_sent": "m", "run_id": "",
    "client_request_id": "", "book": 4, "rule_id": "the-rule", "settlement": "settled",
    "amount_micro_credits": 1234, "ceiling_micro_credits": 9, "provider_cost": None,
    "quality": "exact", "usage_source": "provider", "revision": 2, "reason": "", "usage": None,
    "pricing": None, "hold": None, "entries": [], "started_at": "2026-01-01T00:00:00Z",
    "finished_at": None, "source": "db",
}  # fmt: skip
BALANCE = {
    "account": "a", "balance_micro_credits": 998_766, "held_micro_credits": 0,
    "available_micro_credits": 998_766, "total_recharged_micro_credits": 0,
    "total_rewarded_micro_credits": 0, "total_consumed_micro_credits": 0,
    "total_refunded_micro_credits": 0, "total_expired_micro_credits": 0,
    "total_adjusted_micro_credits": 0, "blocked": False, "suspended": False, "seq": 1,
    "updated_at": None, "source": "db",
}  # fmt: skip


class ModelServer(ThreadingHTTPServer):
    """Streams one answer; as a gateway it also tells the charge, at the third time of asking."""

    is_gateway: bool = True
    refuse: bool = False
    breaks: bool = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked = 0
        self.seen: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    @property
    def _model_server(self) -> ModelServer:
        assert isinstance(self.server, ModelServer)
        return self.server

    def do_POST(self) -> None:
        self._model_server.seen.append(
            {name.lower(): value for name, value in self.headers.items()}
        )
        self.rfile.read(int(self.headers["Content-Length"]))
        if self._model_server.refuse:
            self._json(402, {"error": {"message": "not enough credit", "type": "t", "code": "c"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("X-Request-Id", EVENT_ID if self._model_server.is_gateway else "req_1")
        self.end_headers()
        chunks = CHUNKS[:1] if self._model_server.breaks else (*CHUNKS, "[DONE]")
        for chunk in chunks:
            self.wfile.write(f"data: {chunk}\n\n".encode())
        if self._model_server.breaks:
            error = '{"error":{"message":"the provider broke off","code":"upstream_error"}}'
            self.wfile.write(f"data: {error}\n\n".encode())

    def do_GET(self) -> None:
        self._model_server.asked += 1
        if not self._model_server.is_gateway:
            self._json(404, {})
        elif self.path == "/credit-store/balance":
            self._json(200, BALANCE)
        elif self._model_server.asked < 3:
            self._json(200, {**CHARGE, "settlement": "pending"})
        else:
            self._json(200, CHARGE)

    def _json(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    server = ModelServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def chat(server: ModelServer, *more: str) -> Result:
    return run("chat", "hi", "--base-url", f"{server.url}/v1", "--key", "k", *more)


def test_chat_prints_the_answer_and_what_it_cost(model_server: ModelServer) -> None:
    result = chat(model_server, "--scene", "agent", "--account", "alice")
    assert result.exit_code == 0, result.output
    answer, facts = result.stdout.split("\n\n")
    assert answer == "Hello"
    assert facts.splitlines() == [
        "tokens   7 in (3 cached), 2 out",
        "charge   0.001234 credits",
        "rule     the-rule (book 4, scene chat)",
        "balance  0.998766 credits",
        f"call     {EVENT_ID}",
    ]
    assert model_server.asked == 4  # twice pending, settled, the balance
    assert model_server.seen[0]["x-scene"] == "agent"
    assert model_server.seen[0]["x-billing-user"] == "alice"


def test_chat_with_another_server_prints_tokens_only(model_server: ModelServer) -> None:
    model_server.is_gateway = False
    result = chat(model_server)
    assert result.stdout == "Hello\n\ntokens  7 in (3 cached), 2 out\n"
    assert model_server.asked == 0


def test_chat_for_machines_is_one_document(model_server: ModelServer) -> None:
    answer = json.loads(chat(model_server, "--json").stdout)
    assert (answer["text"], answer["finish_reason"]) == ("Hello", "stop")
    assert answer["charge"]["amount_micro_credits"] == 1234
    assert answer["balance_micro_credits"] == 998_766


def test_a_refused_chat_says_why(model_server: ModelServer) -> None:
    model_server.refuse = True
    result = chat(model_server)
    assert result.exit_code == 1
    assert failure(result) == "llm-gateway: not enough credit (HTTP 402)"


def test_an_answer_that_breaks_off_is_a_failure(model_server: ModelServer) -> None:
    model_server.breaks = True
    result = chat(model_server)
    assert result.exit_code == 1
    assert result.stdout == "Hel\n"
    assert result.stderr.count("\n") == 1
    assert "the provider broke off" in result.stderr


def test_chat_with_nobody_there_is_status_2() -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    result = run("chat", "hi", "--base-url", url, "--key", "k")
    assert result.exit_code == 2
    assert "cannot be reached" in failure(result)


# -- credentials ---------------------------------------------------------------------------------


def test_credentials_are_their_owners_alone_and_come_back(tmp_path: Path) -> None:
    written = Credentials(
        url="http://[::1]:1", admin_token='quo"te\\', demo_account="démo", demo_key="lgw_x"
    )
    old = os.umask(0)
    try:
        path = write_credentials(tmp_path / "new", written)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_credentials(tmp_path / "new") == written
    assert [each.name for each in path.parent.iterdir()] == ["credentials"]
    assert "lgw_x" not in repr(written)


def test_no_credentials_are_none(tmp_path: Path) -> None:
    assert read_credentials(tmp_path) is None


@pytest.mark.parametrize("text", ["CANARY", "url = 5", 'url = "CANARY', "\x00"])
def test_damaged_credentials_are_told_and_not_shown(tmp_path: Path, text: str) -> None:
    credentials_path(tmp_path).write_text(text)
    with pytest.raises(CredentialsError, match="is damaged") as caught:
        read_credentials(tmp_path)
    assert "CANARY" not in str(caught.value)


# -- banner --------------------------------------------------------------------------------------


def test_the_banner_has_everything_to_begin_with() -> None:
    config = load(None, {"OPENAI_API_KEY": "sk-CANARY"})
    text = banner(
        config,
        Credentials(url="http://127.0.0.1:8080", demo_account="demo", demo_key="lgw_demo"),
        notes=("the price file differs",),
    )
    assert "http://127.0.0.1:8080/v1" in text
    assert curl_line("http://127.0.0.1:8080", "lgw_demo", "echo") in text
    assert "on: openai, echo (offline)" in text
    assert "off: anthropic (ANTHROPIC_API_KEY is not set)" in text
    assert str(Path(".data").resolve()) in text
    assert "the price file differs" in text
    assert "CANARY" not in text


def test_the_banner_names_the_command_as_the_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "my env" / "llm-gateway"
    started.parent.mkdir()
    started.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(started), "serve"])
    monkeypatch.setenv("PATH", str(tmp_path))
    credentials = Credentials(url="http://127.0.0.1:1", demo_account="demo", demo_key="k")
    text = banner(load(None, {}), credentials, command=command_name())
    assert f"'{started}' chat " in text
    monkeypatch.setenv("PATH", str(started.parent))
    assert command_name() == "llm-gateway"
    monkeypatch.setattr(sys, "argv", ["/usr/lib/python3/site-packages/pytest/__main__.py"])
    monkeypatch.setenv("PATH", "")
    assert command_name() == "llm-gateway"


def test_the_banner_without_a_demo_key_says_how_to_get_one() -> None:
    config = load(None, {}, Overrides(host="0.0.0.0"))
    text = banner(config, Credentials(url=url_of("0.0.0.0", 80)))
    assert "curl" not in text
    assert "keys create" in text
    assert "other machines can reach this address" in text


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"), ("::1", "http://[::1]:1"), ("gw.example", "http://gw.example:1"),
    ],
)  # fmt: skip
def test_the_address_is_one_that_works_from_here(host: str, url: str) -> None:
    assert url_of(host, 1) == url


def test_the_model_to_try_is_one_that_answers() -> None:
    assert model_to_try(load(None, {})) == "echo"
    abroad = load(None, {"QWEN": "1", "DASHSCOPE_API_KEY": "k"}, Overrides(host="0.0.0.0"))
    assert model_to_try(abroad) == "qwq-plus"


# -- doctor --------------------------------------------------------------------------------------


def test_a_fresh_machine_is_well(tmp_path: Path) -> None:
    overrides = Overrides(data_dir=str(tmp_path / "none"), port=0)
    assert not [f for f in examine(None, overrides) if f.level is Level.WRONG]


def _hang_up(listener: socket.socket) -> None:
    """Whoever holds the port is no gateway: it takes a connection and closes it."""
    listener.settimeout(10)
    connection, _ = listener.accept()
    connection.close()


def test_doctor_finds_a_wrong_setting_a_taken_port_and_a_broken_database(tmp_path: Path) -> None:
    (tmp_path / "gateway.db").write_bytes(b"not a database at all, not even nearly" * 100)
    path = tmp_path / "gateway.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path.write_text(f'[server]\nport = {port}\ndata_dir = "{tmp_path}"\n')
        threading.Thread(target=_hang_up, args=(taken,), daemon=True).start()
        wrong = {finding.subject for finding in examine(path) if finding.level is Level.WRONG}
    assert wrong == {"database", "address"}
    path.write_text("[server]\nx = 1")
    result = run("doctor", "--config", str(path), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False


def test_doctor_finds_credentials_that_others_can_read(tmp_path: Path) -> None:
    write_credentials(tmp_path, Credentials(admin_token="t")).chmod(0o644)
    findings = list(check_data(load(None, {}, Overrides(data_dir=str(tmp_path)))))
    (wrong,) = (f for f in findings if f.level is Level.WRONG)
    assert "chmod 600" in wrong.advice


def test_doctor_names_charges_that_wait_and_those_that_could_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "p1.1.spool").write_bytes(b"12345")
    (tmp_path / "spool" / "p1.2.damaged").write_bytes(b"1234567")
    findings = list(check_data(load(None, {}, Overrides(data_dir=str(tmp_path)))))
    (waiting,) = (f.text for f in findings if f.level is Level.NOTE)
    assert waiting.startswith("5 bytes ")
    (wrong,) = (f.text for f in findings if f.level is Level.WRONG)
    assert "p1.2.damaged" in wrong


def test_doctor_connects_to_a_provider_and_sends_nothing() -> None:
    provider = load(None, {"OPENAI_API_KEY": "k"}).providers[0]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finding = check_provider(msgspec.structs.replace(provider, base_url=base_url))
        assert finding.level is Level.FINE
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == b""
    finding = check_provider(msgspec.structs.replace(provider, base_url=base_url))
    assert finding.level is Level.WRONG
