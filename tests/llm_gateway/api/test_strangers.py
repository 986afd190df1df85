"""Another user's data is refused everywhere: every address of the store, by every kind of key."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx2
import pytest
from litestar.routes import HTTPRoute

from billing.accounts import Grant
from billing.context import BillingContext
from billing.events import ChargeEvent, Finish, Revision, UsageNotes, UsageQuality, UsageSource
from llm_gateway.api.store.router import store_router
from pricing_rules.usage import Usage
from tests.support.api import ADMIN, Api, serve_api

MARK: Final = "bobs"  # in everything of his
# Looked at by anybody with a key: nothing in them belongs to an account.
COMMON: Final = {"GET /credit-store/products", "GET /credit-store/price-rules"}


def _addresses() -> list[str]:
    return sorted(
        f"{method} {route.path_format}"
        for route in store_router().routes
        if isinstance(route, HTTPRoute)
        for method in route.methods
        if method != "OPTIONS"
    )


ADDRESSES: Final = _addresses()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as made:
        await made.load_book()
        yield made


async def _charge(api: Api) -> None:
    now = api.plane.clock.ms
    context = BillingContext(
        event_id=f"{MARK}-charge",
        account="bob",
        key_id=f"{MARK}-key",
        app=f"{MARK}-app",
        scene="chat",
        provider="echo",
        model_requested="mini",
        model_sent="mini",
        run_id=f"{MARK}-run",
        client_request_id=f"{MARK}-request",
        book=1,
        rule="echo-mini",
        started_at=now,
    )
    event = ChargeEvent(
        revision=Revision.FINAL,
        context=context,
        usage=Usage(input=11, output=2),
        quality=UsageQuality.EXACT,
        usage_source=UsageSource.PROVIDER,
        amount=4_750,
        ceiling=20_000,
        finished_at=now + 900,
    )
    await api.plane.hot.record(Finish(event=event, notes=UsageNotes()))
    await api.plane.hot.settle_pending(10)


async def _inhabit(api: Api, client: httpx2.AsyncClient) -> dict[str, str]:
    """Bob's credit, charge and order; the ids of them by the names that addresses give them."""
    grant = Grant(event_id=f"{MARK}-grant", account="bob", amount=777_000, description=MARK)
    await api.plane.accounts.grant(grant, actor="test")
    await _charge(api)
    product = {"sku": "ten", "name": "Ten", "credit_amount_micro_credits": 10, "price_cent": 1}
    made = await client.post("/admin/products", json=product | {"currency": "CNY"}, headers=ADMIN)
    placed = await client.post(
        "/credit-store/orders",
        json={"product_id": made.json()["product_id"]},
        headers=await api.user("bob") | {"Idempotency-Key": f"{MARK}-cart"},
    )
    return {"event_id": f"{MARK}-charge", "order_id": placed.json()["order"]["order_id"]}


async def _ask(
    client: httpx2.AsyncClient, address: str, headers: dict[str, str], **ids: str
) -> httpx2.Response:
    method, path = address.split(" ")
    body = {"product_id": "ten"} if address == "POST /credit-store/orders" else None
    return await client.request(method, path.format(**ids), headers=headers, json=body)


def test_there_are_addresses_of_every_kind() -> None:
    assert len(ADDRESSES) >= 13
    assert {address.split(" ")[0] for address in ADDRESSES} == {"GET", "POST"}
    assert set(ADDRESSES) >= COMMON


@pytest.mark.parametrize("kind", ["an app of ada's", "a user", "an app of nobody's account"])
async def test_naming_another_account_is_403_at_every_address(api: Api, kind: str) -> None:
    naming = {"X-Billing-User": "bob"}
    async with api.client() as client:
        ids = await _inhabit(api, client)
        keys = {
            "an app of ada's": await api.app("ada"),
            "a user": await api.user("ada"),
            "an app of nobody's account": await api.app("nobody"),
        }
        for address in ADDRESSES:
            answer = await _ask(client, address, keys[kind] | naming, **ids)
            code = answer.json()["error"]["code"]
            assert (answer.status_code, code) == (403, "billing_user_not_allowed"), address
            assert MARK not in answer.text, address


async def test_nothing_of_another_account_is_in_any_answer(api: Api) -> None:
    async with api.client() as client:
        ids = await _inhabit(api, client)
        hers = [await api.user("ada"), await api.app("ada") | {"X-Billing-User": "ada"}]
        for address in ADDRESSES:
            for headers in hers:
                answer = await _ask(client, address, headers, **ids)
                if "{" in address or address == "POST /credit-store/orders":
                    assert answer.status_code == 404, address
                else:
                    assert answer.status_code == 200, address
                assert MARK not in answer.text, address
                assert ids["order_id"] not in answer.text, address
                assert "777000" not in answer.text, address
                assert "4750" not in answer.text, address


async def test_his_own_key_sees_what_hers_does_not(api: Api) -> None:
    # Without this the test above could pass on an empty store.
    async with api.client() as client:
        ids = await _inhabit(api, client)
        bob = await api.user("bob")
        shown = {
            address: (await _ask(client, address, bob, **ids)).text
            for address in ADDRESSES
            if address.startswith("GET")
        }
        told = {"4750", "777000", MARK, ids["order_id"]}
        silent = [a for a, text in shown.items() if not any(word in text for word in told)]
    assert set(silent) == COMMON


@pytest.mark.parametrize(
    "query",
    [
        "transactions?source=charge",
        "charges?run_id=bobs-run",
        "charges?after=999999999",
        "transactions?after=999999999",
        "transactions.csv?source=manual",
        "consumption?period=all&run_id=bobs-run&group_by=key",
        "orders?status=pending&page_size=100",
    ],
)
async def test_no_filter_and_no_cursor_reaches_another_account(api: Api, query: str) -> None:
    async with api.client() as client:
        await _inhabit(api, client)
        answer = await client.get(f"/credit-store/{query}", headers=await api.user("ada"))
    assert answer.status_code == 200
    text = answer.text.replace('"run_id":"bobs-run"', "")  # she asked for it
    assert MARK not in text
    assert "4750" not in text


@pytest.mark.parametrize("field", ["account", "user_id", "created_by"])
async def test_order_names_no_account(api: Api, field: str) -> None:
    async with api.client() as client:
        body = {"product_id": "ten", field: "bob"}
        answer = await client.post("/credit-store/orders", json=body, headers=await api.user("ada"))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
