"""The address of a PostgreSQL as asyncpg takes it, TLS options and timeouts included."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import asyncpg
from sqlalchemy.engine import make_url

CONNECT_SECONDS: Final = 5.0


class Connection(Protocol):
    """What we use of asyncpg's connection, which has no types of its own; $1, $2 take `values`."""

    async def fetch(self, query: str, *values: object) -> list[Sequence[Any]]:
        """All rows."""
        ...

    async def fetchrow(self, query: str, *values: object) -> Sequence[Any] | None:
        """The first row."""
        ...

    async def fetchval(self, query: str, *values: object) -> Any:  # noqa: ANN401 - a column's value
        """The first row's first value; None without rows."""
        ...

    async def execute(self, query: str, *values: object) -> str:
        """Without rows; what the server says was done."""
        ...

    def is_closed(self) -> bool:
        """Whether it is of no use any more."""
        ...

    async def close(self) -> None:
        """Say goodbye and close."""
        ...

    def terminate(self) -> None:
        """Close at once."""
        ...


def is_postgres(url: str) -> bool:
    """Whether an address names a PostgreSQL."""
    return make_url(url).get_backend_name() == "postgresql"


def dsn_of(url: str) -> str:
    """postgresql+asyncpg://... without the driver.

    Options of the query are libpq's: host=/socket/directory, sslmode=verify-full, sslrootcert=,
    sslcert=, sslkey=; see https://www.postgresql.org/docs/current/libpq-connect.html
    """
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


async def connect(
    url: str, settings: Mapping[str, str], *, statement_cache_size: int = 100
) -> Connection:
    """A new connection with these settings of its session.

    Raises OSError, TimeoutError or asyncpg.PostgresError.
    """
    connection: Connection = await asyncpg.connect(
        dsn_of(url),
        timeout=CONNECT_SECONDS,
        statement_cache_size=statement_cache_size,
        server_settings={"application_name": "llm-gateway", **settings},
    )
    return connection
