"""Chat requests: what is read, what is refused, and that all other bytes stay as they were."""

import json
import random
import re
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gateway.config import ModelConfig
from llm_gateway.dialects import chat
from llm_gateway.dialects.chat import ChatRequest, Prompt, input_bound, parse, prompt, rewrite
from llm_gateway.errors import GatewayError, InvalidRequestError, UnboundedCostError

if TYPE_CHECKING:
    from collections.abc import Callable

USER = b'"messages":[{"role":"user","content":"hi"}]'
OURS = {
    "model",
    "stream",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "stream_options",
    "service_tier",
}
MODEL = ModelConfig(
    name="m",
    max_output_tokens=1000,
    targets=(),
    image_tokens_max=2000,
    audio_tokens_max=10_000,
    file_tokens_max=100_000,
)


def body_with(members: str | bytes) -> bytes:
    """A valid request with further members, given as JSON text."""
    text = members.encode() if isinstance(members, str) else members
    return b'{"model":"m",' + USER + b"," + text + b"}"


def body_of(content: object, **more: object) -> bytes:
    """A request with one message of this content."""
    message = {"role": "user", "content": content}
    return msgspec.json.encode({"model": "m", "messages": [message], **more})


def sent(
    request: ChatRequest,
    *,
    model: str = "up",
    limit: int | None = None,
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    ask_usage: bool = True,
) -> bytes:
    """The rewritten body, with defaults that add nothing."""
    return rewrite(request, model=model, limit=limit, limit_field=limit_field, ask_usage=ask_usage)


def sent_object(
    body: bytes,
    *,
    limit: int | None = None,
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    ask_usage: bool = True,
) -> dict[str, object]:
    """The rewritten body as json.loads reads it; a repeated key fails the test."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), keys
        return dict(pairs)

    rewritten = sent(parse(body), limit=limit, limit_field=limit_field, ask_usage=ask_usage)
    result = json.loads(rewritten, object_pairs_hook=unique)
    assert isinstance(result, dict)
    return result


def refused(body: bytes) -> InvalidRequestError:
    """The error of a body that must not be accepted."""
    with pytest.raises(InvalidRequestError) as caught:
        parse(body)
    assert caught.value.status == 400
    return caught.value


def unbounded_param(body: bytes, model: ModelConfig = MODEL) -> str | None:
    """The field named when a request's cost has no maximum."""
    request = parse(body)
    with pytest.raises(UnboundedCostError) as caught:
        input_bound(request, model)
    assert caught.value.status == 400
    assert caught.value.code == "unbounded_cost"
    return caught.value.param


# ---- What is read -------------------------------------------------------------------------------


def test_defaults_of_a_bare_request() -> None:
    body = b'{"model":"m",' + USER + b"}"
    request = parse(body)
    assert (request.model, request.stream, request.n) == ("m", False, 1)
    assert (request.limit, request.include_usage, request.service_tier) == (None, None, None)
    assert (request.images, request.audios, request.files, request.by_reference) == (0, 0, 0, 0)
    assert request.input_bytes == len(body)
    assert request.unbounded == ()
    assert not request.audio_output


def test_null_reads_as_absent() -> None:
    nulls = ",".join(f'"{key}":null' for key in sorted(OURS - {"model"}))
    more = '"tools":null,"modalities":null,"audio":null,"web_search_options":null'
    request = parse(body_with(f"{nulls},{more}"))
    assert (request.stream, request.n, request.limit) == (False, 1, None)
    assert (request.include_usage, request.service_tier) == (None, None)
    assert request.unbounded == ()
    assert not request.audio_output
    kept = sent_object(body_with(f"{nulls},{more}"))
    assert kept.keys() == {
        "model",
        "stream",
        "messages",
        "tools",
        "modalities",
        "audio",
        "web_search_options",
    }


@pytest.mark.parametrize(
    ("members", "limit"),
    [
        ('"max_tokens":5', 5),
        ('"max_completion_tokens":7', 7),
        ('"max_tokens":5,"max_completion_tokens":7', 5),
        ('"max_tokens":9,"max_completion_tokens":7', 7),
        ('"max_tokens":null,"max_completion_tokens":7', 7),
        ('"max_tokens":1', 1),
        ('"max_tokens":2147483647', 2147483647),
    ],
)
def test_the_smaller_limit_is_read(members: str, limit: int) -> None:
    assert parse(body_with(members)).limit == limit


