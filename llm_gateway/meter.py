"""Pure: reads usage and progress off an answer while its bytes pass, and says which may pass now.

A stream is fed as it arrives, in any pieces; what `feed` and `finish` return, put together, depends
on the bytes alone. Nothing here awaits, and an ordinary chunk is not decoded: see `_Frame`.
"""

import json
import re
from typing import Final

import msgspec

from llm_gateway import sse
from llm_gateway.chunks import choices_of, collect_text, decode, decode_prefix, is_error, unescape
from llm_gateway.tokens import TextMeasure, measure
from llm_gateway.usage_cost import COST, Bill, with_cost, with_cost_renamed
from llm_gateway.usage_report import UsageReader, read_plain_usage, usage_object
from pricing_rules.usage import ReportedUsage, Usage

# An unfinished event larger than this is passed on except its end, where usage would stand.
EVENT_BYTES_MAX: Final = 256 * 1024
EVENT_END_BYTES: Final = 64 * 1024
# What may be held for the end: the usage-only event, `[DONE]`, and a little after it.
HELD_BYTES_MAX: Final = 64 * 1024
# Delivered text is measured in pieces of this size: measuring costs per call, not per byte.
_MEASURE_BYTES: Final = 4096
_FRAMES_MAX: Final = 4

_TEXT: Final = re.compile(
    rb'"(?:content|reasoning_content|reasoning|refusal|arguments)"[ ]?:[ ]?"'
    rb'([^"\\\r\n]*(?:\\[^\r\n][^"\\\r\n]*)*)"'
)
_PADDING: Final = b'"obfuscation":"'  # OpenAI pads every chunk with a random string
_BINARY: Final = re.compile(rb';base64,|"b64_json"|"audio"')
_LATE_USAGE: Final = re.compile(rb'"usage"[ \t\r\n]*:[ \t\r\n]*(?=\{)')
_LATE_FINISH: Final = re.compile(rb'"finish_reason"[ \t\r\n]*:[ \t\r\n]*"')


class JsonAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a JSON (not streamed) answer says about itself."""

    reported: ReportedUsage | None  # None: the answer names no usage
    raw_usage: bytes  # the provider's usage object as JSON; b"" without one
    has_content: bool
    error: bool  # an error object, or no JSON object at all


def read_json_answer(body: bytes) -> JsonAnswer:
    """Read a whole JSON answer; never raises, whatever the body is."""
    return _read_plain_answer(body) or _read_any_answer(body)


def delivered_text(body: bytes) -> bytes:
    """The text that a JSON answer delivered, UTF-8. Decodes it again: for rare use."""
    answer = decode(body)
    texts: list[bytes] = []
    if isinstance(answer, dict):
        for choice in choices_of(answer):
            collect_text(choice, texts)
    return b"".join(texts)


def _read_any_answer(body: bytes) -> JsonAnswer:
    answer = decode(body)
    if not isinstance(answer, dict):
        return JsonAnswer(reported=None, raw_usage=b"", has_content=False, error=True)
    usage = UsageReader()
    usage.read(answer)
    texts: list[bytes] = []
    has_content = False
    for choice in choices_of(answer):
        has_content |= collect_text(choice, texts)
    return JsonAnswer(
        reported=usage.reported,
        raw_usage=usage.raw,
        has_content=has_content,
        error=is_error(answer),
    )


_ABSENT: Final = msgspec.Raw(b"")


class _PlainMessage(msgspec.Struct, gc=False):
    content: str | None = None


class _PlainChoice(msgspec.Struct, gc=False):
    message: _PlainMessage
    delta: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT


class _PlainAnswer(msgspec.Struct, gc=False):
    """What nearly all answers are; whatever has one of the last four is read the long way."""

    model: str
    choices: list[_PlainChoice]
    usage: msgspec.Raw
    error: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT
    x_groq: msgspec.Raw = _ABSENT
    usage_metadata: msgspec.Raw = msgspec.field(default=_ABSENT, name="usageMetadata")


_plain_answer_decoder: Final = msgspec.json.Decoder(_PlainAnswer)


def _read_plain_answer(body: bytes) -> JsonAnswer | None:
    """What `_read_any_answer` says of an answer with text and a usage of OpenAI's shape; else None.

    A decoder that knows what it looks for skips the rest, which costs a third.
    """
    try:
        answer = _plain_answer_decoder.decode(body)
    except (ValueError, RecursionError):
        return None
    others = (answer.error, answer.type, answer.x_groq, answer.usage_metadata)
    if any(other is not _ABSENT for other in others):
        return None
    has_content = False
    for choice in answer.choices:
        if choice.usage is not _ABSENT or choice.delta is not _ABSENT:
            return None
        has_content = has_content or bool(choice.message.content)
    read = read_plain_usage(answer.usage, answer.model) if has_content else None
    if read is None:
        return None
    return JsonAnswer(reported=read[0], raw_usage=read[1], has_content=True, error=False)


class _Frame(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk with its text taken out: all but the text stays the same from chunk to chunk.

    An event that equals the frame except for what stands between the quotes of one JSON string
    (and of OpenAI's padding string) decodes to the same chunk with another text, so it needs no
    decoding, and what has to be cut out of it is known.
    """

    head: bytes  # up to the text's opening quote
    middle: bytes  # from its closing quote, to the padding's opening quote or the event's end
    tail: bytes  # from the padding's closing quote; b"" without padding
    changed: bool  # whether something is cut out; the three that follow are then what passes
    head_out: bytes
    middle_out: bytes
    tail_out: bytes


