"""What becomes of an upstream's body: a stream is passed on as it comes, a JSON answer is kept whole.

Both are fed by one synchronous callback between the head and the end of the answer.
"""

from typing import TYPE_CHECKING, Final

from llm_gateway.clock import monotonic
from llm_gateway.meter import StreamMeter, delivered_text, read_json_answer
from llm_gateway.usage_report import is_all_zero
from llm_gateway.verdict import Answer, Ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_gateway.front import Front
    from llm_gateway.tokens import TokenCounter

JSON_ANSWER_BYTES_MAX: Final = 32 * 1024 * 1024
ERROR_BODY_BYTES_MAX: Final = 1024 * 1024


class AnswerTooLargeError(Exception):
    """A JSON answer is over its limit, or all of them together are."""


class ErrorBody:
    """A provider's refusal, kept to be judged; raises AnswerTooLargeError beyond 1 MiB."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def on_data(self, data: bytes) -> None:
        """Keep a piece."""
        self._size += len(data)
        if self._size > ERROR_BODY_BYTES_MAX:
            self._parts.clear()
            raise AnswerTooLargeError
        self._parts.append(data)

    @property
    def body(self) -> bytes:
        """What came; empty if it was too much."""
        return b"".join(self._parts)


class JsonBudget:
    """The bytes that all buffered JSON answers of this process may take together."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max

    def take(self, size: int) -> None:
        """Raises AnswerTooLargeError if nothing is left."""
        if size > self._left:
            raise AnswerTooLargeError
        self._left -= size

    def give_back(self, size: int) -> None:
        """Return what `take` took."""
        self._left += size


class JsonAnswer:
    """A buffered answer; the client sees it once its charge is durable."""

    def __init__(self, budget: JsonBudget) -> None:
        self._budget = budget
        self._parts: list[bytes] = []
        self._size = 0
        self.first_byte: float | None = None

    def on_data(self, data: bytes) -> None:
        """Keep a piece; raises AnswerTooLargeError."""
        if self.first_byte is None:
            self.first_byte = monotonic()
        if self._size + len(data) > JSON_ANSWER_BYTES_MAX:
            raise AnswerTooLargeError
        self._budget.take(len(data))
        self._size += len(data)
        self._parts.append(data)

    @property
    def body(self) -> bytes:
        """Everything that has come so far."""
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0] if self._parts else b""

    def describe(self, ending: Ending, tokens: "TokenCounter", model: str) -> Answer:
        """What the answer says of itself, for the verdict."""
        body = self.body
        read = read_json_answer(body)
        return Answer(
            ending=ending,
            reported=read.reported,
            raw_usage=read.raw_usage,
            all_zero=read.reported is not None and is_all_zero(read.reported),
            has_content=read.has_content,
            delivered=lambda: tokens.count(model, delivered_text(body)).tokens,
        )

    def release(self) -> None:
        """Give the memory back."""
        self._budget.give_back(self._size)
        self._parts.clear()
        self._size = 0


class StreamAnswer:
    """A streamed answer on its way through the meter to the client."""

    def __init__(
        self, client: "Front", meter: StreamMeter, on_progress: "Callable[[], None] | None"
    ) -> None:
        self.meter = meter
        self.first_byte: float | None = None
        self._client = client
        self._on_progress = on_progress

    def on_data(self, data: bytes) -> None:
        """Pass on what may go out now; everything else stays with the meter until the charge is durable."""
        if self.first_byte is None:
            self.first_byte = monotonic()
        out = self.meter.feed(data)
        if out:
            self._client.send_chunk(out)
        if self._on_progress is not None:
            self._on_progress()

    def describe(self, ending: Ending, tokens: "TokenCounter", model: str) -> Answer:
        """What the stream showed of itself, for the verdict."""
        meter = self.meter
        return Answer(
            ending=ending,
            reported=meter.reported,
            raw_usage=meter.raw_usage,
            all_zero=meter.reported is not None and is_all_zero(meter.reported),
            has_content=meter.has_content,
            delivered=lambda: _count_stream(meter, tokens, model),
        )


def _count_stream(meter: StreamMeter, tokens: "TokenCounter", model: str) -> int:
    text = meter.text
    return tokens.estimate(meter.delivered) if text is None else tokens.count(model, text).tokens
