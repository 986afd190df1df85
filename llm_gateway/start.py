"""What is checked and made before any event loop runs: sockets, the data directory, the schema."""

import socket
from pathlib import Path

from billing.db import migrate
from billing.db.pooler import pooling
from llm_gateway.config import Config


class StartError(Exception):
    """A process cannot start; the message is one line that says what to do."""


def listen(host: str, port: int, *, choose: str = "--port or [server] port") -> socket.socket:
    """A bound socket, so that a port in use is found before any data is touched.

    `choose`: what may name another address.

    uvicorn listens on it once everything is ready: until then clients are refused, not kept waiting.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise StartError(
            f"cannot listen on {host}:{port} ({why}): choose another with {choose}"
        ) from error
    listener.setblocking(False)
    return listener


def listen_all(config: Config) -> list[socket.socket]:
    """The main address, then with `admin_host` the second one."""
    listeners = [listen(config.server.host, config.server.port)]
    if config.server.admin_address is not None:
        listeners.append(listen(*config.server.admin_address))
    return listeners


def make_data_dir(config: Config) -> Path:
    """The data directory, there and writable."""
    data_dir = Path(config.server.data_dir)
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = data_dir / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may probe at the same time
    except OSError as error:
        raise StartError(
            f"the data directory {data_dir} cannot be written ({error.strerror})"
        ) from error
    return data_dir


def check_schema(config: Config) -> None:
    """A SQLite file is ours to bring up to date; a shared database is an operator's."""
    if config.database.is_sqlite:
        _migrate(config)
        return
    try:
        if shows := pooling(config.database.url):
            raise StartError(  # noqa: TRY301 - here the database answers
                f"the database {config.database.shown} is behind a connection pooler ({shows}): "
                "name the PostgreSQL server itself, the gateway pools by itself"
            )
        schema, wanted = migrate.current(config.database.url), migrate.head()
    except StartError:
        raise
    except Exception as error:
        raise StartError(
            f"the database {config.database.shown} cannot be reached ({_first_line(error)})"
        ) from error
    if schema != wanted:
        raise StartError(
            f"the database has schema {schema or 'none'}, this version needs {wanted}: "
            "run `llm-gateway migrate`"
        )


def check_providers(config: Config) -> None:
    """At least one must be on."""
    if not any(provider.on for provider in config.providers):
        wanted = ", ".join(provider.off_because for provider in config.providers)
        why = wanted or "none is configured"
        raise StartError(f"no provider is on ({why}): set a key, or add a provider")


def _migrate(config: Config) -> None:
    try:
        migrate.upgrade(config.database.url)
    except Exception as error:
        raise StartError(
            f"the database cannot be brought up to date: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
