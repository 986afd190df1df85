"""EchoUpstream: deterministic answers in OpenAI's shape, with usage that adds up."""

import asyncio
import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llm_gateway.config import ProviderConfig
from llm_gateway.upstream import Aborted, Exchange, Upstream, UpstreamRequest
from llm_gateway.upstream.echo import EchoExchange, EchoUpstream, PrefixCache
from llm_gateway.upstream.http import HttpUpstream

Json = dict[str, Any]


def an_echo(
    *, answer_tokens: int = 6, tokens_per_second: float = 0, chunk: int = 1
) -> EchoUpstream:
    return EchoUpstream(
        ProviderConfig(
            name="echo",
            kind="echo",
            answer_tokens=answer_tokens,
            tokens_per_second=tokens_per_second,
            chunk_tokens=chunk,
        )
    )


def a_request(text: str = "say hello", **fields: object) -> UpstreamRequest:
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], **fields}
    return UpstreamRequest(path=b"/chat/completions", headers=(), body=json.dumps(body).encode())


async def read(exchange: EchoExchange) -> bytes:
    pieces: list[bytes] = []
    await exchange.relay(pieces.append)
    return b"".join(pieces)


async def ask(echo: EchoUpstream, text: str = "say hello", **fields: object) -> Json:
    exchange = await echo.send(a_request(text, **fields))
    answer = json.loads(await read(exchange))
    assert isinstance(answer, dict)
    return answer


async def stream(echo: EchoUpstream, text: str = "say hello", **fields: object) -> list[Json]:
    exchange = await echo.send(a_request(text, stream=True, **fields))
    assert exchange.headers[0][1].startswith(b"text/event-stream")
    events = (await read(exchange)).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    return [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]


def text_of(events: list[Json], index: int = 0, field: str = "content") -> str:
    deltas = [
        choice["delta"].get(field) or ""
        for event in events
        for choice in event["choices"]
        if choice["index"] == index
    ]
    return "".join(deltas)


async def test_json_answer_echoes_then_fills_up() -> None:
    answer = await ask(an_echo(answer_tokens=6))
    ChatCompletion.model_validate(answer, strict=True)
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "say hello Nothing was sent to"
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 6
    # "user\nsay hello" is 14 bytes: 4 tokens of 4 bytes.
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["total_tokens"] == 10


async def test_stream_says_the_same_as_json() -> None:
    echo = an_echo(answer_tokens=9, chunk=2)
    events = await stream(echo)
    for event in events:
        ChatCompletionChunk.model_validate(event, strict=True)
        assert "usage" not in event
    assert text_of(events) == (await ask(echo))["choices"][0]["message"]["content"]
    # role, 5 events of at most 2 tokens, finish_reason
    assert len(events) == 7
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


async def test_same_question_same_bytes() -> None:
    echo = an_echo()
    answers = [await read(await echo.send(a_request(stream=True))) for _ in range(2)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 3},
        {"max_completion_tokens": 3},
        {"max_tokens": 3, "max_completion_tokens": 5},
    ],
)
async def test_limit_cuts(fields: Json) -> None:
    answer = await ask(an_echo(answer_tokens=6), **fields)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["content"] == "say hello Nothing"
    assert answer["usage"]["completion_tokens"] == 3


async def test_limit_that_fits_does_not_cut() -> None:
    answer = await ask(an_echo(answer_tokens=6), max_tokens=6)
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_usage_event_only_if_asked_for() -> None:
    events = await stream(an_echo(), n=2, stream_options={"include_usage": True})
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 12
    without = await stream(an_echo(), stream_options={"include_usage": False})
    assert all("usage" not in event for event in without)


async def test_n_choices() -> None:
    answer = await ask(an_echo(), n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 18
    events = await stream(an_echo(), n=3)
    assert text_of(events, 0) == text_of(events, 2) != ""
    assert sum(e["choices"][0]["finish_reason"] == "stop" for e in events) == 3


async def test_reasoning_model_thinks_first_and_counts_it() -> None:
    answer = await ask(an_echo(answer_tokens=6), model="echo-reasoning")
    assert answer["choices"][0]["message"]["reasoning_content"] == "Let me see "
    assert answer["usage"]["completion_tokens"] == 9
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
    events = await stream(an_echo(answer_tokens=6), model="echo-reasoning")
    assert text_of(events, field="reasoning_content") == "Let me see "


async def test_reasoning_can_use_up_the_limit() -> None:
    answer = await ask(an_echo(answer_tokens=6), model="echo-reasoning", max_tokens=2)
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


async def test_tool_call_if_told_to_and_offered() -> None:
    text = "please call the tool weather now"
    answer = await ask(an_echo(), text, tools=TOOLS)
    ChatCompletion.model_validate(answer, strict=True)
    choice = answer["choices"][0]
    call = choice["message"]["tool_calls"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"text": text}
    events = await stream(an_echo(), text, tools=TOOLS)
    deltas = [c for e in events for c in e["choices"][0]["delta"].get("tool_calls", [])]
    assert "".join(d["function"]["arguments"] for d in deltas) == call["function"]["arguments"]
    assert deltas[0]["id"].startswith("call_")


@pytest.mark.parametrize(
    ("text", "tools"),
    [("call the tool weather", None), ("call the tool other", TOOLS), ("weather?", TOOLS)],
)
async def test_no_tool_call_otherwise(text: str, tools: object) -> None:
    answer = await ask(an_echo(), text, tools=tools)
    assert "tool_calls" not in answer["choices"][0]["message"]


async def test_prefix_that_was_seen_is_cached() -> None:
    echo = an_echo()
    text = "x" * 1000

    async def cached(text: str) -> object:
        usage = (await ask(echo, text))["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    # 1,005 bytes with the role: three whole steps of 256 bytes, 64 tokens each.
    assert [await cached(text), await cached(text)] == [0, 192]
    assert await cached(text[:600] + "y" * 400) == 128
    assert await cached("z" + text) == 0
    assert await cached("short") == 0


def test_prefix_cache_is_bounded_and_keeps_no_prompt() -> None:
    cache = PrefixCache(prefixes_max=4)
    for number in range(100):
        cache.look(b"%03d" % number * 200)
    assert len(cache._seen) == 4
    assert all(len(key) == 16 for key in cache._seen)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (b'{"model":"echo","messages":[]}', 400),
        (b'{"model":"echo","messages":[{"role":"user","content":5}]}', 400),
        (b'{"model":"echo","messages":[{"role":"user"}],"n":0}', 400),
        (b'{"model":"echo","messages":[{"role":"user"}],"max_tokens":0}', 400),
    ],
)
async def test_refusals(body: bytes, status: int) -> None:
    request = UpstreamRequest(path=b"/chat/completions", headers=(), body=body)
    exchange = await an_echo().send(request)
    assert exchange.status == status
    assert json.loads(await read(exchange))["error"]["type"] == "invalid_request_error"


