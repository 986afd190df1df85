"""`llm-gateway doctor`: looks at everything a gateway depends on, changes nothing, says what to do."""

import asyncio
import os
import socket
import sqlite3
import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx2
import msgspec
from sqlalchemy import Connection, func, select

from billing.db import migrate
from billing.db.invariants import check_invariants
from billing.db.session import sqlite_path
from billing.db.tables import outbox
from billing.holds.redis_connection import (
    RedisAddressError,
    RedisRefusedError,
    RedisUnavailableError,
    connect,
    parse_address,
)
from billing.settlement.broker_address import parse_kafka
from billing.settlement.spool import bytes_waiting, damaged_files
from llm_gateway import clock, package_data
from llm_gateway.banner import url_of
from llm_gateway.config import (
    BrokerConfig,
    Config,
    ConfigError,
    Overrides,
    ProviderConfig,
    load,
    shown_url,
    split_address,
)
from llm_gateway.credentials import CredentialsError, credentials_path, read_credentials
from pricing_rules.lint import lint

CONNECT_SECONDS: Final = 5.0
CLOCKS_APART_SECONDS: Final = 5.0
SETTLED_SECONDS: Final = 60.0  # a charge that waits longer waits for somebody who is not there
FIRST_SANE_MS: Final = 1_767_225_600_000  # 2026-01-01: this code is younger than that
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class Level(StrEnum):
    """How a finding is to be taken."""

    FINE = "ok"
    NOTE = "note"  # as it may be, but worth knowing
    WRONG = "wrong"


class Finding(msgspec.Struct, frozen=True):
    """What one check saw, and what to do about it."""

    level: Level
    subject: str
    text: str
    advice: str = ""


def examine(path: Path | None, overrides: Overrides | None = None) -> list[Finding]:
    """Every check, in the order in which a start would stumble."""
    try:
        config = load(path, os.environ, overrides)
    except ConfigError as error:
        return [Finding(Level.WRONG, "settings", line) for line in str(error).splitlines()]
    checks = (
        check_settings,
        check_data,
        check_database,
        check_guard,
        check_broker,
        check_port,
        check_prices,
    )
    findings = [finding for check in checks for finding in check(config)]
    findings += [check_provider(provider) for provider in config.providers]
    if not any(provider.on for provider in config.providers):
        advice = "set the key of one of them"
        findings.append(Finding(Level.WRONG, "providers", "none is on", advice))
    return [*findings, *check_clock(clock.now_ms())]


def check_settings(config: Config) -> Iterator[Finding]:
    """Whether they can be read was seen before; where they come from is worth saying."""
    source = str(config.path) if config.path else "built-in; llm-gateway init writes a file"
    yield Finding(Level.FINE, "settings", source)
    if not config.server.loopback and config.auth.admin_token is None:
        text = f"other machines reach {config.server.host}; the admin token is one made by us"
        yield Finding(Level.NOTE, "settings", text, "set GATEWAY_ADMIN_TOKEN to one you keep")


def check_data(config: Config) -> Iterator[Finding]:
    """The data directory: there, writable, and closed to others."""
    directory = Path(config.server.data_dir)
    if not directory.exists():
        yield Finding(Level.NOTE, "data", f"{directory} is not there; serve makes it")
        return
    if not directory.is_dir() or not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        advice = "give it to the user that runs the gateway, or set another data_dir"
        yield Finding(Level.WRONG, "data", f"{directory} is no writable directory", advice)
        return
    yield Finding(Level.FINE, "data", str(directory.resolve()))
    yield from _check_credentials(directory)
    spool = directory / "spool"
    if spooled := bytes_waiting(spool):
        text = f"{spooled} bytes of charges wait in {spool}"
        yield Finding(Level.NOTE, "data", text, "serve takes them into the ledger at its start")
    if damaged := damaged_files(spool):
        text = f"charges in {spool} could not be read: {', '.join(damaged)}"
        advice = (
            "what could be read of them is in the ledger; look into the rest, then move them away"
        )
        yield Finding(Level.WRONG, "data", text, advice)


def _check_credentials(directory: Path) -> Iterator[Finding]:
    path = credentials_path(directory)
    try:
        if read_credentials(directory) is None:
            return
    except CredentialsError as error:
        yield Finding(Level.WRONG, "credentials", str(error))
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & OTHERS:
        text = f"others can read {path} (mode {mode:04o})"
        yield Finding(Level.WRONG, "credentials", text, f"chmod 600 {path}")
    else:
        yield Finding(Level.FINE, "credentials", str(path))


