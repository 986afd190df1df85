"""Log lines on stderr: one for each call, and all that is logged elsewhere; never a secret.

Every byte goes through one LineWriter, which removes secrets. What an exception says is not logged
unless its class is known to say nothing of a call's content: its type and place are.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import traceback
from collections import deque
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llm_gateway.errors import GatewayError
from pricing_rules.money import format_credits
from pricing_rules.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_gateway.metrics import EndedCall

FLUSH_SECONDS: Final = 0.05  # lines of one such moment go out in one write
CLOSE_SECONDS: Final = 2.0  # what is not written by then waits for somebody to read stderr
WAITING_LINES_MAX: Final = 20_000  # about 8 MB, if stderr is a pipe that nobody reads
FRAMES_MAX: Final = 12  # of an exception's origin
CLIENT_TEXT_MAX: Final = 128  # characters of names that a client made up
HIDDEN: Final = b"[hidden]"

# Keys of ours, and what keys of providers and bearer tokens look like. A key's visible prefix
# is shorter and stays.
_KEY_SHAPES: Final = re.compile(rb"lgw_[A-Za-z0-9_-]{16,}|\bsk-[A-Za-z0-9_-]{16,}")
_BEARER: Final = re.compile(rb"(?i)(\bbearer )[A-Za-z0-9._~+/=-]{8,}")


class CallLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the log says of one call. Amounts are micro-credits, times milliseconds."""

    finished_at: int
    event_id: str
    status: int  # of the HTTP answer; 0 if there was none
    outcome: str  # "ok", "refused", "upstream_error", "client_gone", ...
    duration_ms: int
    account: str = ""
    key_id: str = ""
    app: str = ""
    scene: str = ""
    provider: str = ""
    model_requested: str = ""
    model_sent: str = ""
    book: int = 0
    rule: str = ""
    stream: bool = False
    code: str = ""  # of the error answer
    first_token_ms: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    quality: str = ""
    amount_micro_credits: int = 0
    held_micro_credits: int = 0
    client_request_id: str = ""
    run_id: str = ""
    upstream_request_id: str = ""
    failed_attempts: int = 0


def describe_call(call: EndedCall, finished_at: int, duration_ms: int) -> CallLine:
    """The line of a call that is over. Of one that was never identified, what there is."""
    context, verdict, first = call.context, call.verdict, call.first_byte
    if context is None:
        return CallLine(
            finished_at=finished_at,
            event_id=call.event_id,
            status=call.status,
            outcome=call.outcome,
            duration_ms=duration_ms,
            stream=call.streamed,
        )
    usage = NOTHING_USED if verdict is None else verdict.usage
    return CallLine(
        finished_at=finished_at,
        event_id=call.event_id,
        status=call.status,
        outcome=call.outcome,
        duration_ms=duration_ms,
        account=context.account,
        key_id=context.key_id,
        app=context.app,
        scene=context.scene,
        provider=context.provider,
        model_requested=context.model_requested[:CLIENT_TEXT_MAX],
        model_sent=context.model_sent[:CLIENT_TEXT_MAX],
        book=context.book,
        rule=context.rule,
        stream=call.streamed,
        first_token_ms=int((first - call.started) * 1000) if first is not None else 0,
        input_tokens=usage.total_input,
        output_tokens=usage.total_output,
        quality=verdict.quality if verdict else "",
        amount_micro_credits=verdict.amount if verdict else 0,
        held_micro_credits=call.grant,
        client_request_id=context.client_request_id,
        run_id=context.run_id,
    )


