"""The provider fails at each stage: who pays, and that the client can tell a whole answer from a broken one."""

import gzip
import json

import pytest

from tests.support.gateway import Charge, GatewayProcess, TestAccount, price, until
from tests.support.provider import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    Gate,
    Reset,
    ScriptedProvider,
    Step,
    completion,
    delta,
    event,
    head,
    http_chunk,
    json_answer,
    json_bytes,
    stream_answer,
    usage,
    usage_event,
)
from tests.support.rawhttp import chat

USED = usage(100, 20)  # 360 micro-credits
BODY = json.dumps(completion("three words here", USED)).encode()
WORDS = [event(delta(word)) for word in ("one", " two", " three")]
FINISH = event(delta(None, finish="stop"))
NEVER = Gate()  # nobody opens it
ERROR_EVENT = event({"error": {"message": "overloaded", "type": "server_error", "code": None}})


def outcome(gateway: GatewayProcess, account: TestAccount) -> Charge:
    """The one final word on the account's only call."""

    def found() -> Charge | None:
        with gateway.books() as books:
            rows = books.charges(account.id) + books.cancelled(account.id)
            return rows[0] if rows and not books.held(account.id) else None

    charge = until(found, "the hold to be resolved")
    with gateway.books() as books:
        assert len(books.charges(account.id)) + len(books.cancelled(account.id)) == 1
        assert books.balance(account.id) == 1_000_000_000 - charge.amount
    return charge


