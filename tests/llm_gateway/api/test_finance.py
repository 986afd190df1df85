"""Consumption, charges, transactions as pages and as CSV, statements: what their addresses answer."""

import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import msgspec
import pytest

from billing.events import UsageNotes
from billing.ledger import Entry
from billing.shop.exports import ROWS_AT_ONCE
from llm_gateway import clock
from tests.support.api import ADMIN, Api, serve_api
from tests.support.control import NOON
from tests.support.money import charge, purchase

CREDIT = 1_000_000
STORE = "/credit-store"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as made:
        yield made


async def call(api: Api, amount: int, account: str = "ada", **fields: object) -> str:
    """A settled call; its id. `fields`: of its context."""
    event_id = clock.new_event_id(api.plane.clock.ms)
    finish = charge(event_id, amount, account=account)
    context = msgspec.structs.replace(
        finish.event.context, **{"started_at": api.plane.clock.ms, **fields}
    )
    event = msgspec.structs.replace(finish.event, context=context)
    await api.plane.hot.record(msgspec.structs.replace(finish, event=event, notes=UsageNotes()))
    await api.plane.hot.settle_pending(10)
    return event_id


async def get(api: Api, path: str, headers: dict[str, str] | None = None) -> httpx2.Response:
    async with api.client() as client:
        return await client.get(path, headers=headers or await api.user())


# --- consumption ----------------------------------------------------------------------------------


async def test_consumption_by_model(api: Api) -> None:
    await call(api, 30)
    await call(api, 5, model_sent="maxi")
    await call(api, 500, account="bob")
    answer = await get(api, f"{STORE}/consumption?group_by=model&time_zone=Asia/Kathmandu")
    told = answer.json()
    assert answer.status_code == 200
    assert (told["account"], told["time_zone"], told["step"]) == ("ada", "Asia/Kathmandu", "hour")
    assert [(g["name"], g["amount_micro_credits"], g["calls"]) for g in told["groups"]] == [
        ("mini-1", 30, 1), ("maxi", 5, 1),
    ]  # fmt: skip
    assert told["totals"]["amount_micro_credits"] == 35
    assert told["totals"]["tokens"]["input"] == 20
    assert told["from"].endswith("Z")
    assert [s["from"] for s in told["series"][1:]] == [s["to"] for s in told["series"][:-1]]
    assert sum(each["calls"] for each in told["series"]) == 2


async def test_consumption_of_a_run(api: Api) -> None:
    await call(api, 30, run_id="run-1")
    await call(api, 5)
    told = (await get(api, f"{STORE}/consumption?run_id=run-1")).json()
    assert (told["totals"]["amount_micro_credits"], told["run_id"]) == (30, "run-1")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("period=1y", "period"),
        ("group_by=account", "group_by"),
        ("time_zone=Mars/Olympus", "time_zone"),
        ("time_zone=../../etc/passwd", "time_zone"),
        ("time_zone=", "time_zone"),
        ("run_id=%00", "run_id"),
    ],
)
async def test_consumption_refuses_what_it_does_not_know(api: Api, query: str, field: str) -> None:
    answer = await get(api, f"{STORE}/consumption?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


# --- charges --------------------------------------------------------------------------------------


async def test_charges_are_listed_newest_first_by_cursor(api: Api) -> None:
    await api.plane.hot.post([purchase(1000, account="ada")])
    ids = [await call(api, number, scene="chat" if number % 2 else "agent") for number in range(5)]
    await call(api, 9, account="bob")
    headers = await api.user()
    first = (await get(api, f"{STORE}/charges?page_size=2", headers)).json()
    assert [each["event_id"] for each in first["items"]] == [ids[4], ids[3]]
    assert first["has_more"] is True
    rest = (
        await get(api, f"{STORE}/charges?page_size=9&after={first['next_after']}", headers)
    ).json()
    assert [each["event_id"] for each in rest["items"]] == ids[2::-1]
    assert (rest["has_more"], rest["next_after"]) == (False, None)
    chat = (await get(api, f"{STORE}/charges?scene=chat", headers)).json()
    assert [each["amount_micro_credits"] for each in chat["items"]] == [3, 1]


async def test_charges_are_filtered(api: Api) -> None:
    await api.plane.hot.post([purchase(1000, account="ada")])
    early = await call(api, 1, run_id="run-1", model_requested="old")
    api.plane.clock.tick(60)
    late = await call(api, 2, run_id="run-2")
    headers = await api.user()
    noon = "2026-09-21T14:13:20Z"
    minute = "2026-09-21T14:14:20Z"
    for query, expected in (
        ("run_id=run-1", [early]),
        ("model=old", [early]),
        ("model=mini-1", [late, early]),
        ("model=none", []),
        (f"from={minute}", [late]),
        (f"to={minute}", [early]),
        (f"from={noon}&to={minute}", [early]),
        ("run_id=run-1&model=mini", []),
    ):
        told = (await get(api, f"{STORE}/charges?{query}", headers)).json()
        assert [each["event_id"] for each in told["items"]] == expected, query


# --- transactions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["transactions", "transactions.csv", "charges"])
@pytest.mark.parametrize(
    ("query", "params"),
    [
        ("from=2026-09-21T00:00:00", ["from"]),
        ("from=2026-09-21T00:00:00&to=2026-09-22T00:00:00", ["from", "to"]),
        ("from=2026-09-22T00:00:00Z&to=2026-09-22T00:00:00Z", ["to"]),
        ("from=yesterday", ["from"]),
    ],
)
async def test_times_need_their_zone_and_order(
    api: Api, path: str, query: str, params: list[str]
) -> None:
    answer = await get(api, f"{STORE}/{path}?{query}")
    assert (answer.status_code, answer.json()["error"]["params"]) == (400, params)


async def test_transactions_of_a_time(api: Api) -> None:
    entries = [
        msgspec.structs.replace(purchase(n, account="ada"), created_at=NOON + n) for n in (1, 2, 3)
    ]
    await api.plane.hot.post(entries)
    told = (
        await get(
            api,
            f"{STORE}/transactions?from=2026-09-21T14:13:20.002Z&to=2026-09-21T14:13:20.003Z",
        )
    ).json()
    assert [each["amount_micro_credits"] for each in told["items"]] == [2]
    assert (told["total"], told["has_more"]) == (1, False)


HOSTILE = [
    '=HYPERLINK("http://x")',
    "+1",
    "-1",
    "@SUM(A1)",
    "＝1",
    "a;=1+1",
    'a "quote", and a comma; -',
    "a\r\nb",
]


async def test_csv_is_safe_from_formulas_and_reads_back(api: Api) -> None:
    entries = [
        Entry(
            event_id=f"e{number}", account="ada", source="manual", direction="income",
            amount=1_500_000, description=text,
        )
        for number, text in enumerate(HOSTILE)
    ]  # fmt: skip
    await api.plane.hot.post(entries)
    await call(api, 30)
    answer = await get(api, f"{STORE}/transactions.csv")
    assert answer.headers["content-type"] == "text/csv; header=present; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.content.endswith(b"\r\n")
    rows = list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))
    assert [row["description"] for row in rows[:5]] == [f"'{text}" for text in HOSTILE[:5]]
    assert [row["description"] for row in rows[5:8]] == [
        "a;'=1+1", 'a "quote", and a comma; \'-', "a\r\nb",
    ]  # fmt: skip
    assert (rows[0]["amount_credits"], rows[0]["amount_micro_credits"]) == ("1.5", "1500000")
    # A number below 0 is a number, and no formula.
    assert (rows[-1]["amount_credits"], rows[-1]["amount_micro_credits"]) == ("-0.00003", "-30")
    assert rows[-1]["created_at"].endswith("Z")
    assert [int(row["number"]) for row in rows] == list(range(1, 10))


