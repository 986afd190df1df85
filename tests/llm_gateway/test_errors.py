"""Every error is an OpenAI envelope; the client sees upstream errors only where they concern it."""

import inspect
import json

import msgspec
import openai
import pytest

from llm_gateway import errors
from llm_gateway.errors import (
    AccountSuspendedError,
    BillingUserNotAllowedError,
    BooksStaleError,
    CreditHeldError,
    DatabaseUnavailableError,
    EventConflictError,
    ForbiddenError,
    GatewayError,
    GuardUnavailableError,
    HeadersTooLargeError,
    InsufficientCreditError,
    InternalError,
    InvalidApiKeyError,
    InvalidRequestError,
    KeyLimitedError,
    LimitsUnavailableError,
    MethodNotAllowedError,
    MissingBillingUserError,
    ModelNotAllowedError,
    ModelNotFoundError,
    NoPriceRuleError,
    NotFoundError,
    ProviderOffError,
    RateLimitedError,
    RequestTimeoutError,
    RequestTooLargeError,
    SceneNotAllowedError,
    ShuttingDownError,
    UnavailableError,
    UnboundedCostError,
    UnsupportedMediaTypeError,
    UpstreamFailedError,
    UpstreamRateLimitedError,
    UpstreamRejectedError,
    UpstreamTimeoutError,
    format_reset,
    wrap_upstream_error,
)

# One of each: the error, its status, its code, and the class that openai's SDK makes of the status.
EXAMPLES: list[tuple[GatewayError, int, str]] = [
    (InvalidRequestError("n must be an integer.", param="n"), 400, "invalid_request"),
    (MissingBillingUserError(), 400, "missing_billing_user"),
    (UnboundedCostError("tools search", param="tools"), 400, "unbounded_cost"),
    (
        NoPriceRuleError(scene="agent", provider="openai", model="m", rule_toml="[[rule]]"),
        400,
        "no_price_rule",
    ),
    (InvalidApiKeyError(), 401, "invalid_api_key"),
    (InsufficientCreditError(balance=5, held=3, needed=7), 402, "insufficient_credit"),
    (ForbiddenError("No."), 403, "forbidden"),
    (SceneNotAllowedError("agent"), 403, "scene_not_allowed"),
    (ModelNotAllowedError("m"), 403, "model_not_allowed"),
    (AccountSuspendedError(), 403, "account_suspended"),
    (BillingUserNotAllowedError(), 403, "billing_user_not_allowed"),
    (NotFoundError(), 404, "not_found"),
    (ModelNotFoundError("gpt-5", ["gpt-5o"]), 404, "model_not_found"),
    (MethodNotAllowedError("POST"), 405, "method_not_allowed"),
    (RequestTimeoutError(), 408, "request_timeout"),
    (
        EventConflictError(event_id="e", field="amount", existing="1", given="2"),
        409,
        "event_conflict",
    ),
    (RequestTooLargeError(20), 413, "request_too_large"),
    (UnsupportedMediaTypeError(), 415, "unsupported_media_type"),
    (RateLimitedError(), 429, "rate_limited"),
    (CreditHeldError(balance=5, held=3, needed=4), 429, "credit_held"),
    (KeyLimitedError(limit="requests", value=3, retry_ms=20_000), 429, "rate_limited"),
    (UpstreamRateLimitedError({}), 429, "rate_limited"),
    (HeadersTooLargeError(65536), 431, "headers_too_large"),
    (InternalError(), 500, "internal_error"),
    (UpstreamFailedError(), 502, "upstream_error"),
    (UnavailableError(), 503, "unavailable"),
    (GuardUnavailableError(), 503, "guard_unavailable"),
    (LimitsUnavailableError(), 503, "limits_unavailable"),
    (BooksStaleError(), 503, "books_stale"),
    (ShuttingDownError(), 503, "shutting_down"),
    (DatabaseUnavailableError(), 503, "database_unavailable"),
    (ProviderOffError("m", "OPENAI_API_KEY is not set"), 503, "provider_off"),
    (UpstreamTimeoutError(), 504, "upstream_timeout"),
    (UpstreamRejectedError(422, "bad image"), 422, "upstream_rejected"),
]

OPENAI_400 = b'{"error": {"message": "bad image", "type": "invalid_request_error", "x": 1}}'


def error_object(error: GatewayError) -> dict[str, object]:
    """The envelope's only member."""
    envelope = json.loads(error.envelope())
    assert list(envelope) == ["error"]
    inner = envelope["error"]
    assert isinstance(inner, dict)
    return inner


def wrapped(
    status: int, body: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = ()
) -> GatewayError:
    """The error that stands for an upstream's answer which is not handed on."""
    result = wrap_upstream_error(status, headers, body)
    assert isinstance(result, GatewayError)
    return result


@pytest.mark.parametrize(("error", "status", "code"), EXAMPLES, ids=lambda value: str(value)[:30])
def test_envelope_has_openai_shape(error: GatewayError, status: int, code: str) -> None:
    inner = error_object(error)
    assert error.status == status
    assert inner["code"] == code == error.code
    assert inner["message"] == error.message
    assert inner["type"] == error.type
    assert inner["param"] == error.param
    assert list(inner)[:4] == ["message", "type", "param", "code"]


