"""A server on a real socket that answers by script, request by request."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

BREAK_OFF = 0  # as a status: the connection is closed without an answer


@dataclass(frozen=True)
class Scripted:
    """One answer. `length`: told instead of the body's own, to break it off."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass(frozen=True)
class Received:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class ScriptedServer:
    """Gives its answers in order, the last one again and again; remembers what it was asked."""

    def __init__(self, *answers: Scripted) -> None:
        self.received: list[Received] = []
        self._answers = list(answers)
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                script.answer(self)

            do_POST = do_GET  # noqa: N815 - as the base class calls it
            do_PATCH = do_GET  # noqa: N815 - as the base class calls it

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("content-length", "0"))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        body = handler.rfile.read(length)
        self.received.append(Received(handler.command, handler.path, headers, body))
        now = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        handler.close_connection = True
        if now.status == BREAK_OFF:
            return
        handler.send_response(now.status)
        for name, value in now.headers.items():
            handler.send_header(name, value)
        size = len(now.body) if now.length is None else now.length
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        handler.wfile.write(now.body)