async def test_csv_tells_long_histories_whole(api: Api) -> None:
    number = ROWS_AT_ONCE + 1
    await api.plane.hot.post([purchase(1, account="ada") for _ in range(number)])
    await api.plane.hot.post([purchase(1, account="bob")])
    headers = await api.user()
    lines = (await get(api, f"{STORE}/transactions.csv", headers)).text.splitlines()
    assert (len(lines), lines[-1].split(",")[0]) == (number + 1, str(number))
    none = (await get(api, f"{STORE}/transactions.csv?direction=expense", headers)).text
    assert len(none.splitlines()) == 1


async def test_csv_without_database_is_an_error_and_no_half_file(api: Api) -> None:
    headers = await api.user()
    assert (await get(api, f"{STORE}/balance", headers)).status_code == 200
    async with api.plane.away():
        answer = await get(api, f"{STORE}/transactions.csv", headers)
    assert answer.status_code == 503


# --- admin ----------------------------------------------------------------------------------------


async def test_statement_of_a_month(api: Api) -> None:
    await api.plane.hot.post([purchase(1000, account="ada")])
    await call(api, 30)
    told = (await get(api, "/admin/statements/ada/2026-09", ADMIN)).json()
    assert (told["opening_micro_credits"], told["closing_micro_credits"]) == (0, 970)
    assert [(each["source"], each["amount_micro_credits"]) for each in told["lines"]] == [
        ("charge", -30), ("purchase", 1000),
    ]  # fmt: skip
    assert (told["from"], told["to"]) == ("2026-09-01T00:00:00Z", "2026-10-01T00:00:00Z")
    assert (told["first_seq"], told["last_seq"], told["closed"]) == (1, 2, False)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/admin/statements/nobody/2026-09", 404),
        ("/admin/statements/ada/2026-13", 400),
        ("/admin/statements/ada/september", 400),
        ("/admin/outstanding?at=2026-09-21T00:00:00", 400),
        ("/admin/usage?run_id=run-1", 400),
        ("/admin/usage?group_by=user", 400),
    ],
)
async def test_admin_refuses_what_is_not_there(api: Api, path: str, status: int) -> None:
    assert (await get(api, path, ADMIN)).status_code == status


async def test_outstanding_at_a_date(api: Api) -> None:
    await api.plane.hot.post([purchase(1000, account="ada")])
    now = (await get(api, "/admin/outstanding", ADMIN)).json()
    assert (now["positive_micro_credits"], now["accounts_positive"]) == (1000, 1)
    before = (await get(api, "/admin/outstanding?at=2026-09-21T00:00:00Z", ADMIN)).json()
    assert (before["positive_micro_credits"], before["negative_micro_credits"]) == (0, 0)


async def test_usage_of_everybody_and_of_one(api: Api) -> None:
    await call(api, 30)
    await call(api, 500, account="bob")
    told = (await get(api, "/admin/usage?group_by=account", ADMIN)).json()
    assert [(g["name"], g["amount_micro_credits"]) for g in told["groups"]] == [
        ("bob", 500), ("ada", 30),
    ]  # fmt: skip
    assert told["totals"]["amount_micro_credits"] == 530
    one = (await get(api, "/admin/usage?account=ada", ADMIN)).json()
    assert one["totals"]["amount_micro_credits"] == 30
