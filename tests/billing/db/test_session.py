"""Connections to PostgreSQL for all that is not hot: transactions, TLS, and acts that must be alone."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from sqlalchemy import insert, select
from sqlalchemy.exc import DBAPIError

from billing.books import PriceBooks
from billing.db.engine import hot_database
from billing.db.hot import DatabaseUnavailableError
from billing.db.postgres_url import dsn_of
from billing.db.session import Database
from billing.db.tables import meta
from tests.support.control import BOOK, Clock
from tests.support.money import T0
from tests.support.services import PostgresServer


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    database = Database(postgres_url)
    yield database
    await database.dispose()


async def test_a_write_is_all_or_nothing(database: Database) -> None:
    row = insert(meta).values(key="k", value="v")
    with pytest.raises(RuntimeError):  # noqa: PT012 - the block is what is tested
        async with database.write() as connection:
            await connection.execute(row)
            raise RuntimeError
    async with database.read() as connection:
        assert (await connection.execute(select(meta.c.key))).all() == []


async def test_a_read_is_one_view_and_writes_nothing(database: Database) -> None:
    async with database.read() as reader:
        assert (await reader.execute(select(meta.c.key))).all() == []
        async with database.write() as connection:
            await connection.execute(insert(meta).values(key="k", value="v"))
        assert (await reader.execute(select(meta.c.key))).all() == []
        with pytest.raises(DBAPIError, match="read-only"):
            await reader.execute(insert(meta).values(key="x", value="v"))


async def test_uploads_at_once_get_different_versions(database: Database) -> None:
    clock = Clock()
    books = PriceBooks(database, now_ms=clock.now_ms, monotonic=clock.monotonic)
    texts = [BOOK.replace("test prices", f"prices {number}") for number in range(8)]
    uploaded = await asyncio.gather(*(books.upload(each, actor="ann") for each in texts))
    assert sorted(each.version for each in uploaded) == list(range(1, 9))


@asynccontextmanager
async def tls_in_front(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """What a PostgreSQL with TLS does before anything else; behind it one without. Its port.

    https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL
    """

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert await reader.readexactly(8) == b"\0\0\0\x08\x04\xd2\x16\x2f", "asks for TLS"
            writer.write(b"S")
            await writer.start_tls(context)
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer))
            finally:
                behind_writer.transport.abort()
        except (ssl.SSLError, OSError):
            pass  # a client that trusts somebody else, or one that has left
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_tls_by_the_address(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    trusted, other = tmp_path / "ca.pem", tmp_path / "other.pem"
    authority.cert_pem.write_to_path(trusted)
    stranger.cert_pem.write_to_path(other)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with tls_in_front(postgres.port, context) as port:
        url = postgres_url.replace(f":{postgres.port}/", f":{port}/")
        safe = f"{url}?sslmode=verify-full&sslrootcert="
        database = Database(f"{safe}{trusted}")
        async with database.read() as connection:
            assert await connection.scalar(select(1)) == 1
        await database.dispose()
        hot = hot_database(f"{safe}{trusted}", clock=lambda: T0)
        await hot.start()
        await hot.close()
        with pytest.raises(DatabaseUnavailableError, match="certificate"):
            await hot_database(f"{safe}{other}", clock=lambda: T0).start()


def test_what_the_driver_is_given() -> None:
    assert dsn_of("postgresql+asyncpg://u:p%40s@h:1/d?sslmode=require") == (
        "postgresql://u:p%40s@h:1/d?sslmode=require"
    )
