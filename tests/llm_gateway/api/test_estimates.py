"""POST /v1/estimate: prices worked out by hand, what they rest on, and nothing that it does to the account.

Prices: 2.50, cached 1.25, output 10.00 USD per 1M tokens at 100 credits per USD, so a token costs 250,
125 and 1,000 micro-credits. The body says "Say hello." (10 bytes): 3 tokens by our estimate, and 3 of
the chat template.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from billing.accounts import Grant
from billing.context import BillingContext
from billing.events import ChargeEvent, Finish, Revision, UsageNotes, UsageQuality, UsageSource
from billing.shop.history import HISTORY_DAYS
from llm_gateway.config import Config, ProviderConfig
from llm_gateway.dialects import chat
from llm_gateway.tokens import estimate, measure
from pricing_rules.usage import Usage
from tests.support.api import Api, serve_api
from tests.support.control import BOOK
from tests.support.estimates import BODY_BYTES_MAX, model

BODY: dict[str, object] = {
    "model": "mini",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 100,
}
INPUT = estimate(measure(b"Say hello.")) + 3
DAY_MS = 86_400_000


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as made:
        await made.load_book()
        yield made


async def ask(api: Api, body: object = BODY) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an estimate for the account ada."""
    key = await api.user()
    async with api.client() as client:
        answer = await client.post("/v1/estimate", json=body, headers=key)
    return answer.status_code, answer.json()


async def give(api: Api, amount: int, account: str = "ada") -> None:
    grant = Grant(event_id=f"g{amount}", account=account, amount=amount)
    await api.plane.accounts.grant(grant, actor="test")


CALL = BillingContext(
    event_id="",
    account="ada",
    key_id="key_1",
    app="",
    scene="chat",
    provider="echo",
    model_requested="mini",
    model_sent="mini",
    run_id="",
    client_request_id="",
    book=1,
    rule="echo-mini",
    started_at=0,
)


async def called(
    api: Api, event_id: str, usage: Usage, call: BillingContext = CALL, *, days_ago: int = 0
) -> None:
    """A call of the past, charged and settled."""
    at = api.plane.clock.ms - days_ago * DAY_MS
    event = ChargeEvent(
        revision=Revision.FINAL,
        context=replace(call, event_id=event_id, started_at=at),
        usage=usage,
        quality=UsageQuality.EXACT,
        usage_source=UsageSource.PROVIDER,
        amount=1,
        ceiling=1,
        finished_at=at,
    )
    await api.plane.hot.record(Finish(event=event, notes=UsageNotes()))
    await api.plane.hot.settle_pending(10)


async def test_lowest_and_worst_are_by_the_rule(api: Api) -> None:
    status, told = await ask(api)
    assert status == 200
    assert (told["input_tokens"], told["input_tokens_source"]) == (INPUT, "bytes")
    # All of the input cached, and one token of output.
    assert told["lowest_micro_credits"] == INPUT * 125 + 1 * 1_000
    # Every byte of the body a token, and the whole limit of output.
    size = len(json.dumps(BODY, separators=(",", ":")))
    assert told["input_tokens_max"] == size
    assert told["worst_micro_credits"] == size * 250 + 100 * 1_000
    assert told["output_tokens_max"] == 100
    assert (told["expected_micro_credits"], told["expected_from"]) == (None, None)
    names = ("account", "scene", "model", "model_sent", "provider", "book", "rule_id")
    assert [told[name] for name in names] == ["ada", "chat", "mini", "mini", "echo", 1, "echo-mini"]
    assert (told["hours_factor"], told["service_tier"]) == ("1", None)


async def test_without_a_limit_the_model_s_own_counts_and_every_choice_does(api: Api) -> None:
    body = {**BODY, "n": 3}
    del body["max_tokens"]
    _, told = await ask(api, body)
    assert told["output_tokens_max"] == 3_000
    assert told["worst_micro_credits"] == told["input_tokens_max"] * 250 + 3_000_000
    assert told["lowest_micro_credits"] == INPUT * 125 + 3 * 1_000


async def test_expected_rests_on_the_account_s_own_calls_of_this_kind(api: Api) -> None:
    # 300 of input, 100 of it cached; 40 + 21 of output, 7 of it reasoning, over 2 calls: 31 each.
    await called(api, "c1", Usage(input=150, cached_input=50, output=40))
    await called(api, "c2", Usage(input=50, cached_input=50, output=14, reasoning=7))
    await called(api, "other-1", Usage(output=9_000), replace(CALL, account="bob"))
    await called(api, "other-2", Usage(output=9_000), replace(CALL, scene="agent"))
    await called(api, "other-3", Usage(output=9_000), replace(CALL, model_sent="large"))
    await called(api, "other-4", Usage(output=9_000), replace(CALL, provider="elsewhere"))
    await called(api, "long-ago", Usage(output=9_000), days_ago=HISTORY_DAYS + 1)
    _, told = await ask(api)
    cached = INPUT * 100 // 300
    reasoning = 31 * 7 // 61
    assert told["expected_from"] == {
        "calls": 2,
        "days": 30,
        "usage": {
            "input": INPUT - cached,
            "cached_input": cached,
            "cache_write_5m": 0,
            "cache_write_1h": 0,
            "audio_input": 0,
            "image_input": 0,
            "output": 31 - reasoning,
            "reasoning": reasoning,
            "audio_output": 0,
        },
    }
    expected = (INPUT - cached) * 250 + cached * 125 + 31 * 1_000
    assert told["expected_micro_credits"] == expected