def check_database(config: Config) -> Iterator[Finding]:
    """The database, its schema, and whether what stands in it adds up."""
    if not config.database.is_sqlite:
        yield from _check_postgres(config)
        return
    path = sqlite_path(config.database.url)
    if path is None or not path.exists():
        yield Finding(Level.NOTE, "database", f"{path} is not there; serve makes it")
        return
    try:
        schema, wanted = migrate.current(config.database.url), migrate.head()
        broken = _integrity(path)
    except Exception as error:  # noqa: BLE001 - drivers and Alembic have no common base
        first = str(error).partition("\n")[0]
        advice = "restore it from a backup, or move it away and start anew"
        yield Finding(Level.WRONG, "database", f"{path} cannot be read: {first}", advice)
        return
    if schema != wanted:
        text = f"{path} has schema {schema or 'none'}, this version needs {wanted}"
        yield Finding(
            Level.NOTE, "database", text, "llm-gateway migrate, or serve, brings it there"
        )
        return
    if broken:
        advice = "restore it from a backup"
        yield Finding(Level.WRONG, "database", f"{path} is damaged: {broken}", advice)
        return
    yield Finding(Level.FINE, "database", f"{path}, schema {schema}")
    yield from _check_backlog(config)


def _check_postgres(config: Config) -> Iterator[Finding]:
    """Whether it answers, has the schema, and has a clock that agrees with ours."""
    shown = config.database.shown
    try:
        schema, wanted = migrate.current(config.database.url), migrate.head()
        theirs = migrate.run_sync(config.database.url, _time_of)
    except Exception as error:  # noqa: BLE001 - drivers and Alembic have no common base
        first = str(error).partition("\n")[0] or type(error).__name__
        advice = "check that it runs, and [database] url"
        yield Finding(Level.WRONG, "database", f"{shown} cannot be reached: {first}", advice)
        return
    if schema != wanted:
        text = f"{shown} has schema {schema or 'none'}, this version needs {wanted}"
        yield Finding(Level.WRONG, "database", text, "llm-gateway migrate brings it there")
        return
    text = f"{shown}, schema {schema}; llm-gateway reconcile tells if it adds up"
    yield Finding(Level.FINE, "database", text)
    apart = abs(theirs - clock.now_ms()) / 1000
    if apart > CLOCKS_APART_SECONDS:
        text = f"the database's clock and ours are {apart:.0f} s apart"
        yield Finding(Level.WRONG, "clock", text, "set the clocks of all machines (NTP)")
    yield from _check_backlog(config)


def _time_of(connection: Connection) -> int:
    now = connection.scalar(select(func.extract("epoch", func.clock_timestamp()) * 1000))
    return int(now or 0)


def _check_backlog(config: Config) -> Iterator[Finding]:
    """Charges that wait mean that nobody settles."""
    try:
        oldest = migrate.run_sync(
            config.database.url, lambda found: found.scalar(select(func.min(outbox.c.created_at)))
        )
    except Exception as error:  # noqa: BLE001 - drivers have no common base
        text = f"the outbox cannot be read: {type(error).__name__}"
        yield Finding(Level.WRONG, "settlement", text)
        return
    waits = 0 if oldest is None else (clock.now_ms() - oldest) / 1000
    if waits > SETTLED_SECONDS:
        advice = "start llm-gateway serve"
        if not config.ledger_worker.embedded:
            advice = "start llm-gateway worker, or set [ledger_worker] embedded = true"
        text = f"a charge waits since {waits:.0f} s to be settled"
        yield Finding(Level.WRONG, "settlement", text, advice)


