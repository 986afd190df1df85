"""The meter: the same usage and the same bytes for every way a stream may be cut."""

import json
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gateway.meter import (
    EVENT_BYTES_MAX,
    EVENT_END_BYTES,
    HELD_BYTES_MAX,
    StreamMeter,
    delivered_text,
    read_json_answer,
)
from llm_gateway.usage_report import is_all_zero, merge_usage, read_usage
from pricing_rules.usage import Implausible, ReportedUsage, Usage, normalise
from tests.llm_gateway.wire_streams import (
    BARE,
    BILL,
    DONE,
    HEAD,
    HI,
    NULL,
    OWN,
    STOP,
    STREAMS,
    USAGE,
    WireStream,
    billed,
    chunk,
    sse,
    text,
    usage_only,
    used,
)

BY_NAME = pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)


def run(pieces: Iterable[bytes], *, wants: bool) -> tuple[StreamMeter, bytes, bytes]:
    """A meter fed with the pieces: itself, what passed before the end, and what then."""
    meter = StreamMeter(client_wants_usage=wants)
    passed = b"".join([meter.feed(piece) for piece in pieces])
    meter.end()
    return meter, passed, meter.finish()


def check(stream: WireStream, pieces: list[bytes], *, wants: bool) -> None:
    meter, passed, rest = run(pieces, wants=wants)
    expected = stream.want if wants else stream.plain
    assert passed + rest == (stream.wire if expected is None else expected)
    assert b"[DONE]" not in passed
    assert meter.reported == stream.reported
    assert meter.saw_done == stream.done
    assert meter.error_event == stream.error
    assert meter.has_content == stream.content
    assert meter.delivered_bytes == meter.delivered.total == stream.delivered


@BY_NAME
@pytest.mark.parametrize("wants", [True, False])
class TestEveryCut:
    """Whole, byte by byte, by event, and cut in two at every boundary."""

    def test_whole(self, stream: WireStream, wants: bool) -> None:
        check(stream, [stream.wire], wants=wants)

    def test_byte_by_byte(self, stream: WireStream, wants: bool) -> None:
        check(stream, [stream.wire[n : n + 1] for n in range(len(stream.wire))], wants=wants)

    def test_event_by_event(self, stream: WireStream, wants: bool) -> None:
        check(stream, stream.wire.replace(b"\n\n", b"\n\n\0").split(b"\0"), wants=wants)

    def test_cut_in_two_everywhere(self, stream: WireStream, wants: bool) -> None:
        for at in range(len(stream.wire) + 1):
            check(stream, [stream.wire[:at], stream.wire[at:]], wants=wants)


def check_billed(stream: WireStream, pieces: Iterable[bytes]) -> None:
    """A client that asked for its cost gets it once, at the end, and all else as it came."""
    meter = StreamMeter(client_wants_usage=False, client_wants_cost=True)
    passed = b"".join([meter.feed(piece) for piece in pieces])
    assert b'"cost":0.00032' not in passed  # what is not committed is not told
    assert b"[DONE]" not in passed
    meter.end()
    meter.bill = BILL
    rest = meter.error_chunk(b'{"error":1}') if meter.error_event else meter.finish()
    want = stream.wire if stream.want is None else stream.want
    end = want.rfind(b"data: [DONE]") if stream.done and not stream.error else len(want)
    expected = want[:end] + (stream.own or OWN) + want[end:]
    if stream.billed is not None:
        expected = stream.billed
    assert passed + rest == expected + (b'data: {"error":1}\n\n' if stream.error else b"")
    assert rest.count(b'"cost":') == 1
    assert meter.reported == stream.reported


@BY_NAME
class TestEveryCutWithCost:
    """The same, with the charge put into the usage-only event or an event of our own."""

    def test_whole(self, stream: WireStream) -> None:
        check_billed(stream, [stream.wire])

    def test_byte_by_byte(self, stream: WireStream) -> None:
        check_billed(stream, [stream.wire[n : n + 1] for n in range(len(stream.wire))])

    def test_cut_in_two_everywhere(self, stream: WireStream) -> None:
        for at in range(len(stream.wire) + 1):
            check_billed(stream, [stream.wire[:at], stream.wire[at:]])


