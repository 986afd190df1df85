"""`llm-gateway prices`: from a file to a book in effect and back, for people, for machines and for CI."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llm_gateway.cli import cli
from llm_gateway.credentials import Credentials, write_credentials
from pricing_rules.book import parse_book
from tests.support.admin_server import ADMIN_TOKEN, AdminServer
from tests.support.control import BOOK, OTHER_BOOK

THIRD_BOOK = BOOK.replace('"test prices"', '"third prices"').replace('"off"', '"=off"')
CLEAN_ENV = dict.fromkeys(("LLM_GATEWAY_URL", "LLM_GATEWAY_DATA_DIR", "GATEWAY_ADMIN_TOKEN"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[str]:
    """The data directory of a running gateway, whose book 1 is BOOK."""
    directory = tmp_path / "data"
    directory.mkdir()
    server = AdminServer(directory)
    server.start()
    write_credentials(directory, Credentials(url=server.url, admin_token=ADMIN_TOKEN))
    yield str(directory)
    server.stop()


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["prices", *arguments], env=CLEAN_ENV)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def ask(data_dir: str, *arguments: str, status: int = 0) -> dict[str, object]:
    result = run(*arguments, "--data-dir", data_dir, "--json")
    assert result.exit_code == status, result.output
    answer = json.loads(result.stdout)
    assert isinstance(answer, dict)
    return answer


def say(data_dir: str, *arguments: str, status: int = 0) -> str:
    result = run(*arguments, "--data-dir", data_dir)
    assert result.exit_code == status, result.output
    return result.stdout if not status else result.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prices.toml"


def test_lint_tells_every_problem_by_file_line_and_column(file: Path) -> None:
    file.write_text(BOOK.replace("credits_per_unit", "credits_per_units").replace('"1.25"', "1.25"))
    result = run("lint", str(file))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert (
        f"{file}:5:1: error: credits_per_units: unknown key; did you mean credits_per_unit?"
        in lines
    )
    assert (
        f'{file}:12:1: error: rule "echo-mini": cached_input: must be in quotes, to stay exact, '
        'like cached_input = "1.25"' in lines
    )
    assert "    expected: a decimal number in quotes, without sign or exponent" in lines
    assert lines[-1].startswith("3 errors, ")  # the two, and the key that is missing for the first
    for_machines = run("lint", str(file), "--json")
    found = json.loads(for_machines.stdout)
    assert (for_machines.exit_code, found["acceptable"]) == (1, False)
    assert {"line", "column", "rule", "field", "message", "expected", "example"} <= set(
        found["problems"][0]
    )


@pytest.mark.parametrize(
    ("content", "place"),
    [(b"[book]\nname = '\xff'", ":2:9: error: this is not UTF-8"), (b"[book\n", ":1:6: error: ")],
)
def test_lint_of_what_is_no_toml_has_a_place(file: Path, content: bytes, place: str) -> None:
    file.write_bytes(content)
    result = run("lint", str(file))
    assert (result.exit_code, f"{file}{place}" in result.stdout) == (1, True), result.stdout


def test_lint_of_a_good_book_is_status_0(file: Path) -> None:
    file.write_text(BOOK)
    assert run("lint", str(file)).exit_code == 0


def test_a_book_goes_from_a_file_into_effect_and_back(data_dir: str, file: Path) -> None:
    file.write_text(OTHER_BOOK)
    done = ask(data_dir, "upload", str(file))
    assert (done["version"], done["repeated"]) == (2, False)
    assert ask(data_dir, "upload", str(file))["repeated"] is True
    told = say(data_dir, "activate", "2")
    # From 2.50 to 3.00 is 20 % more.
    assert told.startswith(
        "against version 1: 0 rules added, 0 gone, 1 changed, 3 unchanged, "
        "prices change by +20% to +20%\nversion 2 holds from "
    )
    assert told.endswith(", in the place of version 1\n")
    assert "on already: nothing was done" in say(data_dir, "activate", "2")
    back = ask(data_dir, "rollback")
    assert (back["version"], back["replaced"]) == (1, 2)
    assert "no version held before" in say(data_dir, "rollback", status=1)


def test_scheduled_book_is_listed_and_followed(data_dir: str, file: Path) -> None:
    for book in (OTHER_BOOK, THIRD_BOOK.replace('"=off"', '"off"')):
        file.write_text(book)
        ask(data_dir, "upload", str(file))
    at = "2096-12-24T18:00Z"
    activated = ask(data_dir, "activate", "2", "--at", at)
    assert activated["effective_from"] == "2096-12-24T18:00:00Z"
    assert "2096-12-24 18:00:00Z" in say(data_dir, "list")
    refused = say(data_dir, "activate", "3", "--replaces", "2", status=1)
    assert "version 1 is in effect" in refused
    told = say(data_dir, "activate", "3")
    assert told.endswith("version 2 is scheduled to follow it\n")
    # What holds by then is replaced, not what holds now.
    later = ask(data_dir, "activate", "1", "--at", "2096-12-25T18:00Z")
    assert later["replaced"] == 2


def test_book_that_plans_its_own_time_replaces_what_holds_then(data_dir: str, file: Path) -> None:
    file.write_text(OTHER_BOOK)
    ask(data_dir, "upload", str(file))
    ask(data_dir, "activate", "2", "--at", "2096-12-24T18:00Z")
    planned = "[book]\neffective_from = 2097-01-01T00:00:00Z"
    file.write_text(BOOK.replace("[book]", planned))
    ask(data_dir, "upload", str(file))
    done = ask(data_dir, "activate", "3")
    assert (done["replaced"], done["effective_from"]) == (2, "2097-01-01T00:00:00Z")


def test_diff_of_a_file_and_of_versions(data_dir: str, file: Path) -> None:
    file.write_text(OTHER_BOOK.replace('id = "off"', 'id = "on"'))
    shown = say(data_dir, "diff", str(file))
    assert "book: name: test prices -> other prices" in shown
    assert "2.50 -> 3.00 (+20%)" in shown
    assert shown.endswith(
        "1 rules added, 1 gone, 1 changed, 2 unchanged, prices change by +20% to +20%\n"
    )
    by_file = ask(data_dir, "diff", str(file))
    ask(data_dir, "upload", str(file))
    by_version = ask(data_dir, "diff", "2")
    assert by_file == {**by_version, "version": None}
    assert ask(data_dir, "diff", "1", "2")["against"] == 2
    assert ask(data_dir, "diff", str(file), "2")["changed"] == []
    assert "(HTTP 404)" in say(data_dir, "diff", "9", status=1)
    file.write_text("x = 1")
    assert f"{file}:1:1: error: x: unknown key" in say(data_dir, "diff", str(file), status=1)


def test_upload_of_a_bad_book_says_all_and_stores_nothing(data_dir: str, file: Path) -> None:
    file.write_text(BOOK.replace('"2.50"', '"cheap"').replace('"20.00"', '"dear"'))
    told = say(data_dir, "upload", str(file), status=1)
    assert told.count(": error: ") == 2
    assert ask(data_dir, "upload", str(file), status=1)["acceptable"] is False
    assert ask(data_dir, "list")["total"] == 1


def test_dry_run_tells_what_the_gateway_knows_and_stores_nothing(data_dir: str, file: Path) -> None:
    file.write_text(BOOK.replace('"2.50"', '"0.0000025"'))
    assert "; per 1M tokens it would be 2.5" in run("lint", str(file)).stdout
    told = say(data_dir, "upload", str(file), "--dry-run")
    assert (
        f'{file}:11:1: warning: rule "echo-mini": input: is 1000000 times cheaper than in the book '
        'in effect (rule "echo-mini"); is one a price per token, the other per 1M tokens?' in told
    )
    assert ask(data_dir, "list")["total"] == 1


def test_exported_book_is_the_same_book(data_dir: str, file: Path) -> None:
    file.write_text(OTHER_BOOK + "# a comment\n")
    ask(data_dir, "upload", str(file))
    assert say(data_dir, "export") == BOOK
    assert say(data_dir, "export", "2") == OTHER_BOOK + "# a comment\n"
    written = file.with_name("out.toml")
    assert say(data_dir, "export", "2", "--format", "toml", "-o", str(written)).startswith("wrote")
    text = written.read_text()
    assert "#" not in text
    assert [rule.id for rule in parse_book(text).rules] == [
        rule.id for rule in parse_book(OTHER_BOOK).rules
    ]
    assert "(HTTP 404)" in say(data_dir, "export", "9", status=1)


def test_exported_table_has_a_row_for_each_tier_and_no_formula(data_dir: str, file: Path) -> None:
    tier = 'description = "=1+1"\ntiers = [{ over_input_tokens = 200000, input = "9.00" }]\n'
    file.write_text(BOOK + tier)
    ask(data_dir, "upload", str(file))
    rows = list(csv.DictReader(io.StringIO(say(data_dir, "export", "2", "--format", "csv"))))
    assert [row["rule"] for row in rows] == ["echo-mini", "agent-mini", "agent-only", "off", "off"]
    assert [row["from_input_tokens"] for row in rows[3:]] == ["0", "200001"]
    assert [row["input"] for row in rows[3:]] == ["1.00", "9.00"]
    # Left out: as input, which moved; as output, which did not.
    assert [row["cached_input"] for row in rows[3:]] == ["1.00", "9.00"]
    assert [row["reasoning"] for row in rows[3:]] == ["2.00", "2.00"]
    assert {row["description"] for row in rows[3:]} == {"'=1+1"}


def test_explain_names_the_rule_and_why_others_lost(data_dir: str, file: Path) -> None:
    file.write_text(OTHER_BOOK)
    ask(data_dir, "upload", str(file))
    question = ("explain", "--scene", "agent", "--provider", "echo", "--model")
    told = say(data_dir, *question, "mini")
    assert 'id = "agent-mini"' in told
    assert "its scene '*' is wider than 'agent'" in told
    assert ask(data_dir, *question, "mini", "--version", "2")["book"] == 2
    assert "no rule of book 1" in say(data_dir, *question, "nobody", status=1)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("upload", "/no/where.toml"), 2, "cannot be read (No such file"),
        (("lint", "/no/where.toml"), 2, "cannot be read (No such file"),
        (("diff", "/no/where.toml"), 2, "cannot be read (No such file"),
        (("export", "-o", "/no/where.toml"), 2, "cannot be written (No such file"),
        (("activate", "99"), 1, "(HTTP 404)"),
        (("activate", "1", "--at", "soon"), 2, '"soon" is no time'),
        (("activate", "0"), 2, ""),
        (("rollback", "--replaces", "7"), 1, "version 1 is in effect"),
    ],
)
def test_what_is_refused_is_told(
    data_dir: str, arguments: tuple[str, ...], status: int, message: str
) -> None:
    result = run(*arguments, *([] if arguments[0] == "lint" else ["--data-dir", data_dir]))
    assert (result.exit_code, message in result.stderr) == (status, True), result.output
    assert result.stdout == ""
