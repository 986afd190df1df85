"""A pooler before PostgreSQL is found by what it does to sessions."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from billing.db.pooler import pooling
from tests.support.services import PostgresServer, free_port

# https://www.postgresql.org/docs/current/protocol-message-formats.html
PROTOCOL = 196_608
KNOWN = (b"user", b"database", b"client_encoding", b"application_name")
REFUSAL = b"SFATAL\0C08P01\0Munsupported startup parameter: lock_timeout\0\0"


@asynccontextmanager
async def session_pooler(behind: int, *, ignores: bool) -> AsyncIterator[int]:
    """As PgBouncer with pool_mode=session: knows no settings; with `ignores` it drops them. Its port."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            body = await reader.readexactly(length - 4)
            if body[:4] == struct.pack("!I", PROTOCOL):
                break
            writer.write(b"N")  # no TLS
        words = body[4:].rstrip(b"\0").split(b"\0")
        known = [pair for pair in zip(words[::2], words[1::2], strict=True) if pair[0] in KNOWN]
        if not ignores:
            writer.write(b"E" + struct.pack("!I", 4 + len(REFUSAL)) + REFUSAL)
            writer.close()
            return
        start = struct.pack("!I", PROTOCOL) + b"".join(b"%b\0%b\0" % pair for pair in known) + b"\0"
        from_server, to_server = await asyncio.open_connection("127.0.0.1", behind)
        to_server.write(struct.pack("!I", 4 + len(start)) + start)
        try:
            await asyncio.gather(pump(reader, to_server), pump(from_server, writer))
        except OSError:
            pass
        finally:
            for each in (writer, to_server):
                each.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def test_server_itself_is_none(postgres_url: str) -> None:
    assert pooling(postgres_url) == ""


def test_nobody_there_is_no_pooler() -> None:
    with pytest.raises(OSError, match="Connect call failed"):
        pooling(f"postgresql+asyncpg://postgres@127.0.0.1:{free_port()}/gateway")


@pytest.mark.parametrize(
    ("ignores", "shows"),
    [(False, "settings of a session are refused"), (True, "settings of a session are dropped")],
)
async def test_settings_that_do_not_arrive_show_it(
    postgres: PostgresServer, postgres_url: str, ignores: bool, shows: str
) -> None:
    async with session_pooler(postgres.port, ignores=ignores) as port:
        url = postgres_url.replace(f":{postgres.port}/", f":{port}/")
        assert await asyncio.to_thread(pooling, url) == shows
