"""What goes wrong, as exceptions: the right class, everything the gateway told, and never a key."""

import inspect
import json
import pickle
import traceback
from collections.abc import Iterator
from typing import TypeVar

import pytest

import llm_gateway.client as package
from llm_gateway import errors as server_errors
from llm_gateway.api import problems
from llm_gateway.client import (
    ActRefusedError,
    AdminClient,
    AsyncGatewayClient,
    ConflictError,
    CreditHeldError,
    GatewayClient,
    GatewayClientError,
    InsufficientCreditError,
    InvalidRequestError,
    NoAnswerError,
    NotAllowedError,
    NotConnectedError,
    PriceBookRefusedError,
    RefusedError,
    Retries,
    RoleNotAllowedError,
    ServerError,
    UnavailableError,
    UnreadableAnswerError,
    UnusableArgumentError,
)
from llm_gateway.client import errors as client_errors
from llm_gateway.client.errors import BY_CODE, BY_STATUS, refusal
from tests.support.gateway import free_port
from tests.support.scripted_http import BREAK_OFF, Scripted, ScriptedServer

KEY = "lgw_a-key-that-nobody-may-see"
T = TypeVar("T")
ONCE = Retries(attempts_max=1)
URL = "http://gateway"


def _refused(status: int, code: str, **more: object) -> RefusedError:
    told = {"message": "No.", "type": "t", "param": None, "code": code, **more}
    made = refusal(status, {}, json.dumps({"error": told}).encode(), URL)
    assert isinstance(made, RefusedError)
    return made


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_request", InvalidRequestError),
        (400, "price_book_refused", PriceBookRefusedError),
        (402, "insufficient_credit", InsufficientCreditError),
        (403, "scene_not_allowed", NotAllowedError),
        (403, "role_not_allowed", RoleNotAllowedError),
        (409, "act_refused", ActRefusedError),
        (409, "something_new", ConflictError),
        (415, "unsupported_media_type", InvalidRequestError),
        (429, "credit_held", CreditHeldError),
        (500, "internal_error", ServerError),
        (503, "guard_unavailable", UnavailableError),
        # A code that does not go with its status says less than the status.
        (400, "credit_held", InvalidRequestError),
    ],
)
def test_status_and_code_choose_the_class(status: int, code: str, kind: type) -> None:
    assert type(_refused(status, code)) is kind


def test_error_has_everything_that_was_told() -> None:
    told = {
        "message": "2 fields are not as they should be.",
        "type": "invalid_request_error",
        "param": "sku",
        "code": "invalid_request",
        "problems": ["sku: is missing.", "name: is missing."],
        "params": ["sku", "name"],
        "needed_micro_credits": 7,
    }
    headers = {"x-request-id": "r-1", "retry-after": "3"}
    made = refusal(400, headers, json.dumps({"error": told}).encode(), URL)
    assert isinstance(made, InvalidRequestError)
    assert (made.status, made.code, made.param) == (400, "invalid_request", "sku")
    assert made.problems == ("sku: is missing.", "name: is missing.")
    assert made.params == ("sku", "name")
    assert (made.request_id, made.retry_after) == ("r-1", 3.0)
    assert made.details == {"needed_micro_credits": 7}
    assert str(made) == made.message == "2 fields are not as they should be."


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "2", "retry-after-ms": "150"}, 0.15),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "9" * 400}, None),
        ({}, None),
    ],
)
def test_retry_after_is_whole_seconds_or_milliseconds(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert client_errors.retry_after(headers) == seconds


def _subclasses(kind: type[T]) -> Iterator[type[T]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def test_every_status_of_the_server_has_a_class_with_a_meaning() -> None:
    assert problems.RoleNotAllowedError in set(_subclasses(server_errors.GatewayError))
    for kind in _subclasses(server_errors.GatewayError):
        status, code = kind.status, kind.code
        made = _refused(status, code)
        assert type(made) is not RefusedError
        assert not isinstance(made, ServerError) or status >= 500, code


def test_every_code_with_a_class_is_one_of_the_server() -> None:
    codes = {kind.code for kind in _subclasses(server_errors.GatewayError)}
    assert BY_CODE.keys() <= codes


def test_every_error_is_exported_and_drawn() -> None:
    defined = {
        name
        for name, found in inspect.getmembers(client_errors, inspect.isclass)
        if issubclass(found, GatewayClientError)
    }
    drawn = {line.split()[0] for line in (client_errors.__doc__ or "").splitlines() if line.strip()}
    assert defined <= set(package.__all__)
    assert defined <= drawn
    assert set(BY_STATUS.values()) <= {getattr(package, name) for name in defined}


# -- answers that are no gateway's -------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":"no"}', b"\xff", b"[" * 9999])
def test_strange_refusal_is_told_as_one(body: bytes) -> None:
    assert isinstance(refusal(404, {}, body, URL), UnreadableAnswerError)
    # ... but a proxy that says that nobody is there may be believed.
    assert isinstance(refusal(503, {"retry-after": "1"}, body, URL), UnavailableError)
    assert isinstance(refusal(502, {}, body, URL), ServerError)


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'{"account": 1}', b"\xff"])
def test_strange_answer_is_told_as_one(body: bytes) -> None:
    with (
        ScriptedServer(Scripted(body=body)) as server,
        GatewayClient(server.url, KEY) as client,
        pytest.raises(UnreadableAnswerError, match="not understood"),
    ):
        client.balance()


