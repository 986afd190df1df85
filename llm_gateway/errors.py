"""Every error a client can be answered with, in OpenAI's envelope, and what upstream errors become.

GatewayError
  InvalidRequestError           400 invalid_request
    MissingBillingUserError     400 missing_billing_user
    UnboundedCostError          400 unbounded_cost
    NoPriceRuleError            400 no_price_rule
  InvalidApiKeyError            401 invalid_api_key
  InsufficientCreditError       402 insufficient_credit
  ForbiddenError                403 forbidden
    SceneNotAllowedError        403 scene_not_allowed
    ModelNotAllowedError        403 model_not_allowed
    AccountSuspendedError       403 account_suspended
    BillingUserNotAllowedError  403 billing_user_not_allowed
  NotFoundError                 404 not_found
    ModelNotFoundError          404 model_not_found
  MethodNotAllowedError         405 method_not_allowed
  RequestTimeoutError           408 request_timeout
  EventConflictError            409 event_conflict
  RequestTooLargeError          413 request_too_large
  UnsupportedMediaTypeError     415 unsupported_media_type
  HeadersTooLargeError          431 headers_too_large
  RateLimitedError              429 rate_limited
    CreditHeldError             429 credit_held
    KeyLimitedError             429 rate_limited
    UpstreamRateLimitedError    429 rate_limited
  InternalError                 500 internal_error
  UpstreamFailedError           502 upstream_error
  UnavailableError              503 unavailable
    GuardUnavailableError       503 guard_unavailable
    LimitsUnavailableError      503 limits_unavailable
    BooksStaleError             503 books_stale
    ShuttingDownError           503 shutting_down
    DatabaseUnavailableError    503 database_unavailable
    ProviderOffError            503 provider_off
  UpstreamTimeoutError          504 upstream_timeout
  UpstreamRejectedError         400, 404, 413 or 422 upstream_rejected

`str(error)` is fit for logs: it never repeats what an upstream wrote.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final

import msgspec

ExtraValue = int | str | list[str] | Sequence[msgspec.Struct] | None

RETRY_AFTER_SECONDS: Final = 1  # asked of clients whose obstacle usually goes away by itself
NAME_CHARACTERS_MAX: Final = 100  # of a client's own text repeated in a message
UPSTREAM_TEXT_CHARACTERS_MAX: Final = 2_000  # of an upstream's refusal, when it must be wrapped


class GatewayError(Exception):
    """Base of all: `status`, `type`, `code`, `param`, `message`, `headers`, `extra` of an answer.

    Header names are lower-case. `extra` are further members of the error object, such as the
    amounts of a 402.
    """

    status: int = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, ExtraValue] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers: dict[str, str] = dict(headers or {})
        self.extra: dict[str, ExtraValue] = dict(extra or {})

    def envelope(self) -> bytes:
        """The JSON body: {"error": {"message", "type", "param", "code", ...extra}}."""
        return _encoder.encode(
            {
                "error": {
                    "message": self.message,
                    "type": self.type,
                    "param": self.param,
                    "code": self.code,
                    **self.extra,
                }
            }
        )


class InvalidRequestError(GatewayError):
    """The request itself is wrong; `param` names the field where one can be named."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class MissingBillingUserError(InvalidRequestError):
    """An app key was used without saying whose credit pays."""

    code = "missing_billing_user"

    def __init__(self) -> None:
        super().__init__(
            "This key belongs to an app: name the paying account in the header X-Billing-User.",
            param="X-Billing-User",
        )


class UnboundedCostError(InvalidRequestError):
    """The most that the call could cost cannot be computed, so it cannot be held in advance."""

    code = "unbounded_cost"

    def __init__(self, reason: str, *, param: str | None = None) -> None:
        super().__init__(
            f"The cost of this call cannot be bounded in advance: {reason}.", param=param
        )


class NoPriceRuleError(InvalidRequestError):
    """No active rule prices the call; `rule_toml` is the rule an admin could add."""

    code = "no_price_rule"

    def __init__(self, *, scene: str, provider: str, model: str, rule_toml: str) -> None:
        super().__init__(
            f"No price rule matches scene {shorten(scene)!r}, provider {shorten(provider)!r}, "
            f"model {shorten(model)!r}. An admin can add this one, with prices filled in:\n"
            f"{rule_toml}",
            param="model",
            extra={"rule_toml": rule_toml},
        )