@pytest.mark.parametrize(
    "members",
    [
        '"Max_Tokens":1',
        '"STREAM":true',
        '"N":5',
        '"Service_Tier":"priority"',
        '"max_to\\u212aens":1',
        '"\\u017ftream":true',
    ],
)
def test_other_spellings_are_removed_and_not_read(members: str) -> None:
    request = parse(body_with(members))
    assert (request.stream, request.n, request.limit) == (False, 1, None)
    assert request.service_tier is None
    assert sent_object(body_with(members)).keys() == {"model", "stream", "messages"}


def test_escaped_spelling_is_the_same_key() -> None:
    body = b'{"\\u006dodel":"m",' + USER + b',"\\u006e":2}'
    request = parse(body)
    assert (request.model, request.n) == ("m", 2)
    assert sent_object(body) == {
        "model": "up",
        "stream": False,
        "n": 2,
        "messages": [{"role": "user", "content": "hi"}],
    }


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ('"modalities":["text","audio"]', True),
        ('"audio":{"voice":"alloy"}', True),
        ('"modalities":["text"]', False),
        ('"audio":null', False),
    ],
)
def test_spoken_answers_are_noticed(members: str, *, expected: bool) -> None:
    assert parse(body_with(members)).audio_output is expected


# ---- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ('"stream":1', "stream"),
        ('"stream":"true"', "stream"),
        ('"n":true', "n"),
        ('"n":1.0', "n"),
        ('"n":1e0', "n"),
        ('"n":"1"', "n"),
        ('"n":0', "n"),
        ('"n":-1', "n"),
        ('"n":129', "n"),
        ('"n":99999999999999999999999999', "n"),
        ('"n":' + "9" * 10_000, "n"),
        ('"max_tokens":0', "max_tokens"),
        ('"max_tokens":-5', "max_tokens"),
        ('"max_tokens":false', "max_tokens"),
        ('"max_tokens":2147483648', "max_tokens"),
        ('"max_completion_tokens":0', "max_completion_tokens"),
        ('"max_completion_tokens":[1]', "max_completion_tokens"),
        ('"stream_options":[]', "stream_options"),
        ('"stream_options":{"include_usage":1}', "stream_options.include_usage"),
        ('"service_tier":1', "service_tier"),
        ('"tools":{}', "tools"),
        ('"tools":["x"]', "tools[0]"),
        ('"tools":[{"type":"function"},{}]', "tools[1].type"),
        ('"tools":[{"type":7}]', "tools[0].type"),
        ('"modalities":"audio"', "modalities"),
    ],
)
def test_wrong_values_are_refused_by_name(members: str, param: str) -> None:
    error = refused(body_with(members))
    assert error.param == param
    assert param in error.message


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (3, "messages[0].content"),
        ({}, "messages[0].content"),
        ([3], "messages[0].content[0]"),
        ([{}], "messages[0].content[0].type"),
        ([{"type": None}], "messages[0].content[0].type"),
        ([{"type": "text"}, {"type": "image_url", "image_url": 3}], "messages[0].content[1]"),
        (
            [{"type": "input_audio", "input_audio": {"data": 3}}],
            "messages[0].content[0].input_audio",
        ),
        ([{"type": "file", "file": "x"}], "messages[0].content[0].file"),
    ],
)
def test_wrong_content_is_refused_by_name(content: object, param: str) -> None:
    error = refused(body_of(content))
    assert error.param is not None
    assert error.param.startswith(param)


