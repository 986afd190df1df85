"""`llm-gateway reconcile`, `holds`, `outbox`, `quarantine`, `guard`: what they print and how they end."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from billing.db import migrate
from llm_gateway.cli import cli
from tests.llm_gateway.test_cli import CLEAN_ENV
from tests.support.admin_server import ADMIN_TOKEN, AdminServer

ACCOUNT = "INSERT INTO accounts (account, held, created_at, updated_at) VALUES ('ada', 0, 0, 0)"
HOLD = (
    "INSERT INTO holds (hold_id, account, amount, progress, process, started_at, context)"
    " VALUES ('h-1', 'ada', 0, 0, 'gone', 1790000000000, X'7B')"
)
ASIDE = (
    "INSERT INTO quarantine (event_id, revision, account, origin, reason, payload, created_at)"
    " VALUES ('e-1', 2, 'ada', 'outbox', 'the event cannot be read', X'7B', 1790000000000)"
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), env=CLEAN_ENV)


# -- reconcile: its own database -----------------------------------------------------------------


def change(directory: Path, *statements: str) -> None:
    with closing(sqlite3.connect(directory / "gateway.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def ledger(tmp_path: Path) -> list[str]:
    """A migrated database with one account; the options that lead to it."""
    migrate.upgrade(f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}")
    change(tmp_path, ACCOUNT)
    config = tmp_path / "gateway.toml"
    config.write_text(f'[database]\nurl = "sqlite+aiosqlite:///{tmp_path / "gateway.db"}"\n')
    return ["--config", str(config)]


def test_a_sound_ledger_ends_with_0(ledger: list[str]) -> None:
    done = run("reconcile", *ledger)
    assert done.exit_code == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        [check, "ok"] for check in ("R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R10")
    ]


def test_a_violation_ends_with_1_and_names_its_ids(ledger: list[str], tmp_path: Path) -> None:
    change(tmp_path, "UPDATE accounts SET held = 5")
    done = run("reconcile", *ledger)
    assert done.exit_code == 1
    assert "ada: held 5, holds 0" in done.stdout
    told = json.loads(run("reconcile", "--json", *ledger).stdout)
    (wrong,) = [each for each in told["findings"] if not each["ok"]]
    assert (wrong["check"], wrong["count"], wrong["examples"][0]["id"]) == ("R6", 1, "ada")


def test_repair_mends_what_is_derived(ledger: list[str], tmp_path: Path) -> None:
    change(tmp_path, "UPDATE accounts SET held = 5")
    done = run("reconcile", "--repair", "--json", *ledger)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["repaired"]["held_accounts"] == 1
    assert run("reconcile", *ledger).exit_code == 0


def test_repair_does_not_mend_a_balance(ledger: list[str], tmp_path: Path) -> None:
    change(tmp_path, "UPDATE accounts SET balance = 5, total_adjusted = 5")
    assert run("reconcile", "--repair", *ledger).exit_code == 1


def test_a_database_that_is_not_there_ends_with_2(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(f'[database]\nurl = "sqlite+aiosqlite:///{tmp_path / "none.db"}"\n')
    done = run("reconcile", "--config", str(config))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "llm-gateway migrate" in done.stderr
    assert not (tmp_path / "none.db").exists()


# -- the rest: through the admin API -------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[list[str]]:
    """A gateway with a hold and an event in quarantine that nobody can read."""
    made = AdminServer(tmp_path)
    made.start()
    change(tmp_path, ACCOUNT, HOLD, ASIDE)
    try:
        yield ["--url", made.url, "--admin-token", ADMIN_TOKEN]
    finally:
        made.stop()


def test_what_is_stuck_is_listed_shown_and_resolved(server: list[str]) -> None:
    assert "h-1" in run("holds", "list", *server).stdout
    shown = run("holds", "show", "h-1", *server).stdout
    assert "process lives  no" in shown
    assert "cannot be read" in shown
    assert run("outbox", "list", *server).stdout.split() == [
        "event", "word", "account", "cancelled", "attempts", "since",
    ]  # fmt: skip
    assert "the event cannot be read" in run("quarantine", "list", *server).stdout
    assert "call           cannot be read" in run("quarantine", "show", "1", *server).stdout
    refused = run("quarantine", "replay", "1", "--reason", "r", *server)
    assert refused.exit_code == 1
    assert "discard it" in refused.stderr
    done = run("quarantine", "discard", "1", "--reason", "r", *server)
    assert done.stdout == "event e-1 discarded: r\n"
    assert "before: " in run("quarantine", "discard", "1", "--reason", "r", *server).stdout
    assert "e-1" not in run("quarantine", "list", *server).stdout
    assert "e-1" in run("quarantine", "list", "--all", *server).stdout
    assert run("holds", "release", "h-1", "--reason", "r", *server).exit_code == 0
    assert "h-1" not in run("holds", "list", *server).stdout
    assert run("guard", "rebuild", "--reason", "r", *server).exit_code == 0


@pytest.mark.parametrize(
    "command",
    [
        ("holds", "show", "h-9"),
        ("holds", "release", "h-9", "--reason", "r"),
        ("outbox", "show", "e-9"),
        ("quarantine", "show", "9"),
        ("quarantine", "discard", "9", "--reason", "r"),
    ],
)
def test_what_is_not_there_ends_with_1(server: list[str], command: tuple[str, ...]) -> None:
    done = run(*command, *server)
    assert (done.exit_code, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [("holds", "release", "h"), ("quarantine", "replay", "1"), ("guard", "rebuild")],
)
def test_every_act_asks_for_a_reason(command: tuple[str, ...]) -> None:
    done = run(*command, "--admin-token", "t")
    assert done.exit_code == 2
    assert "--reason" in done.stderr
