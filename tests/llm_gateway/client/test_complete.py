"""The client against the OpenAPI document: every address has a method, every field an argument of its name."""

import inspect
import json
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, Literal, cast, get_args, get_origin, get_type_hints
from urllib.request import urlopen

import msgspec
import pytest

from llm_gateway.client import AdminClient, AsyncAdminClient, AsyncGatewayClient, GatewayClient
from llm_gateway.client.methods import Download, Listing, Method
from llm_gateway.client.requests import Ask, call
from tests.support.admin_server import AdminServer

Described = Method[..., Any] | Listing[..., Any, Any] | Download[...]

WITHOUT_A_METHOD: Final = {
    "GET /healthz": "for probes, which have no key",
    "GET /readyz": "for probes, which have no key",
    "GET /metrics": "for Prometheus",
}
# Bodies that are given as a whole, by the argument that they are; X-Scene is not in the document.
WHOLE: Final = {
    "POST /admin/price-books": {"toml"},
    "POST /admin/price-books/lint": {"toml"},
    "POST /admin/price-books/simulate": {"toml"},
    "POST /admin/price-books/simulate.ndjson": {"toml"},
    "POST /v1/estimate": {"body", "scene"},
}


def _methods(client: type) -> dict[str, Described]:
    return {
        name: found
        for name, found in inspect.getmembers_static(client)
        if isinstance(found, Method | Listing | Download)
    }


def _label(method: Described) -> str:
    return f"{method.verb} {method.address}"


ALL: Final = [*_methods(GatewayClient).values(), *_methods(AdminClient).values()]


def _arguments(method: Described) -> list[str]:
    return list(inspect.signature(method.__wrapped__).parameters)[1:]  # without self


def _build(method: Described) -> Callable[..., Ask[Any]]:
    return cast("Callable[..., Ask[Any]]", method.ask)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    server = AdminServer(tmp_path_factory.mktemp("data"))
    server.start()
    with urlopen(f"{server.url}/schema/openapi.json") as answer:
        found: dict[str, Any] = json.load(answer)
    server.stop()
    return found


def _operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def test_every_address_has_a_method(document: dict[str, Any]) -> None:
    has = [_label(method) for method in ALL]
    assert sorted(has) == sorted(set(has))
    assert set(has) == _operations(document).keys() - WITHOUT_A_METHOD.keys()


def test_exceptions_are_addresses(document: dict[str, Any]) -> None:
    assert WITHOUT_A_METHOD.keys() <= _operations(document).keys()


def _fields(document: dict[str, Any], operation: dict[str, Any]) -> set[str]:
    """All that an operation takes, by the names of the API."""
    found = {each["name"] for each in operation.get("parameters", [])}
    content = operation.get("requestBody", {}).get("content", {})
    for body in content.values():
        schema = body["schema"]
        for part in [schema, *schema.get("oneOf", ())]:
            name = part.get("$ref", "").rpartition("/")[2]
            found |= document["components"]["schemas"].get(name, {}).get("properties", {}).keys()
    return found


def test_every_field_is_an_argument_and_no_other(document: dict[str, Any]) -> None:
    operations = _operations(document)
    wrong = {}
    for method in ALL:
        label = _label(method)
        has = {name.rstrip("_") for name in _arguments(method)}
        wanted = {name.lower().replace("-", "_") for name in _fields(document, operations[label])}
        wanted |= WHOLE.get(label, set())
        if has != wanted:
            wrong[label] = has ^ wanted
    assert not wrong


def test_answers_are_those_of_the_document(document: dict[str, Any]) -> None:
    operations = _operations(document)
    wrong = {}
    for method in ALL:
        answers = operations[_label(method)]["responses"]
        (good,) = (answer for status, answer in answers.items() if status.startswith("2"))
        (content,) = good["content"].values()
        told = content["schema"].get("$ref", "").rpartition("/")[2]
        hints = get_type_hints(method.__wrapped__)
        answer = get_args(hints["return"])[0]
        if answer.__name__ not in (told, told.rpartition("_")[2]) and answer not in (str, bytes):
            wrong[_label(method)] = (answer.__name__, told)
    assert not wrong


def test_items_are_those_of_the_list() -> None:
    for method in ALL:
        if isinstance(method, Listing):
            page, item = get_args(get_type_hints(method.__wrapped__)["return"])
            assert get_args(get_type_hints(page)["items"]) == (item,), method.address


# -- what is given arrives under its own name --------------------------------------------------

MOMENT: Final = datetime(2026, 9, 21, 14, 0, tzinfo=UTC)


def _value(name: str, kind: Any, number: int) -> Any:  # noqa: ANN401 - an annotation
    """Something of a type that no other argument has."""
    options = [each for each in get_args(kind) or (kind,) if each is not type(None)]
    first = options[0] if get_origin(kind) is not Literal else kind
    if get_origin(first) is Literal:
        return get_args(first)[-1]
    if get_origin(kind) is not None and "Sequence" in str(get_origin(kind)):
        return [f"{name}-{number}"]
    if "Sequence" in str(first):
        return [f"{name}-{number}"]
    if "Mapping" in str(kind):
        return {"model": f"{name}-{number}"}
    if first is datetime:
        return MOMENT.replace(minute=number)
    if first is bool:
        return True
    if first is int:
        return number
    if isinstance(first, type) and issubclass(first, Enum):
        return list(first)[-1]
    assert first is str, (name, kind)
    return f"{name}-{number}"


def _plain(value: object) -> object:
    return msgspec.to_builtins(value)


@pytest.mark.parametrize("method", ALL, ids=_label)
def test_arguments_arrive_under_their_names(method: Described) -> None:
    hints = get_type_hints(method.__wrapped__)
    given = {name: _value(name, hints[name], 2 + i) for i, name in enumerate(_arguments(method))}
    if "event_id" in given and "idempotency_key" in given and method.address == "/admin/grants":
        del given["event_id"]  # either of the two
    made = call(method.verb, method.address, _build(method)(**given))
    body = made.ask.content or b"{}"
    if "toml" in given:
        assert body.decode() == given.pop("toml")
        body = b"{}"
    if "body" in given:
        assert msgspec.json.decode(body) == given.pop("body")
        assert made.ask.headers["x-scene"] == given.pop("scene")
    arrived = {**made.params, **msgspec.json.decode(body)}
    for name, value in given.items():
        if f"{{{name}}}" in method.address:
            assert str(value) in made.path.split("/")
        elif name == "idempotency_key":
            assert made.ask.headers["idempotency-key"] == value
        elif name.rstrip("_") in made.params:
            text = value.isoformat() if isinstance(value, datetime) else _plain(value)
            shown = str(text).lower() if isinstance(value, bool) else str(text)
            assert arrived[name.rstrip("_")] == shown
        else:
            assert arrived[name.rstrip("_")] == _plain(value)


def test_both_forms_of_a_client_have_the_same_methods() -> None:
    assert _methods(GatewayClient) == _methods(AsyncGatewayClient)
    assert _methods(AdminClient) == _methods(AsyncAdminClient)


@pytest.mark.parametrize("method", ALL, ids=_label)
def test_every_method_says_what_it_does(method: Described) -> None:
    assert method.__doc__