def test_expected_and_given_type_are_told() -> None:
    assert refused(body_with('"n":"x"')).message == "n: expected int or null, got str."
    assert refused(body_with('"n":0')).message == "n must be between 1 and 128."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{" + USER + b"}", "model"),
        (b'{"model":null,' + USER + b"}", "model"),
        (b'{"model":"",' + USER + b"}", "model"),
        (b'{"model":"' + b"x" * 257 + b'",' + USER + b"}", "model"),
        (b'{"Model":"m",' + USER + b"}", "model"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":null}', "messages"),
        (b'{"model":"m","messages":[3]}', "messages[0]"),
        (b'{"model":"m","messages":[{}]}', "messages[0].role"),
    ],
)
def test_model_and_messages_are_required(body: bytes, param: str) -> None:
    assert refused(body).param == param


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b" ", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b"{", "not valid JSON"),
        (b'\xef\xbb\xbf{"model":"m"}', "byte order mark"),
        (b'{"model":"m",}', "not valid JSON"),
        (b"{'model':1}", "not valid JSON"),
        (b'{"model":"m"} x', "not valid JSON"),
        (b'{"model":NaN}', "not valid JSON"),
        (b'{"x":01}', "not valid JSON"),
        (b'{"x":"\x01"}', "not valid JSON"),
        (b'{"x":"\\ud800"}', "half a surrogate pair"),
        (b'{"x":"\xff"}', "not UTF-8 (byte 6)"),
        (b'{"\xff":1}', "not UTF-8 (byte 2)"),
        (b'{"x":"\xed\xa0\x80"}', "not UTF-8 (byte 6)"),
        ('{"model":"m"}'.encode("utf-16"), "not UTF-8"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (b'{"x":' + b'{"x":' * 100_000, "nested too deep"),
        (b"[" * 1_000_000, "must be a JSON object"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(1001)) + b"}", "more than 1000 fields"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes, message: str) -> None:
    assert message in refused(body).message


def test_deep_messages_are_refused() -> None:
    deep = b"[" * 50_000 + b"]" * 50_000
    error = refused(b'{"model":"m","messages":[{"role":"user","x":' + deep + b"}]}")
    assert error.message == "The body is nested too deep."


# Same value, longer first, longer last, a first value that holds what would follow, and escapes.
@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b'{"model":"m","model":"m",' + USER + b"}", "model"),
        (b'{"model":"m",' + USER + b',"model":"mm"}', "model"),
        (b'{"model":"mm",' + USER + b',"model":"m"}', "model"),
        (b'{"model":"m","\\u006dodel":"x",' + USER + b"}", "model"),
        (b'{"a":1,"a":12,"model":"m",' + USER + b"}", "a"),
        (b'{"a":12,"a":1,"model":"m",' + USER + b"}", "a"),
        (b'{"model":"m","a":{"b":1},' + USER + b',"a":{"b":1}}', "a"),
        (b'{"a":[1,2,3],"a":1,"model":"m",' + USER + b"}", "a"),
        (b'{"a":{"x":1,"model":"x"},"a":1,"model":"m",' + USER + b"}", "a"),
        (b'{"a":{"x":1},"b":2,"a":{"x":1},"model":"m",' + USER + b"}", "a"),
        (b'{"a":1,"b":1,"a":1,"b":1,"model":"m",' + USER + b"}", "a"),
        (b'{"model":"m",' + USER + b',"a":1,"a":1,"c":1}', "a"),
        # The length of the last value of "a" leads from its first one to the "b" inside the last,
        # whence that of "b" leads to the right place again.
        (b'{"a":1,"b":22,"a":{"p":0,"b"      :2},"model":"m",' + USER + b"}", "a"),
        (b'{"":1,"":2,"model":"m",' + USER + b"}", ""),
        (b'{"model":"m",' + USER + b',"n":1,"n":null}', "n"),
        (b'{"max_tokens":1,"max_tokens":2,"max_tokens":3,"model":"m",' + USER + b"}", "max_tokens"),
        (b'{"messages":[],"model":"m",' + USER + b"}", "messages"),
        (body_with('"stream_options":{"include_usage":true,"include_usage":false}'), None),
        (body_with('"stream_options":{"x":1,"\\u0078":2}'), "x"),
    ],
)
def test_a_key_sent_twice_is_refused_by_name(body: bytes, key: str | None) -> None:
    error = refused(body)
    expected = "include_usage" if key is None else key
    assert error.message == f"The field {expected!r} is sent twice."
    assert error.param == expected


def test_spellings_of_one_field_are_no_repeat() -> None:
    body = b'{"Model":"a","model":"m","MODEL":3,' + USER + b"}"
    assert parse(body).model == "m"
    assert sent_object(body).keys() == {"model", "stream", "messages"}


