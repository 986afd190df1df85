"""A TCP proxy for tests: its target can change, its two directions can stand still, and replies can vanish."""

import asyncio
from contextlib import suppress
from typing import Self


class TcpProxy:
    """Listens on a free port of 127.0.0.1 in the loop that runs it."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.drop_replies = 0  # so many of the next replies vanish, and their connection with them
        self.dropped = 0
        self.hold = asyncio.Event()  # cleared: requests wait here
        self.hold.set()
        self.hold_replies = asyncio.Event()  # cleared: what the target says waits here
        self.hold_replies.set()
        self.requests = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for _turn in range(
            3
        ):  # what was accepted a moment ago has yet to begin, and to be known here
            await asyncio.sleep(0)
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        back = asyncio.create_task(self._replies(up_reader, writer))
        try:
            while data := await reader.read(65_536):
                self.requests += 1
                await self.hold.wait()
                up_writer.write(data)
                await up_writer.drain()
        except (OSError, asyncio.CancelledError):  # asyncio would log it: this is a callback's task
            pass
        finally:
            back.cancel()
            for each in (writer, up_writer):
                each.transport.abort()
                with suppress(OSError):
                    await each.wait_closed()
            self._writers -= {writer, up_writer}

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                await self.hold_replies.wait()
                if self.drop_replies:
                    self.drop_replies -= 1
                    self.dropped += 1
                    break
                writer.write(data)
        except OSError:
            pass
        writer.transport.abort()
