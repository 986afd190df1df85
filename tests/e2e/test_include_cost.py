"""X-Include-Cost: the answer itself says what it cost, and says what was charged."""

import gzip
import json
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.gateway import GatewayProcess, TestAccount
from tests.support.provider import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    ScriptedProvider,
    Step,
    completion,
    delta,
    event,
    head,
    json_answer,
    stream_answer,
    usage,
    usage_event,
)
from tests.support.rawhttp import Reply, chat

SAY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
ASK = {"X-Include-Cost": "true"}


@pytest.fixture
def client(gateway: GatewayProcess, account: TestAccount) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{gateway.port}/v1"
    with openai.OpenAI(
        base_url=url, api_key=account.key, max_retries=0, timeout=15, default_headers=ASK
    ) as client:
        yield client


def ask(
    gateway: GatewayProcess,
    account: TestAccount,
    provider: ScriptedProvider,
    steps: list[Step],
    *,
    stream: bool = False,
    asked: str = "true",
) -> Reply:
    body = chat(x_script=provider.script(*steps), stream=stream)
    return gateway.call(body, account.key, {"X-Include-Cost": asked} if asked else {})


def test_sdk_sees_the_cost_of_a_json_answer(
    client: openai.OpenAI, provider: ScriptedProvider, gateway: GatewayProcess, account: TestAccount
) -> None:
    script = provider.script(*json_answer(completion("Hi", usage(100, 20, cached=40))))
    answer = client.chat.completions.create(
        model="m-small", messages=SAY, extra_body={"x_script": script}
    )
    assert answer.usage is not None
    # (60 x 2 + 40 x 1 + 20 x 8) micro-credits
    assert answer.usage.model_extra == {"cost": 0.00032}
    assert answer.usage.prompt_tokens == 100
    [charge] = gateway.settle(account.id, 1)
    assert charge.amount == 320


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_usage": True}])
def test_sdk_sees_the_cost_of_a_stream_in_its_usage_event(
    client: openai.OpenAI, provider: ScriptedProvider, options: dict[str, bool] | None
) -> None:
    script = provider.script(*stream_answer(["a", "b"], usage(100, 20, cached=40)))
    body = {"x_script": script} | ({"stream_options": options} if options else {})
    with client.chat.completions.create(
        model="m-small", messages=SAY, stream=True, extra_body=body
    ) as stream:
        *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "ab"
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage and last.usage.completion_tokens) == ([], 20)
    assert last.usage is not None
    assert last.usage.model_extra == {"cost": 0.00032}