def test_messages_never_quote_the_body() -> None:
    for body in (
        b'{"model":"m","messages":"CANARY"}',
        b'{"model":"m","messages":[{"role":"user","content":"CANARY"',
        b'{"model":"m","messages":[{"role":"CANARY","content":3}]}',
    ):
        error = refused(body)
        assert b"CANARY" not in error.envelope()
        assert "CANARY" not in repr(error)


def test_request_prints_without_the_prompt() -> None:
    assert "CANARY" not in repr(parse(body_of("CANARY")))


@pytest.mark.parametrize(
    ("members", "text", "messages"),
    [
        (b'"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}]', b"a\nb", 2),
        (b'"messages":[],"tools":[{"type":"function","x":1}]', b'[{"type":"function","x":1}]', 0),
        (b'"messages":[],"functions":[{"name":"f"}],"tools":null', b'[{"name":"f"}]', 0),
        (
            b'"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"c"}]}]',
            b'[{"id":"c"}]',
            1,
        ),
        (b'"messages":[{"role":"user","tool_calls":null,"content":[]}]', b"", 1),
        (
            (
                b'"messages":[{"role":"user","content":[{"type":"text","text":"a"},'
                b'{"type":"image_url","image_url":"x","text":1e999},'
                b'{"type":"text","text":"\\u00e9\\n"},{"type":"text","text":["b"]}]}]'
            ),
            b"a\n\xc3\xa9\n",
            1,
        ),
    ],
)
def test_what_is_counted_of_a_request(members: bytes, text: bytes, messages: int) -> None:
    assert prompt(parse(b'{"model":"m",' + members + b"}")) == Prompt(text, messages)


# ---- What is sent -------------------------------------------------------------------------------


def test_rewritten_bytes_of_a_whole_request() -> None:
    body = (
        b' { "temperature" : 0.50 , "model":"m", "stream": true, "max_tokens":9,\n'
        b' "messages" : [ {"role":"user", "content":"\\u4e2d \xe4\xb8\xad"} ] , "seed":1e2\t,'
        b'"service_tier":"flex","n":2,"stream_options":{"x":[1, 2],"include_usage":false}} '
    )
    assert rewrite(
        parse(body), model='u"p', limit=7, limit_field="max_completion_tokens", ask_usage=True
    ) == (
        b'{"model":"u\\"p","stream":true,"n":2,"max_completion_tokens":7,'
        b'"stream_options":{"include_usage":true,"x":[1, 2]},"service_tier":"flex",'
        b'"temperature" : 0.50,'
        b'"messages" : [ {"role":"user", "content":"\\u4e2d \xe4\xb8\xad"} ] , "seed":1e2}'
    )


def test_n_is_written_only_if_sent() -> None:
    assert "n" not in sent_object(body_with('"seed":1'))
    assert sent_object(body_with('"n":1'))["n"] == 1
    assert sent_object(body_with('"n":128'))["n"] == 128


def test_limit_is_written_only_if_given() -> None:
    body = body_with('"max_tokens":9,"max_completion_tokens":9')
    assert not sent_object(body).keys() & {"max_tokens", "max_completion_tokens"}
    assert sent_object(body, limit=3)["max_tokens"] == 3
    both = sent_object(body, limit=3, limit_field="max_completion_tokens")
    assert both["max_completion_tokens"] == 3
    assert "max_tokens" not in both


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ('"stream":true', {"include_usage": True}),
        ('"stream":true,"stream_options":null', {"include_usage": True}),
        ('"stream":true,"stream_options":{}', {"include_usage": True}),
        ('"stream":true,"stream_options":{ "include_usage" : false }', {"include_usage": True}),
        ('"stream":true,"stream_options":{"Include_Usage":false}', {"include_usage": True}),
        (
            '"stream":true,"stream_options":{"include_obfuscation":false,"include_usage":null}',
            {"include_usage": True, "include_obfuscation": False},
        ),
        ('"stream":false,"stream_options":{"include_usage":true}', None),
        ('"stream_options":{"include_usage":true,"x":1}', None),
    ],
)
def test_usage_is_asked_on_every_stream(members: str, expected: dict[str, object] | None) -> None:
    assert sent_object(body_with(members)).get("stream_options") == expected


