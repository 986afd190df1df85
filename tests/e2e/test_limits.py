"""Limits of a key on the data plane: refused calls cost nothing, and every call ends exactly once."""

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.fleet import FleetGateway, Stream, fleet
from tests.support.gateway import GatewayProcess, TestAccount, until
from tests.support.provider import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Gate,
    ScriptedProvider,
    completion,
    delta,
    event,
    json_answer,
    usage,
    usage_event,
)
from tests.support.rawhttp import Reply, chat, request
from tests.support.redis_server import RedisServer
from tests.support.services import PostgresServer, pg_rows

SAY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
COLUMNS = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "calls": "concurrent_calls",
}


def limit(gateway: GatewayProcess, account: TestAccount, **limits: int) -> TestAccount:
    """Give the account's key limits before it is used for the first time."""
    assert limits.keys() <= COLUMNS.keys()
    connection = sqlite3.connect(gateway.database, timeout=10)
    with contextlib.closing(connection), connection:
        for name, value in limits.items():
            connection.execute(
                f"UPDATE api_keys SET {COLUMNS[name]} = ? WHERE id = ?", (value, account.key_id)
            )
    return account


def limit_headers(headers: Mapping[str, str]) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {
        name[len(prefix) :]: value for name, value in headers.items() if name.startswith(prefix)
    }


def refusal(reply: Reply) -> dict[str, object]:
    assert (reply.status, reply.code) == (429, "rate_limited"), reply.body
    error = reply.json["error"]
    assert isinstance(error, dict)
    return error


def cost_of(limit_of_output: int, body: bytes) -> int:
    """What a call takes of its key's tokens: a quarter of its bytes, and its output."""
    return -(-len(body) // 4) + limit_of_output


@contextlib.contextmanager
def held_open(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount, calls: int
) -> Iterator[Gate]:
    """So many calls under way, until the block ends or the gate opens; then their answers are read."""
    gate = Gate()
    script = provider.script(gate, *json_answer())
    body = chat(max_tokens=10, x_script=script)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.connect()) for _ in range(calls)]
        for client in clients:
            client.send(request(body=body, key=account.key))
        provider.wait_call(script, calls)
        yield gate
        gate.open()
        assert [client.read_reply().status for client in clients] == [200] * calls