# Before anything of an answer: the client gets an error, nobody pays.
BEFORE: dict[str, tuple[str, list[Step], int, str]] = {
    "closes": ("m-small", [Close()], 502, "upstream_error"),
    "resets": ("m-small", [Reset()], 502, "upstream_error"),
    "closes_in_head": ("m-small", [b"HTTP/1.1 200 OK\r\nContent-", Close()], 502, "upstream_error"),
    "speaks_no_http": ("m-small", [b"SSH-2.0-OpenSSH_9.6\r\n\r\n", Close()], 502, "upstream_error"),
    "both_framings": (
        "m-small",
        [b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", NEVER],
        502,
        "upstream_error",
    ),
    "endless_head": (
        "m-small",
        [b"HTTP/1.1 200 OK\r\n" + b"X-Filler: 0123456789\r\n" * 20_000, NEVER],
        502,
        "upstream_error",
    ),
    "says_nothing": ("m-hasty", [NEVER], 504, "upstream_timeout"),
    "refuses_connection": ("m-nobody", [], 502, "upstream_error"),
    "html_error": (
        "m-small",
        [head(500, "Content-Length: 13", content_type="text/html") + b"<html></html>"],
        502,
        "upstream_error",
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BEFORE)
def test_failure_before_the_answer_costs_nothing(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    account: TestAccount,
    name: str,
    stream: bool,
) -> None:
    model, steps, status, code = BEFORE[name]
    script = provider.script(*steps)
    reply = gateway.call(chat(model=model, stream=stream, x_script=script), account.key)
    assert (reply.status, reply.code) == (status, code)
    assert outcome(gateway, account).cancelled


# A JSON answer that is cut short is 502, free, and SDKs must not repeat it by themselves.
CUT_JSON: dict[str, tuple[str, list[Step]]] = {
    "closes": ("m-small", [head(200, f"Content-Length: {len(BODY)}") + BODY[:-5], Close()]),
    "resets": ("m-small", [head(200, f"Content-Length: {len(BODY)}") + BODY[:50], Reset()]),
    "stalls": ("m-hasty", [head(200, f"Content-Length: {len(BODY)}") + BODY[:50], NEVER]),
    "no_last_chunk": (
        "m-small",
        [head(200, "Transfer-Encoding: chunked") + http_chunk(BODY), Close()],
    ),
    "wrong_chunk": (
        "m-small",
        [head(200, "Transfer-Encoding: chunked") + b"zz\r\n" + BODY + b"\r\n", NEVER],
    ),
    "unknown_coding": (
        "m-small",
        [head(200, "Content-Encoding: br", f"Content-Length: {len(BODY)}") + BODY],
    ),
    "broken_gzip": (
        "m-small",
        [head(200, "Content-Encoding: gzip", f"Content-Length: {len(BODY)}") + BODY],
    ),
}


@pytest.mark.parametrize("name", CUT_JSON)
def test_cut_json_answer_is_free(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount, name: str
) -> None:
    model, steps = CUT_JSON[name]
    script = provider.script(*steps)
    reply = gateway.call(chat(model=model, x_script=script), account.key)
    assert (reply.status, reply.code) == (502, "upstream_error")
    assert reply.headers["x-should-retry"] == "false"
    assert outcome(gateway, account).cancelled


# A stream that breaks after content: paid is what was delivered, or what was reported before.
BROKEN: dict[str, tuple[str, list[Step], int | None]] = {
    "closes": ("m-small", [STREAM_HEAD, *WORDS, Close()], None),
    "resets_after_a_while": ("m-hasty", [STREAM_HEAD, *WORDS, NEVER], None),
    "closes_in_event": ("m-small", [STREAM_HEAD, *WORDS, WORDS[0][:20], Close()], None),
    "wrong_chunk": ("m-small", [STREAM_HEAD, *WORDS, b"zz\r\n", NEVER], None),
    "error_event": ("m-small", [STREAM_HEAD, *WORDS, ERROR_EVENT + LAST_CHUNK], None),
    "error_event_then_done": (
        "m-small",
        [STREAM_HEAD, *WORDS, ERROR_EVENT, DONE + LAST_CHUNK],
        None,
    ),
    "closes_after_usage": (
        "m-small",
        [STREAM_HEAD, *WORDS, FINISH, usage_event(USED), Close()],
        360,
    ),
    "stalls_after_usage": (
        "m-hasty",
        [STREAM_HEAD, *WORDS, FINISH, usage_event(USED), NEVER],
        360,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_stream_is_paid_as_far_as_it_was_delivered(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount, name: str
) -> None:
    model, steps, amount = BROKEN[name]
    script = provider.script(*steps)
    reply = gateway.call(chat(model=model, stream=True, x_script=script), account.key)
    assert reply.status == 200
    assert b"[DONE]" not in reply.body
    assert any("error" in json.loads(data) for data in reply.events)
    assert b'" three"' in reply.body
    charge = outcome(gateway, account)
    assert (charge.quality, charge.reason) == ("partial", "broken")
    if amount is None:
        assert 0 < charge.output <= 20
        assert charge.input > 0
        assert charge.amount == price(charge.input, charge.output)
    else:
        assert charge.amount == amount


@pytest.mark.parametrize(
    "steps",
    [
        [STREAM_HEAD, Close()],
        [STREAM_HEAD, event(delta("")), Close()],
        [STREAM_HEAD, ERROR_EVENT + LAST_CHUNK],
    ],
)
def test_stream_that_breaks_without_content_is_free(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    account: TestAccount,
    steps: list[Step],
) -> None:
    script = provider.script(*steps)
    reply = gateway.call(chat(stream=True, x_script=script), account.key)
    assert b"[DONE]" not in reply.body
    assert outcome(gateway, account).cancelled


def test_no_usage_is_estimated_not_zero(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    body = completion("some words that cost something")
    del body["usage"]
    script = provider.script(*json_answer(body))
    assert gateway.call(chat(x_script=script), account.key).status == 200
    charge = outcome(gateway, account)
    assert charge.quality == "estimated"
    assert charge.input > 0
    assert charge.output > 0
    assert charge.amount == price(charge.input, charge.output)


def test_empty_answer_without_usage_is_free(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    script = provider.script(STREAM_HEAD, FINISH, DONE + LAST_CHUNK)
    assert gateway.call(chat(stream=True, x_script=script), account.key).status == 200
    assert outcome(gateway, account).cancelled


@pytest.mark.parametrize(
    "used",
    [
        usage(-5, 10),
        {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 5},
        usage(10, 1_000_000_000),  # far over twice the hold
    ],
)
def test_impossible_usage_is_estimated_and_flagged(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    account: TestAccount,
    used: dict[str, object],
) -> None:
    script = provider.script(*json_answer(completion("two words", used)))
    assert gateway.call(chat(x_script=script), account.key).status == 200
    charge = outcome(gateway, account)
    assert charge.quality == "suspicious"
    assert 0 < charge.amount <= 2 * 200 + 8 * 1000


def test_cached_over_input_is_all_input(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    script = provider.script(*json_answer(completion("hi", usage(100, 20, cached=150))))
    gateway.call(chat(x_script=script), account.key)
    # All 100 count as cached: 100 x 1 + 20 x 8.
    assert outcome(gateway, account).amount == 260


def test_gzip_is_decoded(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    packed = gzip.compress(BODY)
    script = provider.script(
        head(200, "Content-Encoding: gzip", f"Content-Length: {len(packed)}") + packed
    )
    reply = gateway.call(chat(x_script=script), account.key)
    assert (reply.status, reply.body) == (200, BODY)
    assert "content-encoding" not in reply.headers
    assert outcome(gateway, account).amount == 360


def test_interim_answers_are_skipped(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    answer = json_bytes(completion("hi", USED))
    script = provider.script(interim + answer)
    assert gateway.call(chat(x_script=script), account.key).status == 200
    assert outcome(gateway, account).amount == 360


def test_json_answer_to_a_streamed_request_is_json(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    script = provider.script(*json_answer(completion("hi", USED)))
    reply = gateway.call(chat(stream=True, x_script=script), account.key)
    assert reply.headers["content-type"].startswith("application/json")
    assert outcome(gateway, account).amount == 360


def test_broken_connection_is_not_used_again(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    extra = json_bytes(completion("left over", usage(1, 1)))
    answer = json_bytes(completion("hi", USED))
    # Bytes behind the answer's end would be taken for the next caller's answer.
    script = provider.script(answer + extra)
    first = gateway.call(chat(x_script=script), account.key)
    assert first.status in (200, 502)
    assert b"left over" not in first.body
    later = provider.script(*stream_answer(["mine"], USED))
    reply = gateway.call(chat(stream=True, x_script=later), account.key)
    assert b'"mine"' in reply.body
    assert provider.wait_call(later).connection != provider.wait_call(script).connection
    paid = 2 if first.status == 200 else 1
    assert [c.amount for c in gateway.settle(account.id, paid)] == [360] * paid


def test_connections_are_reused_after_whole_answers(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    script = provider.script(*json_answer(completion("hi", USED)))
    for _ in range(5):
        assert gateway.call(chat(x_script=script), account.key).status == 200
    assert len({seen.connection for seen in provider.calls(script)}) == 1


def test_stale_pooled_connection_is_replaced_without_a_word(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    # Answers and closes right away, though the answer did not say so.
    script = provider.script(*json_answer(completion("hi", USED)), Close())
    for _ in range(5):
        assert gateway.call(chat(x_script=script), account.key).status == 200
    assert [c.amount for c in gateway.settle(account.id, 5)] == [360] * 5


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_counted_by_us_counts_tools_and_odd_parts(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount, stream: bool
) -> None:
    """The provider tells no usage: nobody pays for what we cannot count, so we have to."""
    tool = {"type": "function", "function": {"name": "weather", "description": "word " * 400}}
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    bare = completion("three words here")
    del bare["usage"]
    steps = [STREAM_HEAD, *WORDS, FINISH, DONE + LAST_CHUNK] if stream else json_answer(bare)
    body = chat(messages=messages, tools=[tool], stream=stream, x_script=provider.script(*steps))
    # In a part whose type is another this is nobody's text, whatever it is.
    odd = b'{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": "x", "text": 1e999}'
    body = body.replace(b'{"type": "text", "text": "hi"}', odd)
    assert odd in body
    assert gateway.call(body, account.key).status == 200
    charge = outcome(gateway, account)
    assert (charge.quality, charge.cancelled) == ("estimated", False)
    assert charge.input > 300 + 1_000  # the tool's 400 words, about, and the picture
    assert charge.amount > 0
