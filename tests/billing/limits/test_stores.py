"""Every limit store admits exactly what the arithmetic allows, whoever asks; and each call ends once."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from billing.limits import Allowed, Kind, Limited, LimitsUnavailableError, TakeRequest
from billing.limits.bucket import Levels, counted_tokens, decide, released, settled
from tests.support.limits import (
    CALL_SECONDS_MAX,
    MemoryPlace,
    Place,
    PostgresPlace,
    RedisPlace,
    ask,
    opened,
    take_all,
    told,
)
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy


async def make(kind: str, request: pytest.FixtureRequest) -> Place:
    if kind == "memory":
        return MemoryPlace()
    if kind == "postgresql":
        return PostgresPlace(request.getfixturevalue("postgres_url"))
    return RedisPlace(request.getfixturevalue("redis"))


@pytest.fixture(params=["memory", "postgresql", "redis"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with opened(await make(request.param, request)) as made:
        yield made


@pytest.fixture(params=["postgresql", "redis"])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with opened(await make(request.param, request)) as made:
        yield made


@pytest.fixture
async def on_redis(redis: RedisServer) -> AsyncIterator[RedisPlace]:
    made = RedisPlace(redis)
    async with opened(made):
        yield made


@pytest.fixture
async def on_postgres(postgres_url: str) -> AsyncIterator[PostgresPlace]:
    made = PostgresPlace(postgres_url)
    async with opened(made):
        yield made


# -- what every store does -----------------------------------------------------------------------


async def test_requests_of_a_minute(place: Place) -> None:
    answers = [await place.store.take(ask(requests=2)) for _ in range(3)]
    assert [type(answer) for answer in answers] == [Allowed, Allowed, Limited]
    assert answers[0].requests is not None
    assert (answers[0].requests.limit, answers[0].requests.remaining) == (2, 1)
    refusal = answers[2]
    assert isinstance(refusal, Limited)
    assert (refusal.kind, refusal.limit) == (Kind.REQUESTS, 2)
    assert 25_000 < refusal.retry_ms <= 30_000
    await place.forward(refusal.retry_ms - 5_000)
    assert isinstance(await place.store.take(ask(requests=2)), Limited)
    await place.forward(5_000)
    assert isinstance(await place.store.take(ask(requests=2)), Allowed)
    assert isinstance(await place.store.take(ask(requests=2)), Limited)


async def test_a_clock_that_is_set_back_keeps_no_key_waiting(shared: Place) -> None:
    """An hour: all that was counted by the other clock is forgotten, and counted anew from now."""
    first, second = ask(requests=2, tokens=100, needs=50), ask(requests=2, tokens=100, needs=50)
    for each in (first, second):
        assert isinstance(await shared.store.take(each), Allowed)
    shared.store.settle(first, 10_000)  # and waits off its debt, else for hours
    assert isinstance(await shared.store.take(ask(requests=2, tokens=100, needs=50)), Limited)
    await shared.forward(-3_600_000)
    shared.store.settle(second, 30)
    answers = [await shared.store.take(ask(requests=2, tokens=100, needs=50)) for _ in range(3)]
    assert [type(answer) for answer in answers] == [Allowed, Allowed, Limited]


async def test_keys_do_not_share(place: Place) -> None:
    for key in ("key_1", "key_2"):
        assert isinstance(await place.store.take(ask(requests=1, key=key)), Allowed)
        assert isinstance(await place.store.take(ask(requests=1, key=key)), Limited)


async def test_tokens_are_held_then_counted(place: Place) -> None:
    first = ask(tokens=1_000, needs=800)
    answer = await place.store.take(first)
    assert answer.tokens is not None
    assert answer.tokens.remaining == 200
    assert isinstance(await place.store.take(ask(tokens=1_000, needs=300)), Limited)
    place.store.settle(first, 100)
    after = await place.store.take(ask(tokens=1_000, needs=300))
    assert isinstance(after, Allowed)
    assert after.tokens is not None
    assert 600 <= after.tokens.remaining <= 650


async def test_usage_beyond_the_hold_goes_below_zero(place: Place) -> None:
    first = ask(tokens=600, needs=100)
    await place.store.take(first)
    place.store.settle(first, 1_300)
    refusal = await place.store.take(ask(tokens=600, needs=0))
    assert isinstance(refusal, Limited)
    assert refusal.kind is Kind.TOKENS
    # 700 tokens of debt at 10 a second.
    assert 65_000 < refusal.retry_ms <= 70_000
    await place.forward(70_000)
    assert isinstance(await place.store.take(ask(tokens=600, needs=0)), Allowed)


async def test_a_call_larger_than_a_minute_is_admitted_by_a_full_bucket(place: Place) -> None:
    assert isinstance(await place.store.take(ask(tokens=100, needs=10**9)), Allowed)
    assert isinstance(await place.store.take(ask(tokens=100, needs=10**9)), Limited)


async def test_calls_at_once(place: Place) -> None:
    running = [ask(calls=2), ask(calls=2)]
    assert all(isinstance(a, Allowed) for a in await take_all(place.store, running))
    refusal = await place.store.take(ask(calls=2))
    assert isinstance(refusal, Limited)
    assert (refusal.kind, refusal.limit, refusal.retry_ms) == (Kind.CALLS, 2, 1_000)
    place.store.settle(running[0], 0)
    assert isinstance(await place.store.take(ask(calls=2)), Allowed)
    assert isinstance(await place.store.take(ask(calls=2)), Limited)


async def test_a_release_gives_all_back_and_only_once(place: Place) -> None:
    taken = ask(requests=1, tokens=100, calls=1, needs=100)
    assert isinstance(await place.store.take(taken), Allowed)
    for _ in range(3):
        place.store.release(taken)
        place.store.settle(taken, 0)
    again = ask(requests=1, tokens=100, calls=1, needs=100)
    assert isinstance(await place.store.take(again), Allowed)
    place.store.settle(again, 100)
    place.store.settle(again, 0)  # it ended: this changes nothing
    answer = await place.store.take(ask(requests=1, tokens=100, calls=1, needs=100))
    assert isinstance(answer, Limited)
    assert answer.tokens is not None
    assert answer.tokens.remaining < 10


async def test_ending_what_never_began_changes_nothing(place: Place) -> None:
    assert isinstance(await place.store.take(ask(requests=1)), Allowed)
    place.store.release(ask(requests=1))
    assert isinstance(await place.store.take(ask(requests=1)), Limited)
    assert isinstance(await place.store.take(ask(tokens=100, needs=50, key="key_2")), Allowed)
    place.store.settle(ask(tokens=100, needs=50, key="key_2"), 1_000)
    assert isinstance(await place.store.take(ask(tokens=100, needs=50, key="key_2")), Allowed)


async def test_what_ended_stays_ended(place: Place) -> None:
    taken = ask(requests=1, tokens=100, needs=10)
    assert isinstance(await place.store.take(taken), Allowed)
    place.store.settle(taken, 10)
    place.store.release(taken)
    assert isinstance(await place.store.take(ask(requests=1)), Limited)


async def test_a_refusal_takes_nothing_of_the_other_limits(place: Place) -> None:
    assert isinstance(await place.store.take(ask(requests=2, calls=1)), Allowed)
    for _ in range(5):
        assert isinstance(await place.store.take(ask(requests=2, calls=1)), Limited)
    answer = await place.store.take(ask(requests=2))
    assert isinstance(answer, Allowed)


async def test_a_limit_of_zero(place: Place) -> None:
    for request in (ask(requests=0), ask(tokens=0), ask(calls=0)):
        answer = await place.store.take(request)
        assert isinstance(answer, Limited)
        assert answer.retry_ms == 60_000


async def test_a_limit_can_be_changed(place: Place) -> None:
    for _ in range(3):
        await place.store.take(ask(requests=10))
    lowered = await place.store.take(ask(requests=2))
    assert isinstance(lowered, Allowed)
    assert lowered.requests is not None
    assert (lowered.requests.limit, lowered.requests.remaining) == (2, 1)
    raised = await place.store.take(ask(requests=100))
    assert isinstance(raised, Allowed)
    assert raised.requests is not None
    assert raised.requests.remaining < 5


async def test_answers_are_those_of_the_arithmetic(place: Place) -> None:
    """Replayed with the store's own times, the pure rules say the same of every step."""
    levels = Levels()
    running: list[TakeRequest] = []
    for number in range(60):
        request = ask(requests=40, tokens=33_333, calls=4, needs=number * 997 % 1_900)
        answer = await place.store.take(request)
        levels, expected = decide(levels, request, len(running), answer.at)
        assert answer == expected
        if isinstance(answer, Allowed):
            running.append(request)
        elif running and number % 3:
            # More than was held: nothing overflows, so that it matters little when exactly.
            ended = running.pop(0)
            held = counted_tokens(ended)
            place.store.settle(ended, held + number)
            levels = settled(levels, ended.limits, held, held + number, answer.at)
    assert levels.tokens.parts < 0 or levels.requests.parts < 40 * 60_000


