"""What the processes of one `serve --processes N` tell each other: their figures, over sockets in the data directory.

The supervisor makes a listening socket for each number before it forks; whoever takes a process's
place takes its socket. Nothing of this is near the path of a call.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import msgspec

from llm_gateway.metrics import Metrics, Samples
from llm_gateway.start import StartError

ANSWER_SECONDS: Final = 1.0  # a process that does not answer by then is shown as down
FOLDER: Final = "processes"

_log: Final = logging.getLogger(__name__)
_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(list[Samples])


class Meeting:
    """The sockets of all processes, made by their supervisor; the folder is emptied first."""

    def __init__(self, data_dir: Path, count: int) -> None:
        folder = data_dir / FOLDER
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            for former in folder.iterdir():
                former.unlink()
            self.paths = [_short(folder / str(number)) for number in range(count)]
            self._sockets = [_listener(path) for path in self.paths]
        except OSError as error:
            # A path that is too long for a socket is an OSError without a number.
            raise StartError(f"no sockets can be made in {folder}: {error}") from error

    def take(self, number: int) -> socket.socket:
        """The socket of the process that this is; the others' are closed here."""
        for other, each in enumerate(self._sockets):
            if other != number:
                each.close()
        return self._sockets[number]


class Neighbours:
    """Answers the other processes, and asks them."""

    def __init__(self, paths: Sequence[str], number: int, metrics: Metrics) -> None:
        self._paths = paths
        self._number = number
        self._metrics = metrics

    async def listen(self, own: socket.socket, stack: AsyncExitStack) -> None:
        """Answer from now on, until `stack` ends."""
        server = await asyncio.start_unix_server(self._answer, sock=own)
        stack.callback(server.close)

    async def render(self) -> str:
        """The figures of all, in Prometheus' text format."""
        others = [number for number in range(len(self._paths)) if number != self._number]
        answers = await asyncio.gather(*map(self._ask, others))
        return self._metrics.render_all(
            {self._number: self._metrics.own_samples(), **dict(zip(others, answers, strict=True))}
        )

    async def _ask(self, number: int) -> list[Samples] | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._paths[number])
                try:
                    return _decoder.decode(await reader.read())
                finally:
                    writer.close()
        except (OSError, TimeoutError, msgspec.DecodeError) as error:
            _log.warning("process %d does not tell its figures: %s", number, type(error).__name__)
            return None

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(_encoder.encode(self._metrics.own_samples()))
            await writer.drain()
        writer.close()


def _listener(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.setblocking(False)
    listener.bind(path)
    return listener


def _short(path: Path) -> str:
    """A socket's path may have some hundred bytes."""
    return min(str(path), os.path.relpath(path), key=len)