async def test_expected_output_is_never_more_than_it_may_be(api: Api) -> None:
    await called(api, "c1", Usage(input=10, output=700))
    _, told = await ask(api)
    assert told["expected_from"]["usage"]["output"] == 100
    assert told["expected_micro_credits"] == INPUT * 250 + 100 * 1_000
    _, told = await ask(api, {**BODY, "max_tokens": 2_000, "n": 2})
    assert told["expected_from"]["usage"]["output"] == 1_400


@pytest.mark.parametrize(
    "history", [Usage(), Usage(input=1, output=5_000), Usage(cache_write_1h=9)]
)
@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": ""}] * 300},  # the shortest messages that can be sent
        {"messages": [{"role": "user", "content": "你好" * 500}]},
        {"messages": [{"role": "user", "content": "{}[],;:!" * 500}], "n": 128, "max_tokens": 1},
        {"messages": [], "tools": [{"type": "function", "function": {"name": "f"}}] * 50},
    ],
)
async def test_expected_lies_between_lowest_and_worst(
    api: Api, fields: dict[str, object], history: Usage
) -> None:
    await called(api, "c1", history)
    _, told = await ask(api, {**BODY, **fields})
    names = ("lowest_micro_credits", "expected_micro_credits", "worst_micro_credits")
    lowest, expected, worst = (told[name] for name in names)
    assert lowest <= expected <= worst
    assert told["input_tokens"] <= told["input_tokens_max"]


async def test_failed_calls_are_no_history(api: Api) -> None:
    at = api.plane.clock.ms
    event = ChargeEvent(
        revision=Revision.FINAL,
        context=replace(CALL, event_id="c1", started_at=at),
        usage=Usage(),
        quality=UsageQuality.EXACT,
        usage_source=UsageSource.NONE,
        amount=0,
        ceiling=1,
        finished_at=at,
    )
    notes = UsageNotes(reason="upstream_error")
    await api.plane.hot.cancel(Finish(event=event, notes=notes, cancelled=True))
    _, told = await ask(api)
    assert told["expected_micro_credits"] is None
    await called(api, "c2", Usage(input=5, output=20))
    _, told = await ask(api)
    assert (told["expected_from"]["calls"], told["expected_from"]["usage"]["output"]) == (1, 20)


@pytest.mark.parametrize(
    ("given", "admitted", "reason", "would_hold", "clamped"),
    [
        (1_000_000, True, None, "worst", None),
        ("worst", True, None, "worst", None),
        # 70 of 100 tokens of output are affordable, 64 of them have to be
        ("worst - 30 tokens", True, None, "given", 70),
        ("worst - 36 tokens", True, None, "given", 64),
        ("worst - 37 tokens", False, "insufficient", None, None),
        (0, False, "insufficient", None, None),
    ],
)
async def test_admission_is_that_of_the_guard(
    api: Api,
    given: int | str,
    admitted: bool,
    reason: str | None,
    would_hold: str | None,
    clamped: int | None,
) -> None:
    size = len(json.dumps(BODY, separators=(",", ":")))
    worst = size * 250 + 100 * 1_000
    if isinstance(given, str):
        tokens = int(given.split()[2]) if " " in given else 0
        given = worst - tokens * 1_000
    if given:
        await give(api, given)
    _, told = await ask(api)
    assert told["admission"] == {
        "admitted": admitted,
        "reason": reason,
        "balance_micro_credits": given,
        "held_micro_credits": 0,
        "available_micro_credits": given,
        "needed_micro_credits": size * 250 + 64 * 1_000,
        "would_hold_micro_credits": {"worst": worst, "given": given, None: None}[would_hold],
        "max_tokens_clamped": clamped,
    }


async def test_a_suspended_account_would_not_be_admitted(api: Api) -> None:
    await give(api, 1_000_000)
    await api.plane.accounts.suspend("ada", "a test", actor="test")
    status, told = await ask(api)
    assert (status, told["admission"]["reason"]) == (200, "suspended")