def test_every_class_has_an_example() -> None:
    ours = {
        value
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, GatewayError) and value is not GatewayError
    }
    assert {type(error) for error, _, _ in EXAMPLES} == ours


def test_tree_in_docstring_is_the_tree() -> None:
    """Each class stands in the module's docstring below its base, with its status and code."""
    lines = (errors.__doc__ or "").splitlines()
    drawn: dict[str, tuple[str, str]] = {}
    path: list[str] = []
    for line in lines[lines.index("GatewayError") :]:
        if not line:
            break
        name, _, rest = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        path[depth:] = [name]
        drawn[name] = (path[depth - 1] if depth else "Exception", rest.strip())
    assert drawn.pop("GatewayError") == ("Exception", "")
    for error, status, code in EXAMPLES:
        base = type(error).__bases__[0].__name__
        text = f"{status} {code}"
        if isinstance(error, UpstreamRejectedError):
            text = "400, 404, 413 or 422 upstream_rejected"
        assert drawn.pop(type(error).__name__) == (base, text)
    assert not drawn


@pytest.mark.parametrize(("error", "status", "code"), EXAMPLES, ids=lambda value: str(value)[:30])
def test_header_values_are_one_line_of_ascii(error: GatewayError, status: int, code: str) -> None:
    for name, value in error.headers.items():
        assert name == name.lower()
        assert value.isascii()
        assert value.isprintable()


@pytest.mark.parametrize(
    "error",
    [
        InsufficientCreditError(balance=5, held=3, needed=7),
        CreditHeldError(balance=5, held=3, needed=7),
    ],
)
def test_amounts_are_told_in_micro_credits(error: GatewayError) -> None:
    inner = error_object(error)
    assert inner["balance_micro_credits"] == 5
    assert inner["held_micro_credits"] == 3
    assert inner["needed_micro_credits"] == 7


def test_credit_held_says_when_to_retry() -> None:
    error = CreditHeldError(balance=5, held=3, needed=4, retry_after_seconds=2)
    assert error.headers == {"retry-after": "2"}
    assert "x-should-retry" not in error.headers


def test_insufficient_credit_says_no_time() -> None:
    assert InsufficientCreditError(balance=0, held=0, needed=1).headers == {}


@pytest.mark.parametrize("error_class", [UpstreamFailedError, UpstreamTimeoutError])
def test_billed_upstream_work_is_not_retried(
    error_class: type[UpstreamFailedError | UpstreamTimeoutError],
) -> None:
    assert error_class("x", may_have_billed=True).headers == {"x-should-retry": "false"}
    assert error_class("x", may_have_billed=False).headers == {}


def test_a_timeout_may_have_billed_unless_known_otherwise() -> None:
    assert UpstreamTimeoutError().headers == {"x-should-retry": "false"}
    assert InternalError(may_have_billed=True).headers == {"x-should-retry": "false"}
    assert InternalError().headers == {}


def test_conflicts_and_missing_keys_are_not_retried() -> None:
    conflict = EventConflictError(event_id="e", field="amount", existing="1", given="2")
    assert conflict.headers == {"x-should-retry": "false"}
    assert ProviderOffError("m", "K is not set").headers == {"x-should-retry": "false"}


def test_missing_key_is_challenged() -> None:
    assert InvalidApiKeyError().headers == {"www-authenticate": "Bearer"}


def test_model_not_found_lists_near_names() -> None:
    error = ModelNotFoundError("gpt4o", ["gpt-4o", "gpt-4"])
    assert error.message == "The model 'gpt4o' does not exist here. Did you mean gpt-4o, gpt-4?"
    assert error_object(error)["near"] == ["gpt-4o", "gpt-4"]
    assert ModelNotFoundError("x").message == "The model 'x' does not exist here."


def test_no_price_rule_prints_the_rule() -> None:
    rule = '[[rule]]\nid = "x"\n'
    error = NoPriceRuleError(scene="s", provider="p", model="m", rule_toml=rule)
    assert rule in error.message
    assert error_object(error)["rule_toml"] == rule


def test_long_names_are_cut() -> None:
    assert len(ModelNotFoundError("x" * 100_000).message) < 200
    assert len(SceneNotAllowedError("x" * 100_000).message) < 200


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidRequestError("x"), openai.BadRequestError),
        (InvalidApiKeyError(), openai.AuthenticationError),
        (AccountSuspendedError(), openai.PermissionDeniedError),
        (NotFoundError(), openai.NotFoundError),
        (UpstreamRejectedError(422, "x"), openai.UnprocessableEntityError),
        (CreditHeldError(balance=1, held=1, needed=1), openai.RateLimitError),
        (UpstreamFailedError(), openai.InternalServerError),
        (GuardUnavailableError(), openai.InternalServerError),
    ],
)
def test_openai_sdk_makes_its_own_error(
    error: GatewayError, expected: type[openai.APIStatusError]
) -> None:
    """The SDK chooses the class by status, and reads code, param and type from the envelope."""
    import httpx2

    request = httpx2.Request("POST", "http://127.0.0.1/v1/chat/completions")
    response = httpx2.Response(error.status, content=error.envelope(), request=request)
    with openai.OpenAI(api_key="k", base_url="http://127.0.0.1/v1") as client:
        made = client._make_status_error_from_response(response)
    assert type(made) is expected
    assert made.code == error.code
    assert made.type == error.type
    assert made.param == error.param


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_openai_errors_about_the_request_are_kept(status: int) -> None:
    assert wrap_upstream_error(status, [], OPENAI_400) == OPENAI_400