@pytest.mark.parametrize("value", ["true", "false", "null"])
def test_the_clients_wish_for_usage_is_read(value: str) -> None:
    request = parse(body_with(f'"stream_options":{{"include_usage":{value},"x":1}}'))
    assert request.include_usage is {"true": True, "false": False, "null": None}[value]


def test_usage_is_not_asked_of_those_who_refuse() -> None:
    body = body_with('"stream":true,"stream_options":{"include_usage":true,"x":1}')
    assert "stream_options" not in sent_object(body, ask_usage=False)


# ---- The ceiling's inputs -----------------------------------------------------------------------


def test_input_bytes_leave_out_base64_only() -> None:
    payload = "A" * 1000
    plain = [{"type": "text", "text": "look"}]
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{payload}"}}
    body = body_of([*plain, image])
    request = parse(body)
    assert request.input_bytes == len(body) - 1000
    assert (request.images, request.by_reference) == (1, 0)
    # bytes of the rest, and 2000 tokens for the image
    assert input_bound(request, MODEL) == len(body) - 1000 + 2000


@pytest.mark.parametrize(
    ("part", "counts", "payload"),
    [
        ({"type": "text", "text": "x"}, (0, 0, 0, 0), 0),
        ({"type": "image_url", "image_url": {"url": "https://x/y.png"}}, (1, 0, 0, 1), 0),
        ({"type": "image_url", "image_url": "data:image/png;base64,AAAA"}, (1, 0, 0, 0), 4),
        ({"type": "image_url", "image_url": {"url": "data:text/plain,AAAA"}}, (1, 0, 0, 1), 0),
        ({"type": "image_url", "image_url": {"url": "data:;base64"}}, (1, 0, 0, 1), 0),
        (
            {"type": "image_url", "image_url": {"url": "data:" + "a" * 300 + ";base64,AAAA"}},
            (1, 0, 0, 1),
            0,
        ),
        ({"type": "image_url"}, (1, 0, 0, 1), 0),
        ({"type": "text", "image_url": {"url": "https://x/y.png"}}, (1, 0, 0, 1), 0),
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, (0, 1, 0, 0), 4),
        ({"type": "input_audio", "input_audio": {}}, (0, 1, 0, 1), 0),
        ({"type": "audio_url", "audio_url": {"url": "https://x/y.wav"}}, (0, 1, 0, 1), 0),
        ({"type": "file", "file": {"file_data": "data:a/b;base64,AA"}}, (0, 0, 1, 0), 18),
        ({"type": "file", "file": {"file_id": "file-1"}}, (0, 0, 1, 1), 0),
        ({"type": "file"}, (0, 0, 1, 1), 0),
        ({"type": "text", "file": {"file_id": "file-1"}}, (0, 0, 1, 1), 0),
        ({"type": "text", "input_audio": {"data": "AAAA"}}, (0, 1, 0, 0), 4),
        ({"type": "text", "audio_url": "data:audio/wav;base64,AAAA"}, (0, 1, 0, 0), 4),
    ],
)
def test_parts_are_counted(
    part: dict[str, object], counts: tuple[int, int, int, int], payload: int
) -> None:
    body = body_of([part])
    request = parse(body)
    assert (request.images, request.audios, request.files, request.by_reference) == counts
    assert request.input_bytes == len(body) - payload
    assert input_bound(request, MODEL) == (
        len(body) - payload + counts[0] * 2000 + counts[1] * 10_000 + counts[2] * 100_000
    )


