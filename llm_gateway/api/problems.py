"""Whatever goes wrong behind an endpoint, as an error that a client may see.

Nothing of an unexpected exception reaches a client, nor, as it may quote a row or a key, the log:
that gets its type and where it was raised.
"""

import logging
import traceback
from collections.abc import Callable, Sequence
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

from billing import accounts, admins, books, corrections, keys
from billing.db import hot
from billing.holds import GuardUnavailableError
from billing.rerating import runs, simulator
from billing.settlement import desk
from billing.shop import orders, products, rewards
from billing.shop.fields import FieldProblem, InvalidFieldsError
from llm_gateway import errors
from llm_gateway.payments.checkout import UnknownPaymentModeError
from llm_gateway.payments.port import PaymentRefusedError, PaymentUnavailableError
from pricing_rules.match import show_moment
from pricing_rules.reader import Problem

SIMULATION_RETRY_SECONDS: Final = 30

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
        why = f"{why[:1].lower()}{why[1:].rstrip('.')}"
        super().__init__(f"Not as things stand: {why}.", headers={"x-should-retry": "false"})


class RoleNotAllowedError(errors.ForbiddenError):
    """The administrator's role does not have the permission; `roles` do."""

    code = "role_not_allowed"

    def __init__(self, admin: admins.Admin, permission: admins.Permission) -> None:
        roles = [role.value for role in admins.roles_for(permission)]
        super().__init__(
            f"This needs the role {' or '.join(roles)}; {admin.name} is {admin.role.value}.",
            extra={"permission": permission.value, "roles": roles},
        )


class CreditSpentError(errors.GatewayError):
    """Nothing of an order's credit is left to take back."""

    status = 409
    type = "invalid_request_error"
    code = "credit_spent"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"x-should-retry": "false"})


class PaymentModeUnavailableError(errors.UnavailableError):
    """Whoever takes the money cannot be reached."""

    code = "payment_unavailable"
    text = "The payment cannot be begun at the moment; try again."


class SimulationBusyError(errors.RateLimitedError):
    """This process simulates already."""

    code = "simulation_running"

    def __init__(self) -> None:
        super().__init__(
            "A simulation is running; one at a time is enough. Try again when it is done.",
            retry_after_seconds=SIMULATION_RETRY_SECONDS,
        )


class BookRefusedError(errors.InvalidRequestError):
    """An uploaded price book has errors; `problems` has each as a line of text, `details` in parts."""

    code = "price_book_refused"

    def __init__(self, message: str, found: Sequence[Problem], *, file: str = "") -> None:
        lines = [problem.in_file(file) if file else str(problem) for problem in found]
        super().__init__(message, extra={"problems": lines, "details": found})


class OtherBookError(errors.GatewayError):
    """Another version is, or is to be, in effect than the request says; `replaces` is the truth."""

    status = 409
    type = "invalid_request_error"
    code = "price_book_conflict"

    def __init__(self, conflict: books.OtherBookError) -> None:
        follower = conflict.followed_by
        held = f"version {conflict.replaces}" if conflict.replaces else "no version"
        then = show_moment(conflict.moment)
        message = f"Until then {held} is in effect at {then}"
        if follower is not None:
            since = show_moment(follower.effective_from)
            message += f", and version {follower.version} is to follow at {since}"
        followed_by = None if follower is None else follower.version
        super().__init__(
            f"{message}: see what you would change, and send replaces: "
            f"{_shown_version(conflict.replaces)}, followed_by: {_shown_version(followed_by)}.",
            param="replaces",
            headers={"x-should-retry": "false"},
            extra={"replaces": conflict.replaces, "followed_by": followed_by},
        )


def _shown_version(version: int | None) -> str:
    return "null" if version is None else str(version)


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
            return BookRefusedError(str(exception), exception.problems)
        case books.OtherBookError():
            return OtherBookError(exception)
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
        case InvalidFieldsError() | accounts.EntryRefusedError() | UnknownPaymentModeError():
            return wrong_fields(_problems_of(exception))
        case (
            rewards.RewardConflictError()
            | corrections.CorrectionConflictError()
            | runs.RunConflictError()
        ):
            return _Conflict(_sentence(exception), param=_shown_name(exception.field))
        case _:
            told = _TOLD.get(type(exception))
            made = _PLAIN.get(type(exception), errors.InternalError)
            return told(_sentence(exception)) if told else made()


