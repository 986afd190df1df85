"""The admin API for holds, outbox, quarantine, guard and reconciliation."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.api import ADMIN, Api, serve_api
from tests.support.control import PROCESS
from tests.support.money import charge, hold, new_id, purchase

WHY = {"reason": "looked into it"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as made:
        yield made


async def held_call(api: Api, *, process: str = "gone") -> str:
    """A call that is held for, and nothing more."""
    event_id = new_id()
    await api.plane.hot.post([purchase(10_000)])
    await api.plane.hot.reserve(hold(event_id, process=process))
    return event_id


async def test_a_hold_is_shown_and_released(api: Api) -> None:
    event_id = await held_call(api)
    async with api.client() as client:
        shown = (await client.get(f"/admin/holds/{event_id}", headers=ADMIN)).json()
        assert shown["hold"]["held_micro_credits"] == 100
        assert shown["call"]["scene"] == "agent"
        assert not shown["process_alive"]
        path = f"/admin/holds/{event_id}/release"
        first = (await client.post(path, json=WHY, headers=ADMIN)).json()
        again = (await client.post(path, json=WHY, headers=ADMIN)).json()
        assert (first["repeated"], again["repeated"]) == (False, True)
        assert (await client.get("/admin/holds", headers=ADMIN)).json()["total"] == 0
        audit = (await client.get("/admin/audit?action=hold.release", headers=ADMIN)).json()
    (row,) = audit["items"]
    assert (row["target"], row["detail"]["reason"]) == (event_id, "looked into it")


async def test_a_living_hold_is_409(api: Api) -> None:
    event_id = await held_call(api, process=PROCESS)
    async with api.client() as client:
        answer = await client.post(f"/admin/holds/{event_id}/release", json=WHY, headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "act_refused")
    assert "lives" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


async def test_an_event_is_shown_and_replayed(api: Api) -> None:
    event_id = await held_call(api)
    await api.plane.hot.quarantine(charge(event_id, 30), origin="owner", reason="for the test")
    async with api.client() as client:
        shown = (await client.get("/admin/quarantine/1", headers=ADMIN)).json()
        assert (shown["event"]["amount_micro_credits"], shown["held_micro_credits"]) == (30, 100)
        assert shown["recorded_revisions"] == []
        replayed = await client.post("/admin/quarantine/1/replay", json=WHY, headers=ADMIN)
        assert replayed.json()["row"]["resolution"] == "replayed: looked into it"
        waiting = (await client.get(f"/admin/outbox/{event_id}/2", headers=ADMIN)).json()
        assert waiting["event"]["call"]["event_id"] == event_id
        refused = await client.post("/admin/quarantine/1/discard", json=WHY, headers=ADMIN)
        assert refused.status_code == 409


async def test_an_event_is_discarded(api: Api) -> None:
    event_id = await held_call(api)
    await api.plane.hot.quarantine(charge(event_id, 30), origin="owner", reason="for the test")
    async with api.client() as client:
        done = await client.post("/admin/quarantine/1/discard", json=WHY, headers=ADMIN)
        assert done.json()["hold_released"]
        listed = await client.get("/admin/quarantine?unresolved_only=true", headers=ADMIN)
        assert listed.json()["total"] == 0


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": "x" * 501}, {"why": "x"}])
async def test_no_act_without_a_reason(api: Api, body: dict[str, str]) -> None:
    event_id = await held_call(api)
    paths = (
        f"/admin/holds/{event_id}/release",
        "/admin/quarantine/1/replay",
        "/admin/quarantine/1/discard",
        "/admin/guard/rebuild",
        "/admin/reconcile/repair",
    )
    async with api.client() as client:
        for path in paths:
            answer = await client.post(path, json=body, headers=ADMIN)
            assert answer.status_code == 400, path
        assert (await client.get("/admin/audit", headers=ADMIN)).json()["total"] == 0
        assert (await client.get("/admin/holds", headers=ADMIN)).json()["total"] == 1


@pytest.mark.parametrize(
    "path",
    ["/admin/holds/nothing", "/admin/outbox/nothing/2", "/admin/quarantine/9"],
)
async def test_what_is_not_there_is_404(api: Api, path: str) -> None:
    async with api.client() as client:
        assert (await client.get(path, headers=ADMIN)).status_code == 404


async def test_reconcile_tells_and_repair_rebuilds(api: Api) -> None:
    await held_call(api)
    async with api.plane.database.write() as connection:
        await connection.exec_driver_sql("UPDATE accounts SET held = 7")
    async with api.client() as client:
        found = (await client.get("/admin/reconcile?full=true", headers=ADMIN)).json()
        assert (found["ok"], found["full"]) == (False, True)
        wrong = {each["check"]: each["count"] for each in found["findings"] if not each["ok"]}
        assert "R6" in wrong
        done = (await client.post("/admin/reconcile/repair", json=WHY, headers=ADMIN)).json()
        assert done["repaired"]["held_accounts"] == 1
        rebuilt = await client.post("/admin/guard/rebuild", json=WHY, headers=ADMIN)
        assert rebuilt.json() == {"accounts": 0}
        audit = (await client.get("/admin/audit", headers=ADMIN)).json()
    assert [row["action"] for row in audit["items"]] == ["guard.rebuild", "reconcile.repair"]
