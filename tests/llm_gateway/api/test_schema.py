"""The OpenAPI document against the API itself: nothing is answered that it does not say.

Schemathesis makes requests out of the document, good and bad, the same ones in every run.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from tests.support.admin_server import ADMIN_TOKEN, AdminServer

Operation = APIOperation[Any, Any, Any, Any]
AnyCase = Case[Any]

EXAMPLES = 6  # of each operation, with ids that exist and with others, good and bad
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


PARTS = (
    12  # of the addresses: all of them in one test would take a minute, and more where it is slow
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminServer]:
    made = AdminServer(tmp_path_factory.mktemp("data"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def ids(server: AdminServer) -> dict[str, str]:
    return _inhabit(server)


def _ask(server: AdminServer, path: str, token: str, body: object = None) -> dict[str, object]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urlopen(Request(server.url + path, data, headers)) as answer:
        found: dict[str, object] = json.load(answer)
    return found


def _inhabit(server: AdminServer) -> dict[str, str]:
    """Something of everything, and the ids of it by the names that the document gives them."""
    product = {"sku": "ten", "name": "Ten", "credit_amount_micro_credits": 10_000_000}
    price = {"price_cent": 990, "currency": "CNY"}
    made = _ask(server, "/admin/products", ADMIN_TOKEN, product | price)
    order = {"product_id": made["product_id"], "payment_mode": "mock"}
    placed = _ask(server, "/credit-store/orders", server.user_key, order)["order"]
    key = _ask(
        server,
        "/admin/keys",
        ADMIN_TOKEN,
        {"kind": "user", "account": "ada", "default_scene": "chat"},
    )["key"]
    rules = _ask(server, "/admin/reward-rules", ADMIN_TOKEN)["items"]
    token = _ask(server, "/admin/tokens", ADMIN_TOKEN, {"name": "eve", "role": "finance"})["admin"]
    assert isinstance(placed, dict)
    assert isinstance(key, dict)
    assert isinstance(rules, list)
    assert isinstance(token, dict)
    return {
        "account": "ada",
        "product_id": str(made["product_id"]),
        "order_id": placed["order_id"],
        "key_id": key["key_id"],
        "rule_id": rules[0]["rule_id"],
        "token_id": token["token_id"],
    }


def _sound(
    server: AdminServer, operation: Operation, ids: dict[str, str], mode: GenerationMode
) -> None:
    """Ask what the document allows, or forbids; raises what a check found."""
    wanted = list(CHECKS)
    if mode is GenerationMode.NEGATIVE and operation.body:
        wanted.append(checks.negative_data_rejection)
    token = ADMIN_TOKEN if operation.path.startswith("/admin") else server.user_key

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: AnyCase) -> None:
        for name in ids.keys() & (case.path_parameters or {}).keys():
            case.path_parameters[name] = ids[name]
        answer = case.call(base_url=server.url, headers={"Authorization": f"Bearer {token}"})
        case.validate_response(answer, checks=wanted)

    ask()


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_answered_that_the_document_does_not_say(
    server: AdminServer, ids: dict[str, str], part: int
) -> None:
    document = _ask(server, "/schema/openapi.json", ADMIN_TOKEN)
    schema = schemathesis.openapi.from_dict(document)
    found = []
    results = list(schema.get_all_operations())
    operations = [result.ok() for result in results if isinstance(result, Ok)]
    assert len(operations) == len(results)
    assert len(operations) > 60
    mine = operations[part::PARTS]
    for operation, mode, known in itertools.product(mine, GenerationMode, (ids, {})):
        if mode is GenerationMode.NEGATIVE and not list(operation.iter_parameters()):
            continue  # nothing that could be wrong
        try:
            _sound(server, operation, known, mode)
        except (Exception, FailureGroup) as error:
            found.append(f"{operation.label}, {mode}: {error}")
    assert not found, "\n\n".join(found)