@given(
    stream=st.sampled_from(STREAMS),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
    wants=st.booleans(),
)
def test_any_chunking(stream: WireStream, cuts: list[int], wants: bool) -> None:
    bounds = sorted({0, len(stream.wire), *(cut % (len(stream.wire) + 1) for cut in cuts)})
    pieces = [stream.wire[a:b] for a, b in pairwise(bounds)]
    check(stream, pieces, wants=wants)


@given(
    parts=st.lists(
        st.sampled_from([*(s.wire for s in STREAMS), b"\n", b"\r", b"data", b'"usage":null']),
        max_size=4,
    ),
    noise=st.binary(max_size=30),
    cuts=st.lists(st.integers(0, 5000), max_size=8),
    wants=st.booleans(),
)
def test_any_bytes_whole_or_cut_alike(
    parts: list[bytes], noise: bytes, cuts: list[int], wants: bool
) -> None:
    wire = noise.join(parts)
    bounds = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    pieces = [wire[a:b] for a, b in pairwise(bounds)]
    one, passed, rest = run([wire], wants=wants)
    many, passed_many, rest_many = run(pieces, wants=wants)
    assert passed + rest == passed_many + rest_many
    assert one.reported == many.reported
    assert one.delivered == many.delivered
    assert one.choices_open == many.choices_open


