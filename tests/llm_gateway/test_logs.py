"""Log lines: one a call, whole, and with no secret in them however it got there."""

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from billing.context import BillingContext
from billing.events import UsageQuality, UsageSource
from llm_gateway.errors import RateLimitedError
from llm_gateway.logs import CallLine, LineWriter, configure, describe_call, iso_time
from llm_gateway.verdict import Verdict
from pricing_rules.usage import Usage

TOKEN = "lgw_" + "Ab1-_" * 8 + "xyz"
LINE = CallLine(
    finished_at=1_769_904_000_123,  # 2026-02-01T00:00:00.123Z
    event_id="e1",
    status=200,
    outcome="charged",
    duration_ms=12,
    account="alice",
    provider="echo",
    model_sent="echo",
    amount_micro_credits=1_500_000,
)


class Capture:
    """A writer on a file, and what is in it after the writer was closed."""

    def __init__(
        self, path: Path, *, readable: bool = False, secrets: tuple[str, ...] = ()
    ) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.writer = LineWriter(self._descriptor, readable=readable, secrets=secrets)

    def text(self) -> str:
        self.writer.close()
        return self._path.read_text("utf-8")

    def close(self) -> None:
        self.writer.close()
        os.close(self._descriptor)


@pytest.fixture
def capture(tmp_path: Path) -> Iterator[Capture]:
    made = Capture(tmp_path / "log", secrets=('provider-"key"-1',))
    yield made
    made.close()


@pytest.fixture
def logger(capture: Capture) -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure(capture.writer)
    yield logging.getLogger("llm_gateway.test")
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_call_is_one_line_of_json(capture: Capture) -> None:
    capture.writer.call(LINE)
    text = capture.text()
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "time": "2026-02-01T00:00:00.123Z",
        "level": "INFO",
        "event": "call",
        "finished_at": 1_769_904_000_123,
        "event_id": "e1",
        "status": 200,
        "outcome": "charged",
        "duration_ms": 12,
        "account": "alice",
        "provider": "echo",
        "model_sent": "echo",
        "amount_micro_credits": 1_500_000,
    }


def test_a_terminal_gets_a_line_for_people(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "log", readable=True)
    capture.writer.call(LINE)
    text = capture.text()
    assert "echo/echo" in text
    assert "1.5 credits" in text
    assert text.count("\n") == 1
    capture.close()


def test_a_strangers_text_cannot_steer_the_terminal(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "log", readable=True)
    capture.writer.call(msgspec.structs.replace(LINE, model_sent="\x1b[2Jx\ny"))
    text = capture.text()
    assert "\x1b" not in text
    assert text.count("\n") == 1
    capture.close()


def test_lines_keep_their_order_and_none_is_lost(capture: Capture) -> None:
    for number in range(5_000):
        capture.writer.line(b"%d\n" % number)
    assert capture.text().split() == [str(number) for number in range(5_000)]


def test_lines_that_nobody_reads_are_dropped_and_counted() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing, readable=False)
    for _ in range(40_000):
        writer.line(b"x" * 100 + b"\n")
    data = b""
    while b"log_lines_dropped" not in data:
        data += os.read(reading, 1 << 20)
    dropped = re.search(rb'"log_lines_dropped":(\d+)', data)
    assert dropped is not None
    assert int(dropped[1]) > 0
    os.close(reading)
    writer.close()
    os.close(writing)


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"Authorization: Bearer {TOKEN}",
        "sk-proj-0123456789abcdefghij",
        "authorization: bearer CANARY.0123456789",
        'provider-"key"-1',
    ],
)
def test_no_secret_is_ever_written(capture: Capture, logger: logging.Logger, text: str) -> None:
    logger.warning("client said %s", text)
    capture.writer.call(msgspec.structs.replace(LINE, client_request_id=text, run_id=text))
    written = capture.text()
    assert written.count("[hidden]") == 3
    for secret in (text, text[-12:], json.dumps(text)[1:-1]):
        assert secret not in written
    for line in written.splitlines():
        json.loads(line)


def test_a_secret_made_later_is_hidden_too(capture: Capture) -> None:
    capture.writer.hide("made-at-start")
    capture.writer.line(b'{"x":"made-at-start"}\n')
    assert capture.text() == '{"x":"[hidden]"}\n'


