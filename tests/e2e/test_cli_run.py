"""What a person does first: start it in an empty folder, paste the line it prints, and make the usual mistakes."""

import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import DEADLINE_SECONDS, LLM_GATEWAY, REPOSITORY, free_port, until
from tests.support.rawhttp import RawClient, chat, request

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}


def command(*arguments: str) -> list[str]:
    return [*LLM_GATEWAY, *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


class Serving:
    """`llm-gateway serve` in a folder, as a person starts it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._log = folder / "screen.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command("serve"),
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def screen(self) -> str:
        return ANSI.sub("", self._log.read_text())

    def wait_ready(self) -> None:
        def ready() -> bool | None:
            assert self._process.poll() is None, self.screen
            try:
                with RawClient(self.port) as client:
                    client.send(request("/readyz", method="GET"))
                    return client.read_reply().status == 200 or None
            except OSError:
                return None

        until(ready, "the gateway to get ready")

    def stop(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(DEADLINE_SECONDS)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("fresh")
    port = free_port()
    (folder / "gateway.toml").write_text(f"[server]\nport = {port}\n")
    serving = Serving(folder, port)
    serving.wait_ready()
    yield serving
    assert serving.stop() == 0, serving.screen


def test_printed_curl_line_works(serving: Serving) -> None:
    screen = until(lambda: serving.screen if "curl " in serving.screen else None, "the banner")
    start = screen.index("curl ")
    # The line may be continued with backslashes.
    line = re.match(r"(?:.*\\\n)*.*", screen[start:])
    assert line is not None
    done = subprocess.run(
        ["bash", "-c", line.group()],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert '"choices"' in done.stdout
    assert '"error"' not in done.stdout


def test_banner_says_what_a_person_needs(serving: Serving) -> None:
    screen = serving.screen
    assert f"http://127.0.0.1:{serving.port}" in screen
    assert "lgw_" in screen
    assert ".data" in screen
    assert "echo" in screen
    assert "OPENAI_API_KEY" in screen


def test_credentials_are_for_the_owner_alone(serving: Serving) -> None:
    mode = (serving.folder / ".data" / "credentials").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_demo_account_starts_with_1000_credits(serving: Serving) -> None:
    key = demo_key(serving)
    with RawClient(serving.port) as client:
        client.send(request("/credit-store/balance", key=key, method="GET"))
        reply = client.read_reply()
    assert reply.status == 200
    assert 0 < int(str(reply.json["balance_micro_credits"])) <= 1_000_000_000


def test_echo_answers_both_ways(serving: Serving) -> None:
    key = demo_key(serving)
    for stream in (False, True):
        with RawClient(serving.port) as client:
            client.send(request(body=chat(model="echo", stream=stream), key=key))
            reply = client.read_reply()
        assert reply.status == 200, reply.body
        assert reply.whole


def test_second_serve_on_the_same_data_exits_2(serving: Serving) -> None:
    settings = serving.folder / "gateway.toml"
    before = settings.read_text()
    try:
        settings.write_text(f"[server]\nport = {free_port()}\n")
        second = run(serving.folder, "serve")
    finally:
        settings.write_text(before)
    one_line(second)


def test_port_in_use_exits_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "gateway.toml").write_text(f"[server]\nport = {port}\n")
        said = one_line(run(tmp_path, "serve"))
    assert str(port) in said


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\nprot = 1\n", "prot"),
        ('[server]\nport = "eighty"\n', "port"),
        ("[server]\nport = 70000\n", "port"),
        ("[server\n", "gateway.toml"),
        ("[guard]\nstore = 'memcached'\n", "store"),
        ("[[providers]]\nname = 'a'\n[[providers]]\nname = 'a'\n", "a"),
    ],
)
def test_wrong_settings_exit_2(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "gateway.toml").write_text(text)
    assert named in one_line(run(tmp_path, "serve"))


def test_unreadable_settings_exit_2(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").mkdir()
    one_line(run(tmp_path, "serve"))


def test_no_provider_left_exits_2(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(
        "[server]\nport = 0\n[[providers]]\nname = 'openai'\nkind = 'openai'\n"
        "base_url = 'https://provider.invalid/v1'\napi_key = 'env:NOT_SET_ANYWHERE'\n"
    )
    assert "NOT_SET_ANYWHERE" in one_line(run(tmp_path, "serve"))


def test_help_is_quick_and_lists_the_commands(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    for name in ("serve", "chat", "accounts", "keys", "prices", "init", "doctor", "migrate"):
        assert name in done.stdout


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """A refusal: status 2, one clear message, no traceback."""
    said = ANSI.sub("", done.stderr + done.stdout).strip()
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert said
    assert len(said.splitlines()) <= 4, said
    return said


def demo_key(serving: Serving) -> str:
    found = re.search(r"lgw_[A-Za-z0-9_-]{43}", serving.screen)
    assert found is not None
    return found.group()