class TestWhatWaits:
    """Complete events go at once; what may be the end does not."""

    def test_complete_event_goes_at_once(self) -> None:
        meter = StreamMeter(client_wants_usage=True)
        assert meter.feed(HI) == HI
        assert meter.feed(HI) == HI
        assert meter.feed(HI[:20]) == b""
        assert meter.feed(HI[20:] + HI) == HI + HI

    def test_usage_only_event_waits_for_the_next(self) -> None:
        meter = StreamMeter(client_wants_usage=True)
        assert meter.feed(HI + USAGE) == HI
        assert meter.feed(b": ping\n\n") == b""
        assert meter.feed(STOP) == USAGE + b": ping\n\n" + STOP

    def test_nothing_from_done_on_before_finish(self) -> None:
        meter = StreamMeter(client_wants_usage=True)
        assert meter.feed(HI + USAGE + DONE + HI) == HI
        assert meter.feed(b"more") == b""
        assert meter.finish() == USAGE + DONE + HI + b"more"
        assert meter.finish() == b""

    def test_what_follows_done_is_limited(self) -> None:
        for size in (7, 1000, HELD_BYTES_MAX * 2):
            meter = StreamMeter(client_wants_usage=True)
            meter.feed(DONE)
            for _ in range(HELD_BYTES_MAX * 2 // size):
                meter.feed(b"x" * size)
            assert len(meter.finish()) == HELD_BYTES_MAX

    def test_fed_after_the_end_nothing_passes(self) -> None:
        meter = StreamMeter(client_wants_usage=True)
        meter.finish()
        assert meter.feed(HI) == b""

    @pytest.mark.parametrize("size", [1000, 65536, 10**6])
    @pytest.mark.parametrize("wants", [True, False])
    def test_large_event_passes_except_its_end(self, size: int, wants: bool) -> None:
        big = sse(text(b"x" * 700_000, end=b'"stop"', more=b',"usage":' + U7))
        null = sse(text(b"y" * 300_000, more=NULL))
        wire = HI + big + null + DONE
        meter = StreamMeter(client_wants_usage=wants)
        passed = b""
        for at in range(0, len(wire), size):
            fed = wire[: at + size]
            passed += meter.feed(wire[at : at + size])
            assert len(fed) - len(passed) <= EVENT_BYTES_MAX + size
        assert passed + meter.finish() == (
            wire if wants else HI + big + null.replace(NULL, b"") + DONE
        )
        assert meter.reported == used(7, 3)
        assert 1_000_000 < meter.delivered_bytes < 1_001_000

    def test_large_unfinished_event_keeps_64_kib(self) -> None:
        meter = StreamMeter(client_wants_usage=True)
        wire = b"data: " + b"x" * 300_000
        assert meter.feed(wire) == wire[:-EVENT_END_BYTES]
        assert meter.error_chunk(b"{}") == b"\n\ndata: {}\n\n"

    def test_large_picture_is_not_counted_as_text(self) -> None:
        picture = b'{"images":[{"image_url":{"url":"data:image/png;base64,' + b"A" * 400_000
        meter, _, _ = run([sse(chunk(picture + b'"}}]}')), DONE], wants=True)
        assert meter.has_content
        assert meter.delivered_bytes == 0


U7 = b'{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}'


def events(wire: bytes) -> list[object]:
    return [
        line if line == b"[DONE]" else json.loads(line)
        for part in wire.split(b"\n\n")
        if (line := part.removeprefix(b"data: "))
    ]


class TestCutAndError:
    """Ends that are ours."""

    def test_cut_ends_each_open_choice(self) -> None:
        meter = StreamMeter(client_wants_usage=False)
        for index in (0, 1, 2):
            meter.feed(HI.replace(b'"index":0', b'"index":%d' % index))
        meter.feed(STOP.replace(b'"index":0', b'"index":1'))
        meter.feed(b"data: half an ev")
        assert list(meter.choices_open) == [0, 2]
        head = {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 1700000000,
            "model": "m1",
        }
        end: dict[str, object] = {"delta": {}, "logprobs": None, "finish_reason": "length"}
        assert events(meter.cut(Usage(input=1))) == [
            {**head, "choices": [{"index": 0, **end}]},
            {**head, "choices": [{"index": 2, **end}]},
            b"[DONE]",
        ]
        assert list(meter.choices_open) == []
        assert meter.finish() == b""

    def test_cut_tells_usage_who_asked(self) -> None:
        meter = StreamMeter(client_wants_usage=True)
        meter.feed(HI)
        last, usage, done = events(meter.cut(Usage(input=5, cached_input=2, output=3, reasoning=4)))
        assert isinstance(last, dict)
        assert isinstance(usage, dict)
        assert last["usage"] is None
        assert (usage["choices"], done) == ([], b"[DONE]")
        assert usage["usage"] == {
            "prompt_tokens": 7,
            "completion_tokens": 7,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 4},
        }

    def test_cut_before_any_chunk_ends_choice_0(self) -> None:
        first, done = events(StreamMeter(client_wants_usage=False).cut())
        assert isinstance(first, dict)
        assert first["choices"][0]["index"] == 0
        assert done == b"[DONE]"

    def test_cut_of_a_whole_answer_is_its_end(self) -> None:
        meter = StreamMeter(client_wants_usage=True)
        meter.feed(HI + STOP + USAGE + DONE)
        assert meter.cut() == USAGE + DONE

    def test_error_chunk_releases_usage_but_no_done(self) -> None:
        meter = StreamMeter(client_wants_usage=True)
        meter.feed(HI + USAGE + b"data: {")
        assert meter.error_chunk(b'{"error":{}}') == USAGE + b'data: {"error":{}}\n\n'
        assert meter.finish() == b""
        meter = StreamMeter(client_wants_usage=True)
        meter.feed(HI + DONE)
        assert meter.error_chunk(b'{"error":{}}') == b'data: {"error":{}}\n\n'


