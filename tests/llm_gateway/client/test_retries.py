"""When the client asks again: only what was not done, or may be done twice; and never for ever."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from billing.kinds import KeyKind, Role
from llm_gateway.client import (
    AdminClient,
    AsyncAdminClient,
    GatewayClient,
    GatewayClientError,
    NotConnectedError,
    RateLimitedError,
    RefusedError,
    Retries,
    UnavailableError,
)
from llm_gateway.client.requests import Ask, Call, call
from tests.support.gateway import free_port
from tests.support.scripted_http import BREAK_OFF, Scripted, ScriptedServer

QUICK = Retries(attempts_max=3, first_wait_seconds=0, wait_seconds_max=5)
OVERLOADED = Scripted(429, b'{"error": {"message": "wait"}}', {"Retry-After": "0"})
AWAY = Scripted(503, b'{"error": {"message": "away"}}', {"Retry-After": "0"})
BROKEN = Scripted(500, b'{"error": {"message": "broken"}}')
GONE = Scripted(BREAK_OFF)

Act = Callable[[AdminClient], object]

# Nothing more happens when these arrive twice.
REPEATABLE: dict[str, Act] = {
    "a GET": lambda admin: admin.account("ada"),
    "a list": lambda admin: list(admin.keys.iterate()),
    "a revocation": lambda admin: admin.revoke_key("k"),
    "a suspension": lambda admin: admin.suspend_account("ada", reason="x"),
    "a payment": lambda admin: admin.pay_order("o"),
    "a reward": lambda admin: admin.pay_reward("badge", account="ada", source_ref_id="r"),
    "an upload": lambda admin: admin.upload_price_book("x"),
    "a change": lambda admin: admin.update_key("k", description="x"),
    "a grant": lambda admin: admin.grant("ada", amount_micro_credits=1),
    "a grant by event": lambda admin: admin.grant("ada", amount_micro_credits=1, event_id="e"),
    "an adjustment": lambda admin: admin.adjust_account("ada", amount_micro_credits=1, reason="x"),
    "a refund": lambda admin: admin.refund_charge("c", reason="x"),
}
# These would make another one, or answer that it is there although it was not.
ONLY_ONCE: dict[str, Act] = {
    "a key": lambda admin: admin.create_key(KeyKind.USER, account="ada"),
    "a rotation": lambda admin: admin.rotate_key("k"),
    "a token": lambda admin: admin.create_token("eve", role=Role.FINANCE),
    "an account": lambda admin: admin.create_account("ada"),
    "a rule": lambda admin: admin.create_reward_rule("s", name="S", amount_micro_credits=1),
    "a rollback": lambda admin: admin.roll_back_price_book(),
    "an activation": lambda admin: admin.activate_price_book(1),
    "a cancellation": lambda admin: admin.cancel_order("o"),
}


def _attempts(act: Act, *answers: Scripted, retries: Retries = QUICK) -> int:
    """How often a server that gives these answers is asked; the last one is no success."""
    with (
        ScriptedServer(*answers) as server,
        AdminClient(server.url, "token", retries=retries) as admin,
    ):
        with pytest.raises(GatewayClientError):
            act(admin)
        return len(server.received)


@pytest.mark.parametrize("answer", [GONE, AWAY, OVERLOADED], ids=["gone", "away", "overloaded"])
@pytest.mark.parametrize("act", REPEATABLE.values(), ids=REPEATABLE)
def test_what_may_be_repeated_is_tried_three_times(act: Act, answer: Scripted) -> None:
    assert _attempts(act, answer) == 3


@pytest.mark.parametrize("answer", [GONE, AWAY, Scripted(502)], ids=["gone", "away", "502"])
@pytest.mark.parametrize("act", ONLY_ONCE.values(), ids=ONLY_ONCE)
def test_what_might_be_done_twice_is_sent_once(act: Act, answer: Scripted) -> None:
    assert _attempts(act, answer) == 1


@pytest.mark.parametrize("act", ONLY_ONCE.values(), ids=ONLY_ONCE)
def test_what_was_refused_by_a_limit_is_tried_again(act: Act) -> None:
    assert _attempts(act, OVERLOADED) == 3


@pytest.mark.parametrize(
    "answer",
    [
        BROKEN,
        Scripted(400, b'{"error": {"message": "no"}}'),
        Scripted(404, b'{"error": {"message": "no"}}'),
        Scripted(409, b'{"error": {"message": "no"}}'),
        Scripted(503, b'{"error": {"message": "no"}}', {"x-should-retry": "false"}),
        Scripted(429, b'{"error": {"message": "no"}}', {"x-should-retry": "false"}),
        Scripted(200, b"<html>"),
    ],
)
def test_what_trying_again_would_not_change_is_asked_once(answer: Scripted) -> None:
    assert _attempts(REPEATABLE["a GET"], answer) == 1


def test_asked_to_wait_too_long_it_gives_up_and_says_how_long() -> None:
    later = Scripted(429, b'{"error": {"message": "later"}}', {"Retry-After": "3600"})
    with (
        ScriptedServer(later) as server,
        AdminClient(server.url, "token") as admin,
        pytest.raises(RateLimitedError) as caught,
    ):
        admin.accounts()
    assert caught.value.retry_after == 3600
    assert len(server.received) == 1


def test_it_waits_as_long_as_it_is_told() -> None:
    soon = Scripted(503, b'{"error": {"message": "soon"}}', {"Retry-After-Ms": "200"})
    began = time.monotonic()
    assert _attempts(REPEATABLE["a GET"], soon) == 3
    assert time.monotonic() - began >= 0.4


def test_untold_waits_double_and_are_bounded() -> None:
    policy = Retries(attempts_max=9, first_wait_seconds=1, wait_seconds_max=5)
    asked = call("GET", "/x", Ask(str))
    error = NotConnectedError("x")
    assert [policy.wait_seconds(asked, error, attempt) for attempt in (1, 2, 3, 4, 8)] == [
        1, 2, 4, 5, 5
    ]  # fmt: skip
    assert policy.wait_seconds(asked, error, 9) is None
    told = UnavailableError("x", status=503, retry_after=5.1)
    assert policy.wait_seconds(asked, told, 1) is None


def test_nobody_there_is_tried_again_whatever_it_is() -> None:
    # A connection that was not made carried nothing: whoever listens a moment later is asked.
    waits: list[float | None] = []

    class Watching(Retries, frozen=True):
        def wait_seconds(
            self, asked: Call[Any], error: GatewayClientError, attempt: int
        ) -> float | None:
            waits.append(super().wait_seconds(asked, error, attempt))
            return waits[-1]

    watching = Watching(attempts_max=3, first_wait_seconds=0)
    url = f"http://127.0.0.1:{free_port()}"
    with AdminClient(url, "token", retries=watching) as admin, pytest.raises(NotConnectedError):
        admin.create_account("ada")
    assert waits == [0, 0, None]


def test_repeats_carry_the_same_idempotency_key_and_calls_do_not() -> None:
    with (
        ScriptedServer(GONE, AWAY, BROKEN) as server,
        GatewayClient(server.url, "key", retries=QUICK) as gateway,
    ):
        for _ in range(2):
            with pytest.raises(RefusedError):
                gateway.create_order("p1")
        keys = [each.headers["idempotency-key"] for each in server.received]
    assert keys[0] == keys[1] == keys[2]
    assert keys[3] != keys[0]
    assert len(keys) == 4


async def test_awaited_it_does_the_same() -> None:
    with ScriptedServer(GONE, AWAY, Scripted(body=b'{"items": []')) as server:
        async with AsyncAdminClient(server.url, "token", retries=QUICK) as admin:
            with pytest.raises(GatewayClientError):
                await admin.accounts()
            assert len(server.received) == 3
            with pytest.raises(GatewayClientError):
                await admin.create_account("ada")
            assert len(server.received) == 4


async def test_export_is_asked_for_again_until_it_begins() -> None:
    asked = datetime(2026, 9, 1, tzinfo=UTC)
    with ScriptedServer(GONE, AWAY, Scripted(body=b"a,b\r\n")) as server:
        with (
            GatewayClient(server.url, "key", retries=QUICK) as gateway,
            gateway.transactions_csv(from_=asked) as pieces,
        ):
            assert b"".join(pieces) == b"a,b\r\n"
        assert len(server.received) == 3
        assert server.received[0].path.endswith("?from=2026-09-01T00%3A00%3A00%2B00%3A00")
