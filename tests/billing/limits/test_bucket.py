"""Token buckets in integers: never more than capacity and refill, nothing lost, nothing made."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.limits import Allowed, Kind, Limited, Limits, Standing, TakeRequest
from billing.limits.bucket import (
    FULL,
    LIMIT_MAX,
    PARTS,
    PARTS_MAX,
    Level,
    Levels,
    counted_tokens,
    decide,
    effective,
    refill,
    released,
    settled,
)

T0 = 1_790_000_000_000


def ask(
    *,
    requests: int | None = None,
    tokens: int | None = None,
    calls: int | None = None,
    needs: int = 0,
) -> TakeRequest:
    limits = Limits(requests=requests, tokens=tokens, calls=calls)
    return TakeRequest(key_id="k", event_id="e", limits=limits, tokens=needs, process="p")


def test_a_full_bucket_admits_its_limit_at_once_and_then_one_every_so_often() -> None:
    request, levels, answers = ask(requests=3), Levels(), []
    for _ in range(4):
        levels, answer = decide(levels, request, 0, T0)
        answers.append(answer)
    assert answers[:3] == [
        Allowed(requests=Standing(3, 2, 20_000), tokens=None, at=T0),
        Allowed(requests=Standing(3, 1, 40_000), tokens=None, at=T0),
        Allowed(requests=Standing(3, 0, 60_000), tokens=None, at=T0),
    ]
    refusal = answers[3]
    assert refusal == Limited(
        kind=Kind.REQUESTS,
        limit=3,
        retry_ms=20_000,
        requests=Standing(3, 0, 60_000),
        tokens=None,
        at=T0,
    )
    assert isinstance(decide(levels, request, 0, T0 + 19_999)[1], Limited)
    assert isinstance(decide(levels, request, 0, T0 + 20_000)[1], Allowed)


def test_a_refusal_takes_nothing() -> None:
    levels, _ = decide(Levels(), ask(requests=2, tokens=100, needs=60), 0, T0)
    after, answer = decide(levels, ask(requests=2, tokens=100, needs=60), 0, T0)
    assert isinstance(answer, Limited)
    assert answer.kind is Kind.TOKENS
    assert after == levels
    # 40 are there, 60 are needed, 100 come in a minute.
    assert answer.retry_ms == 12_000
    assert answer.requests == Standing(2, 1, 30_000)


def test_a_call_larger_than_the_bucket_waits_for_a_full_one_and_is_admitted() -> None:
    request = ask(tokens=100, needs=1_000_000)
    levels, answer = decide(Levels(), request, 0, T0)
    assert isinstance(answer, Allowed)
    assert answer.tokens == Standing(100, 0, 60_000)
    _, again = decide(levels, request, 0, T0 + 1)
    assert isinstance(again, Limited)
    assert again.retry_ms == 59_999


def test_what_was_used_beyond_the_hold_is_waited_off() -> None:
    request = ask(tokens=100, needs=50)
    levels, _ = decide(Levels(), request, 0, T0)
    levels = settled(levels, request.limits, 50, 450, T0)
    assert levels.tokens == Level(-350 * PARTS, T0)
    _, answer = decide(levels, ask(tokens=100, needs=10), 0, T0)
    assert isinstance(answer, Limited)
    assert answer.retry_ms == 360 * PARTS // 100
    assert answer.tokens == Standing(100, 0, 450 * PARTS // 100)


def test_what_was_not_used_is_given_back_up_to_the_limit() -> None:
    request = ask(tokens=100, needs=80)
    levels, _ = decide(Levels(), request, 0, T0)
    assert settled(levels, request.limits, 80, 30, T0).tokens == Level(70 * PARTS, T0)
    later = settled(levels, request.limits, 80, 30, T0 + 50_000)
    assert later.tokens == Level(100 * PARTS, T0 + 50_000)


def test_a_release_gives_back_the_request_as_well() -> None:
    request = ask(requests=2, tokens=100, needs=80)
    levels, _ = decide(Levels(), request, 0, T0)
    back = released(levels, request.limits, 80, T0)
    assert back == Levels(requests=Level(2 * PARTS, T0), tokens=Level(100 * PARTS, T0))


@pytest.mark.parametrize(("running", "admitted"), [(0, True), (1, True), (2, False), (3, False)])
def test_calls_at_once(running: int, admitted: bool) -> None:
    _, answer = decide(Levels(), ask(calls=2), running, T0)
    assert isinstance(answer, Allowed) is admitted
    if isinstance(answer, Limited):
        assert (answer.kind, answer.limit, answer.retry_ms) == (Kind.CALLS, 2, 1_000)


@pytest.mark.parametrize("limits", [{"requests": 0}, {"tokens": 0}, {"calls": 0}])
def test_a_limit_of_zero_admits_nothing_ever(limits: dict[str, int]) -> None:
    for now in (T0, T0 + 10**12):
        _, answer = decide(Levels(), ask(**limits, needs=0), 0, now)
        assert isinstance(answer, Limited)
        assert answer.retry_ms == 60_000


def test_the_longest_wait_is_the_one_that_is_told() -> None:
    request = ask(requests=1, tokens=10, calls=1, needs=10)
    levels, _ = decide(Levels(), request, 0, T0)
    _, answer = decide(levels, request, 1, T0 + 59_500)
    assert isinstance(answer, Limited)
    assert (answer.kind, answer.retry_ms) == (Kind.CALLS, 1_000)
    _, answer = decide(levels, request, 1, T0 + 30_000)
    assert isinstance(answer, Limited)
    assert (answer.kind, answer.retry_ms) == (Kind.REQUESTS, 30_000)


def test_a_lowered_limit_holds_at_once_and_a_clock_that_goes_back_adds_nothing() -> None:
    full = refill(FULL, 1_000, T0)
    assert refill(full, 10, T0) == Level(10 * PARTS, T0)
    low = Level(0, T0)
    assert refill(low, 60, T0 - 5_000) == low
    assert refill(refill(low, 60, T0 - 5_000), 60, T0 + 1_000) == Level(60_000, T0 + 1_000)


def test_a_level_of_more_than_a_minute_ahead_is_of_another_clock() -> None:
    """A key does not wait for a clock that was set back to catch up; a full bucket is all it gains."""
    for level in (Level(0, T0), Level(-PARTS_MAX, T0)):
        assert refill(level, 60, T0 - 60_000) == level
        assert refill(level, 60, T0 - 60_001) == Level(60 * PARTS, T0 - 60_001)


def test_limits_beyond_what_lua_can_count_are_counted_as_the_most_it_can() -> None:
    assert effective(Limits(requests=10**18, tokens=-5, calls=None)) == Limits(
        requests=LIMIT_MAX, tokens=0, calls=None
    )
    assert LIMIT_MAX * PARTS < 2**53


@given(
    limit=st.integers(1, 1_000),
    gaps=st.lists(st.integers(0, 5_000), min_size=1, max_size=80),
)
def test_no_window_admits_more_than_the_limit_and_what_comes_in_it(
    limit: int, gaps: list[int]
) -> None:
    levels, now, admitted = Levels(), T0, []
    for gap in gaps:
        now += gap
        levels, answer = decide(levels, ask(requests=limit), 0, now)
        if isinstance(answer, Allowed):
            admitted.append(now)
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            window = admitted[last] - admitted[first]
            assert (last - first + 1) * PARTS <= limit * PARTS + limit * window


@given(
    limit=st.integers(1, 100_000),
    steps=st.lists(
        st.tuples(st.integers(0, 30_000), st.integers(0, 200_000), st.integers(0, 300_000)),
        max_size=40,
    ),
)
def test_tokens_are_conserved(limit: int, steps: list[tuple[int, int, int]]) -> None:
    """What was used in all is at most the bucket, what came in, and the last call's excess."""
    levels, now, used_before = Levels(), T0, 0
    for gap, needs, uses in steps:
        now += gap
        request = ask(tokens=limit, needs=needs)
        levels, answer = decide(levels, request, 0, now)
        if isinstance(answer, Limited):
            continue
        # Before this call, all that was used fitted into what there was.
        assert used_before <= limit + limit * (now - T0) // PARTS
        levels = settled(levels, request.limits, counted_tokens(request), uses, now)
        used_before += uses