class InvalidApiKeyError(GatewayError):
    """No key, a malformed one, or one that is unknown, expired or revoked."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def __init__(
        self, message: str = "The API key is missing, unknown, expired or revoked."
    ) -> None:
        super().__init__(message, headers={"www-authenticate": "Bearer"})


class InsufficientCreditError(GatewayError):
    """The balance itself does not cover the least that the call may cost (all micro-credits)."""

    status = 402
    type = "insufficient_quota"
    code = "insufficient_credit"

    def __init__(self, *, balance: int, held: int, needed: int) -> None:
        super().__init__(
            f"Insufficient credit: this call needs {needed} micro-credits, the balance is "
            f"{balance} of which {held} are held for calls in progress.",
            extra=_amounts(balance, held, needed),
        )


class ForbiddenError(GatewayError):
    """The caller is known but may not do this."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class SceneNotAllowedError(ForbiddenError):
    """X-Scene names a scene that the key does not have: a client does not pick its price."""

    code = "scene_not_allowed"

    def __init__(self, scene: str) -> None:
        super().__init__(f"This key may not use scene {shorten(scene)!r}.", param="X-Scene")


class ModelNotAllowedError(ForbiddenError):
    """The key is restricted to other models."""

    code = "model_not_allowed"

    def __init__(self, model: str) -> None:
        super().__init__(f"This key may not use model {shorten(model)!r}.", param="model")


class AccountSuspendedError(ForbiddenError):
    """An admin suspended the account; that is apart from having no credit."""

    code = "account_suspended"

    def __init__(self) -> None:
        super().__init__("The account is suspended; an administrator can lift that.")


class BillingUserNotAllowedError(ForbiddenError):
    """X-Billing-User on a user key, or naming an account outside the app's."""

    code = "billing_user_not_allowed"

    def __init__(self, message: str = "This key may not bill that account.") -> None:
        super().__init__(message, param="X-Billing-User")


class NotFoundError(GatewayError):
    """Nothing is at this address, or there is nothing by this id."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"

    def __init__(self, message: str = "There is nothing at this address.") -> None:
        super().__init__(message)


class ModelNotFoundError(NotFoundError):
    """The gateway offers no such model; `near` lists names that resemble it."""

    code = "model_not_found"

    def __init__(self, model: str, near: Iterable[str] = ()) -> None:
        names = list(near)
        hint = f" Did you mean {', '.join(names)}?" if names else ""
        super().__init__(f"The model {shorten(model)!r} does not exist here.{hint}")
        self.param = "model"
        self.extra["near"] = names


class MethodNotAllowedError(GatewayError):
    """The address exists, for other methods."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, allow: str) -> None:
        super().__init__(f"Only {allow} is allowed here.", headers={"allow": allow})


class RequestTimeoutError(GatewayError):
    """The client took too long to send its request."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"

    def __init__(self) -> None:
        super().__init__("The request was not received in time.")


class EventConflictError(GatewayError):
    """An event id was used before with other content; `field` says where the two differ."""

    status = 409
    type = "invalid_request_error"
    code = "event_conflict"

    def __init__(self, *, event_id: str, field: str, existing: str, given: str) -> None:
        # SDKs retry a 409 by themselves; here a retry meets the same conflict.
        super().__init__(
            f"Event {shorten(event_id)!r} already exists with {field} {shorten(existing)!r}, "
            f"not {shorten(given)!r}.",
            param=field,
            headers={"x-should-retry": "false"},
        )


class RequestTooLargeError(GatewayError):
    """The body is over `body_bytes_max`."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"

    def __init__(self, bytes_max: int) -> None:
        super().__init__(
            f"The request body may have at most {bytes_max} bytes.", extra={"bytes_max": bytes_max}
        )


class UnsupportedMediaTypeError(GatewayError):
    """The body is in a content type or coding that this address does not read."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"

    def __init__(self, message: str = "Send the body as application/json, uncompressed.") -> None:
        super().__init__(message)


class HeadersTooLargeError(GatewayError):
    """The request's head is over the limit."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"The request's head may have at most {bytes_max} bytes.")