class TestCost:
    """What a client is told that wants its cost, at ends that are ours."""

    def test_cut_tells_it_behind_the_last_chunk(self) -> None:
        meter = StreamMeter(client_wants_usage=False, client_wants_cost=True)
        meter.feed(HI + b"data: half an ev")
        meter.bill = BILL
        length = b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}'
        last = sse(HEAD + b'"choices":[' + length + b"]" + NULL + b"}")
        assert meter.cut(Usage(input=1)) == last + OWN + DONE

    def test_cut_of_a_whole_answer_tells_it_once(self) -> None:
        meter = StreamMeter(client_wants_usage=False, client_wants_cost=True)
        meter.feed(HI + STOP + USAGE + DONE)
        meter.bill = BILL
        assert meter.cut(Usage(input=1)) == billed(USAGE) + DONE

    @pytest.mark.parametrize(("held", "told"), [(USAGE, billed(USAGE)), (b"", OWN), (DONE, OWN)])
    def test_a_broken_stream_tells_it_before_the_error(self, held: bytes, told: bytes) -> None:
        meter = StreamMeter(client_wants_usage=False, client_wants_cost=True)
        assert meter.feed(HI + held + b"data: {") == HI
        meter.bill = BILL
        assert meter.error_chunk(b"{}") == told + b"data: {}\n\n"

    def test_an_unfinished_event_is_ended_before_the_error(self) -> None:
        for bill, told in ((None, b""), (BILL, OWN)):
            meter = StreamMeter(client_wants_usage=False, client_wants_cost=True)
            meter.feed(sse(b'{"error":{"message":"x"}}')[:-2])
            meter.end()
            meter.bill = bill
            sent = meter.error_chunk(b"{}")
            assert [part for part in sent.split(b"\n\n") if part] == [
                b'data: {"error":{"message":"x"}}',
                *([BARE.strip()] if told else []),
                b"data: {}",
            ]

    def test_who_did_not_ask_is_not_told(self) -> None:
        meter = StreamMeter(client_wants_usage=True)
        passed = meter.feed(HI + sse(usage_only(b'{"prompt_tokens":7,"cost":0.5}')) + DONE)
        assert (
            passed + meter.finish()
            == HI + sse(usage_only(b'{"prompt_tokens":7,"cost":0.5}')) + DONE
        )

    def test_a_usage_event_that_had_to_pass_is_followed_by_one_of_our_own(self) -> None:
        meter = StreamMeter(client_wants_usage=False, client_wants_cost=True)
        comment = b": " + b"x" * (HELD_BYTES_MAX + 1) + b"\n\n"
        assert meter.feed(HI + USAGE + comment) == HI
        assert meter.feed(comment) == USAGE + comment + comment
        meter.bill = BILL
        assert meter.feed(DONE) + meter.finish() == OWN + DONE

    def test_cost_behind_a_large_event_stands_alone(self) -> None:
        meter = StreamMeter(client_wants_usage=False, client_wants_cost=True)
        big = sse(text(b"x" * 700_000, end=b'"stop"', more=b',"usage":' + U7))
        assert meter.feed(big) == big
        meter.bill = BILL
        assert meter.feed(DONE) + meter.finish() == BARE + DONE

    def test_the_second_half_of_a_line_end_stays_behind_its_event(self) -> None:
        meter = StreamMeter(client_wants_usage=False, client_wants_cost=True)
        wire = (HI + USAGE).replace(b"\n", b"\r\n")
        assert meter.feed(wire[:-1]) + meter.feed(wire[-1:]) == HI.replace(b"\n", b"\r\n")
        meter.bill = BILL
        assert meter.finish() == billed(USAGE).replace(b"\n", b"\r\n")


class TestUsageShapes:
    """Judging and folding reports."""

    def test_all_zero_is_visible(self) -> None:
        assert is_all_zero(used(0, 0))
        assert is_all_zero(ReportedUsage(prompt=0))
        assert not is_all_zero(used(0, 1))
        assert not is_all_zero(used(-1, 0))

    def test_nonsense_is_implausible(self) -> None:
        values: tuple[object, ...] = ("7", -1, 1.5, True, [1], {}, 1e300, 10**30)
        for value in values:
            reported = read_usage({"prompt_tokens": value, "completion_tokens": 1})
            assert reported is not None
            assert isinstance(normalise(reported), Implausible)

    def test_null_is_not_zero(self) -> None:
        assert read_usage({"prompt_tokens": None, "completion_tokens": None}) is None
        zero = read_usage({"prompt_tokens": 0, "completion_tokens": None})
        assert zero == ReportedUsage(prompt=0)

    def test_count_told_twice_is_the_larger_unless_nonsense(self) -> None:
        twice = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}
        told = read_usage({**twice, "cached_tokens": 5})
        assert told == ReportedUsage(prompt=9, cached=5)
        odd = read_usage({**twice, "cached_tokens": "5"})
        assert odd == ReportedUsage(prompt=9, cached=-1)

    def test_larger_count_holds_with_its_own_total(self) -> None:
        assert merge_usage(used(5, 0), used(5, 9)) == used(5, 9)
        assert merge_usage(used(5, 9), used(0, 0)) == used(5, 9)
        # Input told at the start alone, output at the end alone: no total fits both.
        assert merge_usage(used(5, 0), used(0, 9)) == ReportedUsage(prompt=5, completion=9)
        assert merge_usage(ReportedUsage(prompt=5), ReportedUsage(completion=9)) == ReportedUsage(
            prompt=5, completion=9
        )

    def test_raw_usage_is_the_providers_own(self) -> None:
        meter, _, _ = run(
            [HI + sse(usage_only(b'{"prompt_tokens":1,"cost":0.5}')) + DONE], wants=True
        )
        assert json.loads(meter.raw_usage) == {"prompt_tokens": 1, "cost": 0.5}


