"""Whatever goes wrong behind an endpoint, as an error that a client may see.

Nothing of an unexpected exception reaches a client, nor, as it may quote a row or a key, the log:
that gets its type and where it was raised.
"""

import logging
import traceback
from collections.abc import Callable
from typing import Final

from litestar import Request, Response
from litestar.datastructures import State
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from billing import accounts, books
from billing.db import hot
from billing.holds import GuardUnavailableError
from billing.settlement import desk
from llm_gateway import errors

_log = logging.getLogger(__name__)

ApiRequest = Request[None, None, State]


class ConflictError(errors.GatewayError):
    """What is to be made exists already."""

    status = 409
    type = "invalid_request_error"
    code = "already_exists"

    def __init__(self, message: str) -> None:
        # SDKs retry a 409 by themselves; here a retry meets the same conflict.
        super().__init__(message, headers={"x-should-retry": "false"})


class ActRefusedError(errors.GatewayError):
    """An act on a hold or an event that cannot be done as things stand."""

    status = 409
    type = "invalid_request_error"
    code = "act_refused"

    def __init__(self, why: str) -> None:
        super().__init__(f"Not as things stand: {why}.", headers={"x-should-retry": "false"})


class BookRefusedError(errors.InvalidRequestError):
    """An uploaded price book has errors; `problems` lists each as one line of text."""

    code = "price_book_refused"


class NoBookError(errors.UnavailableError):
    """No price book is in effect yet."""

    code = "no_price_book"
    text = "No price book is in effect; an administrator has to activate one."


def answer(request: ApiRequest, exception: Exception) -> Response[bytes]:
    """Litestar's exception handler for everything: OpenAI's envelope."""
    error = as_gateway_error(exception)
    if isinstance(error, errors.InternalError):
        _log.error("%s %s failed: %s", request.method, _template(request), where(exception))
    return Response(
        error.envelope(),
        status_code=error.status,
        headers=error.headers,
        media_type="application/json",
    )


def _template(request: ApiRequest) -> str:
    # The address as it is declared, without the account or event that was asked for.
    return str(request.scope.get("path_template", ""))


def as_gateway_error(exception: Exception) -> errors.GatewayError:
    """The error to answer with; InternalError for what nobody foresaw."""
    match exception:
        case errors.GatewayError():
            return exception
        case HTTPException():
            return _of_litestar(exception)
        case (
            hot.DatabaseUnavailableError()
            | OperationalError()
            | InterfaceError()
            | PoolTimeoutError()
        ):
            return errors.DatabaseUnavailableError()
        case GuardUnavailableError():
            return errors.GuardUnavailableError()
        case _:
            return _of_billing(exception)


def where(exception: Exception) -> str:
    """An exception's type and the line that raised it, without its message."""
    frames = traceback.extract_tb(exception.__traceback__)
    last = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(exception).__qualname__}{last}"


def _of_billing(exception: Exception) -> errors.GatewayError:
    match exception:
        case books.BookRefusedError():
            return _of_book(exception)
        case accounts.EntryRefusedError():
            refusal = exception.refusal
            return errors.InvalidRequestError(refusal.message, param=refusal.field)
        case accounts.EntryConflictError():
            conflict = exception.conflict
            return errors.EventConflictError(
                event_id=conflict.event_id,
                field=conflict.field,
                existing=conflict.existing,
                given=conflict.given,
            )
        case desk.ActRefusedError():
            return ActRefusedError(str(exception))
        case _:
            made = _PLAIN.get(type(exception), errors.InternalError)
            return made()


_PLAIN: Final[dict[type[Exception], Callable[[], errors.GatewayError]]] = {
    books.BooksStaleError: errors.BooksStaleError,
    books.NoBookError: NoBookError,
    books.UnknownBookError: lambda: errors.NotFoundError("There is no such price book."),
    accounts.UnknownAccountError: lambda: errors.NotFoundError("There is no such account."),
    desk.UnknownItemError: lambda: errors.NotFoundError("There is nothing by this id."),
    accounts.AccountExistsError: lambda: ConflictError("There is an account by this id already."),
}


def _of_book(refused: books.BookRefusedError) -> errors.GatewayError:
    return BookRefusedError(
        str(refused), extra={"problems": [str(problem) for problem in refused.problems]}
    )


def _of_litestar(exception: HTTPException) -> errors.GatewayError:
    match exception:
        case MethodNotAllowedException():
            return errors.MethodNotAllowedError((exception.headers or {}).get("allow", ""))
        case NotFoundException():
            return errors.NotFoundError()
        case ValidationException():
            return _of_validation(exception)
        case _ if exception.status_code == errors.RequestTooLargeError.status:
            return RequestTooLargeError()
        case _ if exception.status_code == errors.UnsupportedMediaTypeError.status:
            return errors.UnsupportedMediaTypeError()
        case _ if exception.status_code < 500:
            return unreadable()
        case _:
            return errors.InternalError()


class RequestTooLargeError(errors.GatewayError):
    """A body over the limit of its address."""

    status = errors.RequestTooLargeError.status
    type = "invalid_request_error"
    code = "request_too_large"

    def __init__(self) -> None:
        super().__init__("The request body is too large for this address.")


def unreadable() -> errors.InvalidRequestError:
    """The error for a body that is no JSON, or what else Litestar cannot make out."""
    return errors.InvalidRequestError("The request cannot be read: is its body valid JSON?")


def _of_validation(exception: ValidationException) -> errors.GatewayError:
    """Names the field. msgspec's messages tell types and limits; only that of an enum the value."""
    extra = exception.extra
    first: object = extra[0] if isinstance(extra, list) and extra else None
    if not isinstance(first, dict):
        return errors.InvalidRequestError("The request is not as this address expects it.")
    # A body as a whole is called "data" by Litestar; clients know only its fields.
    field = str(first.get("key") or "").removeprefix("data").removeprefix(".")
    return wrong_field(field, str(first.get("message") or "is not valid"))


def wrong_field(field: str, message: str) -> errors.InvalidRequestError:
    """The error for one field, "" for the whole; `message` is msgspec's, without its value."""
    if message.startswith("Invalid enum value"):
        message = "This is none of the values that are allowed here"
    text = f"{field}: {message}." if field else f"{message}."
    return errors.InvalidRequestError(text, param=field or None)