def test_an_earlier_spoken_answer_counts_as_audio() -> None:
    message = {"role": "assistant", "audio": {"id": "audio_1"}}
    body = msgspec.json.encode({"model": "m", "messages": [message]})
    assert (parse(body).audios, parse(body).by_reference) == (1, 1)
    none = {"role": "assistant", "audio": None, "content": "x"}
    assert parse(msgspec.json.encode({"model": "m", "messages": [none]})).audios == 0


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ('"web_search_options":{}', "web_search_options"),
        ('"search_parameters":{"mode":"on"}', "search_parameters"),
        ('"enable_search":true', "enable_search"),
        ('"plugins":[{"id":"web"}]', "plugins"),
        ('"tools":[{"type":"function"},{"type":"web_search"}]', "tools[1].type"),
        ('"tools":[{"type":"builtin_function"}]', "tools[0].type"),
        ('"Tools":[{"type":"web_search"}]', "Tools"),
        ('"Messages":[]', "Messages"),
        ('"mes\\u017fages":[]', "mes\u017fages"),
        ('"WEB_SEARCH_OPTIONS":{}', "WEB_SEARCH_OPTIONS"),
        ('"models":["dearer/model"]', "models"),
        ('"fallbacks":["dearer"]', "fallbacks"),
        ('"n_predict":100000', "n_predict"),
        ('"N_PREDICT":100000', "N_PREDICT"),
        ('"max_new_tokens":100000', "max_new_tokens"),
        ('"max_output_tokens":100000', "max_output_tokens"),
        ('"deferred":true', "deferred"),
    ],
)
def test_what_has_no_maximum_is_refused(members: str, param: str) -> None:
    assert unbounded_param(body_with(members)) == param


@pytest.mark.parametrize(
    "members",
    [
        '"enable_search":false',
        '"web_search_options":null',
        '"tools":[{"type":"function","function":{"name":"f"}},{"type":"custom"}]',
        '"tools":[]',
        '"x_web_search_options":{}',
        '"models":null',
        '"n_predict":null',
        '"deferred":false',
        '"functions":[{"name":"f"}]',
    ],
)
def test_what_has_a_maximum_passes(members: str) -> None:
    body = body_with(members)
    assert input_bound(parse(body), MODEL) == len(body)


@pytest.mark.parametrize("kind", ["video_url", "image", "document", "", "Text"])
def test_unknown_parts_have_no_maximum(kind: str) -> None:
    body = body_of([{"type": "text", "text": "x"}, {"type": kind}])
    assert unbounded_param(body) == "messages[0].content[1].type"


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x"}}, "image_tokens_max"),
        ({"type": "input_audio", "input_audio": {"data": "AA"}}, "audio_tokens_max"),
        ({"type": "file", "file": {"file_id": "f"}}, "file_tokens_max"),
    ],
)
def test_parts_need_a_configured_maximum(part: dict[str, object], setting: str) -> None:
    bare = ModelConfig(name="m", max_output_tokens=1, targets=())
    with pytest.raises(UnboundedCostError, match=setting):
        input_bound(parse(body_of([part])), bare)
    assert input_bound(parse(body_of("text")), bare) > 0


def test_many_reasons_are_not_all_listed() -> None:
    request = parse(body_of([{"type": "x"}] * 10_000))
    assert len(request.unbounded) == 8


# ---- Properties ---------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(st.characters(codec="utf-8"), max_size=12)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
foreign_keys = st.text(st.characters(codec="utf-8"), max_size=12).filter(
    lambda key: key.casefold() not in chat._READ
) | st.sampled_from(["temperature", "tool_choice", "models", 'x"y', "a\\b", "{", ",", '":"'])
white = st.sampled_from(["", " ", "\n", "\t ", "\r\n"])
our_members = st.fixed_dictionaries(
    {"model": st.text(st.characters(codec="utf-8"), min_size=1, max_size=10)},
    optional={
        "stream": st.booleans() | st.none(),
        "n": st.integers(1, 128) | st.none(),
        "max_tokens": st.integers(1, 10**6) | st.none(),
        "max_completion_tokens": st.integers(1, 10**6) | st.none(),
        "service_tier": st.sampled_from(["auto", "flex", 'ti"er']) | st.none(),
        "stream_options": st.none()
        | st.fixed_dictionaries(
            {}, optional={"include_usage": st.booleans() | st.none(), "other": values}
        ),
    },
)


