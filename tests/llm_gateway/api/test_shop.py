"""The store over HTTP: products, orders, rewards, corrections; and other people's are not there."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from litestar.routes import HTTPRoute

from llm_gateway.api.store.router import store_router
from tests.support.api import ADMIN, Api, serve_api

TEN = {
    "sku": "ten",
    "name": "Ten credits",
    "credit_amount_micro_credits": 10_000_000,
    "price_cent": 990,
    "currency": "CNY",
}
REASON = {"reason": "asked for"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as made:
        yield made


async def _product(client: httpx2.AsyncClient, **fields: object) -> str:
    made = await client.post("/admin/products", json=TEN | fields, headers=ADMIN)
    assert made.status_code == 201, made.text
    return str(made.json()["product_id"])


async def _order(
    client: httpx2.AsyncClient, headers: dict[str, str], **body: object
) -> httpx2.Response:
    return await client.post("/credit-store/orders", json=body, headers=headers)


async def _balance(client: httpx2.AsyncClient, account: str = "ada") -> int:
    found = await client.get(f"/admin/accounts/{account}", headers=ADMIN)
    return int(found.json()["balance_micro_credits"]) if found.status_code == 200 else 0


async def test_order_from_the_shelf_to_the_credit(api: Api) -> None:
    ada = await api.user()
    async with api.client() as client:
        product_id = await _product(client, original_price_cent=1290, badge="new")
        shelf = (await client.get("/credit-store/products", headers=ada)).json()["items"]
        assert shelf == [
            {
                "product_id": product_id,
                "name": "Ten credits",
                "description": "",
                "credit_amount_micro_credits": 10_000_000,
                "price_cent": 990,
                "original_price_cent": 1290,
                "price_text": "¥9.90",
                "currency": "CNY",
                "badge": "new",
                "status": "active",
                "sort_order": 0,
            }
        ]
        placed = await _order(client, ada, product_id=product_id, quantity=2)
        assert placed.status_code == 201
        order, payment = placed.json()["order"], placed.json()["payment"]
        assert order["product_snapshot"] == shelf[0] | {"sku": "ten"}
        assert (order["status"], order["amount_cent"], order["price_text"]) == (
            "pending",
            1980,  # 2 x 9.90
            "¥19.80",
        )
        assert (payment["mode"], payment["reference"]) == ("manual", order["order_no"])
        # The product changes, the order does not.
        change = {"price_cent": 1, "status": "inactive"}
        await client.patch(f"/admin/products/{product_id}", json=change, headers=ADMIN)
        assert (await client.get("/credit-store/products", headers=ada)).json()["total"] == 0
        path = f"/admin/orders/{order['order_id']}/pay"
        paid = await asyncio.gather(*(client.post(path, headers=ADMIN) for _ in range(4)))
        assert {answer.json()["order"]["status"] for answer in paid} == {"credited"}
        assert await _balance(client) == 20_000_000  # 2 x 10 credits, once
        shown = (await client.get(f"/credit-store/orders/{order['order_id']}", headers=ada)).json()
    assert shown["price_text"] == "¥19.80"
    assert shown["credited_at"] is not None
    assert set(shown) == set(order)


async def test_idempotency_key_makes_one_order(api: Api) -> None:
    ada, bob = await api.user("ada"), await api.user("bob")
    async with api.client() as client:
        product_id = await _product(client)
        key = {"Idempotency-Key": "k1"}
        answers = await asyncio.gather(
            *(_order(client, ada | key, product_id=product_id) for _ in range(5))
        )
        assert len({answer.json()["order"]["order_id"] for answer in answers}) == 1
        assert sorted(answer.json()["repeated"] for answer in answers) == [False] + [True] * 4
        other = await _order(client, ada | key, product_id=product_id, quantity=2)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "event_conflict")
        # Another account's key of the same name is another key.
        assert not (await _order(client, bob | key, product_id=product_id)).json()["repeated"]
        listed = (await client.get("/admin/orders", headers=ADMIN)).json()
    assert listed["total"] == 2


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"product_id": "nothing"}, 404),
        ({"product_id": ""}, 400),
        ({"product_id": "x" * 129}, 400),
        ({"quantity": 0}, 400),
        ({"quantity": 1001}, 400),
        ({"quantity": "1"}, 400),
        ({"quantity": True}, 400),
        ({"payment_mode": "mock"}, 400),
        ({"payment_mode": "Bank!"}, 400),
        ({"price_cent": 1}, 400),
    ],
)
async def test_wrong_order_leaves_nothing(api: Api, wrong: dict[str, object], status: int) -> None:
    ada = await api.user()
    async with api.client() as client:
        body = {"product_id": await _product(client), **wrong}
        assert (await _order(client, ada, **body)).status_code == status
        assert (await client.get("/admin/orders", headers=ADMIN)).json()["total"] == 0


@pytest.mark.parametrize("path", ["quarantine/{}", "outbox/x/{}", "price-books/{}"])
async def test_number_no_database_takes_is_400(api: Api, path: str) -> None:
    async with api.client() as client:
        answer = await client.get(f"/admin/{path.format(2**64)}", headers=ADMIN)
    assert answer.status_code == 400


async def test_order_of_a_product_off_sale_is_409(api: Api) -> None:
    ada = await api.user()
    async with api.client() as client:
        product_id = await _product(client, status="inactive")
        assert (await _order(client, ada, product_id=product_id)).status_code == 409
        assert (await client.get("/admin/orders", headers=ADMIN)).json()["total"] == 0


async def test_owner_cancels_what_is_pending_and_nothing_else(api: Api) -> None:
    ada = await api.user()
    async with api.client() as client:
        product_id = await _product(client)
        for act, status in (("cancel", 200), ("pay", 409)):
            placed = (await _order(client, ada, product_id=product_id)).json()["order"]
            if act == "pay":
                await client.post(f"/admin/orders/{placed['order_id']}/pay", headers=ADMIN)
            path = f"/credit-store/orders/{placed['order_id']}"
            cancelled = await client.post(f"{path}/cancel", headers=ada)
            assert cancelled.status_code == status
            # A manual payment is not for the owner to confirm.
            assert (await client.post(f"{path}/pay", headers=ada)).status_code in {403, 409}
        assert await _balance(client) == 10_000_000


async def test_owner_pays_only_where_mock_payments_are_on(api: Api) -> None:
    ada = await api.user()
    async with api.client() as client:
        product_id = await _product(client)
        manual = (await _order(client, ada, product_id=product_id)).json()["order"]["order_id"]
        refused = await client.post(f"/credit-store/orders/{manual}/pay", headers=ada)
        assert refused.status_code == 403
        assert await _balance(client) == 0
    api.mock_payments = True
    async with api.client() as client:
        placed = (await _order(client, ada, product_id=product_id, payment_mode="mock")).json()
        assert placed["payment"]["self_service"] is True
        path = f"/credit-store/orders/{placed['order']['order_id']}/pay"
        for repeated in (False, True):
            paid = await client.post(path, headers=ada)
            assert paid.json()["repeated"] is repeated
        assert await _balance(client) == 10_000_000


# -- other people's ----------------------------------------------------------------------------


def _addresses_with_an_id() -> list[tuple[str, str]]:
    return sorted(
        (method, route.path_format)
        for route in store_router().routes
        if isinstance(route, HTTPRoute) and "{" in route.path_format
        for method in route.methods
        if method != "OPTIONS"
    )


async def test_what_is_another_users_is_not_there(api: Api) -> None:
    ada, eve = await api.user("ada"), await api.user("eve")
    app = await api.app()
    async with api.client() as client:
        await client.post("/admin/grants", json={"account": "ada"} | GRANT, headers=ADMIN)
        order = (await _order(client, ada, product_id=await _product(client))).json()["order"]
        ids = {"order_id": order["order_id"], "event_id": "g1"}
        asked = 0
        for method, path in _addresses_with_an_id():
            address = path.format(**ids)
            for other in (eve, app | {"X-Billing-User": "eve"}):
                answer = await client.request(method, address, headers=other)
                assert answer.status_code == 404, address
                nowhere = path.format(order_id="nothing", event_id="nothing")
                missing = await client.request(method, nowhere, headers=other)
                # Not even that there is such a thing is told.
                assert answer.json() == missing.json(), address
                asked += 1
        assert asked >= 8
        for path in ("orders", "transactions"):
            assert (await client.get(f"/credit-store/{path}", headers=eve)).json()["total"] == 0
        # An app acts for its user.
        path = f"/credit-store/orders/{order['order_id']}"
        mine = await client.get(path, headers=app | {"X-Billing-User": "ada"})
        assert mine.json()["order_id"] == order["order_id"]
        assert (await client.get(path, headers=app)).status_code == 400


GRANT = {"amount_micro_credits": 1_000, "event_id": "g1"}


async def test_app_acts_only_for_its_accounts(api: Api) -> None:
    app = await api.app("ada")
    async with api.client() as client:
        product_id = await _product(client)
        for account, status in (("ada", 201), ("bob", 403)):
            headers = app | {"X-Billing-User": account}
            assert (await _order(client, headers, product_id=product_id)).status_code == status


# -- rewards and corrections -------------------------------------------------------------------


async def test_reward_is_paid_once_within_its_caps(api: Api) -> None:
    async with api.client() as client:
        rules = (await client.get("/admin/reward-rules", headers=ADMIN)).json()["items"]
        assert {rule["source"] for rule in rules} >= {"forum_like", "forum_import"}
        like = next(rule for rule in rules if rule["source"] == "forum_like")
        change = {"amount_micro_credits": 500, "cap_per_user_day": 1}
        path = f"/admin/reward-rules/{like['rule_id']}"
        assert (await client.patch(path, json=change, headers=ADMIN)).status_code == 200
        results = []
        for post, by in (("p1", "bob"), ("p1", "bob"), ("p1", "eve")):
            body = {"source": "forum_like", "account": "ada", "post": post, "acting_user": by}
            done = await client.post("/admin/rewards", json=body, headers=ADMIN)
            results.append(done.json()["result"])
        assert results == ["paid", "repeated", "capped"]
        assert await _balance(client) == 500
        same = {"source": "forum_like", "account": "ada", "source_ref_id": "p1:bob"}
        conflict = await client.post("/admin/rewards", json=same, headers=ADMIN)
        assert (conflict.status_code, conflict.json()["error"]["param"]) == (409, "acting_user")
        listed = (await client.get("/admin/rewards?account=ada", headers=ADMIN)).json()
    assert [item["source_ref_id"] for item in listed["items"]] == ["p1:bob"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"source_ref_id": None},
        {"post": "p1"},
        {"source_ref_id": None, "post": "p1"},
        {"source_ref_id": "a b"},
        {"account": "a/b"},
        {"source": "no_such_rule"},
        {"amount_micro_credits": 5},
    ],
)
async def test_wrong_reward_is_400_and_pays_nothing(api: Api, wrong: dict[str, object]) -> None:
    body = {"source": "forum_like", "account": "ada", "source_ref_id": "r1"} | wrong
    async with api.client() as client:
        answer = await client.post("/admin/rewards", json=body, headers=ADMIN)
        assert answer.status_code == 400
        assert (await client.get("/admin/rewards", headers=ADMIN)).json()["total"] == 0


async def test_adjustment_and_refund_of_an_order_need_a_reason(api: Api) -> None:
    ada = await api.user()
    async with api.client() as client:
        order = (await _order(client, ada, product_id=await _product(client))).json()["order"]
        await client.post(f"/admin/orders/{order['order_id']}/pay", headers=ADMIN)
        for path in ("accounts/ada/adjust", f"orders/{order['order_id']}/refund"):
            for reason in ({}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 501}):
                body = {"amount_micro_credits": 1} | reason
                answer = await client.post(f"/admin/{path}", json=body, headers=ADMIN)
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, "reason")
        key = {"Idempotency-Key": "k1"}
        for repeated in (False, True):
            adjusted = await client.post(
                "/admin/accounts/ada/adjust",
                json={"amount_micro_credits": -4_000_000} | REASON,
                headers=ADMIN | key,
            )
            assert adjusted.json()["repeated"] is repeated
        assert await _balance(client) == 6_000_000  # 10 - 4
        path = f"/admin/orders/{order['order_id']}/refund"
        refunded = (await client.post(path, json=REASON, headers=ADMIN)).json()
        assert refunded["entry"]["amount_micro_credits"] == -6_000_000  # what is still there
        audit = (await client.get("/admin/audit", headers=ADMIN)).json()["items"]
        listed = (await client.get("/admin/corrections?account=ada", headers=ADMIN)).json()
    assert [(row["action"], row["actor"]) for row in audit][:2] == [
        ("order.refund", "admin"),
        ("account.adjust", "admin"),
    ]
    assert listed["total"] == 2


# -- all mistakes at once ----------------------------------------------------------------------


async def test_every_wrong_field_is_named_at_once(api: Api) -> None:
    body = {"sku": "a b", "price_cent": "9", "currency": "yuan", "status": "sold", "colour": 1}
    async with api.client() as client:
        answer = await client.post("/admin/products", json=body, headers=ADMIN)
        error = answer.json()["error"]
        query = await client.get("/admin/orders?page=0&page_size=101", headers=ADMIN)
    assert answer.status_code == 400
    assert set(error["params"]) == {
        "sku", "name", "credit_amount_micro_credits", "price_cent", "currency", "status", "colour"
    }  # fmt: skip
    assert len(error["problems"]) == 7
    assert set(query.json()["error"]["params"]) == {"page", "page_size"}


@pytest.mark.parametrize("text", ['"a\\u0000b"', '"\\\\\\u0000"'])
async def test_nul_is_refused_everywhere(api: Api, text: str) -> None:
    async with api.client() as client:
        body = f'{{"account": "ada", "note": {text}}}'
        answers = [
            await client.post("/admin/accounts", content=body, headers=ADMIN),
            await client.get("/admin/accounts?contains=%00", headers=ADMIN),
            await client.get("/admin/accounts/a%00", headers=ADMIN),
        ]
        escaped = '{"account": "ada", "note": "\\\\u0000"}'  # a backslash, and what follows it
        fine = await client.post("/admin/accounts", content=escaped, headers=ADMIN)
    assert [answer.status_code for answer in answers] == [400, 400, 404]
    assert fine.status_code == 201
