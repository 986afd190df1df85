"""Starts that cannot be: one line on stderr that says what to do, and status 2."""

import os
import subprocess
from pathlib import Path

import pytest

from llm_gateway.config import Config, load
from llm_gateway.doctor import Level, check_broker, check_database, check_guard
from tests.support.gateway import KEPT, LLM_GATEWAY, REPOSITORY
from tests.support.redis_server import RedisServer, redis_server
from tests.support.services import PostgresServer, free_port, pg_rows


def start(folder: Path, settings: str, *command: str) -> subprocess.CompletedProcess[str]:
    (folder / "gateway.toml").write_text(f"[server]\nport = {free_port()}\n{settings}")
    environment = {n: v for n, v in os.environ.items() if n in KEPT or n.startswith("COVERAGE_")}
    return subprocess.run(
        [*LLM_GATEWAY, *command],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(REPOSITORY), "OPENAI_API_KEY": "k"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("llm-gateway: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


AWAY = 'postgresql+asyncpg://postgres@127.0.0.1:9/nowhere"'


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_database_that_is_away(tmp_path: Path, command: str) -> None:
    line = said(start(tmp_path, f'[database]\nurl = "{AWAY}', command))
    assert (
        "the database postgresql+asyncpg://postgres@127.0.0.1:9/nowhere cannot be reached" in line
    )


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_database_without_its_schema(
    tmp_path: Path, postgres: PostgresServer, command: str
) -> None:
    url = postgres.empty_database()
    line = said(start(tmp_path, f'[database]\nurl = "{url}"', command))
    assert "the database has schema none, this version needs" in line
    assert line.endswith("run `llm-gateway migrate`\n")
    assert start(tmp_path, f'[database]\nurl = "{url}"', "migrate").returncode == 0


def test_a_worker_with_sqlite(tmp_path: Path) -> None:
    assert "needs PostgreSQL" in said(start(tmp_path, "", "worker"))


def test_several_processes_with_sqlite(tmp_path: Path) -> None:
    done = start(tmp_path, "", "serve", "--processes", "2")
    assert done.returncode == 2
    assert "more than one process needs PostgreSQL" in done.stderr


def test_a_redis_that_drops_holds(tmp_path: Path, postgres_url: str) -> None:
    with redis_server("--maxmemory-policy", "allkeys-lru") as evicting:
        settings = (
            f'[database]\nurl = "{postgres_url}"\n'
            f'[guard]\nstore = "redis"\nredis_url = "{evicting.url}"\n'
        )
        for command in ("serve", "worker"):
            assert "noeviction" in said(start(tmp_path, settings, command))


# -- doctor --------------------------------------------------------------------------------------


def config_of(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    return load(path, {})


def test_doctor_on_a_sound_database(tmp_path: Path, postgres_url: str) -> None:
    config = config_of(tmp_path, f'[database]\nurl = "{postgres_url}"')
    assert [finding.level for finding in check_database(config)] == [Level.FINE]


def test_doctor_on_a_database_that_is_away(tmp_path: Path) -> None:
    (finding,) = check_database(config_of(tmp_path, f'[database]\nurl = "{AWAY}'))
    assert finding.level is Level.WRONG
    assert "cannot be reached" in finding.text


def test_doctor_misses_the_schema(tmp_path: Path, postgres: PostgresServer) -> None:
    url = postgres.empty_database()
    (finding,) = check_database(config_of(tmp_path, f'[database]\nurl = "{url}"'))
    assert finding.level is Level.WRONG
    assert "llm-gateway migrate" in finding.advice


def test_doctor_misses_whoever_settles(tmp_path: Path, postgres_url: str) -> None:
    pg_rows(
        postgres_url,
        "INSERT INTO outbox (event_id, revision, account, payload, payload_hash, created_at)"
        " VALUES ('e', 2, 'a', '', '', 1)",
    )
    config = config_of(
        tmp_path, f'[database]\nurl = "{postgres_url}"\n[ledger_worker]\nembedded = false'
    )
    wrong = [finding for finding in check_database(config) if finding.level is Level.WRONG]
    assert [finding.subject for finding in wrong] == ["settlement"]
    assert "llm-gateway worker" in wrong[0].advice


def test_doctor_on_redis(tmp_path: Path) -> None:
    text = '[guard]\nstore = "redis"\nredis_url = "{}"'
    with redis_server() as server:
        (fine,) = check_guard(config_of(tmp_path, text.format(server.url)))
        assert fine.level is Level.FINE
        _evict(server)
        (evicting,) = check_guard(config_of(tmp_path, text.format(server.url)))
        assert "noeviction" in evicting.text
    (away,) = check_guard(config_of(tmp_path, text.format(server.url)))
    assert away.level is Level.WRONG


def _evict(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")


def test_doctor_on_a_broker(tmp_path: Path) -> None:
    assert list(check_broker(config_of(tmp_path, ""))) == []
    text = '[broker]\nkind = "redis"\nurl = "{}"'
    with redis_server() as server:
        (fine,) = check_broker(config_of(tmp_path, text.format(server.url)))
        assert fine.level is Level.FINE
    (away,) = check_broker(config_of(tmp_path, text.format(server.url)))
    assert away.level is Level.WRONG
    kafka = '[broker]\nkind = "kafka"\nurl = "kafka://127.0.0.1:9,127.0.0.1:10"'
    (away,) = check_broker(config_of(tmp_path, kafka))
    assert "127.0.0.1:9 " in away.text
    assert "127.0.0.1:10 " in away.text