@st.composite
def spelled(draw: st.DrawFn, key: str) -> str:
    """The JSON string of a key in random letter case, any character of it perhaps escaped."""
    letters = []
    for letter in key:
        chosen = draw(st.sampled_from([letter, letter.upper()]))
        if draw(st.booleans()):
            chosen = f"\\u{ord(chosen):04x}"
        letters.append(chosen)
    return f'"{"".join(letters)}"'


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, dict[str, Any], dict[str, bytes]]:
    """A body, our members in it, and the foreign members as they stand in it."""
    ours = draw(our_members)
    foreign = draw(st.dictionaries(foreign_keys, values, max_size=5))
    foreign["messages"] = [{"role": "user", "content": draw(st.text(st.characters(codec="utf-8")))}]
    members: list[tuple[str, str]] = [(json.dumps(key), json.dumps(ours[key])) for key in ours]
    kept: dict[str, bytes] = {}
    for key, value in foreign.items():
        ascii_only = draw(st.booleans())
        name = json.dumps(key, ensure_ascii=ascii_only)
        text = json.dumps(value, ensure_ascii=ascii_only, separators=(draw(white) + ",", ":"))
        members.append((name, text))
        kept[key] = text.encode()
    # Spellings that some upstreams would take for ours.
    taken = {json.loads(name) for name, _ in members}
    for key in draw(st.lists(st.sampled_from(sorted(OURS)), max_size=3, unique=True)):
        name = draw(spelled(key))
        if json.loads(name) not in taken | OURS:
            members.append((name, draw(st.sampled_from(["1", '"x"', "[{}]", "null"]))))
    order = draw(st.permutations(members))
    text = f"{draw(white)},{draw(white)}".join(
        f"{name}{draw(white)}:{draw(white)}{value}" for name, value in order
    )
    edge = draw(white)
    return f"{edge}{{{edge}{text}{edge}}}{edge}".encode(), ours, kept


@given(
    request=requests(),
    model=st.text(st.characters(codec="utf-8")),
    limit=st.none() | st.integers(1, 10**9),
    field=st.sampled_from(["max_tokens", "max_completion_tokens"]),
    ask_usage=st.booleans(),
)
def test_rewritten_body_is_the_expected_object(
    request: tuple[bytes, dict[str, Any], dict[str, bytes]],
    model: str,
    limit: int | None,
    field: Literal["max_tokens", "max_completion_tokens"],
    ask_usage: bool,
) -> None:
    """Ours once, each as decided; of the rest the same keys, with their values' very bytes."""
    body, ours, kept = request
    stream = bool(ours.get("stream"))
    expected: dict[str, object] = {"model": model, "stream": stream}
    if ours.get("n") is not None:
        expected["n"] = ours["n"]
    if limit is not None:
        expected[field] = limit
    if stream and ask_usage:
        options = ours.get("stream_options") or {}
        expected["stream_options"] = {**options, "include_usage": True}
    if ours.get("service_tier") is not None:
        expected["service_tier"] = ours["service_tier"]
    result = sent(parse(body), model=model, limit=limit, limit_field=field, ask_usage=ask_usage)
    decoded = json.loads(result)
    foreign = {key: json.loads(text) for key, text in kept.items()}
    assert decoded == expected | foreign
    raws = msgspec.json.decode(result, type=dict[str, msgspec.Raw])
    assert {key: bytes(raws[key]) for key in kept} == kept
    assert list(decoded)[: len(expected)] == list(expected)


@given(request=requests())
def test_spans_cover_exactly_the_members_that_stay(
    request: tuple[bytes, dict[str, Any], dict[str, bytes]],
) -> None:
    body, _, kept = request
    parsed = parse(body)
    runs = b",".join(body[start:end] for start, end in parsed.kept)
    again = msgspec.json.decode(b"{" + runs + b"}", type=dict[str, msgspec.Raw])
    assert {key: bytes(value) for key, value in again.items()} == kept
    assert all(body[start : start + 1] == b'"' for start, _ in parsed.kept)


@given(request=requests())
def test_a_rewritten_body_reads_the_same(
    request: tuple[bytes, dict[str, Any], dict[str, bytes]],
) -> None:
    first = parse(request[0])
    second = parse(sent(first, model=first.model, limit=first.limit))
    for name in ("model", "stream", "n", "limit", "service_tier", "images", "unbounded"):
        assert getattr(first, name) == getattr(second, name)
    assert sent(second) == sent(first)


