"""No key, prompt or answer stays behind: in no log, row, spool file or error."""

import json

import pytest

from tests.support.gateway import GatewayProcess, TestAccount
from tests.support.provider import (
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    ScriptedProvider,
    completion,
    delta,
    event,
    head,
    json_answer,
    stream_answer,
)
from tests.support.rawhttp import chat, request

PROMPT = "canary-in-the-prompt-7f3a"
ANSWER = "canary-in-the-answer-9c1b"
KEY = "lgw_canary-in-the-key-5d2e" + "x" * 20
CANARIES = (PROMPT, ANSWER, KEY)


def traces(gateway: GatewayProcess, *words: str) -> list[str]:
    """Files of the gateway's folder that hold one of the words."""
    found = []
    for path in gateway.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found += [f"{word} in {path}" for word in words if word.encode() in data]
    return found


@pytest.fixture
def asking() -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": PROMPT}],
        "user": PROMPT,
        "metadata": {"note": PROMPT},
        "stop": [PROMPT],
    }


def test_answered_calls_leave_no_text(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    account: TestAccount,
    asking: dict[str, object],
) -> None:
    whole = provider.script(*json_answer(completion(ANSWER)))
    streamed = provider.script(*stream_answer([ANSWER]))
    without_usage = completion(ANSWER)
    del without_usage["usage"]
    estimated = provider.script(*json_answer(without_usage))
    odd = provider.script(*json_answer(completion(ANSWER, {"prompt_tokens": -1})))
    broken = provider.script(STREAM_HEAD, event(delta(ANSWER)), Close())
    for script in (whole, streamed, estimated, odd, broken):
        for stream in (False, True):
            body = chat(x_script=script, stream=stream, **asking)
            assert gateway.call(body, account.key).status in (200, 502)
    # A stream that broke off under a JSON request is still a stream; all ten are charged.
    gateway.settle(account.id, 10)
    assert traces(gateway, PROMPT, ANSWER, account.key) == []


def test_failing_calls_leave_no_text_and_say_none(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    account: TestAccount,
    asking: dict[str, object],
) -> None:
    html = f"<html>{ANSWER}</html>".encode()
    page = head(500, f"Content-Length: {len(html)}", content_type="text/html") + html
    scripts = [
        provider.script(page),
        provider.script(head(200) + ANSWER.encode()[:10], Close()),
        provider.script(f"HTTP/1.1 {ANSWER}\r\n\r\n".encode(), Close()),
        provider.script(STREAM_HEAD, f"zz{ANSWER}\r\n".encode(), Close()),
        provider.script(STREAM_HEAD, event(f"{{not json {ANSWER}"), LAST_CHUNK),
        provider.script(*json_answer({"error": {"message": ANSWER}}, status=503)),
    ]
    bodies = [chat(x_script=script, **asking) for script in scripts]
    bodies += [
        chat(model="m-smal", **asking),
        chat(model="unpriced", **asking),
        chat(model="m-nobody", **asking),
        chat(max_tokens=PROMPT, messages=[]),
        chat(stream=PROMPT, messages=[]),
        chat(n=PROMPT, messages=[]),
        chat(messages=PROMPT, model={PROMPT: PROMPT}),
        json.dumps(asking).encode()[:-30],
        b'{"model":"m-small","messages":["' + PROMPT.encode() + b'\xff"]}',
    ]
    for body in bodies:
        reply = gateway.call(body, account.key)
        if reply.status != 200:
            assert not [word for word in CANARIES if word.encode() in reply.body], reply.body
    assert traces(gateway, PROMPT, ANSWER, account.key) == []


def test_wrong_keys_are_kept_nowhere(gateway: GatewayProcess, account: TestAccount) -> None:
    for path in ("/v1/chat/completions", "/credit-store/balance", "/admin/accounts"):
        reply = gateway.call(chat(), KEY, path=path)
        assert 400 <= reply.status < 500
        assert KEY.encode() not in reply.body
    with gateway.connect() as client:
        client.send(request(f"/v1/models?key={KEY}", key=KEY, method="GET"))
        assert client.read_reply().status == 401
    with gateway.connect() as client:
        client.send(request(body=chat(), headers={"Authorization": KEY}))
        assert client.read_reply().status == 401
    assert traces(gateway, KEY, account.key) == []


def test_metrics_name_no_account_and_no_key(gateway: GatewayProcess, account: TestAccount) -> None:
    gateway.call(chat(), account.key)
    text = gateway.get("/metrics", gateway.admin_token).body.decode()
    assert "# TYPE" in text
    for word in (account.id, account.key_id, account.key):
        assert f'"{word}"' not in text
