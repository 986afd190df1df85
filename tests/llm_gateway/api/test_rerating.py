"""/admin/price-books/.../simulate and /admin/rerating: look first, then post; what may be asked, and by whom."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import msgspec
import pytest
from sqlalchemy import select

from billing.admins import NewAdminToken
from billing.db.tables import usage
from billing.kinds import Role
from billing.rerating.calls import Window
from billing.rerating.simulator import Question
from llm_gateway import clock
from tests.support.api import ADMIN, Api, serve_api
from tests.support.control import NOON
from tests.support.money import charge, purchase
from tests.support.rerating import CHEAPER, DEARER, OLD

BOOKS = "/admin/price-books"
RUNS = "/admin/rerating"
FROM, TO = "2026-09-21T13:00:00Z", "2026-09-21T15:00:00Z"  # NOON is 14:13:20
PERIOD = f"from={FROM}&to={TO}"
BODY = {"book": 2, "from": FROM, "to": TO}
TOML = {"Content-Type": "application/toml"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """Three books, and two calls of 35 by the first one."""
    async with serve_api(tmp_path) as made:
        plane = made.plane
        for text in (OLD, DEARER, CHEAPER):
            await plane.books.upload(text, actor="test")
        await plane.hot.post([purchase(1_000, account="ada")])
        for scene in ("agent", "chat"):
            finish = charge(clock.new_event_id(NOON), 35, account="ada")
            context = msgspec.structs.replace(finish.event.context, scene=scene)
            event = msgspec.structs.replace(finish.event, context=context)
            await plane.hot.record(msgspec.structs.replace(finish, event=event))
        await plane.hot.settle_pending(10)
        plane.clock.tick(3_600)
        yield made
        await plane.simulator.close()


async def ask(api: Api, method: str, path: str, **options: object) -> httpx2.Response:
    headers = {**ADMIN, **options.pop("headers", {})}  # type: ignore[dict-item]
    async with api.client() as client:
        return await client.request(method, path, headers=headers, **options)  # type: ignore[arg-type]


def lines(answer: httpx2.Response) -> list[dict[str, object]]:
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


# --- simulations --------------------------------------------------------------------------------


async def test_a_simulation_tells_before_and_after(api: Api) -> None:
    """Two calls: 2 x 35 before, 2 x 45 after."""
    answer = await ask(api, "GET", f"{BOOKS}/2/simulate?{PERIOD}")
    told = answer.json()
    assert (answer.status_code, told["book"], told["from"], told["to"]) == (200, 2, FROM, TO)
    assert told["totals"] == {
        "calls": 2,
        "before_micro_credits": 70,
        "after_micro_credits": 90,
        "difference_micro_credits": 20,
        "left_out_calls": 0,
        "left_out_micro_credits": 0,
    }
    (account,) = told["by_account"]["items"]
    assert (account["account"], account["model"], account["after_micro_credits"]) == (
        "ada",
        None,
        90,
    )
    assert [each["scene"] for each in told["by_scene"]["items"]] == ["agent", "chat"]
    assert [each["difference_micro_credits"] for each in told["movers"]] == [10, 10]


async def test_a_week_unless_told_otherwise(api: Api) -> None:
    told = (await ask(api, "GET", f"{BOOKS}/2/simulate")).json()
    assert (told["from"], told["to"]) == ("2026-09-14T15:13:20Z", "2026-09-21T15:13:20Z")
    assert told["totals"]["calls"] == 2


async def test_a_text_is_simulated_and_not_stored(api: Api) -> None:
    """Calls that no rule of it matches are told, and are not free."""
    text = DEARER.replace('model = "mini-1"', 'scene = "chat"\nmodel = "mini-1"').replace(
        "dearer", "x"
    )
    options: dict[str, object] = {"content": text.encode(), "headers": TOML}
    answer = await ask(api, "POST", f"{BOOKS}/simulate?{PERIOD}", **options)
    told = answer.json()
    assert (answer.status_code, told["book"]) == (200, None)
    assert (told["totals"]["before_micro_credits"], told["totals"]["after_micro_credits"]) == (
        35,
        45,
    )
    assert told["left_out"] == [
        {
            "reason": "no_rule",
            "meaning": "no rule of the book matches",
            "calls": 1,
            "micro_credits": 35,
        }
    ]
    (group,) = told["no_rule"]["items"]
    assert (group["scene"], group["provider"], group["model"]) == ("agent", "echo", "mini-1")
    assert (await ask(api, "GET", BOOKS)).json()["total"] == 3


async def test_lines_tell_the_progress_and_at_last_the_result(api: Api) -> None:
    told = lines(await ask(api, "GET", f"{BOOKS}/2/simulate.ndjson?{PERIOD}"))
    assert all(set(line) == {"progress"} for line in told[:-1])
    assert told[-2] == {"progress": {"calls": 2, "percent": 100}}
    assert told[-1] == {"result": (await ask(api, "GET", f"{BOOKS}/2/simulate?{PERIOD}")).json()}


async def test_a_fault_behind_the_first_line_is_told_as_a_line(api: Api) -> None:
    async with api.plane.away():
        told = lines(await ask(api, "POST", f"{BOOKS}/simulate.ndjson", content=OLD, headers=TOML))
    assert told[-1]["error"]["code"] == "database_unavailable"  # type: ignore[index]


@pytest.mark.parametrize("suffix", ["", ".ndjson"])
@pytest.mark.parametrize(
    ("query", "param"),
    [
        (f"days=7&from={FROM}", "days"),
        ("days=0", "days"),
        ("days=3661", "days"),
        ("days=x", "days"),
        (f"from={TO}&to={FROM}", "to"),
        ("from=2999-01-01T00:00:00Z", "from"),
        ("from=2026-09-21T00:00:00", "from"),
    ],
)
async def test_a_bad_time_is_refused(api: Api, suffix: str, query: str, param: str) -> None:
    answer = await ask(api, "GET", f"{BOOKS}/2/simulate{suffix}?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_unknown_books_and_bad_texts_are_refused(api: Api) -> None:
    for path in ("simulate", "simulate.ndjson"):
        assert (await ask(api, "GET", f"{BOOKS}/9/{path}")).status_code == 404
        for content, code in ((b"[book]\n", "price_book_refused"), (b"\xff", "invalid_request")):
            answer = await ask(api, "POST", f"{BOOKS}/{path}", content=content, headers=TOML)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert (await ask(api, "POST", f"{RUNS}/preview", json=BODY | {"book": 9})).status_code == 404


async def test_a_second_simulation_waits_its_turn(api: Api) -> None:
    steps = api.plane.simulator.run(Question(window=Window(from_at=0, to_at=NOON), version=1))
    await anext(steps)
    answer = await ask(api, "GET", f"{BOOKS}/2/simulate")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "simulation_running")
    assert answer.headers["retry-after"] == "30"
    await steps.aclose()


# --- runs ---------------------------------------------------------------------------------------


async def test_preview_then_post(api: Api) -> None:
    preview = (await ask(api, "POST", f"{RUNS}/preview", json=BODY)).json()
    assert preview["totals"]["difference_micro_credits"] == 20
    assert (await ask(api, "GET", RUNS)).json()["items"] == []
    body = BODY | {"reason": "wrong price"}
    begun = await ask(api, "POST", RUNS, json=body, headers={"Idempotency-Key": "r1"})
    assert (begun.status_code, begun.json()["repeated"]) == (202, False)
    run = begun.json()["run"]
    assert (run["run_id"], run["state"], run["actor"], run["percent"]) == (
        "r1",
        "posting",
        "admin",
        0,
    )
    await api.plane.shop().rerating.carry_on()
    done = (await ask(api, "GET", f"{RUNS}/r1")).json()
    assert (done["state"], done["percent"], done["entries"]) == ("done", 100, 2)
    assert (done["taken_micro_credits"], done["given_back_micro_credits"]) == (20, 0)
    assert (await ask(api, "GET", RUNS)).json()["items"] == [done]
    again = await ask(api, "POST", RUNS, json=body, headers={"Idempotency-Key": "r1"})
    assert (again.json()["repeated"], again.json()["run"]) == (True, done)
    audit = (await ask(api, "GET", "/admin/audit?action=charge.rerate")).json()["items"]
    assert [(row["actor"], row["target"], row["detail"]["reason"]) for row in audit] == [
        ("admin", "r1", "wrong price")
    ]
    after = (await ask(api, "POST", f"{RUNS}/preview.ndjson", json=BODY)).text.splitlines()[-1]
    assert json.loads(after)["result"]["totals"]["difference_micro_credits"] == 0


async def test_the_store_shows_the_correction(api: Api) -> None:
    await ask(api, "POST", RUNS, json=BODY | {"reason": "r"}, headers={"Idempotency-Key": "r1"})
    await api.plane.shop().rerating.carry_on()
    headers = await api.user()
    async with api.client() as client:
        charges = (await client.get("/credit-store/charges", headers=headers)).json()["items"]
        charge_id = charges[0]["event_id"]
        told = (await client.get(f"/credit-store/charges/{charge_id}", headers=headers)).json()
        listed = (await client.get("/credit-store/transactions", headers=headers)).json()["items"]
    assert [(entry["event_id"], entry["amount_micro_credits"]) for entry in told["entries"]] == [
        (charge_id, -35), (f"{charge_id}:rerate:r1", -10)
    ]  # fmt: skip
    assert [entry["source"] for entry in listed] == ["charge"] * 4 + ["purchase"]


async def test_conflicts_say_what_is_in_the_way(api: Api) -> None:
    body = BODY | {"reason": "r"}
    await ask(api, "POST", RUNS, json=body, headers={"Idempotency-Key": "r1"})
    other = await ask(api, "POST", RUNS, json=body)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "act_refused")
    assert "r1 is under way" in other.json()["error"]["message"]
    differs = await ask(
        api, "POST", RUNS, json=body | {"book": 3}, headers={"Idempotency-Key": "r1"}
    )
    assert (differs.status_code, differs.json()["error"]["code"]) == (409, "event_conflict")
    async with api.plane.database.read() as connection:
        charge_id = await connection.scalar(select(usage.c.event_id).limit(1))
    refund = await ask(api, "POST", f"/admin/charges/{charge_id}/refund", json={"reason": "r"})
    assert (refund.status_code, refund.json()["error"]["code"]) == (409, "act_refused")
    await api.plane.shop().rerating.carry_on()


@pytest.mark.parametrize(
    ("change", "params"),
    [
        ({"book": 0}, ["book"]),
        ({"book": "2"}, ["book"]),
        ({"from": "2026-09-21T13:00:00"}, ["from"]),
        ({"to": FROM}, ["to"]),
        ({"to": "2026-09-21T15:13:21Z"}, ["to"]),
        ({"reason": " "}, ["reason"]),
        ({"days": 7}, ["days"]),
    ],
)
async def test_a_bad_run_is_refused_by_field(
    api: Api, change: dict[str, object], params: list[str]
) -> None:
    answer = await ask(api, "POST", RUNS, json=BODY | {"reason": "r"} | change)
    assert (answer.status_code, answer.json()["error"]["params"]) == (400, params)
    assert (await ask(api, "GET", RUNS)).json()["total"] == 0


async def test_a_bad_run_id_is_refused(api: Api) -> None:
    headers = {"Idempotency-Key": "a:b"}
    answer = await ask(api, "POST", RUNS, json=BODY | {"reason": "r"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "run_id")
    assert (await ask(api, "GET", f"{RUNS}/nothing")).status_code == 404


@pytest.mark.parametrize(
    ("role", "status"), [(Role.FINANCE, 202), (Role.OPERATOR, 403), (Role.READ_ONLY, 403)]
)
async def test_finance_posts_and_all_look(api: Api, role: Role, status: int) -> None:
    _, token = await api.plane.admins.create(NewAdminToken(name="eve", role=role), actor="test")
    eve = {"Authorization": f"Bearer {token}"}
    assert (await ask(api, "POST", f"{RUNS}/preview", json=BODY, headers=eve)).status_code == 200
    answer = await ask(api, "POST", RUNS, json=BODY | {"reason": "r"}, headers=eve)
    assert answer.status_code == status
    await api.plane.shop().rerating.carry_on()
