"""Whoever steals the database holds no key: nothing in it opens anything, nor is a part of one."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.support.fleet import fleet
from tests.support.gateway import GatewayProcess
from tests.support.provider import ScriptedProvider, json_answer
from tests.support.rawhttp import chat
from tests.support.services import PostgresServer, pg_rows

Dump = Callable[[], dict[str, list[tuple[object, ...]]]]  # rows by table

SHOWN: Final = 10  # characters of a token that are kept, for people to know it by
PART: Final = 6  # characters in a row, 36 of 256 bits: fewer occur by chance
OPENED_BY_A_KEY: Final = ("/v1/models", "/credit-store/balance")
OPENED_BY_A_TOKEN: Final = ("/admin/accounts", "/admin/tokens")


@pytest.fixture(params=["sqlite", "postgresql"])
def stolen(
    request: pytest.FixtureRequest, provider: ScriptedProvider, tmp_path: Path
) -> Iterator[tuple[GatewayProcess, Dump]]:
    """A gateway, and how a thief reads its database."""
    if request.param == "sqlite":
        with GatewayProcess(tmp_path, provider.base_url) as gateway:
            gateway.start()
            yield gateway, lambda: _sqlite(gateway.database)
        return
    server: PostgresServer = request.getfixturevalue("durable_postgres")
    url = server.new_database()
    with fleet(tmp_path, provider.base_url, url) as processes:
        yield processes.gateway(), lambda: _postgres(url)
    server.drop_database(url)


def _sqlite(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {
            name: connection.execute(f'SELECT * FROM "{name}"').fetchall()
            for (name,) in tables.fetchall()
        }


def _postgres(url: str) -> dict[str, list[tuple[object, ...]]]:
    tables = pg_rows(url, "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
    return {str(name): pg_rows(url, f'SELECT * FROM "{name}"') for (name,) in tables}


def _live_with_it(gateway: GatewayProcess, provider: ScriptedProvider) -> list[str]:
    """Everything in which a key or token plays a part; those that were ever good."""
    account = gateway.account()
    secrets = [account.key, gateway.app_key(account.id)]
    rotated = gateway.admin(f"keys/{account.key_id}/rotate", {"grace_seconds": 3600})
    revoked = gateway.account()
    gateway.admin(f"keys/{revoked.key_id}/revoke", {})
    secrets += [str(rotated["token"]), revoked.key]
    for role in ("owner", "finance", "read_only"):
        secrets.append(str(gateway.admin("tokens", {"name": role, "role": role})["token"]))
    script = provider.script(*json_answer())
    for key in secrets:
        # Calls, acts and reads, those that are refused too.
        gateway.call(chat(x_script=script), key, {"X-Billing-User": account.id})
        gateway.call(chat(x_script=script), key, {"X-Run-Id": "r", "X-Request-Id": "q"})
        for path in (*OPENED_BY_A_KEY, *OPENED_BY_A_TOKEN):
            gateway.get(path, key)
    gateway.call(
        json.dumps({"account": account.id, "amount_micro_credits": 5}).encode(),
        secrets[4],
        {"Content-Type": "application/json", "Idempotency-Key": "once"},
        path="/admin/grants",
    )
    return [*secrets, gateway.admin_token]


def _texts(rows: dict[str, list[tuple[object, ...]]]) -> set[str]:
    """All values as text, those in JSON by themselves, too."""
    found: set[str] = set()
    for row in (row for table in rows.values() for row in table):
        for value in row:
            text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
            found.add(text)
            if text[:1] in ("{", "["):
                found |= {word for word in text.split('"') if word}
    return found


def test_stolen_database_holds_no_usable_key(
    stolen: tuple[GatewayProcess, Dump], provider: ScriptedProvider
) -> None:
    gateway, dump = stolen
    secrets = _live_with_it(gateway, provider)
    rows = dump()
    assert len(rows["api_keys"]) >= 4
    assert len(rows["admin_tokens"]) == 3
    assert len(rows["admin_audit"]) >= 10
    assert rows["usage"]
    texts = _texts(rows)
    whole = "\n".join(texts)
    # No part of any: a window that slides over all that is not shown on purpose.
    for secret in secrets:
        hidden = secret[SHOWN:]
        parts = {hidden[at : at + PART] for at in range(len(hidden) - PART + 1)}
        assert not [part for part in parts if part in whole]
    # And nothing that stands there opens anything, as it is or behind a token's first letters.
    tried = 0
    for text in sorted(texts):
        if not text.isascii() or not text.isprintable() or len(text) > 200:
            continue
        if len(text) >= SHOWN:
            for key in (text, f"lgw_{text}", f"lga_{text}"):
                tried += 1
                for path in (OPENED_BY_A_KEY[0], OPENED_BY_A_TOKEN[0]):
                    assert gateway.get(path, key).status == 401, path
    assert tried > 50
    # The keys were good all the while.
    assert gateway.get(OPENED_BY_A_KEY[0], secrets[1]).status == 200
    assert gateway.get(OPENED_BY_A_TOKEN[1], secrets[4]).status == 200


def test_files_of_sqlite_hold_no_part_of_a_key(provider: ScriptedProvider, tmp_path: Path) -> None:
    # Pages that were given up and the log beside them are stolen with the file.
    with GatewayProcess(tmp_path, provider.base_url) as gateway:
        gateway.start()
        secrets = _live_with_it(gateway, provider)
        data = b"".join(
            path.read_bytes() for path in gateway.database.parent.iterdir() if path.is_file()
        )
    assert b"api_keys" in data
    for secret in secrets:
        assert secret[SHOWN : SHOWN + 12].encode() not in data
        assert secret[-12:].encode() not in data