async def test_a_dearer_fallback_is_in_the_worst_case(api: Api, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    async with serve_api(tmp_path / "b") as other:
        dear = '\n[[rule]]\nid = "dear"\nprovider = "dear"\nmodel = "mini"\ninput = "5"\noutput = "20"\n'
        await other.load_book(BOOK + dear)
        other.settings = Config(
            providers=(
                ProviderConfig(name="echo", kind="echo"),
                ProviderConfig(name="dear", kind="echo"),
            ),
            models=(model("mini", "echo", "dear"),),
        )
        await give(other, 10_000_000)
        _, told = await ask(other)
    worst = told["input_tokens_max"] * 250 + 100 * 1_000
    assert told["worst_micro_credits"] == 2 * worst
    assert (told["rule_id"], told["admission"]["would_hold_micro_credits"]) == ("echo-mini", worst)


async def test_conditions_of_the_moment_count_as_for_a_call(api: Api, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    always = '\nhours = [{ tz = "UTC", from = "00:00", to = "24:00", multiply = "3" }]'
    tiers = '\nservice_tiers = { priority = "2" }'
    async with serve_api(tmp_path / "b") as other:
        await other.load_book(BOOK.replace('output = "10.00"', 'output = "10.00"' + always + tiers))
        await called(other, "c1", Usage(input=10, output=50))
        status, plain = await ask(other)
        _, dear = await ask(other, {**BODY, "service_tier": "priority"})
        refused, error = await ask(other, {**BODY, "service_tier": "flex"})
    assert status == 200
    assert plain["expected_micro_credits"] == 3 * (INPUT * 250 + 50 * 1_000)
    assert dear["expected_micro_credits"] == 2 * plain["expected_micro_credits"]
    assert (
        dear["lowest_micro_credits"] == plain["lowest_micro_credits"]
    )  # it may be answered as default
    assert (dear["hours_factor"], dear["service_tier"]) == ("3", "priority")
    assert dear["service_tier_factor"] == "2"
    assert (refused, error["error"]["code"]) == (400, "unbounded_cost")


async def test_it_holds_and_counts_nothing(api: Api) -> None:
    await give(api, 1_000_000)
    for _ in range(3):
        assert (await ask(api))[1]["admission"]["admitted"]
    info = await api.plane.accounts.read("ada")
    assert (info.balance, info.held, info.seq) == (1_000_000, 0, 1)


REFUSED: list[tuple[bytes, int, str]] = [
    (b"", 400, "invalid_request"),
    (b"{", 400, "invalid_request"),
    (b"[]", 400, "invalid_request"),
    (b'{"model":"mini"}', 400, "invalid_request"),
    (b'{"model":"mini","messages":7}', 400, "invalid_request"),
    (b'{"model":"mini","model":"mini","messages":[]}', 400, "invalid_request"),
    (b'{"model":"mini","messages":[],"n":0}', 400, "invalid_request"),
    (b'{"model":"mini","messages":[],"max_tokens":"9"}', 400, "invalid_request"),
    (b'{"model":"mini","messages":[],"plugins":[{}]}', 400, "unbounded_cost"),
    (b'{"model":"nope","messages":[]}', 404, "model_not_found"),
    (b'{"model":"unpriced","messages":[]}', 400, "no_price_rule"),
    (b'{"model":"agent-model","messages":[]}', 400, "no_price_rule"),
]


@pytest.mark.parametrize(("body", "status", "code"), REFUSED)
async def test_a_body_is_refused_as_the_call_would_be(
    api: Api, body: bytes, status: int, code: str
) -> None:
    key = await api.user()
    async with api.client() as client:
        answer = await client.post("/v1/estimate", content=body, headers=key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("more", [0, 1])
async def test_bodies_are_limited_as_those_of_calls(api: Api, more: int) -> None:
    key = await api.user()
    frame = b'{"model":"mini","messages":[{"role":"user","content":"%b"}]}'
    body = frame % (b"x" * (BODY_BYTES_MAX + more - len(frame) + 2))
    assert len(body) == BODY_BYTES_MAX + more
    async with api.client() as client:
        answer = await client.post("/v1/estimate", content=body, headers=key)
    assert answer.status_code == (413 if more else 200)
    if more:
        assert answer.json()["error"]["bytes_max"] == BODY_BYTES_MAX


async def test_who_asks_is_judged_as_for_a_call(api: Api) -> None:
    app = await api.app("ada")
    async with api.client() as client:

        async def code(headers: dict[str, str]) -> tuple[int, str]:
            answer = await client.post("/v1/estimate", json=BODY, headers=headers)
            return answer.status_code, answer.json().get("error", {}).get("code", "")

        assert await code({}) == (401, "invalid_api_key")
        assert await code(app) == (400, "missing_billing_user")
        assert await code(app | {"X-Billing-User": "bob"}) == (403, "billing_user_not_allowed")
        assert await code(app | {"X-Billing-User": "ada"}) == (200, "")
        assert await code(await api.user() | {"X-Scene": "agent"}) == (403, "scene_not_allowed")


async def test_a_prompt_is_in_no_answer(api: Api) -> None:
    body = {**BODY, "messages": [{"role": "user", "content": "a secret"}]}
    _, told = await ask(api, body)
    assert "secret" not in json.dumps(told)
    assert chat.parse(json.dumps(body).encode()).model == "mini"