class StreamMeter:
    """Meters one streamed answer.

    feed() while bytes come; end() when the upstream's body has ended well; then `reported` and the
    others are final; finish() once the charge is durable. A stream that breaks off gets
    error_chunk() or cut() in place of end() and finish(). All three tell a client that wants to know
    its cost what `bill` says: in the usage-only event, if that is what the stream ends with, else
    in one of our own.
    """

    __slots__ = (
        "_after_cr",
        "_choices",
        "_created",
        "_done",
        "_ended",
        "_frames",
        "_held",
        "_id",
        "_large_is_text",
        "_last_went",
        "_measured",
        "_model",
        "_passed",
        "_pieces",
        "_pieces_bytes",
        "_quiet",
        "_tail",
        "_text",
        "_text_bytes_max",
        "_unfinished",
        "_usage",
        "_usage_held",
        "_wants_cost",
        "_wants_usage",
        "bill",
        "error_event",
        "has_content",
        "saw_done",
    )

    def __init__(
        self,
        *,
        client_wants_usage: bool,
        client_wants_cost: bool = False,
        text_bytes_max: int = 0,
    ) -> None:
        """`text_bytes_max`: how much delivered text to keep for counting (0: only measured).

        A client that wants its cost wants usage as well.
        """
        self.saw_done = False
        self.error_event = False
        self.has_content = False
        self.bill: Bill | None = None  # set at the end, if the client wants to know
        self._wants_usage = client_wants_usage or client_wants_cost
        self._wants_cost = client_wants_cost
        self._usage = UsageReader()
        self._frames: list[_Frame] = []
        self._quiet = True  # no tail, nothing held, nothing half seen: frames may be tried
        self._tail = bytearray()  # the unfinished event
        self._passed = 0  # bytes of it that were passed on because it is so large
        self._large_is_text = False
        self._held = b""
        self._usage_held: tuple[int, int] | None = None  # where in it a usage-only event stands
        self._unfinished = False  # the last event had no blank line behind it
        self._last_went = "out"  # where the last event went, for the LF of a CR LF cut in half
        self._after_cr = False
        self._done = False  # from [DONE] on everything is held
        self._ended = False
        self._choices: dict[int, bool] = {}  # index -> still open
        self._id: object = None
        self._model: object = None
        self._created: object = None
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._measured = TextMeasure()
        self._text_bytes_max = text_bytes_max
        self._text: bytearray | None = bytearray() if text_bytes_max else None

    # What is known so far

    @property
    def reported(self) -> ReportedUsage | None:
        """Usage as the provider reported it; None until it did. Not yet judged: see normalise."""
        return self._usage.reported

    @property
    def raw_usage(self) -> bytes:
        """The provider's last usage object as JSON; b"" without one."""
        return self._usage.raw

    @property
    def delivered(self) -> TextMeasure:
        """The measure of all text passed on so far (tool calls and reasoning included)."""
        self._measure_pieces()
        return self._measured

    @property
    def delivered_bytes(self) -> int:
        """UTF-8 bytes of the text passed on so far."""
        return self._measured.total + self._pieces_bytes

    @property
    def text(self) -> bytes | None:
        """The text itself, UTF-8; None if it is not kept or grew over `text_bytes_max`."""
        self._measure_pieces()
        return None if self._text is None else bytes(self._text)

    @property
    def choices_open(self) -> tuple[int, ...]:
        """Indices of the choices seen that have no finish_reason yet."""
        return tuple(sorted(index for index, is_open in self._choices.items() if is_open))

    # Bytes in, bytes out

    def feed(self, data: bytes) -> bytes:
        """Take body bytes; return what may go to the client now, b"" for nothing."""
        if self._quiet:
            out = self._by_frame(data)
            if out is not None:
                return out
        return self._feed(data)

    def end(self) -> None:
        """The upstream's body ended as it should: read what its last event, unfinished, says."""
        if self._ended:
            return
        self._ended = True
        self._quiet = False
        tail = bytes(self._tail)
        self._tail.clear()
        if tail:
            self._unfinished = True
            out = self._end_of_large(tail) if self._is_large(tail) else self._event(tail)
            self._held = out + self._held
            if self._usage_held is not None:
                begin, end = self._usage_held
                self._usage_held = (begin + len(out), end + len(out))

    def finish(self) -> bytes:
        """What was held back; to be called when the charge is durable."""
        self.end()
        if self.bill is not None:
            self._write_bill(self.bill)
        held, self._held = self._held, b""
        return held

    def cut(self, usage: Usage | None = None) -> bytes:
        """End the stream early, validly: finish_reason "length" for each open choice, [DONE].

        `usage` is what the call is charged for; it goes to a client that asked for usage.
        """
        if self.saw_done:
            return self.finish()
        parts = [self._close_event(), self._held]
        self._close()
        still_open = self.choices_open or (() if self._choices else (0,))
        for index in still_open:
            choice = {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}
            parts.append(self._own_chunk([choice], None))
            self._choices[index] = False
        if self.bill is not None:
            parts.append(self._own_bill(self.bill))
        elif self._wants_usage and usage is not None:
            parts.append(self._own_chunk([], usage_object(usage)))
        parts.append(sse.DONE_EVENT)
        return b"".join(parts)

    def error_chunk(self, envelope: bytes) -> bytes:
        """End the stream with an error event (OpenAI's envelope as JSON); there is no [DONE]."""
        if self.saw_done:
            self._held, self._usage_held = b"", None
        if self.bill is not None:
            self._write_bill(self.bill)
        if self._unfinished and self._held:
            self._held += b"\n\n"
        parts = [self._close_event(), self._held]
        self._close()
        parts.append(sse.write_event(envelope))
        return b"".join(parts)

    # What it cost

    def _write_bill(self, bill: Bill) -> None:
        """Put the cost into the usage-only event that is held; if none is, hold one of our own."""
        if self._usage_held is None:
            own = self._own_bill(bill)
            if self.saw_done:  # nothing but a usage-only event is ever held in front of it
                self._held = own + self._held
            else:
                self._held += (b"\n\n" if self._unfinished else b"") + own
            return
        begin, end = self._usage_held
        event = self._held[begin:end]
        parsed = sse.read_event(event)
        assert parsed.data is not None
        told = sse.replace_data(event, parsed, with_cost(parsed.data, bill))
        self._held = self._held[:begin] + told + self._held[end:]

    def _own_bill(self, bill: Bill) -> bytes:
        return sse.write_event(with_cost(self._own_json([], None), bill))

    # The path of an ordinary chunk

    def _by_frame(self, event: bytes) -> bytes | None:
        """What to pass for an event that a frame fits; None if none does."""
        for frame in self._frames:
            head, middle, tail = frame.head, frame.middle, frame.tail
            if not event.startswith(head):
                continue
            begin = len(head)
            match = sse.STRING_REST.match(event, begin)
            assert match is not None  # it matches the empty string too
            end = match.end()
            if not event.startswith(middle, end):
                continue
            at = end + len(middle)
            padded = at
            if tail:
                padding = sse.STRING_REST.match(event, at)
                assert padding is not None
                padded = padding.end()
                if not event.startswith(tail, padded):
                    continue
            if padded + len(tail) != len(event):
                continue
            text = event[begin:end]
            self._add_text(unescape(text) if b"\\" in text else text)
            if not frame.changed:
                return event
            return b"%b%b%b%b%b" % (
                frame.head_out,
                text,
                frame.middle_out,
                event[at:padded],
                frame.tail_out,
            )
        return None

    def _learn(self, event: bytes, parsed: sse.Event, text: bytes) -> None:
        """Make a frame of an ordinary event with this one text; if its place is plain to see."""
        begin = end = -1
        for match in _TEXT.finditer(event, parsed.data_at):
            if match.start(1) == match.end(1):
                continue
            if begin >= 0:
                return
            begin, end = match.span(1)
        raw = event[begin:end]
        if begin < 0 or text not in (raw, unescape(raw)):
            return
        at = event.find(_PADDING, end)
        at = padded = len(event) if at < 0 else at + len(_PADDING)
        if at < len(event):
            padding = sse.STRING_REST.match(event, at)
            assert padding is not None
            padded = padding.end()
        spans = sse.null_usage_spans(event, parsed.data_at) if not self._wants_usage else []
        frame = _Frame(
            head=event[:begin],
            middle=event[end:at],
            tail=event[padded:],
            changed=bool(spans),
            head_out=_without(event, spans, 0, begin),
            middle_out=_without(event, spans, end, at),
            tail_out=_without(event, spans, padded, len(event)),
        )
        self._frames = [frame, *self._frames[: _FRAMES_MAX - 1]]

    # Everything else

    def _feed(self, data: bytes) -> bytes:
        if self._ended or not data:
            return b""
        self._quiet = False
        if self._after_cr:
            self._after_cr = False
            if data[0] == 0x0A:
                return self._route(b"\n") + self._feed(data[1:])
        if self._done:
            self._hold(data)
            return b""
        out = self._whole_events(data)
        if len(self._tail) > EVENT_BYTES_MAX:
            out.append(self._pass_large())
        self._quiet = not (self._tail or self._held or self._after_cr or self._done)
        return b"".join(out)

    def _whole_events(self, data: bytes) -> list[bytes]:
        """What may pass of the events that this read completes; the rest is the new tail."""
        scan = max(0, len(self._tail) - 2)  # a line end may have been cut in half
        buffer = data
        if self._tail:
            self._tail += data
            if sse.find_end(self._tail, scan) < 0:
                return []
            buffer = bytes(self._tail)
        out: list[bytes] = []
        at = 0
        while not self._done and (end := sse.find_end(buffer, scan)) >= 0:
            event = buffer[at:end]
            at = scan = end
            out.append(self._end_of_large(event) if self._is_large(event) else self._event(event))
        rest = buffer[at:]
        self._after_cr = at > 0 and not rest and buffer[-1] == 0x0D
        if self._done:
            self._hold(rest)
            rest = b""
        self._tail = bytearray(rest)
        return out

    def _event(self, event: bytes) -> bytes:
        """Read one whole event; return what of it may pass now."""
        if not self._held:
            self._last_went = "out"
            framed = self._by_frame(event)
            if framed is not None:
                return framed
        parsed = sse.read_event(event)
        if parsed.data is None:
            return self._comment(event)
        if parsed.data.strip() == sse.DONE:
            return self._done_event(event)
        chunk = decode(parsed.data)
        if not isinstance(chunk, dict):
            self.error_event |= parsed.name == b"error"
            return self._release(event)
        return self._chunk(event, parsed, chunk)

    def _comment(self, event: bytes) -> bytes:
        """An event that says nothing passes, but does not overtake what is held."""
        if not self._held or len(self._held) > HELD_BYTES_MAX:
            return self._release(event)
        self._held += event
        self._last_went = "held"
        return b""

    def _done_event(self, event: bytes) -> bytes:
        self.saw_done = self._done = True
        if self.error_event:  # an answer that failed is never said to be complete
            self._last_went = "dropped"
            return b""
        self._held += event
        self._last_went = "held"
        return b""

    def _chunk(self, event: bytes, parsed: sse.Event, chunk: dict[object, object]) -> bytes:
        if self._id is None:
            self._id = chunk.get("id")
        self._model = self._model or chunk.get("model")
        self._created = self._created or chunk.get("created")
        is_failure = parsed.name == b"error" or is_error(chunk)
        self.error_event |= is_failure
        usage_before = self._usage.seen
        self._usage.read(chunk)
        texts: list[bytes] = []
        choices = choices_of(chunk)
        finished = self._read_choices(choices, texts)
        for text in texts:
            self._add_text(text)
        if self._wants_cost and parsed.data is not None and _names_cost(chunk):
            event = sse.replace_data(event, parsed, with_cost_renamed(parsed.data))
        if not chunk.get("choices") and not is_failure and chunk.get("usage") is not None:
            return self._usage_only(event)
        ordinary = usage_before == self._usage.seen and not finished and not is_failure
        if ordinary and len(choices) == len(texts) == 1 and _is_one_plain_line(event, parsed):
            self._learn(event, parsed, texts[0])
        return self._release(event if self._wants_usage else sse.strip_null_usage(event, parsed))

    def _read_choices(self, choices: list[dict[object, object]], texts: list[bytes]) -> bool:
        """Note text and ends of a chunk's choices; whether one of them ended."""
        finished = False
        for position, choice in enumerate(choices):
            index = choice.get("index")
            index = index if type(index) is int else position
            self.has_content |= collect_text(choice, texts)
            if choice.get("finish_reason") is not None:
                self._choices[index] = False
                finished = True
            else:
                self._choices.setdefault(index, True)
        return finished

    def _usage_only(self, event: bytes) -> bytes:
        if not self._wants_usage:
            self._last_went = "dropped"
            return b""
        before, self._held = self._held, event
        self._usage_held = (0, len(event))
        self._last_went = "held"
        return before

    def _release(self, event: bytes) -> bytes:
        """This event passes, and before it what was held."""
        self._last_went = "out"
        if not self._held:
            return event
        held, self._held = self._held, b""
        self._usage_held = None
        return held + event

    def _route(self, line_feed: bytes) -> bytes:
        """The second half of a CR LF goes where its event went."""
        if self._last_went == "held":
            self._held += line_feed
        return line_feed if self._last_went == "out" else b""

    def _hold(self, rest: bytes) -> None:
        """Keep what follows [DONE], up to a limit; after an error there is nothing to keep."""
        if not self.error_event:
            self._held += rest[: max(0, HELD_BYTES_MAX - len(self._held))]

    # Events too large to wait for

    def _is_large(self, event: bytes) -> bool:
        return self._passed + len(event) > EVENT_BYTES_MAX

    def _pass_large(self) -> bytes:
        part = bytes(self._tail[:-EVENT_END_BYTES])
        del self._tail[:-EVENT_END_BYTES]
        self._note_large(part)
        return self._release(part)

    def _end_of_large(self, event: bytes) -> bytes:
        """The last part of a large event; only its last 64 KiB are looked at, however it came."""
        body, end = event[:-EVENT_END_BYTES], event[-EVENT_END_BYTES:]
        self._note_large(event)
        self._passed = 0
        if match := _last(_LATE_USAGE, end):
            self._usage.read({"usage": decode_prefix(end[match.end() :])})
        if _LATE_FINISH.search(end) and len(self._choices) <= 1:
            self._choices = dict.fromkeys(self._choices or (0,), False)
        out = body + (end if self._wants_usage else sse.strip_null_usage_at_end(end))
        return self._release(out)

    def _note_large(self, part: bytes) -> None:
        first = self._passed == 0
        binary = first and _BINARY.search(part, 0, EVENT_END_BYTES) is not None
        self._passed += len(part)
        if first:
            self._large_is_text = not binary and not part.startswith(b":")
        if self._large_is_text:
            self._add_text(part)
        self.has_content = True
        if not self._choices:
            self._choices[0] = True

    # Small things

    def _add_text(self, text: bytes) -> None:
        self._pieces.append(text)
        self._pieces_bytes += len(text)
        if self._pieces_bytes > _MEASURE_BYTES:
            self._measure_pieces()

    def _measure_pieces(self) -> None:
        if not self._pieces:
            return
        text = b"".join(self._pieces)
        self._pieces.clear()
        self._pieces_bytes = 0
        self._measured = self._measured + measure(text)
        if self._text is not None:
            self._text += text
            if len(self._text) > self._text_bytes_max:
                self._text = None

    def _close_event(self) -> bytes:
        """What ends an event of which a part was passed on already."""
        return b"\n\n" if self._passed else b""

    def _close(self) -> None:
        self._held = b""
        self._tail.clear()
        self._passed = 0
        self._ended = True
        self._quiet = False

    def _own_chunk(self, choices: list[dict[str, object]], usage: object) -> bytes:
        return sse.write_event(self._own_json(choices, usage))

    def _own_json(self, choices: list[dict[str, object]], usage: object) -> bytes:
        chunk: dict[str, object] = {
            "id": self._id if isinstance(self._id, str) else "",
            "object": "chat.completion.chunk",
            "created": self._created if type(self._created) is int else 0,
            "model": self._model if isinstance(self._model, str) else "",
            "choices": choices,
        }
        if self._wants_usage:
            chunk["usage"] = usage
        return json.dumps(chunk, separators=(",", ":")).encode()


def _names_cost(chunk: dict[object, object]) -> bool:
    usage = chunk.get("usage")
    return isinstance(usage, dict) and COST in usage


def _is_one_plain_line(event: bytes, parsed: sse.Event) -> bool:
    if parsed.data is None or not 0 <= parsed.data_at <= len(b"data: "):
        return False
    end = event[parsed.data_at + len(parsed.data) :]
    return event.startswith(b"data:") and end in (b"\n\n", b"\r\n\r\n")


def _without(event: bytes, spans: list[tuple[int, int]], begin: int, end: int) -> bytes:
    """A part of the event without the spans that lie in it."""
    inside = [(low - begin, high - begin) for low, high in spans if begin <= low < end]
    return sse.cut_spans(event[begin:end], inside)


def _last(pattern: re.Pattern[bytes], data: bytes) -> re.Match[bytes] | None:
    found: re.Match[bytes] | None = None
    for match in pattern.finditer(data):
        found = match
    return found
