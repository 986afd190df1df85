"""Events at byte level."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gateway import sse

VALUES = st.recursive(
    st.none()
    | st.integers()
    | st.sampled_from(['"usage":null', ',"usage":null}', "\\", '"', "{["]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "a", ',"usage":null', "choices"]), inner)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b"data: x\n\n", (b"", b"x", 6)),
        (b"data:x\r\n\r\n", (b"", b"x", 5)),
        (b"data:  x\r\r", (b"", b" x", 6)),
        (b"\xef\xbb\xbfdata: x\n\n", (b"", b"x", 9)),
        (b"id: 1\nevent: error\ndata: x", (b"error", b"x", 25)),
        (b"data: a\ndata:b\n\n", (b"", b"a\nb", -1)),
        (b"data\n\n", (b"", b"", 4)),
        (b": data: x\n\n", (b"", None, -1)),
        (b"Data: x\n\n", (b"", None, -1)),
        (b" data: x\n\n", (b"", None, -1)),
        (b"\n\n", (b"", None, -1)),
    ],
)
def test_event_is_read(event: bytes, expected: tuple[bytes, bytes | None, int]) -> None:
    assert tuple(sse.read_event(event)) == expected


@pytest.mark.parametrize(
    ("buffer", "end"),
    [
        (b"a\n\nb", 3),
        (b"a\r\n\r\nb", 5),
        (b"a\r\rb", 3),
        (b"a\n\r\nb", 4),
        (b"a\r\n\nb", 4),
        (b"a\r\nb", -1),
        (b"a\nb\n", -1),
        (b"a\r\n", -1),
    ],
)
def test_blank_line_ends_an_event(buffer: bytes, end: int) -> None:
    assert sse.find_end(buffer, 0) == end


@given(
    st.dictionaries(st.sampled_from(["id", "usage", "choices", "x"]), VALUES),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")]),
)
def test_only_top_level_null_usage_is_cut(
    chunk: dict[str, object], separators: tuple[str, str]
) -> None:
    written = json.dumps(chunk, separators=separators).encode()
    stripped = sse.cut_spans(written, sse.null_usage_spans(written))
    expected = {k: v for k, v in chunk.items() if not (k == "usage" and v is None)}
    assert json.loads(stripped) == expected
    if expected == chunk:
        assert stripped == written


def test_other_lines_stay_when_split_data_is_changed() -> None:
    event = b'id: 7\ndata: {"usage":null,\n: c\ndata: "a":1}\n\n'
    parsed = sse.read_event(event)
    assert sse.strip_null_usage(event, parsed) == b'id: 7\ndata: {"a":1}\n: c\n\n'


@pytest.mark.parametrize(
    "end",
    [b'x"},"usage":null}]}\n\n', b'x","usage":null,"a":{}}\n\n', b'x","usage":nullify}\n\n', b"x"],
)
def test_end_of_large_event_is_left_alone_in_doubt(end: bytes) -> None:
    assert sse.strip_null_usage_at_end(end) == end


def test_end_of_large_event_is_stripped_where_certain() -> None:
    assert sse.strip_null_usage_at_end(b'x"}],"usage":null,"y":1}\n\n') == b'x"}],"y":1}\n\n'


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r")))
def test_written_event_reads_back(data: str) -> None:
    event = sse.write_event(data.encode())
    assert sse.read_event(event).data == data.encode()
    assert sse.find_end(event, 0) == len(event) or data.encode().startswith(b"\xef\xbb\xbf")