class TestJsonAnswer:
    """Answers that are not streamed."""

    def test_answer_with_usage(self) -> None:
        body = (
            b'{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"h\\u00e9",'
            b'"reasoning_content":"ab"},"finish_reason":"stop"}],"usage":' + U7 + b"}"
        )
        answer = read_json_answer(body)
        assert answer.reported == used(7, 3)
        assert json.loads(answer.raw_usage) == json.loads(U7)
        assert answer.has_content
        assert delivered_text(body) == "héab".encode()
        assert not answer.error

    @pytest.mark.parametrize(
        "body",
        [b"", b"<html>", b"[]", b"null", b'{"error":{"message":"x"}}', b"[" * 100_000, b'{"a":'],
    )
    def test_no_answer(self, body: bytes) -> None:
        answer = read_json_answer(body)
        assert answer.error
        assert answer.reported is None
        assert not answer.has_content

    def test_answer_without_usage_or_content(self) -> None:
        answer = read_json_answer(b'{"choices":[{"message":{"content":null}}],"usage":null}')
        assert (answer.reported, answer.raw_usage, answer.has_content) == (None, b"", False)
        assert not answer.error

    def test_tool_calls_are_content(self) -> None:
        body = (
            b'{"choices":[{"message":{"content":null,"tool_calls":[{"function":'
            b'{"name":"f","arguments":"{}"}}]}}]}'
        )
        assert read_json_answer(body).has_content
        assert delivered_text(body) == b"f{}"

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False)
            | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "choices",
                            "delta",
                            "message",
                            "usage",
                            "content",
                            "tool_calls",
                            "function",
                            "prompt_tokens",
                            "prompt_tokens_details",
                            "index",
                            "error",
                            "x_groq",
                            "model",
                            "audio",
                            "reasoning_details",
                            "text",
                        ]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=20,
        )
    )
    def test_any_json_is_read_without_failing(self, value: object) -> None:
        body = json.dumps(value).encode()
        read_json_answer(body)
        run([sse(body), DONE], wants=False)[0].cut()


def test_ordinary_chunks_are_not_decoded() -> None:
    """The frames do their work: of 100 chunks only the first is read the long way."""
    meter = StreamMeter(client_wants_usage=False)
    wire = sse(text(b"hi", more=NULL))
    plain = sse(text(b"hi"))
    assert meter.feed(wire) == plain
    frames = meter._frames
    for _ in range(100):
        assert meter.feed(wire) == plain
    assert meter._frames is frames


def test_text_is_kept_up_to_its_limit() -> None:
    kept = StreamMeter(client_wants_usage=False, text_bytes_max=5)
    kept.feed(HI + sse(text(rb"\n\u00e9")))
    assert kept.text == "hi\né".encode()
    over = StreamMeter(client_wants_usage=False, text_bytes_max=5)
    over.feed(HI + HI + HI)
    assert over.text is None
    assert over.delivered_bytes == 6
    assert StreamMeter(client_wants_usage=False).text is None