def test_every_other_byte_of_a_json_answer_stays(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    body = (
        b'{ "id":"x",\t"choices":[{"message":{"content":"\\u00e9 \xc3\xa9 \\"usage\\":{}"},"n":1e3}],'
        b'\r\n"usage" : {"prompt_tokens":100,"completion_tokens":20 } ,"z":[{}]}\n'
    )
    reply = ask(gateway, account, provider, [head(200, f"Content-Length: {len(body)}") + body])
    # 100 x 2 + 20 x 8
    assert reply.body == body.replace(b":20 }", b':20,"cost":0.00036 }')
    assert int(reply.headers["content-length"]) == len(reply.body)
    assert reply.headers["x-charged-micro-credits"] == "360"


def test_a_packed_answer_has_it_as_well(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    packed = gzip.compress(json.dumps(completion("Hi", usage(100, 20))).encode())
    steps: list[Step] = [
        head(200, "Content-Encoding: gzip", f"Content-Length: {len(packed)}") + packed
    ]
    reply = ask(gateway, account, provider, steps)
    assert reply.json["usage"] == usage(100, 20) | {"cost": 0.00036}
    assert "content-encoding" not in reply.headers


def test_an_answer_without_usage_gets_what_was_charged(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    bare = completion("Hello there, how are you?")
    del bare["usage"]
    reply = ask(gateway, account, provider, json_answer(bare))
    [charge] = gateway.settle(account.id, 1)
    assert charge.quality == "estimated"
    told = reply.json["usage"]
    assert isinstance(told, dict)
    assert told["prompt_tokens"] == charge.input > 0
    assert told["completion_tokens"] == charge.output > 0
    assert told["cost"] == charge.amount / 1_000_000
    assert {**reply.json, "usage": None} == {**bare, "usage": None}


def test_the_cost_of_the_provider_is_kept_beside_ours(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    used = usage(100, 20) | {"cost": 0.0012}
    reply = ask(gateway, account, provider, json_answer(completion("Hi", used)))
    assert reply.json["usage"] == usage(100, 20) | {"provider_cost": 0.0012, "cost": 0.00036}
    event_id = reply.headers["x-request-id"]
    gateway.settle(account.id, 1)
    charge = gateway.get(f"/credit-store/charges/{event_id}", account.key).json
    assert charge["provider_cost"] == "0.0012"
    assert charge["amount_micro_credits"] == 360


def test_an_empty_answer_costs_0_and_says_so(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    reply = ask(gateway, account, provider, [STREAM_HEAD + DONE + LAST_CHUNK], stream=True)
    [last, done] = reply.events
    assert json.loads(last)["usage"]["cost"] == 0
    assert done == "[DONE]"
    with gateway.books() as books:
        assert [each.reason for each in books.cancelled(account.id)] == ["empty"]


# Streams without a usage-only event at their end: steps, and how sure the charge is.
ODD_STREAMS: dict[str, tuple[list[Step], str]] = {
    "usage beside the last choice": (
        [
            event(delta("Hello")),
            event(delta(None, finish="stop", usage_null=False) | {"usage": usage(100, 20)}),
            DONE + LAST_CHUNK,
        ],
        "exact",
    ),
    "usage in every chunk": (
        [
            event(delta("Hello", usage_null=False) | {"usage": usage(100, 1)}),
            event(delta(" you", finish="stop", usage_null=False) | {"usage": usage(100, 2)}),
            DONE + LAST_CHUNK,
        ],
        "exact",
    ),
    "usage in the middle": (
        [usage_event(usage(100, 20)), event(delta("Hello", finish="stop")), DONE + LAST_CHUNK],
        "exact",
    ),
    "usage never": (
        [event(delta("Hello")), event(delta(" you", finish="stop")), DONE + LAST_CHUNK],
        "estimated",
    ),
    "neither usage nor [DONE]": (
        [event(delta("Hello")), event(delta(" you", finish="stop")), LAST_CHUNK],
        "estimated",
    ),
    "two choices": (
        [
            event(delta("a", index=0)),
            event(delta("b", index=1)),
            event(delta(None, index=0, finish="stop")),
            event(delta(None, index=1, finish="stop")),
            usage_event(usage(100, 20)),
            DONE + LAST_CHUNK,
        ],
        "exact",
    ),
}


@pytest.mark.parametrize("name", ODD_STREAMS)
def test_a_stream_ends_with_what_was_charged(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider, name: str
) -> None:
    steps, quality = ODD_STREAMS[name]
    reply = ask(gateway, account, provider, [STREAM_HEAD, *steps], stream=True)
    assert reply.whole
    [charge] = gateway.settle(account.id, 1)
    assert charge.quality == quality
    events = reply.events
    if "nor" not in name:
        assert events.pop() == "[DONE]"
    told = [json.loads(data) for data in events]
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["cost"] == charge.amount / 1_000_000
    assert told[-1]["usage"]["prompt_tokens"] == charge.input
    assert sum("cost" in (each["usage"] or {}) for each in told) == 1


def test_a_broken_stream_tells_what_it_cost_before_the_error(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    steps: list[Step] = [STREAM_HEAD, event(delta("Hello")), Close()]
    reply = ask(gateway, account, provider, steps, stream=True)
    _, told, error = [json.loads(data) for data in reply.events]
    assert error["error"]["code"] == "upstream_error"
    [charge] = gateway.settle(account.id, 1)
    assert charge.quality == "partial"
    assert told["usage"]["cost"] == charge.amount / 1_000_000


def test_a_stream_that_failed_before_its_first_word_cost_nothing(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    reply = ask(gateway, account, provider, [STREAM_HEAD, Close()], stream=True)
    told, error = [json.loads(data) for data in reply.events]
    assert told["usage"]["cost"] == 0
    assert error["error"]["code"] == "upstream_error"
    with gateway.books() as books:
        assert books.balance(account.id) == 1_000_000_000


@pytest.mark.parametrize("asked", ["", "false", "0"])
@pytest.mark.parametrize("stream", [False, True])
def test_who_does_not_ask_is_not_told(
    gateway: GatewayProcess,
    account: TestAccount,
    provider: ScriptedProvider,
    asked: str,
    stream: bool,
) -> None:
    steps = stream_answer() if stream else json_answer()
    reply = ask(gateway, account, provider, steps, stream=stream, asked=asked)
    assert reply.status == 200
    assert b"cost" not in reply.body
    assert stream or reply.json == completion()


def test_another_value_is_400_and_nothing_is_sent(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    seen = len(provider.seen)
    reply = ask(gateway, account, provider, json_answer(), asked="yes")
    assert (reply.status, reply.code) == (400, "invalid_request")
    assert len(provider.seen) == seen


def test_the_header_is_not_passed_on(client: openai.OpenAI, provider: ScriptedProvider) -> None:
    script = provider.script(*json_answer())
    client.chat.completions.create(model="m-small", messages=SAY, extra_body={"x_script": script})
    assert "x-include-cost" not in provider.wait_call(script).headers
