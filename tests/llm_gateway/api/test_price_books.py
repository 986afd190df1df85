"""The life of a price book by HTTP: uploaded in either way, held against what is in effect, activated, taken back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from tests.support.api import ADMIN, Api, serve_api
from tests.support.control import BOOK, OTHER_BOOK

FAR = "2096-10-02T07:06:40Z"
THIRD_BOOK = BOOK.replace('"test prices"', '"third prices"')


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as made:
        await made.load_book()
        yield made


async def post(client: httpx2.AsyncClient, path: str, **body: object) -> httpx2.Response:
    return await client.post(f"/admin/price-books/{path}", json=body, headers=ADMIN)


async def upload(client: httpx2.AsyncClient, text: str) -> int:
    answer = await client.post("/admin/price-books", content=text, headers=ADMIN)
    assert answer.status_code == 201, answer.text
    version: int = answer.json()["version"]
    return version


async def send_form(
    client: httpx2.AsyncClient, body: bytes, kind: str = "multipart/form-data; boundary=X"
) -> httpx2.Response:
    headers = {**ADMIN, "content-type": kind}
    return await client.post("/admin/price-books", content=body, headers=headers)


def form(content: bytes, head: str = 'form-data; name="file"; filename="p.toml"') -> bytes:
    """What curl -F file=@p.toml sends, with the boundary X."""
    return b"--X\r\nContent-Disposition: %s\r\n\r\n%s\r\n--X--\r\n" % (head.encode(), content)


async def test_body_and_form_are_the_same_upload(api: Api) -> None:
    text = OTHER_BOOK + "# \u4ef7\u683c\r\n"
    async with api.client() as client:
        raw = await client.post("/admin/price-books", content=text, headers=ADMIN)
        files = {"file": ("prices.toml", text.encode(), "application/toml")}
        formed = await client.post("/admin/price-books", files=files, headers=ADMIN)
        by_hand = await send_form(client, form(text.encode()))
        stored = await client.get("/admin/price-books/2/text", headers=ADMIN)
    assert [answer.status_code for answer in (raw, formed, by_hand)] == [201, 201, 201]
    assert (raw.json()["version"], raw.json()["repeated"]) == (2, False)
    assert [each.json()["repeated"] for each in (formed, by_hand)] == [True, True]
    assert stored.text == text


async def test_every_problem_is_told_at_once_with_its_place(api: Api) -> None:
    bad = BOOK.replace('"2.50"', '"cheap"').replace('output = "20.00"', "output = 20")
    async with api.client() as client:
        refused = await client.post(
            "/admin/price-books", files={"file": ("a/b\\p.toml", bad.encode())}, headers=ADMIN
        )
        raw = await client.post("/admin/price-books", content=bad, headers=ADMIN)
        listed = (await client.get("/admin/price-books", headers=ADMIN)).json()
        acts = (await client.get("/admin/audit?action=book.upload", headers=ADMIN)).json()
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "price_book_refused")
    found = {each["rule"]: each for each in error["details"] if each["level"] == "error"}
    assert found["agent-mini"] == {
        "level": "error",
        "line": 21,
        "column": 1,
        "rule": "agent-mini",
        "field": "output",
        "message": 'must be in quotes, to stay exact, like output = "20"',
        "expected": "a decimal number in quotes, without sign or exponent",
        "example": 'output = "20"',
    }
    assert (found["echo-mini"]["line"], found["echo-mini"]["field"]) == (11, "input")
    assert (
        'p.toml:21:1: error: rule "agent-mini": output: must be in quotes, to stay exact, like '
        'output = "20"' in error["problems"]
    )
    assert any(
        each.startswith("line 21, column 1: error:") for each in raw.json()["error"]["problems"]
    )
    assert (listed["total"], acts["total"]) == (1, 1)


async def test_lint_stores_nothing_and_tells_what_an_upload_would(api: Api) -> None:
    dear = BOOK.replace('"2.50"', '"25.01"')  # over 10 times as dear
    async with api.client() as client:
        told = await client.post("/admin/price-books/lint", content=dear, headers=ADMIN)
        alone = await client.post(
            "/admin/price-books/lint?against_active=false", content=dear, headers=ADMIN
        )
        by_form = await client.post(
            "/admin/price-books/lint", files={"file": dear.encode()}, headers=ADMIN
        )
        stored = await client.post("/admin/price-books", content=dear, headers=ADMIN)
        listed = (await client.get("/admin/price-books", headers=ADMIN)).json()
    far = [each for each in told.json()["problems"] if "book in effect" in each["message"]]
    assert [(each["rule"], each["field"], each["line"]) for each in far] == [
        ("echo-mini", "input", 11)
    ]
    assert told.json()["acceptable"]
    assert not [each for each in alone.json()["problems"] if "in effect" in each["message"]]
    assert by_form.json() == told.json()
    assert stored.json()["warnings"] == told.json()["problems"]
    assert listed["total"] == 2


async def test_book_is_activated_in_the_place_of_the_one_that_is_named(api: Api) -> None:
    async with api.client() as client:
        assert await upload(client, OTHER_BOOK) == 2
        done = await post(client, "2/activate", replaces=1)
        assert (done.status_code, done.json()["replaced"]) == (200, 1)
        again = await post(client, "2/activate", replaces=1)
        assert again.json() == {**done.json(), "replaced": 2, "repeated": True}
        back = await post(client, "rollback", replaces=2)
        assert (back.json()["version"], back.json()["replaced"]) == (1, 2)
        gone = await post(client, "rollback", replaces=1)
        assert (gone.status_code, gone.json()["error"]["code"]) == (409, "act_refused")
        acts = (await client.get("/admin/audit", headers=ADMIN)).json()["items"]
    assert [(act["action"], act["target"]) for act in acts[:3]] == [
        ("book.rollback", "1"),
        ("book.activate", "2"),
        ("book.upload", "2"),
    ]


async def test_who_does_not_know_what_is_in_effect_is_told(api: Api) -> None:
    async with api.client() as client:
        await upload(client, OTHER_BOOK)
        await upload(client, THIRD_BOOK)
        assert (await post(client, "2/activate", replaces=1, at=FAR)).status_code == 200
        for path in ("3/activate", "rollback"):
            blind = await post(client, path)
            error = blind.json()["error"]
            assert (blind.status_code, error["code"]) == (409, "price_book_conflict")
            assert (error["replaces"], error["followed_by"]) == (1, 2)
            assert "version 2 is to follow at 2096-10-02T07:06:40Z" in error["message"]
            assert "send replaces: 1, followed_by: 2" in error["message"]
            assert blind.headers["x-should-retry"] == "false"
        assert (await post(client, "3/activate", replaces=1)).status_code == 409
        known = await post(client, "3/activate", replaces=1, followed_by=2)
        assert (known.status_code, known.json()["followed_by"]) == (200, 2)


async def test_of_two_who_activate_at_once_one_is_told_of_the_other(api: Api) -> None:
    async with api.client() as client, api.client() as other:
        await upload(client, OTHER_BOOK)
        await upload(client, THIRD_BOOK)
        answers = await asyncio.gather(
            post(client, "2/activate", replaces=1), post(other, "3/activate", replaces=1)
        )
    assert sorted(answer.status_code for answer in answers) == [200, 409]


async def test_lists_show_what_holds_and_what_is_scheduled(api: Api) -> None:
    async with api.client() as client:
        await upload(client, OTHER_BOOK)
        await post(client, "2/activate", replaces=1, at=FAR)
        listed = (await client.get("/admin/price-books", headers=ADMIN)).json()
        shown = (await client.get("/admin/price-books/2", headers=ADMIN)).json()
    assert listed["current"] == 1
    assert listed["scheduled"] == [{"version": 2, "effective_from": FAR, "activated_by": "admin"}]
    assert [
        (book["version"], book["current"], book["scheduled_from"]) for book in listed["items"]
    ] == [(2, False, FAR), (1, True, None)]
    assert (shown["scheduled_from"], shown["effective_from"], shown["planned_from"]) == (
        FAR,
        None,
        None,
    )


async def test_diff_tells_what_a_version_changes(api: Api) -> None:
    text = OTHER_BOOK.replace('id = "agent-only"', 'id = "agent-new"')
    async with api.client() as client:
        await upload(client, text)
        found = (await client.get("/admin/price-books/2/diff", headers=ADMIN)).json()
        back = (await client.get("/admin/price-books/1/diff?against=2", headers=ADMIN)).json()
        same = (await client.get("/admin/price-books/1/diff", headers=ADMIN)).json()
        missing = [
            (await client.get(f"/admin/price-books/{path}", headers=ADMIN)).status_code
            for path in ("9/diff", "1/diff?against=9")
        ]
    assert (found["version"], found["against"], found["unchanged"]) == (2, 1, 2)
    name = {"field": "name", "before": "test prices", "after": "other prices", "percent": ""}
    assert found["book"] == [name]
    assert [rule["rule_id"] for rule in found["added"]] == ["agent-new"]
    assert [rule["rule_id"] for rule in found["gone"]] == ["agent-only"]
    # From 2.50 to 3.00 is 20 % more; back again a sixth less.
    change = {"field": "input", "before": "2.50", "after": "3.00", "percent": "+20"}
    assert found["changed"] == [{"rule_id": "echo-mini", "changes": [change]}]
    assert back["changed"][0]["changes"][0]["percent"] == "-16.67"
    assert (same["changed"], same["unchanged"]) == ([], 4)
    assert missing == [404, 404]


async def test_explained_rule_comes_with_all_its_prices(api: Api) -> None:
    query = "scene=agent&provider=echo&model=mini&version=1"
    async with api.client() as client:
        told = await client.get(f"/admin/price-books/explain?{query}", headers=ADMIN)
    assert told.json()["rule_toml"] == (
        '[[rule]]\nid = "agent-mini"\nscene = "agent"\nprovider = "echo"\nmodel = "mini"\n'
        'input = "5.00"\noutput = "20.00"'
    )


# -- what is sent in bad faith, or by mistake ----------------------------------------------------

FORM = "multipart/form-data; boundary=X"
FILE = b'Content-Disposition: form-data; name="file"; filename="p"\r\n'
GOOD = OTHER_BOOK.encode()
BAD_FORMS = {
    "no boundary": ("multipart/form-data", form(GOOD)),
    "an empty boundary": ('multipart/form-data; boundary=""', form(GOOD)),
    "a long boundary": (f"multipart/form-data; boundary={'X' * 71}", form(GOOD)),
    "a boundary with a line feed": ('multipart/form-data; boundary="X\tY"', form(GOOD)),
    "another boundary": (FORM, form(GOOD).replace(b"--X", b"--Y")),
    "nothing": (FORM, b""),
    "no form": (FORM, GOOD),
    "an end alone": (FORM, b"--X--\r\n"),
    "no end": (FORM, form(GOOD).replace(b"--X--", b"")),
    "a cut": (FORM, form(GOOD)[:200]),
    "two files": (FORM, form(GOOD).replace(b"--X--\r\n", form(GOOD).removeprefix(b""))),
    "another field": (FORM, form(GOOD, 'form-data; name="data"; filename="p.toml"')),
    "a field without a name": (FORM, form(GOOD, "form-data")),
    "no disposition": (FORM, b"--X\r\nContent-Type: a/b\r\n\r\n" + GOOD + b"\r\n--X--\r\n"),
    "a long head": (FORM, b"--X\r\n" + FILE + b"A: " + b"a" * 100_000 + b"\r\n\r\n\r\n--X--\r\n"),
    "many heads": (FORM, b"--X\r\n" + FILE + b"A: a\r\n" * 9 + b"\r\n" + GOOD + b"\r\n--X--\r\n"),
    "many parts": (FORM, form(GOOD).replace(b"--X--", b"--X\r\n" + FILE + b"\r\n\r\n") * 10_000),
    "line feeds alone": (FORM, form(GOOD).replace(b"\r\n", b"\n")),
    "base64": (
        FORM,
        form(GOOD).replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1),
    ),
    "a form within": ("multipart/form-data; boundary=X; boundary=Y", b"--Z\r\n\r\n--Z--"),
    "curl -d": ("application/x-www-form-urlencoded", GOOD.replace(b"\n", b"")),
}


@pytest.mark.parametrize("name", BAD_FORMS)
async def test_form_that_is_none_is_400(api: Api, name: str) -> None:
    kind, body = BAD_FORMS[name]
    async with api.client() as client:
        answer = await send_form(client, body, kind)
        listed = (await client.get("/admin/price-books", headers=ADMIN)).json()
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_request")
    assert "-F file=@prices.toml" in error["message"]
    assert listed["total"] == 1


async def test_name_of_a_file_is_shown_without_what_it_could_do(api: Api) -> None:
    head = 'form-data; name="file"; filename="../../etc/\x1b[31mp\u2028.toml' + "a" * 900 + '"'
    async with api.client() as client:
        answer = await send_form(client, form(b"x = 1", head))
    (line, *_) = answer.json()["error"]["problems"]
    assert line.startswith("[31mp.tomlaaa")
    assert line.partition(": ")[0].count("a") < 100


@pytest.mark.parametrize(
    ("headers", "status"), [({"content-encoding": "gzip"}, 415), ({"content-encoding": "br"}, 415)]
)
async def test_compressed_file_is_415(api: Api, headers: dict[str, str], status: int) -> None:
    async with api.client() as client:
        answer = await client.post(
            "/admin/price-books", content=b"\x1f\x8b" * 9, headers=ADMIN | headers
        )
    assert answer.status_code == status


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "a price of 10^30": (BOOK.replace('"2.50"', f'"1{"0" * 30}"'), "at most 9 digits"),
    "a negative price": (BOOK.replace('"2.50"', '"-2.50"'), "is not a price"),
    "NaN": (BOOK.replace('"2.50"', "nan"), "must be in quotes"),
    "a unit": (BOOK.replace('"2.50"', '"2.50 USD/1M"'), "is not a price"),
    "a key twice": (BOOK + 'input = "1"\n', "Cannot overwrite a value"),
    "deep": ("x = " + "[" * 100_000 + "]" * 100_000, "this is not TOML"),
    "a glob": (BOOK.replace('"mini"', f'"{"*a" * 90}"'), "has 90 wildcards"),
    "no UTF-8": (b"[book]\nname = '\xff'", "this is not UTF-8 text"),
    "UTF-16": (BOOK.encode("utf-16"), "this is not UTF-8 text"),
    "NUL": (BOOK + "# \0", "this is not TOML"),
    "a surrogate": (b"x = '\xed\xa0\x80'", "this is not UTF-8 text"),
    "nothing": ("", "is missing; a price book begins with [book]"),
    "JSON": ('{"book": {}}', "this is not TOML"),
    "a page": ("<html>", "this is not TOML"),
    "long": ("#" * 6_000_001, "longer than 6000000 characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("path", ["/admin/price-books", "/admin/price-books/lint"])
async def test_hostile_file_is_refused_with_its_reason(api: Api, name: str, path: str) -> None:
    content, reason = HOSTILE[name]
    body = content if isinstance(content, bytes) else content.encode()
    async with api.client() as client:
        for answer in (
            await client.post(path, content=body, headers=ADMIN),
            await client.post(path, files={"file": ("p.toml", body)}, headers=ADMIN),
        ):
            told = answer.json()
            if path.endswith("lint"):
                assert (answer.status_code, told["acceptable"]) == (200, False)
                problems = told["problems"]
            else:
                assert (answer.status_code, told["error"]["code"]) == (400, "price_book_refused")
                problems = told["error"]["details"]
            assert any(reason in problem["message"] for problem in problems), problems
        listed = (await client.get("/admin/price-books", headers=ADMIN)).json()
    assert listed["total"] == 1


@pytest.mark.parametrize("path", ["/admin/price-books", "/admin/price-books/lint"])
async def test_file_over_the_limit_is_413(api: Api, path: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"#" * 2**20

    async with api.client() as client:
        told = await client.post(path, content=b"#" * (2**23 + 1), headers=ADMIN)
        untold = await client.post(path, content=pieces(), headers=ADMIN)
        form = await client.post(path, files={"file": b"#" * 2**23}, headers=ADMIN)
    assert [answer.status_code for answer in (told, untold, form)] == [413, 413, 413]