class RateLimitedError(GatewayError):
    """A limit on requests, tokens or concurrency; SDKs wait and try again."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limited"

    def __init__(
        self,
        message: str = "The rate limit is reached; try again later.",
        *,
        retry_after_seconds: int = RETRY_AFTER_SECONDS,
        extra: Mapping[str, ExtraValue] | None = None,
    ) -> None:
        super().__init__(message, headers={"retry-after": str(retry_after_seconds)}, extra=extra)


class CreditHeldError(RateLimitedError):
    """The balance would do, but calls in progress hold it now (all micro-credits)."""

    code = "credit_held"

    def __init__(
        self,
        *,
        balance: int,
        held: int,
        needed: int,
        retry_after_seconds: int = RETRY_AFTER_SECONDS,
    ) -> None:
        super().__init__(
            f"Calls in progress hold {held} of {balance} micro-credits and this call needs "
            f"{needed}: try again when one has ended.",
            retry_after_seconds=retry_after_seconds,
            extra=_amounts(balance, held, needed),
        )


class KeyLimitedError(RateLimitedError):
    """A limit of the key; `limit` is one of requests, tokens, concurrency.

    OpenAI's SDKs wait as long as `retry-after-ms` says, others whole seconds.
    """

    def __init__(self, *, limit: str, value: int, retry_ms: int) -> None:
        may = _LIMITS[limit].format(value)
        super().__init__(
            f"This key may {may}; try again in {format_reset(retry_ms)}.",
            retry_after_seconds=-(-retry_ms // 1000),
            extra={"limit": limit, "limit_value": value},
        )
        self.headers["retry-after-ms"] = str(retry_ms)


class UpstreamRateLimitedError(RateLimitedError):
    """The provider's limit, which all callers of the gateway share."""

    def __init__(self, retry_headers: Mapping[str, str]) -> None:
        super().__init__(
            "The provider's rate limit is reached; try again later.", extra={"source": "upstream"}
        )
        self.headers.update(retry_headers)


class InternalError(GatewayError):
    """A fault of the gateway itself; the details are in its log only."""

    def __init__(self, *, may_have_billed: bool = False) -> None:
        super().__init__(
            "The gateway failed to handle this request.",
            headers=_retry_headers(may_have_billed=may_have_billed),
        )


class UpstreamFailedError(GatewayError):
    """The provider could not be reached, failed, or refused the gateway itself.

    `may_have_billed`: the provider may have done the work, so SDKs are told not to repeat it.
    """

    status = 502
    code = "upstream_error"

    def __init__(
        self, message: str = "The provider failed to answer.", *, may_have_billed: bool = False
    ) -> None:
        super().__init__(message, headers=_retry_headers(may_have_billed=may_have_billed))


class UpstreamTimeoutError(GatewayError):
    """The provider did not begin to answer in time."""

    status = 504
    code = "upstream_timeout"

    def __init__(
        self,
        message: str = "The provider did not answer in time.",
        *,
        may_have_billed: bool = True,
    ) -> None:
        super().__init__(message, headers=_retry_headers(may_have_billed=may_have_billed))


class UnavailableError(GatewayError):
    """Something the gateway depends on is away; nobody was admitted and nobody pays."""

    status = 503
    code = "unavailable"
    text: ClassVar[str] = "The gateway cannot take calls at the moment; try again."

    def __init__(
        self, message: str | None = None, *, retry_after_seconds: int = RETRY_AFTER_SECONDS
    ) -> None:
        super().__init__(message or self.text, headers={"retry-after": str(retry_after_seconds)})


class GuardUnavailableError(UnavailableError):
    """The hold store did not answer, and no call passes unheld."""

    code = "guard_unavailable"
    text = "Credit cannot be checked at the moment; try again."


class LimitsUnavailableError(UnavailableError):
    """The limits of the key could not be counted, and no call passes uncounted."""

    code = "limits_unavailable"
    text = "The limits of this key cannot be checked at the moment; try again."


class BooksStaleError(UnavailableError):
    """The price books could not be refreshed, so prices are not known to be current."""

    code = "books_stale"
    text = "Prices cannot be read at the moment; try again."


class ShuttingDownError(UnavailableError):
    """This process is stopping and takes no new calls."""

    code = "shutting_down"
    text = "The gateway is shutting down; try again."


class DatabaseUnavailableError(UnavailableError):
    """The database is away; a key that is not cached cannot be judged, so this is no 401."""

    code = "database_unavailable"
    text = "The database cannot be reached at the moment; try again."


class ProviderOffError(UnavailableError):
    """All providers of a model are switched off; `why` names what would switch them on."""

    code = "provider_off"

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"No provider of model {shorten(model)!r} is on: {why}.")
        self.param = "model"
        # Only an operator can change this, so waiting is of no use.
        self.headers = {"x-should-retry": "false"}


class UpstreamRejectedError(GatewayError):
    """The provider found the request wrong, in words of its own that were not OpenAI's envelope."""

    type = "invalid_request_error"
    code = "upstream_rejected"

    def __init__(self, status: int, message: str) -> None:
        # The provider's words may quote the prompt: they go to the client, not into `args`.
        super().__init__(f"The provider answered with status {status}.")
        self.message = message
        self.status = status


