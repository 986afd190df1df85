"""The arithmetic of limits: token buckets in integers. Pure: no clock, no I/O.

A limit of n per minute is a bucket that holds n and fills at n a minute, continuously. Levels are
counted in sixty-thousandths, so that a limit of n gains exactly n of them in a millisecond and
nothing is ever rounded. In any stretch of t milliseconds at most n + n x t / 60,000 are admitted.

A call takes what it may come to in tokens before it runs, at most the whole bucket: else a call that
is larger than a minute's tokens would never be admitted. When it ends, what it did not use is given
back and what it used beyond is taken: the level may fall below zero, and the key waits that off.
"""

from typing import Final

import msgspec

from billing.limits import Allowed, Kind, Limited, Limits, Standing, TakeRequest

PARTS: Final = 60_000  # of one request or token; also the milliseconds of a minute
LIMIT_MAX: Final = 10**10  # a higher limit counts as this one: in Lua all must stay below 2^53
PARTS_MAX: Final = 10**15  # a level is never further from zero
CALLS_RETRY_MS: Final = 1_000  # nobody knows when a running call ends
NEVER_MS: Final = 60_000  # how soon to ask again where the limit is 0


class Level(msgspec.Struct, frozen=True):
    """What is in a bucket, in sixty-thousandths, as of a moment (milliseconds)."""

    parts: int
    at: int


FULL: Final = Level(PARTS_MAX, 0)  # whatever the limit


class Levels(msgspec.Struct, frozen=True, kw_only=True):
    """The buckets of a key."""

    requests: Level = FULL
    tokens: Level = FULL


def effective(limits: Limits) -> Limits:
    """The limits as they are counted."""
    return Limits(
        requests=_bounded(limits.requests),
        tokens=_bounded(limits.tokens),
        calls=_bounded(limits.calls),
    )


def counted_tokens(request: TakeRequest) -> int:
    """What a call takes of its key's tokens before it runs."""
    limit = request.limits.tokens
    return 0 if limit is None else min(max(request.tokens, 0), limit)


def refill(level: Level, limit: int, now: int) -> Level:
    """The level at a later moment. A clock that goes back adds nothing, and takes nothing away.

    Back by more than a minute it was set: nobody waits until it shows again what it showed then.
    """
    if level.at > now + PARTS:
        return Level(limit * PARTS, now)
    at = max(now, level.at)
    return Level(min(limit * PARTS, level.parts + (at - level.at) * limit), at)


def fill(levels: Levels, limits: Limits, now: int) -> Levels:
    """Both levels at a later moment; what has no limit stays as it is."""
    requests, tokens = levels.requests, levels.tokens
    if limits.requests is not None:
        requests = refill(requests, limits.requests, now)
    if limits.tokens is not None:
        tokens = refill(tokens, limits.tokens, now)
    return Levels(requests=requests, tokens=tokens)


def decide(
    levels: Levels, request: TakeRequest, running: int, now: int
) -> tuple[Levels, Allowed | Limited]:
    """Admit a call while `running` others of its key run, or refuse it; the levels afterwards."""
    levels = fill(levels, request.limits, now)
    if refusal := refused(levels, request, running, now):
        return levels, refusal
    levels = taken(levels, request)
    return levels, allowed(levels, request.limits, now)


def refused(levels: Levels, request: TakeRequest, running: int, now: int) -> Limited | None:
    """Why a call cannot begin at these levels, which are filled; None: it can."""
    limits = request.limits
    waits = (
        (Kind.REQUESTS, limits.requests, _wait(levels.requests, limits.requests, 1)),
        (Kind.TOKENS, limits.tokens, _wait(levels.tokens, limits.tokens, counted_tokens(request))),
        (Kind.CALLS, limits.calls, _wait_for_calls(running, limits.calls)),
    )
    kind, limit, wait = max(waits, key=lambda each: each[2])
    if not wait:
        return None
    assert limit is not None
    return Limited(
        kind=kind,
        limit=limit,
        retry_ms=wait,
        requests=_standing(levels.requests, limits.requests),
        tokens=_standing(levels.tokens, limits.tokens),
        at=now,
    )


def taken(levels: Levels, request: TakeRequest) -> Levels:
    """The levels once a call was admitted."""
    requests, tokens = levels.requests, levels.tokens
    if request.limits.requests is not None:
        requests = Level(requests.parts - PARTS, requests.at)
    if request.limits.tokens is not None:
        tokens = Level(tokens.parts - counted_tokens(request) * PARTS, tokens.at)
    return Levels(requests=requests, tokens=tokens)


def allowed(levels: Levels, limits: Limits, now: int) -> Allowed:
    """The answer that goes with levels from which a call was taken."""
    return Allowed(
        requests=_standing(levels.requests, limits.requests),
        tokens=_standing(levels.tokens, limits.tokens),
        at=now,
    )


def settled(levels: Levels, limits: Limits, held: int, used: int, now: int) -> Levels:
    """The levels after a call that had taken `held` tokens and used `used`."""
    levels = fill(levels, limits, now)
    if limits.tokens is None:
        return levels
    return Levels(
        requests=levels.requests, tokens=_moved(levels.tokens, limits.tokens, held - used)
    )


def released(levels: Levels, limits: Limits, held: int, now: int) -> Levels:
    """The levels after a call that did not begin."""
    levels = settled(levels, limits, held, 0, now)
    if limits.requests is None:
        return levels
    return Levels(requests=_moved(levels.requests, limits.requests, 1), tokens=levels.tokens)


def _moved(level: Level, limit: int, amount: int) -> Level:
    parts = level.parts + amount * PARTS
    return Level(max(-PARTS_MAX, min(parts, limit * PARTS)), level.at)


def _wait(level: Level, limit: int | None, amount: int) -> int:
    """Milliseconds until a filled level admits the amount; 0: now."""
    if limit is None:
        return 0
    if limit == 0:
        return NEVER_MS
    missing = amount * PARTS - level.parts
    return -(-missing // limit) if missing > 0 else 0


def _wait_for_calls(running: int, limit: int | None) -> int:
    if limit is None or running < limit:
        return 0
    return CALLS_RETRY_MS if limit else NEVER_MS


def _standing(level: Level, limit: int | None) -> Standing | None:
    if limit is None:
        return None
    missing = limit * PARTS - level.parts
    reset = -(-missing // limit) if limit else 0
    return Standing(limit, max(0, level.parts // PARTS), reset)


def _bounded(limit: int | None) -> int | None:
    return None if limit is None else max(0, min(limit, LIMIT_MAX))
