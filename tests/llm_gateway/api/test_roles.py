"""Who may do what: every address of the admin API with every role, and with no token at all."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx2
import pytest
from litestar import Controller, Router, get
from litestar.routes import HTTPRoute

from billing.admins import ALLOWED, NewAdminToken, Permission
from billing.kinds import Role
from llm_gateway.api.admin.router import admin_router, check_permissions
from tests.support.api import ADMIN, ADMIN_TOKEN, Api, serve_api

ALL: Final = "owner finance operator read_only"
MONEY: Final = "owner finance"
OPERATION: Final = "owner operator"

# By hand: what is said here is what is wanted, whatever the code says.
EXPECTED: Final = {
    "GET /admin/accounts": ALL,
    "POST /admin/accounts": "owner finance operator",
    "GET /admin/accounts/{account}": ALL,
    "POST /admin/accounts/{account}/adjust": MONEY,
    "POST /admin/accounts/{account}/suspend": OPERATION,
    "POST /admin/accounts/{account}/unsuspend": OPERATION,
    "GET /admin/audit": ALL,
    "POST /admin/charges/{event_id}/refund": MONEY,
    "GET /admin/corrections": ALL,
    "POST /admin/grants": MONEY,
    "POST /admin/guard/rebuild": OPERATION,
    "GET /admin/holds": ALL,
    "GET /admin/holds/{hold_id}": ALL,
    "POST /admin/holds/{hold_id}/release": OPERATION,
    "GET /admin/keys": ALL,
    "POST /admin/keys": OPERATION,
    "GET /admin/keys/{key_id}": ALL,
    "PATCH /admin/keys/{key_id}": OPERATION,
    "POST /admin/keys/{key_id}/revoke": OPERATION,
    "POST /admin/keys/{key_id}/rotate": OPERATION,
    "GET /admin/orders": ALL,
    "GET /admin/orders/{order_id}": ALL,
    "POST /admin/orders/{order_id}/cancel": MONEY,
    "POST /admin/orders/{order_id}/pay": MONEY,
    "POST /admin/orders/{order_id}/refund": MONEY,
    "GET /admin/outbox": ALL,
    "GET /admin/outbox/{event_id}/{revision}": ALL,
    "GET /admin/outstanding": MONEY,
    "GET /admin/price-books": ALL,
    "POST /admin/price-books": MONEY,
    "GET /admin/price-books/explain": ALL,
    "POST /admin/price-books/lint": ALL,
    "POST /admin/price-books/rollback": MONEY,
    "GET /admin/price-books/{version}": ALL,
    "POST /admin/price-books/{version}/activate": MONEY,
    "GET /admin/price-books/{version}/diff": ALL,
    "GET /admin/price-books/{version}/text": ALL,
    "GET /admin/price-books/{version}/simulate": ALL,
    "GET /admin/price-books/{version}/simulate.ndjson": ALL,
    "POST /admin/price-books/simulate": ALL,
    "POST /admin/price-books/simulate.ndjson": ALL,
    "GET /admin/products": ALL,
    "POST /admin/products": MONEY,
    "GET /admin/products/{product_id}": ALL,
    "PATCH /admin/products/{product_id}": MONEY,
    "GET /admin/quarantine": ALL,
    "GET /admin/quarantine/{number}": ALL,
    "POST /admin/quarantine/{number}/discard": OPERATION,
    "POST /admin/quarantine/{number}/replay": OPERATION,
    "GET /admin/reconcile": ALL,
    "POST /admin/reconcile/repair": OPERATION,
    "GET /admin/rerating": ALL,
    "POST /admin/rerating": MONEY,
    "POST /admin/rerating/preview": ALL,
    "POST /admin/rerating/preview.ndjson": ALL,
    "GET /admin/rerating/{run_id}": ALL,
    "GET /admin/reward-rules": ALL,
    "POST /admin/reward-rules": MONEY,
    "GET /admin/reward-rules/{rule_id}": ALL,
    "PATCH /admin/reward-rules/{rule_id}": MONEY,
    "GET /admin/rewards": ALL,
    "POST /admin/rewards": MONEY,
    "GET /admin/statements/{account}/{month}": MONEY,
    "GET /admin/usage": ALL,
    "GET /admin/tokens": "owner",
    "POST /admin/tokens": "owner",
    "POST /admin/tokens/{token_id}/revoke": "owner",
}
REFUSED: Final = {401, 403}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as made:
        yield made


def _declared() -> set[str]:
    return {
        f"{method} {route.path_format}"
        for route in admin_router().routes
        if isinstance(route, HTTPRoute)
        for method in route.methods
        if method != "OPTIONS"
    }


def _path(address: str) -> tuple[str, str]:
    """An address with something in the place of every id, of the type that it takes."""
    method, path = address.split(" ")
    for number in ("{revision}", "{version}", "{number}"):
        path = path.replace(number, "1")
    return method, path.replace("{", "x-").replace("}", "")


async def _ask(client: httpx2.AsyncClient, address: str, headers: dict[str, str]) -> int:
    method, path = _path(address)
    return (await client.request(method, path, headers=headers)).status_code


def test_every_admin_address_is_listed_here() -> None:
    assert _declared() == set(EXPECTED)


@pytest.mark.parametrize("role", Role)
async def test_role_opens_what_it_should_and_nothing_else(api: Api, role: Role) -> None:
    _, token = await api.plane.admins.create(NewAdminToken(name="eve", role=role), actor="test")
    headers = {"Authorization": f"Bearer {token}"}
    async with api.client() as client:
        status = {address: await _ask(client, address, headers) for address in EXPECTED}
    opened = {address for address, code in status.items() if code not in REFUSED}
    assert opened == {address for address, roles in EXPECTED.items() if role in roles.split()}
    assert 401 not in status.values()
    assert not [address for address, code in status.items() if code >= 500]


async def test_refusal_names_the_roles_that_may(api: Api) -> None:
    new = NewAdminToken(name="eve", role=Role.READ_ONLY)
    _, token = await api.plane.admins.create(new, actor="test")
    async with api.client() as client:
        answer = await client.post(
            "/admin/grants", json={}, headers={"Authorization": f"Bearer {token}"}
        )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (403, "role_not_allowed")
    assert error["roles"] == ["owner", "finance"]
    assert "owner or finance" in error["message"]


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {ADMIN_TOKEN}x",
        f"Basic {ADMIN_TOKEN}",
        ADMIN_TOKEN,
        f"Bearer lga_{'x' * 43}",
    ],
)
async def test_nothing_opens_without_a_token(api: Api, authorization: str) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    async with api.client() as client:
        assert {await _ask(client, address, headers) for address in EXPECTED} == {401}


async def test_keys_of_the_data_plane_open_nothing(api: Api) -> None:
    user, app = await api.user(), {**await api.app(), "X-Billing-User": "ada"}
    async with api.client() as client:
        for headers in (user, app):
            assert {await _ask(client, address, headers) for address in EXPECTED} == {401}
        # ... nor the admin token the store.
        assert (await client.get("/credit-store/balance", headers=ADMIN)).status_code == 401


def test_address_without_a_permission_cannot_be_registered() -> None:
    class Careless(Controller):
        @get("/careless")
        async def careless(self) -> None: ...

    with pytest.raises(LookupError, match="permission"):
        check_permissions(Router("/admin", route_handlers=[Careless]))


def test_every_permission_has_roles_and_the_owner_all() -> None:
    assert set(ALLOWED) == set(Permission)
    assert all(Role.OWNER in roles for roles in ALLOWED.values())


# -- tokens ------------------------------------------------------------------------------------


async def _make(client: httpx2.AsyncClient, **body: str) -> httpx2.Response:
    new = {"name": "eve", "role": "finance", **body}
    return await client.post("/admin/tokens", json=new, headers=ADMIN)


async def test_token_acts_under_its_name_until_it_is_revoked(api: Api) -> None:
    async with api.client() as client, api.client() as other_process:
        made = (await _make(client)).json()
        eve = {"Authorization": f"Bearer {made['token']}"}
        grant = {"account": "ada", "amount_micro_credits": 5}
        assert (await client.post("/admin/grants", json=grant, headers=eve)).status_code == 200
        audit = (await client.get("/admin/audit?action=account.grant", headers=eve)).json()
        assert [row["actor"] for row in audit["items"]] == ["eve"]
        path = f"/admin/tokens/{made['admin']['token_id']}/revoke"
        revoked = await client.post(path, headers=ADMIN)
        assert revoked.json()["revoked_at"] is not None
        # At once, everywhere: no clock was moved.
        for each in (client, other_process):
            assert (await each.get("/admin/accounts", headers=eve)).status_code == 401
        listed = (await client.get("/admin/tokens", headers=ADMIN)).json()
    assert listed["items"] == [revoked.json()]
    assert made["token"] not in str(listed)


async def test_token_expires_at_its_moment(api: Api) -> None:
    async with api.client() as client:
        made = (await _make(client, expires_at="2026-09-21T14:13:21Z")).json()  # NOON + 1 s
        eve = {"Authorization": f"Bearer {made['token']}"}
        assert (await client.get("/admin/accounts", headers=eve)).status_code == 200
        api.plane.clock.tick(1)
        assert (await client.get("/admin/accounts", headers=eve)).status_code == 401


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"name": "admin"}, 409),
        ({"name": "serve"}, 409),
        ({"name": "Eve"}, 400),
        ({"name": ""}, 400),
        ({"name": "eve\n"}, 400),
        ({"role": "root"}, 400),
        ({"expires_at": "2020-01-01T00:00:00Z"}, 400),
        ({"expires_at": "2099-01-01T00:00:00"}, 400),
        ({"admin": "yes"}, 400),
    ],
)
async def test_wrong_token_is_refused(api: Api, wrong: dict[str, str], status: int) -> None:
    async with api.client() as client:
        assert (await _make(client, **wrong)).status_code == status
        assert (await client.get("/admin/tokens", headers=ADMIN)).json()["total"] == 0


async def test_name_is_used_once_for_ever(api: Api) -> None:
    async with api.client() as client:
        answers = await asyncio.gather(*(_make(client) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
        made = (await client.get("/admin/tokens", headers=ADMIN)).json()["items"]
        await client.post(f"/admin/tokens/{made[0]['token_id']}/revoke", headers=ADMIN)
        assert (await _make(client)).status_code == 409


async def test_without_a_configured_token_only_those_of_the_database_open(api: Api) -> None:
    api.admin_token = None
    async with api.client() as client:
        for headers in (ADMIN, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}):
            assert (await client.get("/admin/keys", headers=headers)).status_code == 401


async def test_token_is_no_401_while_the_database_is_away(api: Api) -> None:
    _, token = await api.plane.admins.create(
        NewAdminToken(name="eve", role=Role.OWNER), actor="test"
    )
    async with api.client() as client, api.plane.away():
        answer = await client.get("/admin/keys", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 503