@pytest.mark.parametrize("text", ["lgw_Ab1cd2", "task-force-of-seventeen", "the bearer of this"])
def test_what_only_resembles_a_secret_stays(capture: Capture, text: str) -> None:
    capture.writer.line(text.encode() + b"\n")
    assert capture.text() == text + "\n"


def test_an_exception_shows_its_place_and_not_its_words(
    capture: Capture, logger: logging.Logger
) -> None:
    try:
        int("CANARY prompt")
    except ValueError:
        logger.exception("it failed")
    line = json.loads(capture.text())
    assert line["message"] == "it failed"
    assert line["error"] == "ValueError"
    assert line["where"][0].startswith("test_logs.py:")
    assert "CANARY" not in json.dumps(line)


def test_known_exceptions_keep_their_words(capture: Capture, logger: logging.Logger) -> None:
    try:
        raise RateLimitedError("too many calls")
    except RateLimitedError:
        logger.exception("refused")
    assert json.loads(capture.text())["error"] == "RateLimitedError: too many calls"


def test_asyncios_further_lines_are_left_out(capture: Capture, logger: logging.Logger) -> None:
    del logger
    text = "Task exception was never retrieved\nfuture: <Task exception=ValueError('CANARY')>"
    logging.getLogger("asyncio").error(text)
    assert json.loads(capture.text())["message"] == "Task exception was never retrieved"


def test_arguments_that_do_not_fit_are_not_printed(
    capture: Capture, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    record = logger.makeRecord(logger.name, logging.ERROR, "", 1, "%d calls", ("CANARY",), None)
    # Ours alone: the handlers that pytest adds would fail the test for such a record.
    (ours,) = (h for h in logging.getLogger().handlers if h.__module__ == "llm_gateway.logs")
    ours.handle(record)
    assert json.loads(capture.text()) == {"level": "ERROR", "unprintable": "llm_gateway.test"}
    assert "CANARY" not in capsys.readouterr().err


def test_requests_of_libraries_are_not_logged(capture: Capture, logger: logging.Logger) -> None:
    del logger
    logging.getLogger("httpx2").info("GET https://host/?key=CANARY")
    logging.getLogger("uvicorn.access").info("CANARY")
    assert capture.text() == ""


class _Call:
    event_id = "e1"
    context: BillingContext | None = None
    verdict: Verdict | None = None
    outcome = "invalid_api_key"
    status = 401
    streamed = False
    started = 10.0
    first_byte: float | None = None
    grant = 0


def test_a_call_that_was_never_identified_has_a_line() -> None:
    assert describe_call(_Call(), 5, 7) == CallLine(
        finished_at=5, event_id="e1", status=401, outcome="invalid_api_key", duration_ms=7
    )


def test_every_part_of_a_call_is_in_its_line() -> None:
    call = _Call()
    call.first_byte = 10.25
    call.grant = 99
    call.context = BillingContext(
        event_id="e1", account="a", key_id="k", app="p", scene="s", provider="v",
        model_requested="m" * 500, model_sent="n", run_id="r", client_request_id="c", book=3,
        rule="u", started_at=1,
    )  # fmt: skip
    call.verdict = Verdict(
        usage=Usage(input=10, cached_input=5, output=3, reasoning=4),
        quality=UsageQuality.EXACT, source=UsageSource.PROVIDER, amount=42,
    )  # fmt: skip
    line = describe_call(call, 5, 7)
    assert (line.account, line.key_id, line.app, line.scene) == ("a", "k", "p", "s")
    assert (line.provider, line.model_sent, line.model_requested) == ("v", "n", "m" * 128)
    assert (line.book, line.rule, line.run_id, line.client_request_id) == (3, "u", "r", "c")
    assert (line.input_tokens, line.output_tokens) == (15, 7)  # 10 + 5, 3 + 4
    assert (line.amount_micro_credits, line.held_micro_credits) == (42, 99)
    assert line.first_token_ms == 250
    assert line.quality == "exact"


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [(0, b"1970-01-01T00:00:00.000Z"), (1_769_903_999_999, b"2026-01-31T23:59:59.999Z")],
)
def test_times_are_iso_8601_in_utc(at_ms: int, text: bytes) -> None:
    assert iso_time(at_ms) == text