@pytest.mark.parametrize("status", [400, 404, 413, 422])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"object":"error","message":"too long"}', "too long"),
        (b'{"detail":"no such model"}', "no such model"),
        (b'{"detail":[{"loc":["n"],"msg":"too small"},{"msg":"odd"}]}', "too small; odd"),
        (b'{"error":"model not found"}', "model not found"),
        (b'[{"error":{"code":400,"message":"Invalid value"}}]', "Invalid value"),
    ],
)
def test_other_shapes_are_wrapped_with_their_sentence(
    status: int, body: bytes, message: str
) -> None:
    error = wrapped(status, body)
    assert error.status == status
    assert error.message == message
    assert error.code == "upstream_rejected"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>nginx</html>",
        b"{}",
        b"[]",
        b"null",
        b'"text"',
        b'{"error":null}',
        b'{"error":{"message":null}}',
        b'{"error":{"message":3}}',
        b'{"error":["x"]}',
        b'{"error":{"message":"\xff"}}',
        b'{"error":' + b"[" * 100_000,
        OPENAI_400[:-1],
    ],
)
def test_unreadable_errors_are_wrapped_without_their_text(body: bytes) -> None:
    error = wrapped(400, body)
    assert error.status == 400
    assert error.message == "The provider rejected the request with status 400."


def test_long_upstream_sentences_are_cut() -> None:
    error = wrapped(400, msgspec.json.encode({"message": "x" * 100_000}))
    assert error.message == "x" * 2_000


def test_upstream_sentences_stay_out_of_logs() -> None:
    error = wrapped(400, b'{"message":"the prompt said CANARY"}')
    assert "CANARY" in error.message
    assert "CANARY" not in str(error)
    assert "CANARY" not in repr(error)


@pytest.mark.parametrize("status", [401, 402, 403])
def test_errors_about_our_key_are_hidden(status: int) -> None:
    body = b'{"error":{"message":"Incorrect API key provided: sk-CANARY","code":"invalid_api_key"}}'
    error = wrapped(status, body, ((b"retry-after", b"3"),))
    assert error.status == 502
    assert error.code == "upstream_error"
    assert error.message == "The provider refused the gateway's own credentials."
    assert b"CANARY" not in error.envelope()
    assert error.headers == {}


@pytest.mark.parametrize("status", [500, 502, 503, 504, 529, 408, 409, 418, 301, 204])
def test_everything_else_is_a_bad_gateway(status: int) -> None:
    error = wrapped(status, OPENAI_400)
    assert error.status == 502
    assert error.message == f"The provider answered with status {status}."


def test_rate_limit_keeps_its_retry_headers() -> None:
    headers = (
        (b"Retry-After", b" 7 "),
        (b"retry-after-ms", b"6500"),
        (b"x-ratelimit-limit", b"9"),
    )
    error = wrapped(429, b'{"error":{"message":"org-CANARY is over its limit"}}', headers)
    assert error.status == 429
    assert error.code == "rate_limited"
    assert error.headers == {"retry-after": "7", "retry-after-ms": "6500"}
    assert b"CANARY" not in error.envelope()


@pytest.mark.parametrize("value", [b"1\r\nx: y", b"\xff", b"a\x00"])
def test_unprintable_retry_after_is_replaced(value: bytes) -> None:
    assert wrapped(429, b"", ((b"retry-after", value),)).headers == {"retry-after": "1"}


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (120, "120ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (8_640, "8.64s"),
        (59_001, "59.001s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (90_500, "1m30.5s"),
        (3_600_000, "1h0m0s"),
        (90_061_000, "25h1m1s"),
    ],
)
def test_resets_are_written_as_openai_writes_them(milliseconds: int, text: str) -> None:
    assert format_reset(milliseconds) == text


@pytest.mark.parametrize(
    ("retry_ms", "seconds"), [(1, "1"), (999, "1"), (1_000, "1"), (1_001, "2"), (20_000, "20")]
)
def test_a_limit_of_the_key_says_when_to_come_again(retry_ms: int, seconds: str) -> None:
    error = KeyLimitedError(limit="concurrency", value=4, retry_ms=retry_ms)
    assert error.headers == {"retry-after": seconds, "retry-after-ms": str(retry_ms)}
    inner = error_object(error)
    assert inner["limit"] == "concurrency"
    assert inner["limit_value"] == 4
    assert "4 calls at once" in str(inner["message"])