async def test_other_paths_are_not_found() -> None:
    request = UpstreamRequest(path=b"/embeddings", headers=(), body=b"{}")
    assert (await an_echo().send(request)).status == 404


async def test_content_parts_and_unknown_fields_are_read_over() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    answer = await ask(an_echo(answer_tokens=1), messages=messages, temperature=0.5, foo=None)
    assert answer["choices"][0]["message"]["content"] == "one"


# Pace and control.


async def test_pace() -> None:
    loop = asyncio.get_running_loop()
    echo = an_echo(answer_tokens=20, tokens_per_second=200)
    for streamed in (False, True):
        start = loop.time()
        await read(await echo.send(a_request(stream=streamed)))
        assert 0.09 <= loop.time() - start < 1


async def test_stream_without_pace_leaves_the_loop_its_turns() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await stream(an_echo(answer_tokens=1000))
    counting.cancel()
    assert turns > 20


@pytest.mark.parametrize("tokens_per_second", [0, 1000])
async def test_pause_stops_and_resume_goes_on(tokens_per_second: float) -> None:
    echo = an_echo(answer_tokens=50, tokens_per_second=tokens_per_second)
    whole = await read(await echo.send(a_request(stream=True)))
    exchange = await echo.send(a_request(stream=True))
    pieces: list[bytes] = []

    def on_data(data: bytes) -> None:
        pieces.append(data)
        if len(pieces) == 3:
            exchange.pause()

    relay = asyncio.create_task(exchange.relay(on_data))
    await asyncio.sleep(0.05)
    assert len(pieces) == 3
    exchange.resume()
    await relay
    assert b"".join(pieces) == whole


async def test_abort_ends_relay() -> None:
    echo = an_echo(tokens_per_second=1)
    exchange = await echo.send(a_request(stream=True))
    relay = asyncio.create_task(read(exchange))
    await asyncio.sleep(0)
    exchange.abort()
    with pytest.raises(Aborted):
        await relay
    before = await echo.send(a_request())
    before.abort()
    with pytest.raises(Aborted):
        await read(before)
    exchange.resume()  # harmless at the end
    assert echo.stats().open == 0


async def test_abort_within_on_data() -> None:
    exchange = await an_echo().send(a_request(stream=True))
    pieces: list[bytes] = []

    def on_data(data: bytes) -> None:
        pieces.append(data)
        exchange.abort()

    with pytest.raises(Aborted):
        await exchange.relay(on_data)
    assert len(pieces) == 1


async def test_what_on_data_raises_comes_out_of_relay() -> None:
    def refuse(data: bytes) -> None:
        raise LookupError

    exchange = await an_echo().send(a_request())
    with pytest.raises(LookupError):
        await exchange.relay(refuse)
    assert exchange.done


async def test_cancelled_relay_leaves_no_timer() -> None:
    exchange = await an_echo(tokens_per_second=1).send(a_request(stream=True))
    relay = asyncio.create_task(read(exchange))
    await asyncio.sleep(0)
    relay.cancel()
    with pytest.raises(asyncio.CancelledError):
        await relay
    assert exchange.done
    assert exchange._timer is None


async def test_close_ends_everything() -> None:
    echo = an_echo(tokens_per_second=1)
    relay = asyncio.create_task(read(await echo.send(a_request())))
    await asyncio.sleep(0)
    await echo.close()
    with pytest.raises(Aborted):
        await relay
    with pytest.raises(Aborted) as caught:
        await echo.send(a_request())
    assert not caught.value.sent


def test_both_kinds_fit_the_port() -> None:
    """Mypy is the judge of the shapes; this line is what it looks at."""
    kinds: list[type[Upstream]] = [EchoUpstream, HttpUpstream]
    shape: type[Exchange] = EchoExchange
    assert len(kinds) == 2
    assert shape is EchoExchange
