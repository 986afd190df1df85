"""What no honest client sends: each is answered once, forwards nothing it should not, and harms no other call."""

import json
import socket

import pytest

from tests.support.gateway import GatewayProcess, TestAccount
from tests.support.provider import ScriptedProvider, json_answer
from tests.support.rawhttp import chat, request

PATH = "/v1/chat/completions"
SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"


def lines(*values: str) -> bytes:
    return ("\r\n".join(values) + "\r\n\r\n").encode("latin-1")


def post(account: TestAccount, *headers: str, version: str = "1.1") -> bytes:
    """The head of a call, with headers as given."""
    return lines(
        f"POST {PATH} HTTP/{version}",
        "Host: gateway",
        f"Authorization: Bearer {account.key}",
        "Content-Type: application/json",
        *headers,
    )


def refused_and_closed(gateway: GatewayProcess, data: bytes, *statuses: int) -> None:
    """Exactly one answer, one of `statuses`, then the connection is closed."""
    with gateway.connect() as client:
        client.send(data)
        reply = client.read_reply()
        assert reply.status in statuses, (reply.status, reply.body)
        assert reply.headers["connection"] == "close"
        client.half_close()  # else it lingers for what may still be sent
        assert client.read_to_end() == b""


@pytest.fixture(autouse=True)
def nothing_forwarded(request: pytest.FixtureRequest, provider: ScriptedProvider) -> object:
    """A refused request never reaches the provider, not even in part."""
    before = len(provider.seen)
    yield
    if request.node.get_closest_marker("forwards") is None:
        assert len(provider.seen) == before


forwards = pytest.mark.forwards


BODY = chat()
FRAMING = {
    "both": (f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"),
    "both_other_order": ("Transfer-Encoding: chunked", f"Content-Length: {len(BODY)}"),
    "two_lengths": (f"Content-Length: {len(BODY)}", "Content-Length: 5"),
    "two_equal_lengths": (f"Content-Length: {len(BODY)}",) * 2,
    "list_of_lengths": (f"Content-Length: {len(BODY)}, {len(BODY)}",),
    "negative_length": ("Content-Length: -1",),
    "signed_length": (f"Content-Length: +{len(BODY)}",),
    "hexadecimal_length": ("Content-Length: 0x10",),
    "huge_length": ("Content-Length: 99999999999999999999999",),
    "unknown_coding": ("Transfer-Encoding: gzip, chunked",),
    "chunked_twice": ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "identity": ("Transfer-Encoding: identity",),
    "space_before_colon": (f"Content-Length : {len(BODY)}",),
    "folded_line": ("X-Fold: a\r\n b", f"Content-Length: {len(BODY)}"),
    "bare_return_in_value": (f"X-A: b\rContent-Length: {len(BODY)}", "Content-Length: 0"),
    "bare_newline_in_value": ("X-A: b\nX-B: c", "Content-Length: zero"),
    "nul_in_value": ("X-A: b\0c", f"Content-Length: {len(BODY)}"),
    "upgrade": ("Upgrade: websocket", "Connection: Upgrade", f"Content-Length: {len(BODY)}"),
    "upgrade_h2c": ("Upgrade: h2c", "Connection: Upgrade", f"Content-Length: {len(BODY)}"),
}


@pytest.mark.parametrize("name", FRAMING)
def test_ambiguous_head_is_refused(
    gateway: GatewayProcess, account: TestAccount, name: str
) -> None:
    refused_and_closed(gateway, post(account, *FRAMING[name]) + BODY + SMUGGLED, 400, 413, 415)


@pytest.mark.parametrize(
    "headers",
    [
        ("Authorization: Bearer lgw_other",),
        ("X-Scene: agent", "X-Scene: stopped"),
        ("X-Billing-User: a", "X-Billing-User: b"),
        ("X-Run-Id: a", "X-Run-Id: b"),
    ],
)
def test_header_that_says_who_pays_comes_once(
    gateway: GatewayProcess, account: TestAccount, headers: tuple[str, ...]
) -> None:
    with gateway.connect() as client:
        client.send(post(account, *headers, f"Content-Length: {len(BODY)}") + BODY)
        assert client.read_reply().status == 400


def test_refused_connection_is_closed_without_being_asked(gateway: GatewayProcess) -> None:
    with gateway.connect() as client:
        client.send(b"GARBAGE\r\n\r\n")
        assert client.read_reply().status == 400
        assert client.read_to_end() == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"POST /v1/chat/completions HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST /v1/chat completions HTTP/1.1\r\nHost: x\r\n\r\n",
        b"P\0ST / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_http_request_is_400(gateway: GatewayProcess, data: bytes) -> None:
    refused_and_closed(gateway, data, 400)


def test_request_without_a_version_gets_no_further_than_its_key(gateway: GatewayProcess) -> None:
    refused_and_closed(gateway, b"POST /v1/chat/completions\r\n\r\n", 400, 401)


def test_head_over_64_kib_is_431(gateway: GatewayProcess, account: TestAccount) -> None:
    refused_and_closed(gateway, post(account, "X-Filler: " + "x" * 70_000), 431)
    many = [f"X-{i}: {'y' * 100}" for i in range(1000)]
    refused_and_closed(gateway, post(account, *many), 431)
    with gateway.connect() as client:
        client.send(f"GET /{'z' * 70_000} HTTP/1.1\r\nHost: x\r\n".encode())
        assert client.read_reply().status == 431


def test_large_head_of_a_cold_path_is_431(gateway: GatewayProcess) -> None:
    head = lines("GET /healthz HTTP/1.1", "Host: x", "X-Filler: " + "x" * 70_000)
    refused_and_closed(gateway, head, 431)


def test_declared_length_over_the_limit_is_413_at_once(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    with gateway.connect() as client:
        client.send(post(account, "Content-Length: 1000001"))  # and no byte of it
        reply = client.read_reply()
    assert (reply.status, reply.code) == (413, "request_too_large")


def test_chunked_body_over_the_limit_is_413(gateway: GatewayProcess, account: TestAccount) -> None:
    piece = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    refused_and_closed(gateway, post(account, "Transfer-Encoding: chunked") + piece * 40, 413)


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\nabc\r\n0\r\n\r\n",
        b"-5\r\nabcde\r\n0\r\n\r\n",
        b"5\r\nabcdefgh\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\nabc\r\n",
        b"5;" + b"x" * 100_000 + b"\r\nabcde\r\n0\r\n\r\n",
    ],
)
def test_wrong_chunks_are_refused(
    gateway: GatewayProcess, account: TestAccount, chunks: bytes
) -> None:
    with gateway.connect() as client:
        client.send(post(account, "Transfer-Encoding: chunked") + chunks)
        status = client.read_reply().status
        assert 400 <= status < 500