def wrap_upstream_error(
    status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes
) -> GatewayError | bytes:
    """What the client gets when the provider answers with an error before any content.

    Bytes: the provider's body, handed on unchanged under the same status. Otherwise an error of
    ours. 400, 404, 413 and 422 concern the client's request; 401, 402 and 403 concern the
    gateway's own key and are hidden; 429 keeps its Retry-After (DESIGN 7).
    """
    if status in _ABOUT_THE_REQUEST:
        if _is_openai_envelope(body):
            return body
        return UpstreamRejectedError(status, _upstream_text(status, body))
    if status == UpstreamRateLimitedError.status:
        return UpstreamRateLimitedError(_upstream_retry_headers(headers))
    if status in _ABOUT_OUR_KEY:
        return UpstreamFailedError("The provider refused the gateway's own credentials.")
    return UpstreamFailedError(f"The provider answered with status {status}.")


def format_reset(milliseconds: int) -> str:
    """A duration as OpenAI writes it in x-ratelimit-reset-*: "120ms", "8.64s", "6m0s", "1h0m0s".

    https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
    """
    seconds, rest = divmod(milliseconds, 1000)
    if not seconds:
        return f"{rest}ms" if rest else "0s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    tail = f"{seconds}.{rest:03}".rstrip("0") if rest else str(seconds)
    if hours:
        return f"{hours}h{minutes}m{tail}s"
    return f"{minutes}m{tail}s" if minutes else f"{tail}s"


def shorten(text: str) -> str:
    """A client's own text, cut so that a message that quotes it stays short."""
    if len(text) <= NAME_CHARACTERS_MAX:
        return text
    return text[:NAME_CHARACTERS_MAX] + "..."


def _amounts(balance: int, held: int, needed: int) -> dict[str, ExtraValue]:
    return {
        "balance_micro_credits": balance,
        "held_micro_credits": held,
        "needed_micro_credits": needed,
    }


def _retry_headers(*, may_have_billed: bool) -> dict[str, str]:
    # OpenAI's SDKs obey this header before they look at the status.
    return {"x-should-retry": "false"} if may_have_billed else {}


class _EnvelopeError(msgspec.Struct):
    message: str


class _Envelope(msgspec.Struct):
    error: _EnvelopeError


class _Detail(msgspec.Struct):
    msg: str


class _LooseError(msgspec.Struct):
    """The places where providers that do not use OpenAI's envelope put their sentence."""

    message: str | None = None
    detail: str | list[_Detail] | None = None  # FastAPI's shape, as vLLM and others answer
    error: str | None = None  # Ollama's own shape


_LIMITS: Final = {
    "requests": "make {} requests per minute (RPM)",
    "tokens": "use {} tokens per minute (TPM), of which this call could need more than are left",
    "concurrency": "run {} calls at once, and as many run now",
}
_ABOUT_THE_REQUEST: Final = frozenset({400, 404, 413, 422})
_ABOUT_OUR_KEY: Final = frozenset({401, 402, 403})
_RETRY_HEADERS: Final = frozenset({"retry-after", "retry-after-ms"})
_RETRY_VALUE_CHARACTERS_MAX: Final = 64

_encoder = msgspec.json.Encoder()
_envelope_decoder = msgspec.json.Decoder(_Envelope)
# Gemini's compatible endpoint wraps the envelope in an array.
_loose_decoder = msgspec.json.Decoder(_LooseError | list[_Envelope])


def _is_openai_envelope(body: bytes) -> bool:
    try:
        _envelope_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _upstream_text(status: int, body: bytes) -> str:
    """The provider's sentence if it has a usual place; never a page of HTML."""
    loose: _LooseError | list[_Envelope]
    try:
        loose = _loose_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        loose = []
    text: str | None
    if isinstance(loose, list):
        text = loose[0].error.message if loose else None
    elif isinstance(loose.detail, list):
        text = "; ".join(detail.msg for detail in loose.detail)
    else:
        text = loose.message or loose.detail or loose.error
    if not text:
        return f"The provider rejected the request with status {status}."
    return text[:UPSTREAM_TEXT_CHARACTERS_MAX]


def _upstream_retry_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    kept: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1").strip()
        if name in _RETRY_HEADERS and value.isascii() and value.isprintable():
            kept[name] = value[:_RETRY_VALUE_CHARACTERS_MAX]
    return kept
