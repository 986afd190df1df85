"""uvicorn's server as our processes run it: on a socket that is bound already, signals left to us."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import msgspec
import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

    from litestar import Litestar

BACKLOG: Final = 2048  # connections that the kernel keeps until they are accepted
KEEP_ALIVE_SECONDS: Final = 75  # an idle client connection is kept so long
CLOSE_SECONDS: Final = 2.0  # at the end, for clients to read what was sent to them


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: they end the process with the signal's status."""

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Served(msgspec.Struct, frozen=True):
    """A server and the socket it listens on."""

    server: Server
    listener: socket.socket

    async def run(self) -> None:
        """Serve until `server.should_exit`."""
        await self.server.serve(sockets=[self.listener])


def make_server(api: Litestar, protocol: type[HttpToolsProtocol] | str = "httptools") -> Server:
    """A server of `api`; `protocol` may take requests for itself."""
    return Server(
        uvicorn.Config(
            api,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
    )


async def close_all(servers: Sequence[Served], running: Sequence[asyncio.Task[None]]) -> None:
    """End the servers, whose `run` these tasks do; clients that do not read are cut off."""
    if not running:
        return
    for served in servers:
        served.server.should_exit = True
    await asyncio.wait(running, timeout=CLOSE_SECONDS)
    for served in servers:
        _abort_connections(served)
    await asyncio.wait(running)


def _abort_connections(served: Served) -> None:
    """Close what is left: closing in order waits for clients that do not read, for ever if need be."""
    for connection in list(served.server.server_state.connections):
        if isinstance(connection, HttpToolsProtocol):
            connection.transport.abort()
