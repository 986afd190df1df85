"""Pure: server-sent events at byte level: where one ends, what it says, how one is written.

Wire format: WHATWG HTML, "Server-sent events", 9.2.5 to 9.2.6. Bytes are never re-encoded: an
event that is not changed leaves as it came.
"""

import re
from typing import Final, NamedTuple

# Two line ends in a row, each of CR LF, LF or CR. Atomic groups, or CR LF would count as two.
EVENT_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
DONE: Final = b"[DONE]"
DONE_EVENT: Final = b"data: [DONE]\n\n"

# The rest of a JSON string from behind its opening quote, within one line.
STRING_REST: Final = re.compile(rb'[^"\\\r\n]*(?:\\[^\r\n][^"\\\r\n]*)*')

_BOM: Final = b"\xef\xbb\xbf"
# In valid JSON an unescaped quote between a comma or brace and `usage"` can only open a key: a
# string's own quotes are escaped. So a hit is never text; only its depth has to be found out.
_NULL_USAGE: Final = re.compile(rb'[{,][ \t\r\n]*("usage"[ \t\r\n]*:[ \t\r\n]*null)(?=[ \t\r\n,}])')
_STRINGS_AND_BRACKETS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_COMMA: Final = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*")
_LINE: Final = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|\Z)")


class Event(NamedTuple):
    """What one event says: its `event:` name and its data lines joined by LF (None: it has none).

    `data_at` is where the data stands in the event's bytes; -1 if it is spread over several lines.
    """

    name: bytes
    data: bytes | None
    data_at: int


def find_end(buffer: bytes | bytearray, start: int) -> int:
    """Where the first event that ends at or behind `start` ends; -1 if none does."""
    if b"\r" not in buffer:
        at = buffer.find(b"\n\n", start)
        return at + 2 if at >= 0 else -1
    match = EVENT_END.search(buffer, start)
    return match.end() if match else -1


def read_event(event: bytes) -> Event:
    """Read one event's bytes; with or without its closing blank line."""
    # What nearly all are: one line, one space, LF.
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return Event(b"", event[6:-2], 6)
    name = b""
    data: list[bytes] = []
    data_at = -1
    for match in _LINE.finditer(event):
        line, at = match[1], match.start()
        if at == 0 and line.startswith(_BOM):
            line, at = line[3:], 3
        field, colon, value = line.partition(b":")
        if field not in (b"data", b"event"):
            continue
        at += len(field) + len(colon)
        if value.startswith(b" "):
            value, at = value[1:], at + 1
        if field == b"data":
            data.append(value)
            data_at = at
        else:
            name = value
    if not data:
        return Event(name, None, -1)
    return Event(name, b"\n".join(data), data_at if len(data) == 1 else -1)


def write_event(data: bytes) -> bytes:
    """The event whose data is this text, one `data:` line for each of its lines."""
    return b"".join(b"data: %b\n" % line for line in data.split(b"\n")) + b"\n"


def null_usage_spans(chunk: bytes, start: int = 0) -> list[tuple[int, int]]:
    """Where a JSON object has top-level members `"usage": null`: spans to cut out, commas included.

    `start` is where the object begins. Text inside strings and nested objects is never hit.
    """
    spans: list[tuple[int, int]] = []
    for match in _NULL_USAGE.finditer(chunk, start):
        key, end = match.span(1)
        if not _is_top_level(chunk, start, key):
            continue
        if chunk[match.start()] == 0x2C:  # the comma before it goes with it
            spans.append((match.start(), end))
        elif comma := _COMMA.match(chunk, end):
            spans.append((key, comma.end()))
        else:
            spans.append((key, end))
    return spans


def cut_spans(text: bytes, spans: list[tuple[int, int]]) -> bytes:
    """The text without the spans, which are in order and do not overlap."""
    parts: list[bytes] = []
    at = 0
    for begin, end in spans:
        parts.append(text[at:begin])
        at = end
    parts.append(text[at:])
    return b"".join(parts)


def replace_data(event: bytes, parsed: Event, data: bytes) -> bytes:
    """The event saying this instead; all that is not data stays."""
    if parsed.data is None or parsed.data_at < 0:
        return _replace_data(event, data)
    return event[: parsed.data_at] + data + event[parsed.data_at + len(parsed.data) :]


def strip_null_usage(event: bytes, parsed: Event) -> bytes:
    """The event without top-level `"usage": null` in its JSON; the very bytes if it has none."""
    if parsed.data is None or b'"usage"' not in parsed.data:
        return event
    if parsed.data_at >= 0:
        spans = null_usage_spans(event, parsed.data_at)
        return cut_spans(event, spans) if spans else event
    spans = null_usage_spans(parsed.data)
    return _replace_data(event, cut_spans(parsed.data, spans)) if spans else event


def strip_null_usage_at_end(end_of_event: bytes) -> bytes:
    """The same for the last part of an event whose beginning is gone.

    Without a bracket between the member and the brace that closes the object it is top-level.
    """
    for match in _NULL_USAGE.finditer(end_of_event):
        rest = end_of_event[match.end() :]
        flat = rest.count(b"}") == 1 and not re.search(rb"[{\[\]]", rest)
        if flat and end_of_event[match.start()] == 0x2C and rest.rstrip().endswith(b"}"):
            return cut_spans(end_of_event, [(match.start(), match.end(1))])
    return end_of_event


def _is_top_level(chunk: bytes, start: int, key: int) -> bool:
    depth = 0
    # The usual places first: the last members, or the first, have no other bracket on one side.
    before = chunk.count(b"{", start, key) + chunk.count(b"[", start, key)
    if before == 1:
        return True
    if chunk.count(b"}", key) == 1 and chunk.find(b"]", key) < 0 and chunk.find(b"{", key) < 0:
        return True
    for match in _STRINGS_AND_BRACKETS.finditer(chunk, start, key):
        mark = chunk[match.start()]
        if mark in b"{[":
            depth += 1
        elif mark in b"}]":
            depth -= 1
    return depth == 1


def _replace_data(event: bytes, data: bytes) -> bytes:
    """The event with these lines in place of its data lines; all other lines stay."""
    parts: list[bytes] = []
    written = False
    for match in _LINE.finditer(event):
        line = match[1].removeprefix(_BOM) if match.start() == 0 else match[1]
        if line.partition(b":")[0] != b"data":
            parts.append(match[0])
        elif not written:
            written = True
            end = match[2] or b"\n"
            parts.append(match[1][: len(match[1]) - len(line)])
            parts.extend(b"data: " + text + end for text in data.split(b"\n"))
    return b"".join(parts)
