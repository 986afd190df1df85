"""A client that sends exactly the bytes it is told and reads what comes back."""

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

READ_SECONDS = 30.0


def request(
    path: str = "/v1/chat/completions",
    body: bytes | None = None,
    *,
    key: str = "",
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
) -> bytes:
    """A well-formed request; abuse starts from one of these."""
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway"]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def chat(**fields: object) -> bytes:
    """A chat body for the model that the tests price, with any fields replaced or added."""
    value = {"model": "m-small", "messages": [{"role": "user", "content": "Say hello."}], **fields}
    return json.dumps(value).encode()


@dataclass(frozen=True)
class Reply:
    """An answer as read; `whole` says that its framing came to a regular end."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool

    @property
    def json(self) -> dict[str, object]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def code(self) -> str:
        error = self.json["error"]
        assert isinstance(error, dict)
        return str(error["code"])

    @property
    def events(self) -> list[str]:
        """The data of a stream's events."""
        blocks = self.body.decode().split("\n\n")
        return [b.removeprefix("data: ") for b in blocks if b.startswith("data: ")]


class RawClient:
    """One connection to the gateway."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=READ_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def half_close(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Close with RST, as a crashed client's machine does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def read_reply(self) -> Reply:
        """One whole answer, or as much of it as came before the connection ended."""
        status, headers = self.read_head()
        body, whole = self._read_body(status, headers)
        return Reply(status, headers, body, whole)

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer; 1xx are skipped. Status 0: closed without one."""
        while True:
            while b"\r\n\r\n" not in self._buffer:
                if not self._more():
                    return 0, {}
            raw, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            first, *lines = raw.decode("latin-1").split("\r\n")
            status = int(first.split(" ")[1])
            if status >= 200:
                pairs = (line.partition(":") for line in lines)
                return status, {name.lower(): value.strip() for name, _, value in pairs}

    def read_until(self, marker: bytes) -> bytes:
        """Raw bytes of the answer up to and with `marker`; fails if the connection ends before."""
        while marker not in self._buffer:
            assert self._more(), f"ended before {marker!r}: {self._buffer!r}"
        taken, _, self._buffer = self._buffer.partition(marker)
        return taken + marker

    def read_to_end(self) -> bytes:
        """Whatever comes until the other side closes."""
        while self._more():
            pass
        taken, self._buffer = self._buffer, b""
        return taken

    def _more(self) -> bool:
        if self._ended:
            return False
        try:
            data = self._socket.recv(65536)
        except ConnectionError:
            data = b""
        self._ended = not data
        self._buffer += data
        return bool(data)

    def _read_body(self, status: int, headers: dict[str, str]) -> tuple[bytes, bool]:
        if status in (0, 204, 304):
            return b"", status != 0
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._read_chunks()
        if "content-length" in headers:
            length = int(headers["content-length"])
            while len(self._buffer) < length:
                if not self._more():
                    break
            body, self._buffer = self._buffer[:length], self._buffer[length:]
            return body, len(body) == length
        return self.read_to_end(), True

    def _read_chunks(self) -> tuple[bytes, bool]:
        body = b""
        while True:
            while b"\r\n" not in self._buffer:
                if not self._more():
                    return body, False
            size_text, _, self._buffer = self._buffer.partition(b"\r\n")
            size = int(size_text.split(b";")[0], 16)
            while len(self._buffer) < size + 2:
                if not self._more():
                    return body + self._buffer, False
            body += self._buffer[:size]
            self._buffer = self._buffer[size + 2 :]
            if size == 0:
                return body, True