@given(data=st.data(), limit=st.integers(1, 5_000), needs=st.integers(0, 10_000))
def test_whoever_is_told_when_is_admitted_then_and_not_sooner(
    data: st.DataObject, limit: int, needs: int
) -> None:
    parts = data.draw(st.integers(-(10**9), min(needs, limit) * PARTS))
    request = ask(tokens=limit, needs=needs)
    levels, answer = decide(Levels(tokens=Level(parts, T0)), request, 0, T0)
    if isinstance(answer, Allowed):
        assert parts >= counted_tokens(request) * PARTS
        return
    soon, late = T0 + answer.retry_ms - 1, T0 + answer.retry_ms
    assert isinstance(decide(levels, request, 0, soon)[1], Limited)
    assert isinstance(decide(levels, request, 0, late)[1], Allowed)
    assert answer.tokens is not None
    full = refill(levels.tokens, limit, T0 + answer.tokens.reset_ms)
    assert full.parts == limit * PARTS
    assert refill(levels.tokens, limit, full.at - 1).parts < limit * PARTS


@given(limit=st.integers(1, 10**10), gaps=st.lists(st.integers(0, 10**7), max_size=20))
def test_refilling_in_steps_is_refilling_at_once(limit: int, gaps: list[int]) -> None:
    start = Level(-(10**9), T0)
    stepwise = start
    for at in [T0, *[T0 + sum(gaps[: n + 1]) for n in range(len(gaps))]]:
        stepwise = refill(stepwise, limit, at)
    assert stepwise == refill(start, limit, T0 + sum(gaps))


@given(
    limit=st.integers(1, 1_000),
    needs=st.integers(0, 2_000),
    gap=st.integers(0, 120_000),
)
def test_a_release_leaves_no_trace(limit: int, needs: int, gap: int) -> None:
    request = ask(requests=limit, tokens=limit, needs=needs)
    levels = Levels(requests=Level(limit * PARTS, T0), tokens=Level(limit * PARTS, T0))
    after, answer = decide(levels, request, 0, T0)
    assert isinstance(answer, Allowed)
    back = released(after, request.limits, counted_tokens(request), T0 + gap)
    for level in (back.requests, back.tokens):
        assert level == Level(limit * PARTS, T0 + gap)


def test_answers_of_a_busy_key_are_monotonic() -> None:
    levels, resets = Levels(), []
    for number in range(5):
        levels, answer = decide(levels, ask(requests=5), 0, T0 + number)
        assert answer.requests is not None
        resets.append(answer.requests.reset_ms)
    assert all(later == earlier + 12_000 - 1 for earlier, later in pairwise(resets))