@given(
    request=requests(),
    data=st.data(),
)
def test_any_member_repeated_is_refused(
    request: tuple[bytes, dict[str, Any], dict[str, bytes]], data: st.DataObject
) -> None:
    """Wherever a copy of a member is put in, and whatever value it has there."""
    body, ours, kept = request
    texts = {key: json.dumps(value).encode() for key, value in ours.items()} | kept
    key = data.draw(st.sampled_from(sorted(texts)))
    value = data.draw(st.sampled_from([texts[key], b"1", b"12", b'{"a":1,"b":2}', b'"x"']))
    name = json.dumps(key).encode()
    if data.draw(st.booleans()):
        start = body.index(b"{") + 1
        doubled = body[:start] + name + b":" + value + b"," + body[start:]
    else:
        end = body.rindex(b"}")
        doubled = body[:end] + b"," + name + b":" + value + body[end:]
    assert "sent twice" in refused(doubled).message


@given(values)
def test_any_json_is_read_or_refused(value: object) -> None:
    for body in (
        json.dumps(value).encode(),
        json.dumps({"model": "m", "messages": value}).encode(),
        json.dumps({"model": "m", "messages": [value]}).encode(),
        body_of(value),
        body_of("x", stream_options=value, tools=value),
    ):
        accepted(body)


def accepted(body: bytes) -> bool:
    """Whether a body is taken; anything but an answer or a GatewayError fails the test."""
    try:
        request = parse(body)
    except GatewayError as error:
        refusal = error
    else:
        msgspec.json.decode(sent(request), type=dict[str, msgspec.Raw])
        prompt(request)  # what was admitted can be counted, whenever that may be needed
        return True
    assert refusal.status == 400
    assert json.loads(refusal.envelope())
    return False


def test_mutated_bodies_are_read_or_refused() -> None:
    """20,000 bodies with bytes changed, cut, doubled or moved."""
    chance = random.Random(20260101)
    seeds = [
        body_of(
            [
                {"type": "text", "text": '\u4e2d\\ " x'},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {"type": "file", "file": {"file_data": "AAAA"}},
            ],
            stream=True,
            n=2,
            max_tokens=5,
            stream_options={"include_usage": True, "x": 1},
            tools=[{"type": "function", "function": {"name": "f"}}],
            temperature=0.5,
        ),
        b' { "a" : [1, {"b": "}"}] , "model" : "m" , "n" : null, ' + USER + b" } ",
    ]
    tokens = [b'"', b"\\", b"{", b"}", b",", b":", b"\xff", b"\x00", b"1", b'"n":1,', b"\\u"]
    changes: list[Callable[[bytes, int, int], bytes]] = [
        lambda body, start, _end: body[:start] + chance.choice(tokens) + body[start:],
        lambda body, start, _end: body[:start] + chance.choice(tokens) + body[start + 1 :],
        lambda body, start, end: body[:start] + body[end:],
        lambda body, start, end: body[:end] + body[start:end] + body[end:],
        lambda body, start, _end: body[:start],
        lambda body, start, _end: body[:start] + chance.randbytes(3) + body[start:],
    ]
    taken = 0
    for _ in range(20_000):
        body = chance.choice(seeds)
        for _ in range(chance.randint(1, 3)):
            start, end = sorted(chance.choices(range(len(body) + 1), k=2))
            body = chance.choice(changes)(body, start, end)
        taken += accepted(body)
    # The search is worth something only if both ways out are found.
    assert 200 < taken < 19_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[' + b",".join([b'{"role":"u"}'] * 100_000) + b"]}",
        b'{"a":"' + b'\\"' * 1_000_000 + b'","model":"m",' + USER + b"}",
        b'{"' + b'\\"' * 1_000_000 + b'":1,"model":"m",' + USER + b"}",
        b"{" + b" " * 2_000_000 + b'"model":"m",' + USER + b" " * 2_000_000 + b"}",
        b'{"model":"m",' + USER + b',"x":' + b"9" * 2_000_000 + b"}",
    ],
    ids=["messages", "escapes", "key", "white", "digits"],
)
@pytest.mark.timeout(10)
def test_large_bodies_take_linear_time(body: bytes) -> None:
    """Each takes some 50 ms; anything that grows faster than the body would not end in time."""
    assert accepted(body)


def test_patterns_never_go_back() -> None:
    """Every repetition is possessive, so no body can make them super-linear."""
    for pattern in (chat._FIRST_KEY, chat._NEXT_KEY, chat._CLOSING, chat._USAGE_ONLY):
        assert not re.search(rb"[*+](?!\+)(?<!\+\+)(?<!\*\+)", pattern.pattern)