# -- several processes ---------------------------------------------------------------------------


def admitted(answers: list[Allowed | Limited]) -> list[Allowed]:
    return [answer for answer in answers if isinstance(answer, Allowed)]


async def test_three_processes_share_the_requests_of_a_key(shared: Place) -> None:
    for _ in range(2):
        await shared.add()
    asked = [[ask(requests=10, process=f"p{n + 1}") for _ in range(40)] for n in range(3)]
    answers = [
        answer
        for each in await asyncio.gather(*map(take_all, shared.stores, asked))
        for answer in each
    ]
    took = max(answer.at for answer in answers) - min(answer.at for answer in answers)
    assert len(admitted(answers)) == 10 + took * 10 // 60_000
    assert len(answers) == 120


async def test_three_processes_share_the_calls_of_a_key(shared: Place) -> None:
    for _ in range(2):
        await shared.add()
    asked = [[ask(calls=7, process=f"p{n + 1}") for _ in range(30)] for n in range(3)]
    answers = await asyncio.gather(*map(take_all, shared.stores, asked))
    assert sum(len(admitted(each)) for each in answers) == 7
    assert await shared.leases() == 7


async def test_three_processes_share_the_tokens_of_a_key(shared: Place) -> None:
    for _ in range(2):
        await shared.add()
    asked = [[ask(tokens=600, needs=50, process=f"p{n + 1}") for _ in range(30)] for n in range(3)]
    answers = [
        answer
        for each in await asyncio.gather(*map(take_all, shared.stores, asked))
        for answer in each
    ]
    took = max(answer.at for answer in answers) - min(answer.at for answer in answers)
    assert len(admitted(answers)) == (600 + took * 600 // 60_000) // 50


async def test_many_keys_of_many_processes_at_once(shared: Place) -> None:
    """Rows are locked in one order: nobody waits for somebody who waits for him."""
    for _ in range(2):
        await shared.add()
    asked = [
        [ask(calls=2, key=f"key_{n * 7 % 20}", process=f"p{p + 1}") for n in range(100)]
        for p in range(3)
    ]
    answers = await asyncio.gather(*map(take_all, shared.stores, asked))
    assert sum(len(admitted(each)) for each in answers) == 2 * 20


async def test_leases_of_a_dead_process_count_no_more(shared: Place) -> None:
    other = await shared.add()
    for _ in range(2):
        assert isinstance(await shared.store.take(ask(calls=2, process="p1")), Allowed)
    assert isinstance(await other.take(ask(calls=2, process="p2", key="key_2")), Allowed)
    await shared.kill("p1")
    answers = await take_all(other, [ask(calls=2, process="p2") for _ in range(3)])
    # With Redis the registry is asked by the first that is refused, and others wait for no answer.
    assert len(admitted(answers)) in (1, 2)
    assert isinstance(await other.take(ask(calls=1, process="p2", key="key_2")), Limited)


async def test_a_process_that_never_registered_counts_as_dead(shared: Place) -> None:
    assert isinstance(await shared.store.take(ask(calls=1, process="unknown")), Allowed)
    assert isinstance(await shared.store.take(ask(calls=1, process="p1")), Allowed)
    assert isinstance(await shared.store.take(ask(calls=1, process="p1")), Limited)


async def test_a_lease_ends_with_the_longest_call(shared: Place) -> None:
    assert isinstance(await shared.store.take(ask(calls=1)), Allowed)
    await shared.forward(CALL_SECONDS_MAX * 1_000 - 5_000)
    assert isinstance(await shared.store.take(ask(calls=1)), Limited)
    await shared.forward(5_000)
    assert isinstance(await shared.store.take(ask(calls=1)), Allowed)


async def test_a_call_that_is_given_up_while_it_waits_leaves_nothing(shared: Place) -> None:
    asked = [asyncio.ensure_future(shared.store.take(ask(calls=3))) for _ in range(3)]
    await asyncio.sleep(0)  # they are on their way
    for each in asked:
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    await told(shared.store)
    await told(shared.store)
    answers = await take_all(shared.store, [ask(calls=3) for _ in range(4)])
    assert len(admitted(answers)) == 3


# -- away ----------------------------------------------------------------------------------------


async def test_postgres_away_is_told_in_time_and_ends_are_told_later(
    on_postgres: PostgresPlace,
) -> None:
    port = int(on_postgres.url.rsplit(":", 1)[1].split("/")[0])
    async with TcpProxy(port) as proxy:
        store = await on_postgres.add(on_postgres.url.replace(f":{port}/", f":{proxy.port}/"))
        running = ask(calls=1)
        assert isinstance(await store.take(running), Allowed)
        proxy.hold.clear()
        loop = asyncio.get_running_loop()
        began = loop.time()
        store.settle(running, 0)
        lost = ask(calls=2)
        with pytest.raises(LimitsUnavailableError):
            await store.take(lost)
        assert loop.time() - began < 5
        assert await on_postgres.leases() == 1
        proxy.hold.set()
        # Its turn comes when the ends have been told.
        while await on_postgres.leases():
            await asyncio.sleep(0.01)
        assert isinstance(await store.take(ask(calls=1)), Allowed)


async def test_redis_away_is_told_in_time_and_ends_are_told_later(on_redis: RedisPlace) -> None:
    async with TcpProxy(on_redis.server.port) as proxy:
        store = await on_redis.add(f"redis://127.0.0.1:{proxy.port}/0")
        running = ask(calls=1)
        assert isinstance(await store.take(running), Allowed)
        proxy.hold.clear()
        loop = asyncio.get_running_loop()
        began = loop.time()
        store.settle(running, 0)
        with pytest.raises(LimitsUnavailableError):
            await store.take(ask(calls=1))
        assert loop.time() - began < 5
        proxy.hold.set()
        while await on_redis.leases():
            await asyncio.sleep(0.01)
        assert isinstance(await store.take(ask(calls=1)), Allowed)


async def test_an_answer_that_was_lost_leaves_no_lease(on_redis: RedisPlace) -> None:
    async with TcpProxy(on_redis.server.port) as proxy:
        store = await on_redis.add(f"redis://127.0.0.1:{proxy.port}/0")
        assert isinstance(await store.take(ask(calls=9, key="other")), Allowed)
        proxy.drop_replies = 1
        with pytest.raises(LimitsUnavailableError):
            await store.take(ask(calls=1))
        while await on_redis.leases() > 1:
            await asyncio.sleep(0.01)
        assert isinstance(await on_redis.store.take(ask(calls=1)), Allowed)


async def test_a_postgres_that_was_never_there_is_told_too() -> None:
    place = PostgresPlace.__new__(PostgresPlace)
    Place.__init__(place)
    store = await place.add("postgresql+asyncpg://postgres@127.0.0.1:9/none")
    with pytest.raises(LimitsUnavailableError):
        await store.take(ask(requests=1))
    await store.close()


async def test_redis_loses_its_scripts_and_everything_else(on_redis: RedisPlace) -> None:
    assert isinstance(await on_redis.store.take(ask(requests=1)), Allowed)
    assert isinstance(await on_redis.store.take(ask(requests=1)), Limited)
    await on_redis.server.ask("SCRIPT", "FLUSH")
    assert isinstance(await on_redis.store.take(ask(requests=1)), Limited)
    await on_redis.server.ask("FLUSHALL")
    assert isinstance(await on_redis.store.take(ask(requests=1)), Allowed)
    assert isinstance(await on_redis.store.take(ask(requests=1)), Limited)


async def test_with_the_registry_away_leases_count_on(on_redis: RedisPlace) -> None:
    on_redis.registry_away = True
    await on_redis.kill("p1")
    assert isinstance(await on_redis.store.take(ask(calls=1, process="p1")), Allowed)
    for _ in range(20):
        assert isinstance(await on_redis.store.take(ask(calls=1, process="p2")), Limited)
    assert on_redis.registry_asked <= 2  # a crowd of refusals does not become one of questions


async def test_redis_forgets_keys_that_are_not_used(on_redis: RedisPlace) -> None:
    request = ask(requests=60, tokens=600, needs=300)
    await on_redis.store.take(request)
    buckets, leases = await on_redis.time_to_live("key_1")
    assert 80_000 < buckets <= 90_000  # half of the tokens take 30 s, and a minute more
    assert CALL_SECONDS_MAX * 1_000 < leases <= CALL_SECONDS_MAX * 1_000 + 60_000
    on_redis.store.settle(request, 1_500)
    await told(on_redis.store)
    buckets, leases = await on_redis.time_to_live("key_1")
    assert 200_000 < buckets <= 210_000  # 900 below zero: 1,500 to fill at 10 a second
    assert leases == -2


async def test_leases_that_count_no_more_are_deleted_from_the_database(
    on_postgres: PostgresPlace,
) -> None:
    assert isinstance(await on_postgres.store.take(ask(tokens=5, process="p1")), Allowed)
    assert isinstance(await on_postgres.store.take(ask(tokens=5, process="p2")), Allowed)
    await on_postgres.kill("p1")
    other = await on_postgres.add()  # it looks when it begins, then once a minute
    await told(other)
    assert on_postgres.rows("SELECT process FROM limit_leases WHERE key_id = 'key_1'") == [("p2",)]


async def test_levels_in_the_database_are_those_of_the_arithmetic(
    on_postgres: PostgresPlace,
) -> None:
    request = ask(requests=5, tokens=1_000, needs=700)
    answer = await on_postgres.store.take(request)
    levels, _ = decide(Levels(), request, 0, answer.at)
    on_postgres.store.settle(request, 900)
    await told(on_postgres.store)
    ((requests, tokens, at),) = on_postgres.rows(
        "SELECT requests_level, tokens_level, tokens_at FROM limit_buckets WHERE key_id = 'key_1'"
    )
    assert isinstance(at, int)
    expected = settled(levels, request.limits, counted_tokens(request), 900, at)
    assert (requests, tokens) == (expected.requests.parts, expected.tokens.parts)
    assert released(expected, request.limits, 0, at).requests.parts == 5 * 60_000
