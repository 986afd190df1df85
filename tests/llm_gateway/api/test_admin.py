"""The admin API: every act once, and what it refuses."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.api import ADMIN, Api, serve_api

USER_KEY = {"kind": "user", "account": "ada", "default_scene": "chat"}
GRANT = {"account": "ada", "amount_micro_credits": 5_000_000}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as made:
        yield made


async def test_account_from_creation_to_suspension(api: Api) -> None:
    async with api.client() as client:
        made = await client.post("/admin/accounts", json={"account": "ada"}, headers=ADMIN)
        assert (made.status_code, made.json()["balance_micro_credits"]) == (201, 0)
        again = await client.post("/admin/accounts", json={"account": "ada"}, headers=ADMIN)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "already_exists")
        body = {"reason": "abuse"}
        suspended = await client.post("/admin/accounts/ada/suspend", json=body, headers=ADMIN)
        assert (suspended.json()["suspended"], suspended.json()["suspended_reason"]) == (
            True,
            "abuse",
        )
        lifted = await client.post("/admin/accounts/ada/unsuspend", headers=ADMIN)
        assert not lifted.json()["suspended"]
        listed = await client.get("/admin/accounts?contains=ad", headers=ADMIN)
        assert listed.json()["items"] == [lifted.json()]
        audit = (await client.get("/admin/audit?page_size=2", headers=ADMIN)).json()
        assert [row["action"] for row in audit["items"]] == [
            "account.unsuspend",
            "account.suspend",
        ]
        assert audit["has_more"]


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k1"}])
async def test_repeated_grant_is_one_entry(api: Api, headers: dict[str, str]) -> None:
    body = GRANT if headers else {**GRANT, "event_id": "k1"}
    async with api.client() as client:
        answers = await asyncio.gather(
            *(client.post("/admin/grants", json=body, headers=ADMIN | headers) for _ in range(5))
        )
        assert sorted(answer.json()["repeated"] for answer in answers) == [False] + [True] * 4
        account = (await client.get("/admin/accounts/ada", headers=ADMIN)).json()
        assert account["balance_micro_credits"] == 5_000_000
        other = {**body, "amount_micro_credits": 1}
        conflict = await client.post("/admin/grants", json=other, headers=ADMIN | headers)
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "event_conflict")
    assert conflict.json()["error"]["param"] == "amount"
    assert conflict.headers["x-should-retry"] == "false"


async def test_grants_without_an_id_are_separate(api: Api) -> None:
    async with api.client() as client:
        for _ in range(2):
            await client.post("/admin/grants", json=GRANT, headers=ADMIN)
        account = (await client.get("/admin/accounts/ada", headers=ADMIN)).json()
    assert account["balance_micro_credits"] == 10_000_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"amount_micro_credits": 0},
        {"amount_micro_credits": -1},
        {"amount_micro_credits": 1.5},
        {"amount_micro_credits": "1.5"},
        {"amount_micro_credits": "5000000"},
        {"amount_micro_credits": 1.0},
        {"amount_micro_credits": True},
        {"amount_micro_credits": 2**53},
        {"amount_micro_credits": None},
        {"account": "a b"},
        {"account": ""},
        {"account": 7},
        {"source": "Manual!"},
        {"amount": 1},
        {"event_id": "x" * 201},
        {"event_id": "credit-order:o:paid"},
        {"source": "charge"},
    ],
)
async def test_wrong_grant_is_400_and_posts_nothing(api: Api, wrong: dict[str, object]) -> None:
    async with api.client() as client:
        answer = await client.post("/admin/grants", json={**GRANT, **wrong}, headers=ADMIN)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert (await client.get("/admin/accounts", headers=ADMIN)).json()["total"] == 0


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("grants", {**GRANT, "amount_micro_credits": "5000000"}, "amount_micro_credits"),
        ("grants", {"account": "ada"}, "amount_micro_credits"),
        ("grants", {**GRANT, "amount": 1}, "amount"),
        ("keys", {**USER_KEY, "scenes": ["agent", 7]}, "scenes[1]"),
        ("keys", {**USER_KEY, "expires_at": 4102444800}, "expires_at"),
        ("keys", {**USER_KEY, "expires_at": "4102444800"}, "expires_at"),
        ("price-books/1/activate", {"at": 4102444800}, "at"),
        ("accounts/ada/suspend", {"reason": ""}, "reason"),
    ],
)
async def test_body_is_read_strictly_and_the_field_named(
    api: Api, path: str, body: dict[str, object], field: str
) -> None:
    async with api.client() as client:
        answer = await client.post(f"/admin/{path}", json=body, headers=ADMIN)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert field in error["params"]
    assert field in error["message"]
    assert error["param"] in error["params"]
    assert "$" not in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b'"ada"', b"\xff", b'{"account": "\xff"}']
)
async def test_body_that_is_no_object_is_400(api: Api, body: bytes) -> None:
    async with api.client() as client:
        answer = await client.post("/admin/accounts", content=body, headers=ADMIN)
        assert answer.status_code == 400
        assert (await client.get("/admin/accounts", headers=ADMIN)).json()["total"] == 0


async def test_two_ids_for_one_grant_are_400(api: Api) -> None:
    async with api.client() as client:
        answer = await client.post(
            "/admin/grants",
            json={**GRANT, "event_id": "a"},
            headers=ADMIN | {"Idempotency-Key": "b"},
        )
    assert answer.status_code == 400


async def test_key_from_creation_to_revocation(api: Api) -> None:
    async with api.client() as client:
        made = await client.post("/admin/keys", json=USER_KEY, headers=ADMIN)
        assert made.status_code == 201
        token, key = made.json()["token"], made.json()["key"]
        headers = {"Authorization": f"Bearer {token}"}
        assert (await client.get("/credit-store/balance", headers=headers)).status_code == 200
        listed = await client.get("/admin/keys?account=ada", headers=ADMIN)
        assert listed.json()["items"] == [key]
        assert token[10:] not in listed.text
        revoked = await client.post(f"/admin/keys/{key['key_id']}/revoke", headers=ADMIN)
        assert revoked.json()["revoked"]
        refused = await client.get("/credit-store/balance", headers=headers)
        assert refused.status_code == 401
        assert token not in refused.text
        gone = await client.post("/admin/keys/key_0/revoke", headers=ADMIN)
        assert gone.status_code == 404


@pytest.mark.parametrize(
    "wrong",
    [
        {"account": ""},
        {"account": "a b"},
        {"app": "forum"},
        {"accounts": ["ada"]},
        {"kind": "app"},
        {"kind": "app", "account": "", "app": " "},
        {"kind": "app", "account": "", "app": "forum", "accounts": ["a b"]},
        {"kind": "root"},
        {"default_scene": ""},
        {"default_scene": "a b"},
        {"scenes": "agent"},
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": "2099-01-01T00:00:00"},
        {"expires_at": "soon"},
        {"admin": True},
    ],
)
async def test_wrong_key_is_400(api: Api, wrong: dict[str, object]) -> None:
    async with api.client() as client:
        answer = await client.post("/admin/keys", json={**USER_KEY, **wrong}, headers=ADMIN)
        assert answer.status_code == 400
        assert (await client.get("/admin/keys", headers=ADMIN)).json()["total"] == 0


async def test_app_key_keeps_its_restrictions(api: Api) -> None:
    body = {
        "kind": "app",
        "app": "forum",
        "accounts": ["ada"],
        "default_scene": "chat",
        "scenes": ["agent"],
        "models": ["mini"],
        "expires_at": "2099-01-01T02:00:00+02:00",
    }
    async with api.client() as client:
        key = (await client.post("/admin/keys", json=body, headers=ADMIN)).json()["key"]
    assert {name: key[name] for name in body if name != "expires_at"} == {
        name: value for name, value in body.items() if name != "expires_at"
    }
    assert key["expires_at"] == "2099-01-01T00:00:00Z"


async def test_rule_of_a_call_is_explained(api: Api) -> None:
    await api.load_book()
    query = "scene=agent&provider=echo&model=mini"
    async with api.client() as client:
        told = await client.get(f"/admin/price-books/explain?{query}", headers=ADMIN)
        none = await client.get(
            "/admin/price-books/explain?scene=agent&provider=x&model=mini&version=1", headers=ADMIN
        )
        gone = await client.get(f"/admin/price-books/explain?{query}&version=9", headers=ADMIN)
    assert told.json()["rule"]["rule_id"] == "agent-mini"
    lost = {each["rule_id"]: each["why"] for each in told.json()["considered"] if not each["won"]}
    assert "echo-mini" in lost
    assert none.json()["rule"] is None
    assert gone.status_code == 404


@pytest.mark.parametrize("path", ["/admin/accounts/nobody", "/admin/price-books/9"])
async def test_what_is_not_there_is_404(api: Api, path: str) -> None:
    async with api.client() as client:
        assert (await client.get(path, headers=ADMIN)).status_code == 404


async def test_empty_lists_have_their_frame(api: Api) -> None:
    async with api.client() as client:
        for path in ("/admin/holds", "/admin/outbox", "/admin/quarantine"):
            page = (await client.get(path, headers=ADMIN)).json()
            assert (page["items"], page["total"], page["has_more"]) == ([], 0, False)


@pytest.mark.parametrize("body", [b"8E6{\xff", b'"x"]', b"[1", b"{", b"\xff", b"tru"])
@pytest.mark.parametrize("path", ["/admin/price-books/1/activate", "/admin/grants"])
async def test_what_is_no_json_is_refused(api: Api, path: str, body: bytes) -> None:
    async with api.client() as client:
        headers = ADMIN | {"content-type": "application/json"}
        answer = await client.post(path, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