def _integrity(path: Path) -> str:
    """What SQLite itself, or the ledger's own rules, find wrong; "" if nothing."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=5)
    try:
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            return str(said)
        violations = check_invariants(connection)
    finally:
        connection.close()
    rest = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return f"{violations[0]}{rest}" if violations else ""


def check_guard(config: Config) -> Iterator[Finding]:
    """Redis, if it keeps the holds: whether it answers, and is set up not to drop any."""
    if config.guard.store != "redis":
        return
    shown = shown_url(config.guard.redis_url)
    try:
        asyncio.run(_ask_redis(config.guard.redis_url))
    except (RedisAddressError, RedisRefusedError, RedisUnavailableError) as error:
        advice = "check that it runs and is set up for holds, and [guard] redis_url"
        yield Finding(Level.WRONG, "redis", str(error), advice)
    else:
        yield Finding(Level.FINE, "redis", f"{shown} answers, and drops nothing")


async def _ask_redis(url: str) -> None:
    connection = await connect(parse_address(url), lambda: None)
    connection.abort("that was all")


def check_broker(config: Config) -> Iterator[Finding]:
    """Whether a server of the broker takes connections; no topic is made, nothing is sent."""
    broker = config.broker
    if broker.kind == "database":
        return
    refused = []
    for host, port in _broker_servers(broker):
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            refused.append(f"{host}:{port} ({error.strerror or type(error).__name__})")
        else:
            yield Finding(Level.FINE, "broker", f"{broker.kind} at {host}:{port} answers")
            return
    advice = "check that it runs, and [broker] url; charges wait in the database meanwhile"
    text = f"{broker.kind} cannot be reached: {', '.join(refused)}"
    yield Finding(Level.WRONG, "broker", text, advice)


def _broker_servers(broker: BrokerConfig) -> list[tuple[str, int]]:
    if broker.kind == "kafka":
        return [split_address(server) for server in parse_kafka(broker.url).servers]
    parts = urlsplit(broker.url)
    return [(parts.hostname or "", parts.port or 6379)]


def check_port(config: Config) -> Iterator[Finding]:
    """Whether serve can listen, or does so already."""
    server = config.server
    addresses = [(server.host, server.port)]
    if server.admin_address is not None:
        addresses.append(server.admin_address)
    for host, port in addresses:
        yield _check_address(host, port)


def _check_address(host: str, port: int) -> Finding:
    where = f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if _is_gateway(url_of(host, port)):
                return Finding(Level.FINE, "address", f"a gateway listens on {where}")
            why = error.strerror or str(error)
            advice = "stop what listens there, or set another host or port"
            return Finding(Level.WRONG, "address", f"{where} cannot be had ({why})", advice)
    return Finding(Level.FINE, "address", f"{where} is free")


def _is_gateway(url: str) -> bool:
    try:
        answer = httpx2.get(f"{url}/readyz", timeout=CONNECT_SECONDS, trust_env=False)
    except httpx2.HTTPError:
        return False
    return b'"dependencies"' in answer.content


def check_prices(config: Config) -> Iterator[Finding]:
    """The price book that a first start would load."""
    name = config.pricing.book
    try:
        text = package_data.price_book(name, beside=config.path)
    except (OSError, UnicodeDecodeError) as error:
        yield Finding(Level.WRONG, "prices", f"{name} cannot be read ({type(error).__name__})")
        return
    problems = lint(text)
    errors = [problem for problem in problems if problem.level == "error"]
    if errors:
        advice = f"llm-gateway prices lint {name} lists everything"
        yield Finding(Level.WRONG, "prices", f"{name}: {errors[0]}", advice)
    elif problems:
        advice = f"llm-gateway prices lint {name} lists them"
        yield Finding(Level.NOTE, "prices", f"{name} has {len(problems)} warnings", advice)
    else:
        yield Finding(Level.FINE, "prices", name)


def check_provider(provider: ProviderConfig) -> Finding:
    """Whether it is on, and its address takes connections. No request is sent, no key is used."""
    subject = provider.name
    if not provider.on:
        variable, _, rest = provider.off_because.partition(" ")
        advice = f"export {variable}=... to turn it on" if rest == "is not set" else ""
        return Finding(Level.NOTE, subject, f"off: {provider.off_because}", advice)
    if provider.kind == "echo":
        return Finding(Level.FINE, subject, "on; it answers offline")
    parts = urlsplit(provider.base_url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    seconds = min(CONNECT_SECONDS, provider.connect_seconds)
    try:
        with socket.create_connection((host, port), timeout=seconds) as plain:
            if secure:
                context = ssl.create_default_context()
                context.wrap_socket(plain, server_hostname=host).close()
    except OSError as error:  # ssl.SSLError and socket.gaierror are OSErrors
        advice = "check network, proxy and certificates, or its base_url"
        text = f"{host}:{port} cannot be reached ({error.strerror or type(error).__name__})"
        return Finding(Level.WRONG, subject, text, advice)
    return Finding(Level.FINE, subject, f"on; {host}:{port} answers")


def check_clock(now_ms: int) -> Iterator[Finding]:
    """Charges and price changes go by this machine's clock."""
    shown = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if now_ms < FIRST_SANE_MS:
        yield Finding(Level.WRONG, "clock", f"it is not {shown}", "set the clock (NTP)")
    else:
        yield Finding(Level.FINE, "clock", shown)