def test_redirect_is_not_followed() -> None:
    away = Scripted(302, headers={"Location": "http://127.0.0.1:1/"})
    with ScriptedServer(away) as server, AdminClient(server.url, KEY) as client:
        with pytest.raises(UnreadableAnswerError):
            client.accounts()
        assert len(server.received) == 1


# -- what cannot be sent -----------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "gateway", "ftp://gateway", "http://", "http://h:99999"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UnusableArgumentError):
        GatewayClient(url, KEY)


@pytest.mark.parametrize("key", ["", "lgw_a\nb", "lgw_ü", "lgw_\0"])
def test_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UnusableArgumentError) as caught:
        GatewayClient("http://127.0.0.1:1", key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_id_that_leads_elsewhere_is_refused(name: str) -> None:
    with ScriptedServer(Scripted()) as server, AdminClient(server.url, KEY) as client:
        with pytest.raises(UnusableArgumentError):
            client.suspend_account(name, reason="x")
        assert server.received == []


def test_id_stays_one_segment() -> None:
    with ScriptedServer(Scripted(404)) as server, AdminClient(server.url, KEY) as client:
        with pytest.raises(GatewayClientError):
            client.account("../keys?x=1#y/z%2F")
        assert server.received[0].path == "/admin/accounts/..%2Fkeys%3Fx%3D1%23y%2Fz%252F"


@pytest.mark.parametrize("value", ["a\r\nb", "é"])
def test_idempotency_key_and_account_must_fit_a_header(value: str) -> None:
    with GatewayClient("http://127.0.0.1:1", KEY) as client:
        with pytest.raises(UnusableArgumentError):
            client.create_order("p1", idempotency_key=value)
        with pytest.raises(UnusableArgumentError):
            client.for_account(value)


# -- nobody there ------------------------------------------------------------------------------


def test_nobody_there_is_not_connected() -> None:
    with (
        GatewayClient(f"http://127.0.0.1:{free_port()}", KEY, retries=ONCE) as client,
        pytest.raises(NotConnectedError, match="is the gateway running"),
    ):
        client.balance()


def test_answer_that_does_not_come_is_no_answer() -> None:
    with (
        ScriptedServer(Scripted(BREAK_OFF)) as server,
        GatewayClient(server.url, KEY, retries=ONCE) as client,
        pytest.raises(NoAnswerError),
    ):
        client.balance()


def test_answer_that_breaks_off_is_no_answer() -> None:
    with (
        ScriptedServer(Scripted(body=b'{"acc', length=100)) as server,
        GatewayClient(server.url, KEY, retries=ONCE) as client,
        pytest.raises(NoAnswerError),
    ):
        client.balance()


def test_export_that_breaks_off_never_looks_whole() -> None:
    with (
        ScriptedServer(Scripted(body=b"a,b\r\n", length=100)) as server,
        GatewayClient(server.url, KEY) as client,
        client.transactions_csv() as pieces,
        pytest.raises(NoAnswerError),
    ):
        list(pieces)


# -- keys stay hidden --------------------------------------------------------------------------


async def test_key_is_in_no_repr_and_no_error() -> None:
    shown = []
    dead = f"http://127.0.0.1:{free_port()}"
    with ScriptedServer(Scripted(500)) as server:
        for url in (dead, server.url):
            client = AsyncGatewayClient(url, KEY, account="ada", retries=ONCE)
            shown += [
                repr(client),
                str(client),
                repr(client.balance),
                repr(client.for_account("b")),
            ]
            with pytest.raises(GatewayClientError) as caught:
                await client.balance()
            error = caught.value
            shown += [str(error), repr(error), repr(vars(error)), repr(error.__cause__)]
            shown += traceback.format_exception(error)
            assert KEY.encode() not in pickle.dumps(vars(error))
            await client.aclose()
    assert not [text for text in shown if KEY in text]