_PLAIN: Final[dict[type[Exception], Callable[[], errors.GatewayError]]] = {
    books.BooksStaleError: errors.BooksStaleError,
    books.NoBookError: NoBookError,
    books.NothingBeforeError: lambda: ActRefusedError("no version held before this one"),
    books.UnknownBookError: lambda: errors.NotFoundError("There is no such price book."),
    accounts.UnknownAccountError: lambda: errors.NotFoundError("There is no such account."),
    desk.UnknownItemError: lambda: errors.NotFoundError("There is nothing by this id."),
    accounts.AccountExistsError: lambda: ConflictError("There is an account by this id already."),
    admins.NameTakenError: lambda: ConflictError("There is, or was, a token by this name."),
    keys.UnknownKeyError: lambda: errors.NotFoundError("There is no such key."),
    keys.KeyOutOfUseError: lambda: ActRefusedError("the key is revoked, expired or replaced"),
    products.UnknownProductError: lambda: errors.NotFoundError("There is no such product."),
    products.SkuTakenError: lambda: ConflictError("Another product has this SKU."),
    orders.UnknownOrderError: lambda: errors.NotFoundError("There is no such order."),
    rewards.UnknownRewardRuleError: lambda: errors.NotFoundError("There is no such reward rule."),
    runs.UnknownRunError: lambda: errors.NotFoundError("There is no such run."),
    simulator.SimulationBusyError: SimulationBusyError,
    corrections.UnknownChargeError: lambda: errors.NotFoundError("There is no such charge."),
    PaymentUnavailableError: PaymentModeUnavailableError,
}


def _problems_of(
    exception: InvalidFieldsError | accounts.EntryRefusedError | UnknownPaymentModeError,
) -> Sequence[FieldProblem]:
    match exception:
        case InvalidFieldsError():
            return [
                FieldProblem(field=_shown_name(each.field), message=each.message)
                for each in exception.problems
            ]
        case accounts.EntryRefusedError():
            refusal = exception.refusal
            return [FieldProblem(field=_shown_name(refusal.field), message=refusal.message)]
        case UnknownPaymentModeError():
            message = f"is none of those that are on: {', '.join(exception.known)}"
            return [FieldProblem(field="payment_mode", message=message)]


class _Conflict(errors.GatewayError):
    """An id or key stands for something else already."""

    status = 409
    type = "invalid_request_error"
    code = "event_conflict"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, headers={"x-should-retry": "false"})


# Exceptions whose own words may be shown: they name states and amounts, or what was asked for.
_TOLD: Final[dict[type[Exception], Callable[[str], errors.GatewayError]]] = {
    orders.ProductUnavailableError: ActRefusedError,
    orders.OrderConflictError: _Conflict,
    orders.TooManyPendingError: ActRefusedError,
    orders.TransitionRefusedError: ActRefusedError,
    orders.PaymentMismatchError: ActRefusedError,
    rewards.UnknownSourceError: lambda text: errors.InvalidRequestError(text, param="source"),
    rewards.SourceDisabledError: ActRefusedError,
    rewards.SourceTakenError: ConflictError,
    runs.RunInProgressError: ActRefusedError,
    simulator.SimulationFailedError: lambda text: errors.UnavailableError(
        f"The simulation was given up: {text[:1].lower()}{text[1:]}"
    ),
    corrections.ChargeBeingReratedError: ActRefusedError,
    corrections.ChargeNotFinalError: ActRefusedError,
    corrections.OrderNotCreditedError: ActRefusedError,
    corrections.RefundTooLargeError: ActRefusedError,
    corrections.CreditSpentError: CreditSpentError,
    PaymentRefusedError: errors.ForbiddenError,
}


def _sentence(exception: Exception) -> str:
    text = str(exception)
    return f"{text[:1].upper()}{text[1:]}."


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
    """Names the fields. msgspec's messages tell types and limits; only that of an enum the value."""
    extra = exception.extra
    found = [each for each in extra if isinstance(each, dict)] if isinstance(extra, list) else []
    if not found:
        return errors.InvalidRequestError("The request is not as this address expects it.")
    return wrong_fields([_problem_of(each) for each in found])


def _problem_of(told: dict[object, object]) -> FieldProblem:
    # A body as a whole is called "data" by Litestar; clients know only its fields.
    field = str(told.get("key") or "").removeprefix("data").removeprefix(".")
    if field in ("from_time", "to_time"):  # `from` by itself is no name in Python
        field = field.removesuffix("_time")
    return FieldProblem(field=field, message=str(told.get("message") or "is not valid"))


def wrong_fields(problems: Sequence[FieldProblem]) -> errors.InvalidRequestError:
    """The error for fields, "" for the whole; a message is msgspec's, without its value, or ours.

    `problems` of the error has a line for each field, `params` their names.
    """
    lines = [_line(each) for each in problems]
    names = [each.field for each in problems]
    head = "" if len(lines) == 1 else f"{len(lines)} fields are not as they should be. "
    return errors.InvalidRequestError(
        head + " ".join(lines),
        param=names[0] or None,
        extra={"problems": lines, "params": list(dict.fromkeys(names))},
    )


def _line(problem: FieldProblem) -> str:
    message = problem.message
    if message.startswith("Invalid enum value"):
        message = "This is none of the values that are allowed here"
    return f"{problem.field}: {message}." if problem.field else f"{message}."


def _shown_name(field: str) -> str:
    """A field as the API calls it: amounts of credit carry their unit."""
    return f"{field}_micro_credits" if field in ("amount", "credit_amount") else field