@forwards
def test_chunked_body_is_read(gateway: GatewayProcess, account: TestAccount) -> None:
    body = chat()
    pieces = b"".join(b"%x\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
    with gateway.connect() as client:
        client.send(post(account, "Transfer-Encoding: chunked") + pieces + b"0\r\n\r\n")
        assert client.read_reply().status == 200
    assert len(gateway.settle(account.id, 1)) == 1


@forwards
def test_request_behind_a_chunked_body_is_never_answered_out_of_turn(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    body = chat()
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with gateway.connect() as client:
        client.send(post(account, "Transfer-Encoding: chunked") + chunked + SMUGGLED)
        reply = client.read_reply()
        assert reply.status == 200
        assert "choices" in reply.json
        rest = client.read_reply()
        # Either answered in turn, or the connection ends: nothing between.
        assert rest.status in (0, 200)


@forwards
def test_pipelined_calls_are_answered_in_order(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    from tests.support.provider import completion

    scripts = [provider.script(*json_answer(completion(f"answer {i}"))) for i in range(10)]
    data = b"".join(request(body=chat(x_script=s), key=account.key) for s in scripts)
    with gateway.connect() as client:
        client.send(data[:-7])
        client.send(data[-7:])
        for i in range(10):
            assert f"answer {i}".encode() in client.read_reply().body
    assert len(gateway.settle(account.id, 10)) == 10


@forwards
def test_hot_and_cold_paths_mix_on_one_connection(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    cold = request("/healthz", method="GET")
    models = request("/v1/models", key=account.key, method="GET")
    call = request(body=chat(), key=account.key)
    with gateway.connect() as client:
        client.send(cold + call + models + call + cold)
        assert [client.read_reply().status for _ in range(5)] == [200] * 5
    assert len(gateway.settle(account.id, 2)) == 2


@forwards
def test_unread_pipeline_is_bounded(gateway: GatewayProcess, account: TestAccount) -> None:
    wanted = request(body=chat(), key=account.key)
    with gateway.connect() as client:
        client.send(wanted * 500)  # about 100 kB, more than is kept for later
        statuses = [client.read_reply().status for _ in range(500)]
    assert statuses == [200] * 500
    assert len(gateway.settle(account.id, 500)) == 500


@forwards
def test_expect_continue_is_asked_for_the_body(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    body = chat()
    with gateway.connect() as client:
        client.send(post(account, f"Content-Length: {len(body)}", "Expect: 100-continue"))
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        client.send(body)
        assert client.read_reply().status == 200
    assert len(gateway.settle(account.id, 1)) == 1


def test_expect_continue_is_not_asked_for_a_body_that_is_refused(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    with gateway.connect() as client:
        client.send(post(account, "Content-Length: 2000000", "Expect: 100-continue"))
        assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 413 ")
    stranger = post(account, "Content-Length: 20", "Expect: 100-continue").replace(
        account.key.encode(), b"lgw_nobody"
    )
    with gateway.connect() as client:
        client.send(stranger)
        assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 401 ")


@forwards
def test_http_1_0_gets_a_stream_that_ends_with_the_connection(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider
) -> None:
    from tests.support.provider import stream_answer

    script = provider.script(*stream_answer(["a"]))
    body = chat(stream=True, x_script=script)
    with gateway.connect() as client:
        client.send(post(account, f"Content-Length: {len(body)}", version="1.0") + body)
        reply = client.read_reply()
    assert reply.status == 200
    assert "transfer-encoding" not in reply.headers
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert len(gateway.settle(account.id, 1)) == 1


@forwards
def test_http_1_0_json_answer_closes(gateway: GatewayProcess, account: TestAccount) -> None:
    body = chat()
    with gateway.connect() as client:
        client.send(post(account, f"Content-Length: {len(body)}", version="1.0") + body)
        assert client.read_reply().status == 200
        assert client.read_to_end() == b""
    assert len(gateway.settle(account.id, 1)) == 1


@forwards
def test_body_byte_by_byte_is_one_call(gateway: GatewayProcess, account: TestAccount) -> None:
    with gateway.connect() as client:
        for byte in request(body=chat(), key=account.key):
            client.send(bytes([byte]))
        assert client.read_reply().status == 200
    assert len(gateway.settle(account.id, 1)) == 1


def test_slow_clients_do_not_stop_others(gateway: GatewayProcess, account: TestAccount) -> None:
    slow = [gateway.connect() for _ in range(100)]
    try:
        for number, client in enumerate(slow):
            client.send(request(body=chat(), key=account.key)[: 10 + number])
        assert gateway.get("/healthz").status == 200
    finally:
        for client in slow:
            client.close()


def test_half_closed_before_the_request_is_whole(
    gateway: GatewayProcess, account: TestAccount
) -> None:
    for cut in (1, 30, 120, -1):
        with gateway.connect() as client:
            client.send(request(body=chat(), key=account.key)[:cut])
            client.half_close()
            assert b"200 OK" not in client.read_to_end()
    with gateway.books() as books:
        assert books.charges(account.id) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"model":"m-small","model":"m-free","messages":[]}',
        '{"model":"m-small","messages":[],"max_tokens":1,"max_tokens":100000}',
        '{"model":"m-small","messages":[],"stream":false,"stream":true}',
        r'{"model":"m-small","\u006dodel":"m-free","messages":[]}',
        '{"messages":[{"role":"user","content":"a"}],"messages":[],"model":"m-small"}',
    ],
)
def test_repeated_key_is_400(gateway: GatewayProcess, account: TestAccount, text: str) -> None:
    assert gateway.call(text.encode(), account.key).status == 400


@forwards
@pytest.mark.parametrize("name", ["Max_Tokens", "MAX_TOKENS", "max_Completion_tokens", "N"])
def test_differently_cased_key_is_not_forwarded(
    gateway: GatewayProcess, account: TestAccount, provider: ScriptedProvider, name: str
) -> None:
    script = provider.script(*json_answer())
    body = chat(**{name: 900_000}, max_tokens=5, x_script=script)
    assert gateway.call(body, account.key).status in (200, 400)
    for seen in provider.calls(script):
        assert name not in seen.json
        assert seen.json["max_tokens"] == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"model": 5},
        {"model": None},
        {"stream": "yes"},
        {"stream": 1},
        {"n": 0},
        {"n": -1},
        {"n": 1.5},
        {"n": "2"},
        {"n": 10**30},
        {"max_tokens": -5},
        {"max_tokens": "5"},
        {"max_tokens": 5.5},
        {"max_completion_tokens": True},
        {"stream_options": []},
        {"stream_options": {"include_usage": "no"}},
    ],
)
def test_wrong_type_is_400(
    gateway: GatewayProcess, account: TestAccount, fields: dict[str, object]
) -> None:
    reply = gateway.call(chat(**fields), account.key)
    assert reply.status == 400
    assert set(reply.json["error"]) >= {"message", "type", "param", "code"}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}",
        b"\xff\xfe{}",
        b'{"model":"m-small","messages":[]}}',
        b'{"model":"m-small","messages":[],}',
        b'{"model":"m-small","messages":[NaN]}',
        b'{"model":"m-small","messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"model":"m-small\xff","messages":[]}',
    ],
)
def test_what_is_no_request_is_400(
    gateway: GatewayProcess, account: TestAccount, body: bytes
) -> None:
    assert gateway.call(body, account.key).status == 400


def test_other_methods_and_paths(gateway: GatewayProcess, account: TestAccount) -> None:
    assert gateway.get(PATH, account.key).status in (404, 405)
    assert gateway.call(chat(), account.key, path="/v1/nothing").status == 404
    assert gateway.call(chat(), account.key, path="//v1/chat/completions").status == 404


def test_connection_without_a_word_harms_nobody(gateway: GatewayProcess) -> None:
    sockets = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(200)]
    try:
        assert gateway.get("/healthz").status == 200
    finally:
        for one in sockets:
            one.close()


def test_errors_are_in_openais_envelope(gateway: GatewayProcess, account: TestAccount) -> None:
    for reply in (
        gateway.call(b"{", account.key),
        gateway.call(chat(), "lgw_wrong"),
        gateway.call(chat(), ""),
        gateway.get("/v1/nothing", account.key),
        gateway.get("/nothing"),
    ):
        error = json.loads(reply.body)["error"]
        assert isinstance(error["message"], str)
        assert error["type"]
        assert error["code"]
