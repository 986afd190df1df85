"""What can go wrong when a gateway is asked, as exceptions.

GatewayClientError
  UnusableArgumentError      an address, token or id that cannot be sent; nothing was
  NotConnectedError          nobody was reached; nothing was sent
  NoAnswerError              sent, but no whole answer came: whether it was done is not known
  UnreadableAnswerError      the answer is not one of a gateway's
  RefusedError               the gateway's own error, with its status and code
    InvalidRequestError      400, and what else is wrong with a request
      PriceBookRefusedError  400 price_book_refused
      TooLargeError          413
    InvalidKeyError          401
    InsufficientCreditError  402
    NotAllowedError          403
      AccountSuspendedError  403 account_suspended
      RoleNotAllowedError    403 role_not_allowed
    NotFoundError            404
    ConflictError            409
      AlreadyExistsError     409 already_exists
      EventConflictError     409 event_conflict: the id stands for something else
      ActRefusedError        409 act_refused: not as things stand
      CreditSpentError       409 credit_spent
      PriceBookConflictError 409 price_book_conflict: another version is in effect
    RateLimitedError         429
      CreditHeldError        429 credit_held
    ServerError              500 and above
      UnavailableError       503

No key or token is in any of them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import httpx2
import msgspec

MESSAGE_CHARACTERS_MAX: Final = 2_000  # of a server's text


class GatewayClientError(Exception):
    """Base of all; its text is one sentence."""


class UnusableArgumentError(GatewayClientError, ValueError):
    """An address, token or id that cannot be sent; the text does not repeat it."""


class NotConnectedError(GatewayClientError):
    """Nobody was reached, so that nothing was sent."""


class NoAnswerError(GatewayClientError):
    """What was asked may have been done, or not: no whole answer came."""


class UnreadableAnswerError(GatewayClientError):
    """An answer that is not a gateway's, or one of a version that is not understood here."""


class RefusedError(GatewayClientError):
    """The gateway said no.

    `param` and `params` name fields, `problems` has a line for each fault, `details` what else the
    error holds, such as the amounts of a 402. `request_id` is the answer's X-Request-Id,
    `retry_after` in seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str = "",
        param: str | None = None,
        params: tuple[str, ...] = (),
        problems: tuple[str, ...] = (),
        request_id: str = "",
        retry_after: float | None = None,
        repeat_refused: bool = False,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.params = params
        self.problems = problems
        self.request_id = request_id
        self.retry_after = retry_after
        self.repeat_refused = repeat_refused  # x-should-retry: false
        self.details: dict[str, object] = dict(details or {})


class InvalidRequestError(RefusedError):
    """The request is wrong as it stands; see `problems`."""


class PriceBookRefusedError(InvalidRequestError):
    """A price book with errors, one a line in `problems`."""


class TooLargeError(InvalidRequestError):
    """The body is larger than its address takes."""


class InvalidKeyError(RefusedError):
    """The key or token is missing, unknown, expired or revoked."""


class InsufficientCreditError(RefusedError):
    """The balance does not cover it; `details` has the amounts."""


class NotAllowedError(RefusedError):
    """The key, or the token's role, may not do this."""


class AccountSuspendedError(NotAllowedError):
    """An administrator suspended the account."""


class RoleNotAllowedError(NotAllowedError):
    """The token's role may not do this; `details["roles"]` may."""


class NotFoundError(RefusedError):
    """There is nothing by this id."""


class ConflictError(RefusedError):
    """It conflicts with what is there; trying again changes nothing."""


class AlreadyExistsError(ConflictError):
    """What was to be made is there already."""


class EventConflictError(ConflictError):
    """The id or Idempotency-Key was used before, for something else."""


class ActRefusedError(ConflictError):
    """Not as things stand, such as the cancelling of an order that is paid."""


class CreditSpentError(ConflictError):
    """Nothing is left of the credit that was to be taken back."""


class PriceBookConflictError(ConflictError):
    """Another version is, or is to be, in effect than was believed; `details["replaces"]` is."""


