"""The application as a whole: envelopes, request ids, surfaces, health, and what never leaks."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import openai
import pytest

from llm_gateway.api.litestar import Dependency, Surface
from llm_gateway.clock import new_event_id
from tests.support.api import ADMIN, Api, serve_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as made:
        yield made


def _check_envelope(answer: httpx2.Response) -> None:
    error = answer.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == len(new_event_id(0))
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nope", 404),
        ("GET", "/admin/nope", 404),
        ("GET", "/schema/nope", 404),
        ("GET", "/schema/nope.json", 404),
        ("GET", "/credit-store/../admin", 404),
        ("DELETE", "/healthz", 405),
        ("POST", "/credit-store/balance", 405),
        ("PUT", "/admin/accounts", 405),
        ("GET", "/admin/accounts?page=0", 400),
    ],
)
async def test_litestars_own_errors_wear_the_envelope(
    api: Api, method: str, path: str, status: int
) -> None:
    async with api.client() as client:
        answer = await client.request(method, path, headers=ADMIN)
    assert answer.status_code == status
    _check_envelope(answer)
    assert status != 405 or answer.headers["allow"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff", b"{}"])
async def test_bad_bodies_wear_the_envelope(api: Api, body: bytes) -> None:
    async with api.client() as client:
        answer = await client.post("/admin/accounts", content=body, headers=ADMIN)
    assert answer.status_code == 400
    _check_envelope(answer)


async def test_large_bodies_are_413(api: Api) -> None:
    async with api.client() as client:
        for path, size in (("/admin/accounts", 300_000), ("/admin/price-books", 9_000_000)):
            answer = await client.post(path, content=b"x" * size, headers=ADMIN)
            assert answer.status_code == 413
            _check_envelope(answer)


async def test_unforeseen_error_says_nothing(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> str:
        raise ValueError("canary-of-the-cause")

    api.metrics = fail
    with caplog.at_level(logging.DEBUG):
        async with api.client() as client:
            answer = await client.get("/metrics")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    _check_envelope(answer)
    assert "canary" not in answer.text
    assert "canary" not in caplog.text
    assert "ValueError" in caplog.text


async def test_values_that_were_sent_are_not_repeated(api: Api) -> None:
    async with api.client() as client:
        answer = await client.post(
            "/admin/keys",
            json={"kind": "canary-kind", "account": "ada", "default_scene": "x"},
            headers=ADMIN,
        )
    assert answer.status_code == 400
    assert "canary" not in answer.text


async def test_request_ids_differ(api: Api) -> None:
    async with api.client() as client:
        ids = {
            (await client.get("/healthz", headers={"X-Request-Id": "mine"})).headers["x-request-id"]
            for _ in range(20)
        }
    assert len(ids) == 20
    assert "mine" not in ids


async def test_ready_tells_each_dependency(api: Api) -> None:
    async with api.client() as client:
        assert (await client.get("/readyz")).json() == {
            "status": "ready",
            "dependencies": [{"name": "database", "status": "up", "detail": ""}],
        }
        api.dependencies.append(Dependency(name="spool", up=False, detail="disk full"))
        down = await client.get("/readyz")
        assert down.status_code == 503
        assert down.json()["dependencies"][1] == {
            "name": "spool",
            "status": "down",
            "detail": "disk full",
        }
        assert (await client.get("/healthz")).status_code == 200


async def test_metrics_are_prometheus_text(api: Api) -> None:
    async with api.client() as client:
        answer = await client.get("/metrics")
    assert answer.text == "gateway_calls_total 1\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


PUBLIC = ("/v1/models", "/credit-store/balance")
OPERATIONS = ("/admin/accounts", "/metrics", "/schema", "/schema/openapi.json")


async def test_surfaces_divide_the_endpoints(api: Api) -> None:
    async with api.client(Surface.PUBLIC) as public, api.client(Surface.OPERATIONS) as operations:
        for path in OPERATIONS:
            assert (await public.get(path, headers=ADMIN)).status_code == 404
            assert (await operations.get(path, headers=ADMIN)).status_code == 200
        for path in PUBLIC:
            assert (await public.get(path)).status_code == 401
            assert (await operations.get(path)).status_code == 404
        for client in (public, operations):
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/readyz")).status_code == 200


async def test_schema_is_complete_and_offline(api: Api) -> None:
    async with api.client() as client:
        schema = await client.get("/schema/openapi.json")
        yaml = await client.get("/schema/openapi.yaml")
        for page in ("/schema/swagger", "/schema/redoc", "/schema/elements"):
            assert (await client.get(page)).status_code == 404
    assert yaml.status_code == 200
    paths = schema.json()["paths"]
    assert {"/v1/models", "/credit-store/charges/{event_id}", "/admin/grants"} <= paths.keys()
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert operation["description"], f"{method} {path} says nothing"
            good = next(value for code, value in operation["responses"].items() if code < "300")
            ((kind, content),) = good["content"].items()
            assert content or kind.startswith("text/"), f"{method} {path} has no response type"
    money = [
        name
        for shape in schema.json()["components"]["schemas"].values()
        for name in shape.get("properties", {})
        if "balance" in name or "amount" in name or name.startswith("total_")
    ]
    assert money
    assert all(name.endswith(("_micro_credits", "_cent")) for name in money)


async def test_openai_sdk_understands_models_and_errors(api: Api) -> None:
    await api.load_book()
    token = (await api.user())["Authorization"].removeprefix("Bearer ")
    async with api.client() as transport:
        client = openai.AsyncOpenAI(
            api_key=token, base_url="http://gateway/v1", http_client=transport, max_retries=0
        )
        models = await client.models.list()
        assert [model.id for model in models.data] == ["mini"]
        assert (await client.models.retrieve("mini")).owned_by == "echo"
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("nope")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="lgw_wrong").models.list()