def test_requests_of_a_minute(gateway: GatewayProcess, account: TestAccount) -> None:
    limit(gateway, account, requests=2)
    body = chat(max_tokens=10)
    replies = [gateway.call(body, account.key) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    first = limit_headers(replies[0].headers)
    assert first == {"limit-requests": "2", "remaining-requests": "1", "reset-requests": "30s"}
    error = refusal(replies[2])
    assert error["limit"] == "requests"
    assert "2 requests per minute" in str(error["message"])
    headers = replies[2].headers
    wait = int(headers["retry-after-ms"])
    assert 20_000 < wait <= 30_000
    assert int(headers["retry-after"]) == -(-wait // 1000)
    assert limit_headers(headers)["remaining-requests"] == "0"
    gateway.settle(account.id, 2)  # what was refused held and charged nothing


def test_a_key_without_limits_is_told_of_none(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    reply = gateway.call(chat(max_tokens=10), account.key)
    assert reply.status == 200
    assert not limit_headers(reply.headers)


def test_tokens_are_counted_before_and_put_right_after(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    script = provider.script(*json_answer(completion(used=usage(100, 50))))
    body = chat(max_tokens=500, x_script=script)
    limit(gateway, account, tokens=1_000)
    first = gateway.call(body, account.key)
    assert first.status == 200
    headers = limit_headers(first.headers)
    assert headers["limit-tokens"] == "1000"
    assert headers["remaining-tokens"] == str(1_000 - cost_of(500, body))
    # 150 were used. Without putting that right, a second one would not fit.
    second = limit_headers(gateway.call(body, account.key).headers)
    remaining = int(second["remaining-tokens"])
    assert 850 - cost_of(500, body) <= remaining <= 1_000 - cost_of(500, body)


def test_a_call_larger_than_a_minute_waits_for_a_full_bucket(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    limit(gateway, account, tokens=100)
    script = provider.script(*json_answer(completion(used=usage(100, 500))))
    body = chat(max_tokens=900, x_script=script)
    assert gateway.call(body, account.key).status == 200
    reply = gateway.call(body, account.key)
    assert refusal(reply)["limit"] == "tokens"
    # 600 were used of 100: 500 below zero, and all 100 have to be there again.
    assert 300_000 < int(reply.headers["retry-after-ms"]) <= 360_000


def test_calls_at_once(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    limit(gateway, account, calls=2)
    body = chat(max_tokens=10)
    with held_open(gateway, provider, account, 2):
        reply = gateway.call(body, account.key)
        error = refusal(reply)
        assert error["limit"] == "concurrency"
        assert "2 calls at once" in str(error["message"])
        assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("1", "1000")
    # The answers are there: so are the places.
    with held_open(gateway, provider, account, 2):
        assert refusal(gateway.call(body, account.key))["limit"] == "concurrency"
    gateway.settle(account.id, 4)


def test_one_after_the_other_is_never_too_many(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    limit(gateway, account, calls=1)
    with gateway.connect() as client:
        for stream in [False, True] * 10:
            client.send(request(body=chat(stream=stream, max_tokens=10), key=account.key))
            assert client.read_reply().status == 200


def test_a_call_without_credit_is_not_counted(gateway: GatewayProcess) -> None:
    account = limit(gateway, gateway.account(0), requests=1, tokens=1_000, calls=1)
    for _ in range(3):
        reply = gateway.call(chat(max_tokens=10), account.key)
        assert (reply.status, reply.code) == (402, "insufficient_credit")
        assert not limit_headers(reply.headers)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (chat(model="no-such-model"), 404),
        (chat(model="unpriced"), 400),
        (chat(max_tokens=-1), 400),
    ],
)
def test_a_call_that_cannot_be_is_not_counted(
    gateway: GatewayProcess, account: TestAccount, body: bytes, status: int
) -> None:
    limit(gateway, account, requests=1, calls=1)
    assert gateway.call(body, account.key).status == status
    assert gateway.call(chat(max_tokens=10), account.key).status == 200
    assert refusal(gateway.call(body=chat(max_tokens=10), key=account.key))["limit"] == "requests"


def test_an_upstream_that_fails_gives_back_place_and_tokens_but_not_the_request(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    limit(gateway, account, requests=2, tokens=2_000, calls=1)
    body = chat(model="m-nobody", max_tokens=900)
    first = gateway.call(body, account.key)
    assert first.status == 502
    assert limit_headers(first.headers)["remaining-requests"] == "1"
    second = limit_headers(gateway.call(body, account.key).headers)
    assert second["remaining-requests"] == "0"
    assert int(second["remaining-tokens"]) == 2_000 - cost_of(900, body)
    assert refusal(gateway.call(body, account.key))["limit"] == "requests"


@pytest.mark.parametrize("scene", ["drained", "stopped"])
def test_a_client_that_leaves_frees_its_place(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount, scene: str
) -> None:
    limit(gateway, account, calls=1)
    gate = Gate()
    script = provider.script(
        STREAM_HEAD,
        event(delta("one")),
        gate,
        event(delta(None, finish="stop")),
        usage_event(usage(100, 20)),
        DONE + LAST_CHUNK,
    )
    with gateway.connect() as client:
        client.send(
            request(
                body=chat(stream=True, max_tokens=10, x_script=script),
                key=account.key,
                headers={"X-Scene": scene},
            )
        )
        client.read_until(b'"one"')
        assert refusal(gateway.call(chat(max_tokens=10), account.key))["limit"] == "concurrency"
    if scene == "drained":
        gate.open()

    def free() -> bool | None:
        return gateway.call(chat(max_tokens=10), account.key).status == 200 or None

    until(free, "the place to be free again")
    gate.open()
    gateway.settle(account.id, 2)


def test_a_restart_begins_with_no_call_under_way(
    provider: ScriptedProvider, tmp_path: Path
) -> None:
    with GatewayProcess(tmp_path, provider.base_url) as mortal:
        mortal.start()
        account = limit(mortal, mortal.account(), calls=1)
        gate = Gate()
        script = provider.script(gate, *json_answer())
        with mortal.connect() as client:
            client.send(request(body=chat(max_tokens=10, x_script=script), key=account.key))
            provider.wait_call(script, 1)
            mortal.kill9()
        gate.open()
        mortal.restart()
        assert mortal.call(chat(max_tokens=10), account.key).status == 200
        mortal.audit()


def test_the_sdk_raises_rate_limit_error(gateway: GatewayProcess, account: TestAccount) -> None:
    limit(gateway, account, requests=1)
    url = f"http://127.0.0.1:{gateway.port}/v1"
    with openai.OpenAI(base_url=url, api_key=account.key, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="m-small", messages=SAY, max_tokens=10
        )
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        assert raw.headers["x-ratelimit-reset-requests"] == "1m0s"
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="m-small", messages=SAY, max_tokens=10)
    assert caught.value.code == "rate_limited"


def test_the_sdk_waits_as_long_as_it_is_told(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    """One retry is enough, for it comes when there is room again."""
    limit(gateway, account, tokens=6_000)  # 1 in 10 ms
    used_up = provider.script(*json_answer(completion(used=usage(10, 5_990))))
    answers: list[tuple[int, str]] = []

    def note(response: httpx2.Response) -> None:
        answers.append((response.status_code, response.headers.get("retry-after-ms", "")))

    url = f"http://127.0.0.1:{gateway.port}/v1"
    with (
        httpx2.Client(event_hooks={"response": [note]}) as http_client,
        openai.OpenAI(
            base_url=url, api_key=account.key, max_retries=1, http_client=http_client
        ) as client,
    ):
        client.chat.completions.create(
            model="m-small", messages=SAY, n=8, max_tokens=1_000, extra_body={"x_script": used_up}
        )
        client.chat.completions.create(model="m-small", messages=SAY, max_tokens=1)
    (first, _), (second, wait), (third, _) = answers
    assert (first, second, third) == (200, 429, 200)
    assert 0 < int(wait) < 500  # less, the later the second call comes
    gateway.settle(account.id, 2)


def test_refusals_are_counted_without_naming_keys(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    limit(gateway, account, requests=0)
    assert refusal(gateway.call(chat(max_tokens=10), account.key))["limit"] == "requests"
    text = gateway.get("/metrics", gateway.admin_token).body.decode()
    assert re.search(r'^llm_gateway_limited_total\{limit="requests"\} [1-9]', text, re.MULTILINE)
    assert account.key_id not in text


@pytest.mark.parametrize(
    ("policy", "status", "counted"), [("reject", 503, "unavailable"), ("allow:5", 200, "uncounted")]
)
def test_where_limits_cannot_be_counted_the_guards_policy_decides(
    own_redis: RedisServer,
    provider: ScriptedProvider,
    tmp_path: Path,
    policy: str,
    status: int,
    counted: str,
) -> None:
    guard = (
        f'\n[guard]\nstore = "redis"\nredis_url = "{own_redis.url}"\non_unavailable = "{policy}"\n'
    )
    with GatewayProcess(tmp_path, provider.base_url, config=guard) as gateway:
        gateway.start()
        account = limit(gateway, gateway.account(), requests=2)
        assert gateway.call(chat(max_tokens=10), account.key).status == 200
        own_redis.kill()
        reply = gateway.call(chat(max_tokens=10), account.key)
        assert reply.status == status
        if status == 503:
            assert reply.code == "limits_unavailable"
            assert reply.headers["retry-after"] == "1"
        text = gateway.get("/metrics", gateway.admin_token).body.decode()
        assert f'llm_gateway_limited_total{{limit="{counted}"}} 1' in text
        own_redis.start()

        def back() -> bool | None:
            answer = gateway.call(chat(max_tokens=10), account.key)
            return bool(limit_headers(answer.headers)) or None

        until(back, "Redis to count again")


# -- several processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["database", "redis"])
def test_two_gateways_share_limits_and_a_killed_one_gives_its_places_back(
    store: str,
    durable_postgres: PostgresServer,
    redis: RedisServer,
    provider: ScriptedProvider,
    tmp_path: Path,
) -> None:
    url = durable_postgres.new_database()
    guard = f'\n[guard]\nstore = "{store}"\nredis_url = "{redis.url}"\n'
    with fleet(tmp_path, provider.base_url, url, guard) as processes:
        doomed, other = processes.gateway(), processes.gateway()
        account = doomed.account()
        pg_rows(
            url,
            "UPDATE api_keys SET concurrent_calls = 3, requests_per_minute = 100 WHERE id = $1",
            account.key_id,
        )
        body = chat(max_tokens=10)
        with contextlib.ExitStack() as stack:
            lost = [Stream(doomed, provider, account, f"lost-{n}", stack) for n in range(2)]
            kept = Stream(other, provider, account, "kept", stack)
            for gateway in (doomed, other):
                assert refusal(gateway.call(body, account.key))["limit"] == "concurrency"
            doomed.kill9()
            for each in lost:
                each.gate.open()

            def free(gateway: FleetGateway = other) -> bool | None:
                return gateway.call(body, account.key).status == 200 or None

            until(free, "the places of the killed gateway")
            assert b"[DONE]" in kept.finish()
        last = limit_headers(other.call(body, account.key).headers)
        assert last["limit-requests"] == "100"
        # Three streams and two calls were admitted here and there; it fills at 5 in 3 seconds.
        assert int(last["remaining-requests"]) >= 95
        processes.wait_settled()
        processes.audit()
    durable_postgres.drop_database(url)