class RateLimitedError(RefusedError):
    """A limit is reached; nothing was done. Try again after `retry_after`."""


class CreditHeldError(RateLimitedError):
    """Calls in progress hold the credit now."""


class ServerError(RefusedError):
    """The gateway, or what it depends on, failed."""


class UnavailableError(ServerError):
    """Something that the gateway depends on is away; try again after `retry_after`."""


# A class for a code is one for the code's status too; of other codes the status says enough.
BY_CODE: Final[dict[str, type[RefusedError]]] = {
    "price_book_refused": PriceBookRefusedError,
    "account_suspended": AccountSuspendedError,
    "role_not_allowed": RoleNotAllowedError,
    "already_exists": AlreadyExistsError,
    "event_conflict": EventConflictError,
    "act_refused": ActRefusedError,
    "credit_spent": CreditSpentError,
    "credit_held": CreditHeldError,
    "price_book_conflict": PriceBookConflictError,
}
BY_STATUS: Final[dict[int, type[RefusedError]]] = {
    401: InvalidKeyError,
    402: InsufficientCreditError,
    403: NotAllowedError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    429: RateLimitedError,
    503: UnavailableError,
}


class _Error(msgspec.Struct):
    message: str
    code: str | None = None
    param: str | None = None
    params: list[str] = []
    problems: list[str] = []


class _Envelope(msgspec.Struct):
    error: _Error


def refusal(
    status: int, headers: Mapping[str, str], body: bytes, url: str
) -> RefusedError | UnreadableAnswerError:
    """The error for an answer with a status that is not 2xx. Pure."""
    try:
        told = msgspec.json.decode(body, type=_Envelope).error
        whole = msgspec.json.decode(body, type=dict[str, dict[str, object]])["error"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _without_envelope(status, headers, url)
    known = set(_Error.__struct_fields__) | {"type"}
    return _class(status, told.code or "")(
        told.message[:MESSAGE_CHARACTERS_MAX] or f"{url} refused without a reason",
        status=status,
        code=told.code or "",
        param=told.param,
        params=tuple(told.params),
        problems=tuple(told.problems),
        request_id=headers.get("x-request-id", ""),
        retry_after=retry_after(headers),
        repeat_refused=headers.get("x-should-retry", "") == "false",
        details={name: value for name, value in whole.items() if name not in known},
    )


def _without_envelope(
    status: int, headers: Mapping[str, str], url: str
) -> RefusedError | UnreadableAnswerError:
    text = f"the answer of {url} is no gateway's"
    if status < 500 and status != 429:
        return UnreadableAnswerError(f"{text} (HTTP {status})")
    # A proxy in front of the gateway speaks for itself.
    return _class(status, "")(text, status=status, retry_after=retry_after(headers))


def _class(status: int, code: str) -> type[RefusedError]:
    by_status = BY_STATUS.get(status, ServerError if status >= 500 else InvalidRequestError)
    by_code = BY_CODE.get(code, by_status)
    return by_code if issubclass(by_code, by_status) else by_status


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds to wait that an answer tells; None if it does not, or by a date."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        text = headers.get(name, "").strip()
        if text.isascii() and text.isdigit() and len(text) < 10:
            return int(text) / unit
    return None


# Nothing was sent: the connection was not made, or none was free.
_BEFORE_SENDING: Final = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
    httpx2.LocalProtocolError,
)


@contextmanager
def told_as_ours(url: str) -> Iterator[None]:
    """Turn what httpx2 raises into errors of this module."""
    try:
        yield
    except httpx2.InvalidURL as error:
        raise UnusableArgumentError("this is no address that can be asked") from error
    except httpx2.HTTPError as error:
        kind = NotConnectedError if isinstance(error, _BEFORE_SENDING) else NoAnswerError
        raise kind(unreachable(url, error)) from error


def unreachable(url: str, error: Exception) -> str:
    """Why a server did not answer, as one line."""
    if isinstance(error, httpx2.TimeoutException):
        return f"{url} does not answer in time"
    why = str(error) or type(error).__name__
    return f"{url} cannot be reached ({why}): is the gateway running?"
