"""The openai SDK works unchanged against the gateway: answers, streams, and errors as its own classes."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from tests.support.gateway import GatewayProcess, TestAccount, price
from tests.support.provider import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    ScriptedProvider,
    completion,
    delta,
    event,
    json_answer,
    stream_answer,
    usage,
    usage_event,
)

SAY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
TOOLS: list[ChatCompletionFunctionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


@pytest.fixture
def client(gateway: GatewayProcess, account: TestAccount) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{gateway.port}/v1"
    with openai.OpenAI(base_url=url, api_key=account.key, max_retries=0, timeout=15) as client:
        yield client


@pytest.fixture
async def async_client(
    gateway: GatewayProcess, account: TestAccount
) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://127.0.0.1:{gateway.port}/v1"
    async with openai.AsyncOpenAI(
        base_url=url, api_key=account.key, max_retries=0, timeout=15
    ) as client:
        yield client


def test_json_answer_and_its_charge(
    client: openai.OpenAI,
    gateway: GatewayProcess,
    account: TestAccount,
    provider: ScriptedProvider,
) -> None:
    script = provider.script(*json_answer(completion("Good day", usage(100, 20, cached=40))))
    raw = client.chat.completions.with_raw_response.create(
        model="m-small",
        messages=SAY,
        extra_body={"x_script": script},
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "Good day"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 100
    # 60 x 2 + 40 x 1 + 20 x 8
    assert raw.headers["x-charged-micro-credits"] == "320"
    assert raw.headers["x-price-rule"] == "small"
    [charge] = gateway.settle(account.id, 1)
    assert charge.event_id == raw.headers["x-request-id"]
    assert (charge.amount, charge.quality) == (320, "exact")
    assert (charge.input, charge.cached_input, charge.output) == (60, 40, 20)
    with gateway.books() as books:
        assert books.balance(account.id) == 1_000_000_000 - 320


@pytest.mark.parametrize("include", [True, False, None])
def test_stream_options_decide_what_the_client_sees_of_usage(
    client: openai.OpenAI,
    gateway: GatewayProcess,
    account: TestAccount,
    provider: ScriptedProvider,
    include: bool | None,
) -> None:
    script = provider.script(*stream_answer(["a", "b", "c"], usage(30, 3)))
    with client.chat.completions.create(
        model="m-small",
        messages=SAY,
        stream=True,
        stream_options=openai.omit if include is None else {"include_usage": include},
        extra_body={"x_script": script},
    ) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "abc"
    usages = [c.usage for c in chunks if c.usage is not None]
    assert len(usages) == (1 if include else 0)
    assert all(c.choices for c in chunks if c.usage is None)
    asked = provider.wait_call(script).json["stream_options"]
    assert asked == {"include_usage": True}
    [charge] = gateway.settle(account.id, 1)
    assert (charge.amount, charge.quality) == (price(30, 3), "exact")


def test_tools_pass_both_ways(
    client: openai.OpenAI, gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    called = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Nîmes"}'},
    }
    body = completion("", usage(50, 9))
    body["choices"] = [
        {
            "index": 0,
            "message": {"role": "assistant", "content": None, "tool_calls": [called]},
            "finish_reason": "tool_calls",
        }
    ]
    script = provider.script(*json_answer(body))
    answer = client.chat.completions.create(
        model="m-small",
        messages=SAY,
        tools=TOOLS,
        extra_body={"x_script": script},
    )
    assert provider.wait_call(script).json["tools"] == TOOLS
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.arguments == '{"city": "Nîmes"}'  # type: ignore[union-attr]
    [charge] = gateway.settle(account.id, 1)
    assert charge.amount == price(50, 9)


def test_streamed_tool_call_arrives_in_its_pieces(
    client: openai.OpenAI, gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    def piece(**function: str) -> bytes:
        chunk = delta(None)
        tool = {"index": 0, "function": function}
        chunk["choices"] = [{"index": 0, "delta": {"tool_calls": [tool]}, "finish_reason": None}]
        return event(chunk)

    script = provider.script(
        STREAM_HEAD,
        piece(name="weather", arguments=""),
        piece(arguments='{"city"'),
        piece(arguments=': "Rome"}'),
        event(delta(None, finish="tool_calls")),
        usage_event(usage(40, 11)),
        DONE + LAST_CHUNK,
    )
    with client.chat.completions.create(
        model="m-small",
        messages=SAY,
        stream=True,
        tools=TOOLS,
        extra_body={"x_script": script},
    ) as stream:
        arguments = "".join(
            call.function.arguments or ""
            for chunk in stream
            for call in chunk.choices[0].delta.tool_calls or ()
            if call.function
        )
    assert arguments == '{"city": "Rome"}'
    [charge] = gateway.settle(account.id, 1)
    assert charge.amount == price(40, 11)


def test_n_2_holds_and_charges_both_choices(
    client: openai.OpenAI, gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    script = provider.script(*json_answer(completion("hi", usage(10, 8), n=2)))
    answer = client.chat.completions.create(
        model="m-small",
        messages=SAY,
        n=2,
        max_tokens=100,
        extra_body={"x_script": script},
    )
    assert len(answer.choices) == 2
    sent = provider.wait_call(script).json
    assert (sent["n"], sent["max_tokens"]) == (2, 100)
    [charge] = gateway.settle(account.id, 1)
    assert charge.amount == price(10, 8)


def test_unknown_fields_pass_unchanged(
    client: openai.OpenAI, provider: ScriptedProvider, gateway: GatewayProcess
) -> None:
    script = provider.script(*json_answer())
    fields = {"logprobs": True, "seed": 7, "vendor": {"deep": [1, None, "é"]}, "x_script": script}
    client.chat.completions.create(
        model="m-small",
        messages=SAY,
        extra_body=fields,
    )
    sent = provider.wait_call(script).json
    assert {name: sent[name] for name in fields} == fields
    assert sent["messages"] == SAY
    assert sent["model"] == "m-small-2026"
    assert provider.wait_call(script).headers["authorization"] == "Bearer key-of-the-provider"


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert "m-small" in names
    assert client.models.retrieve("m-small").id == "m-small"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("m-smal")


async def test_async_json_answer(
    async_client: openai.AsyncOpenAI,
    gateway: GatewayProcess,
    account: TestAccount,
    provider: ScriptedProvider,
) -> None:
    script = provider.script(*json_answer(completion("Good day", usage(7, 3))))
    answer = await async_client.chat.completions.create(
        model="m-small",
        messages=SAY,
        extra_body={"x_script": script},
    )
    assert answer.choices[0].message.content == "Good day"
    [charge] = gateway.settle(account.id, 1)
    assert charge.amount == price(7, 3)


async def test_async_stream(
    async_client: openai.AsyncOpenAI,
    gateway: GatewayProcess,
    account: TestAccount,
    provider: ScriptedProvider,
) -> None:
    script = provider.script(*stream_answer(["x"] * 50, usage(7, 50)))
    stream = await async_client.chat.completions.create(
        model="m-small", messages=SAY, stream=True, extra_body={"x_script": script}
    )
    async with stream:
        words = [c.choices[0].delta.content async for c in stream]
    assert words == ["x"] * 50 + [None]
    [charge] = gateway.settle(account.id, 1)
    assert charge.amount == price(7, 50)


def test_tokens_are_seen_as_they_come(
    client: openai.OpenAI, gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    from tests.support.provider import Gate

    gate = Gate()
    first, *rest = stream_answer(["one", "two"])[1:]
    script = provider.script(STREAM_HEAD, first, gate, *rest)
    with client.chat.completions.create(
        model="m-small", messages=SAY, stream=True, extra_body={"x_script": script}
    ) as stream:
        chunks = iter(stream)
        assert next(chunks).choices[0].delta.content == "one"  # the second is not even sent yet
        gate.open()
        assert next(chunks).choices[0].delta.content == "two"


UPSTREAM_STATUS = {
    # status of the provider: class the SDK raises, status the client sees
    400: (openai.BadRequestError, 400),
    401: (openai.InternalServerError, 502),
    402: (openai.InternalServerError, 502),
    403: (openai.InternalServerError, 502),
    404: (openai.NotFoundError, 404),
    413: (openai.APIStatusError, 413),
    422: (openai.UnprocessableEntityError, 422),
    429: (openai.RateLimitError, 429),
    500: (openai.InternalServerError, 502),
    503: (openai.InternalServerError, 502),
}


@pytest.mark.parametrize("status", UPSTREAM_STATUS)
@pytest.mark.parametrize("stream", [False, True])
def test_provider_status_becomes_exception(
    client: openai.OpenAI,
    gateway: GatewayProcess,
    account: TestAccount,
    provider: ScriptedProvider,
    status: int,
    stream: bool,
) -> None:
    error = {"error": {"message": "no, thanks", "type": "x", "param": None, "code": "y"}}
    script = provider.script(*json_answer(error, status=status, headers=["Retry-After: 7"]))
    expected, seen = UPSTREAM_STATUS[status]
    with pytest.raises(expected) as caught:
        client.chat.completions.create(
            model="m-small",
            messages=SAY,
            stream=stream,
            extra_body={"x_script": script},
        )
    assert isinstance(caught.value, openai.APIStatusError)
    assert caught.value.status_code == seen
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "7"
    if status in (400, 404, 413, 422):
        assert "no, thanks" in str(caught.value)
    else:
        assert "no, thanks" not in str(caught.value)
    with gateway.books() as books:
        assert books.held(account.id) == 0
        assert books.balance(account.id) == 1_000_000_000
        assert books.charges(account.id) == []


def test_errors_of_the_gateway_become_exceptions(
    client: openai.OpenAI, gateway: GatewayProcess
) -> None:
    def create(using: openai.OpenAI, model: str = "m-small", **options: object) -> None:
        using.chat.completions.create(  # type: ignore[call-overload]
            model=model, messages=SAY, **options
        )

    with pytest.raises(openai.AuthenticationError) as unknown:
        create(client.with_options(api_key="lgw_" + "x" * 43))
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as missing:
        create(client, "m-smal")
    assert missing.value.code == "model_not_found"
    assert "m-small" in str(missing.value)
    with pytest.raises(openai.BadRequestError) as unpriced:
        create(client, "unpriced")
    assert unpriced.value.code == "no_price_rule"
    assert "[[rule]]" in str(unpriced.value)
    with pytest.raises(openai.PermissionDeniedError) as scene:
        create(client, extra_headers={"X-Scene": "cheaper"})
    assert scene.value.code == "scene_not_allowed"
    with pytest.raises(openai.PermissionDeniedError):
        create(client, extra_headers={"X-Billing-User": "somebody-else"})
    with pytest.raises(openai.APIStatusError) as large:
        create(client, extra_body={"padding": "x" * 1_000_001})
    assert large.value.status_code == 413
    poor = gateway.account(micro_credits=10)
    with pytest.raises(openai.APIStatusError) as insufficient:
        create(client.with_options(api_key=poor.key))
    assert insufficient.value.status_code == 402
    assert insufficient.value.code == "insufficient_credit"
    body = insufficient.value.body
    assert isinstance(body, dict)
    assert body["balance_micro_credits"] == 10


def test_free_model_passes_at_balance_zero_and_is_an_entry(
    client: openai.OpenAI, gateway: GatewayProcess
) -> None:
    broke = gateway.account(micro_credits=0)
    client.with_options(api_key=broke.key).chat.completions.create(
        model="m-free",
        messages=SAY,
    )
    [charge] = gateway.settle(broke.id, 1)
    assert (charge.amount, charge.rule) == (0, "free")
