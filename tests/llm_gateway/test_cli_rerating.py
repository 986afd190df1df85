"""`prices simulate`, `rerate` and `reratings` against the real API: what they print, and with which status they end."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from billing.books import PriceBooks
from billing.db.engine import hot_database
from billing.db.session import Database
from llm_gateway import clock
from llm_gateway.cli import cli
from llm_gateway.credentials import Credentials, write_credentials
from tests.support.admin_server import ADMIN_TOKEN, AdminServer
from tests.support.money import charge, purchase
from tests.support.rerating import CHEAPER, DEARER, OLD, used

T0 = 1_790_000_000_000
PERIOD = ("--from", "2026-09-21T13:00Z", "--to", "2026-09-21T15:00Z")
# The server's own book is version 1.
OLD_BOOK, DEARER_BOOK, CHEAPER_BOOK = "2", "3", "4"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The data directory of a running gateway with two calls of 35, and one that DEARER has no rule for."""
    directory = tmp_path_factory.mktemp("data")
    server = AdminServer(directory)
    server.start()
    write_credentials(directory, Credentials(url=server.url, admin_token=ADMIN_TOKEN))
    asyncio.run(_fill(f"sqlite+aiosqlite:///{directory / 'gateway.db'}"))
    yield str(directory)
    server.stop()


class _Clock:
    """As much of a shop as `used` asks for."""

    now = T0

    def new_id(self) -> str:
        return clock.new_event_id(self.now)


async def _fill(url: str) -> None:
    database, hot = Database(url), hot_database(url, clock=lambda: T0)
    books = PriceBooks(database, now_ms=lambda: T0, monotonic=lambda: 0.0)
    for text in (OLD, DEARER, CHEAPER):
        await books.upload(text, actor="test")
    await hot.start()
    await hot.post([purchase(1_000, account="ada")])
    for account in ("ada", "bob"):
        finish = charge(clock.new_event_id(T0), 35, account=account)
        await hot.record(used(_Clock(), finish=finish, book=2))  # type: ignore[arg-type]
    await hot.settle_pending(10)
    await hot.close()
    await database.dispose()


def run(data_dir: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["prices", *arguments, "--data-dir", data_dir])


def told(result: Result, status: int = 0) -> dict[str, object]:
    assert result.exit_code == status, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_simulate_tells_the_difference(data_dir: str) -> None:
    result = run(data_dir, "simulate", DEARER_BOOK, *PERIOD)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert (
        lines[0] == "calls from 2026-09-21 13:00:00Z to 2026-09-21 15:00:00Z by book 3, in credits"
    )
    assert "difference  +0.00002 (+28.6 %)" in lines
    assert any(line.startswith("ada  ") and "0.000045" in line for line in lines)
    assert "what changes most" in lines
    assert result.stderr == ""  # a bar is for a terminal


def test_simulate_tells_the_difference_to_machines(data_dir: str) -> None:
    found = told(run(data_dir, "simulate", DEARER_BOOK, *PERIOD, "--json"))
    assert found["totals"]["difference_micro_credits"] == 20  # type: ignore[index]


def test_a_file_is_simulated(data_dir: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(DEARER.replace("mini-1", "mini-2"), "utf-8")
    result = run(data_dir, "simulate", str(file), *PERIOD)
    assert result.exit_code == 1
    assert "  2 calls of 0.00007: no rule of the book matches" in result.stdout
    assert "by this file" in result.stdout
    file.write_text("[book]", "utf-8")
    result = run(data_dir, "simulate", str(file))
    assert result.exit_code == 1
    assert "The price book has" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simulate", "99"), "There is no such price book"),
        (("simulate", "nowhere.toml"), "nowhere.toml cannot be read"),
        (
            ("simulate", "3", "--days", "7", "--from", "2026-09-21"),
            "days: cannot be given with from",
        ),
        (("simulate", "3", "--from", "yesterday"), "is no time"),
        (("rerate", "3", *PERIOD, "--reason", "r"), "are for --post"),
        (("rerate", "3", *PERIOD, "--post"), "--post needs --reason"),
        (("rerate", "99", *PERIOD), "There is no such price book"),
        (
            ("rerate", "3", *PERIOD, "--post", "--reason", "r", "--run-id", "a:b"),
            "run_id: must be 1 to 64",
        ),
        (("reratings", "nothing"), "There is no such run"),
    ],
)
def test_what_is_wrong_is_one_line(data_dir: str, arguments: tuple[str, ...], message: str) -> None:
    result = run(data_dir, *arguments)
    assert result.exit_code != 0
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert message in line


def test_rerate_shows_then_posts_then_takes_back(data_dir: str) -> None:
    preview = run(data_dir, "rerate", DEARER_BOOK, *PERIOD)
    assert preview.exit_code == 0, preview.output
    assert "Nothing was posted; --post --reason TEXT does it." in preview.stdout
    assert told(run(data_dir, "reratings", "--json"))["total"] == 0
    posting = ("--post", "--reason", "wrong price", "--run-id", "r1")
    posted = run(data_dir, "rerate", DEARER_BOOK, *PERIOD, *posting)
    assert posted.exit_code == 0, posted.output
    assert "taken       0.00002" in posted.stdout
    again = told(run(data_dir, "rerate", DEARER_BOOK, *PERIOD, *posting, "--json"))
    assert again["repeated"] is True
    back = ("--post", "--reason", "a mistake", "--json")
    taken_back = told(run(data_dir, "rerate", OLD_BOOK, *PERIOD, *back))["run"]
    assert taken_back["given_back_micro_credits"] == 20  # type: ignore[index]
    listed = run(data_dir, "reratings").stdout.splitlines()
    assert sorted(line.split()[1] for line in listed[1:]) == [OLD_BOOK, DEARER_BOOK]
    assert "wrong price" in run(data_dir, "reratings", "r1").stdout