class LineWriter:
    """Writes lines to a file descriptor from a thread of its own: a full pipe stops no call.

    `readable` lines are for a terminal, else each is a JSON object. `secrets` are never written.
    """

    def __init__(self, descriptor: int, *, readable: bool, secrets: Iterable[str] = ()) -> None:
        self._descriptor = descriptor
        self._readable = readable
        self._secrets = _all_spellings(secrets)
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._wake = threading.Event()
        self._pause = threading.Event()  # set once, to end the waiting at close
        self._closed = False
        self._write_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def readable(self) -> bool:
        """Whether lines are made for people."""
        return self._readable

    def hide(self, secret: str) -> None:
        """Never write this either: a secret that was made after the start."""
        self._secrets = self._secrets | _all_spellings([secret])

    def call(self, line: CallLine) -> None:
        """Log one call; costs the caller about a microsecond or two and never blocks."""
        self.line(_readable_call(line) if self._readable else _json_call(line))

    def line(self, line: bytes) -> None:
        """Queue a line, which ends in a line break."""
        if len(self._lines) >= WAITING_LINES_MAX:
            self._dropped += 1
            return
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def flush(self) -> None:
        """Write what is queued now."""
        with self._write_lock:
            batch = bytearray()
            while self._lines:
                batch += self._lines.popleft()
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                batch += _encoder.encode({"level": "WARNING", "log_lines_dropped": dropped}) + b"\n"
            self._write(self._clean(bytes(batch)))

    def close(self) -> None:
        """Write what is queued and stop; a second call does nothing."""
        self._closed = True
        self._wake.set()
        self._pause.set()
        self._thread.join(timeout=CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            self.flush()
            # Lines of the next moment gather meanwhile, and go out together.
            if not self._closed:
                self._pause.wait(FLUSH_SECONDS)
        self.flush()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                self._pause.wait(FLUSH_SECONDS)
            except OSError:
                return  # stderr is closed: there is nowhere to say so

    def _clean(self, batch: bytes) -> bytes:
        for secret in self._secrets:
            if secret in batch:
                batch = batch.replace(secret, HIDDEN)
        if b"lgw_" in batch or b"sk-" in batch:
            batch = _KEY_SHAPES.sub(HIDDEN, batch)
        if b"earer " in batch or b"EARER " in batch:
            batch = _BEARER.sub(rb"\1" + HIDDEN, batch)
        return batch


class _Handler(logging.Handler):
    """Gives records of the standard library's logging to the LineWriter."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = (_readable_record if self._writer.readable else _json_record)(record)
        except Exception:  # noqa: BLE001 - the standard library would print the arguments
            line = _encoder.encode({"level": "ERROR", "unprintable": record.name}) + b"\n"
        self._writer.line(line)


def writer_for_stderr(secrets: Iterable[str] = ()) -> LineWriter:
    """The writer of a process: JSON, or lines for people where stderr is a terminal."""
    return LineWriter(STDERR, readable=os.isatty(STDERR), secrets=secrets)


def configure(writer: LineWriter, level: int = logging.INFO) -> None:
    """Send all records of the standard library's logging through `writer`, and only there."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(_Handler(writer))
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "litestar"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # every call has its own line already


STDERR: Final = 2  # file descriptor
_CHATTY: Final = ("aiosqlite", "alembic", "asyncio", "httpcore", "httpx2", "openai", "sqlalchemy")
_encoder: Final = msgspec.json.Encoder()
NOTHING_USED: Final = Usage()


def _all_spellings(secrets: Iterable[str]) -> frozenset[bytes]:
    """Secrets as they may stand in a line: as they are, and with JSON's escapes."""
    plain = [secret.encode() for secret in secrets if secret]
    return frozenset(plain) | {_encoder.encode(secret.decode())[1:-1] for secret in plain}


def _json_call(line: CallLine) -> bytes:
    # The head is put before what msgspec makes of the struct, in place of its opening brace.
    head = b'{"time":"%s","level":"INFO","event":"call",' % iso_time(line.finished_at)
    return head + _encoder.encode(line)[1:] + b"\n"


def _readable_call(line: CallLine) -> bytes:
    what = f"{line.provider or '-'}/{line.model_sent or line.model_requested or '-'}"
    parts = [
        _clock_time(line.finished_at),
        f"{line.status or '-':>3} {line.outcome:<12}",
        f"{what}{' stream' if line.stream else ''}",
        f"{line.duration_ms} ms",
        f"{line.input_tokens}+{line.output_tokens} tokens {line.quality}".rstrip(),
        f"{format_credits(line.amount_micro_credits)} credits",
        line.code,
        line.event_id,
    ]
    return _printable("  ".join(part for part in parts if part))


def _json_record(record: logging.LogRecord) -> bytes:
    line: dict[str, object] = {
        "time": iso_time(int(record.created * 1000)).decode(),
        "level": record.levelname,
        "logger": record.name,
        "message": _message(record),
    }
    if error := _error_of(record):
        line["error"] = error_text(error)
        line["where"] = _frames(error)
    return _encoder.encode(line) + b"\n"


def _readable_record(record: logging.LogRecord) -> bytes:
    time = _clock_time(int(record.created * 1000))
    text = f"{time}  {record.levelname:<8} {record.name}: {_message(record)}"
    if error := _error_of(record):
        text += f" [{error_text(error)}; {' < '.join(reversed(_frames(error)))}]"
    return _printable(text)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    # asyncio adds the repr of futures in further lines, and with it what exceptions say.
    return message.partition("\n")[0] if record.name == "asyncio" else message


def _error_of(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


def error_text(error: BaseException) -> str:
    """An exception as a log may show it: its class, and its message only where that is known text.

    Decoders and drivers put pieces of what they were given into their messages.
    """
    name = type(error).__name__
    text = f"{name}: {error}" if isinstance(error, GatewayError | OSError) else name
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return f"{text} <- {type(cause).__name__}" if cause else text


def _frames(error: BaseException) -> list[str]:
    """Where it was raised, innermost last; files and lines, no source and no values."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_MAX:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


def _printable(text: str) -> bytes:
    """One line for a terminal: no control character of a stranger's text reaches it."""
    clean = "".join(char if char.isprintable() else "\ufffd" for char in text)
    return clean.encode("utf-8", "replace") + b"\n"


def iso_time(at_ms: int) -> bytes:
    """A time in milliseconds since the epoch as ISO 8601 in UTC: 2026-01-31T23:59:59.999Z."""
    second, milliseconds = divmod(at_ms, 1000)
    return b"%s.%03dZ" % (_iso_second(second), milliseconds)


@lru_cache(maxsize=4)
def _iso_second(second: int) -> bytes:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()


def _clock_time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%H:%M:%S")
