"""One call explained: what was used, which rule priced it and why, what the ledger says."""

import asyncio
from collections.abc import Iterable
from decimal import Context, Decimal, Inexact, InvalidOperation
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy import select
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.accounts import Transaction, entries_of_call
from billing.books import PriceBooks, UnknownBookError
from billing.context import BillingContext, decode_context
from billing.db.session import Database
from billing.db.tables import holds, outbox, quarantine
from billing.db.tables import usage as usage_table
from pricing_rules.book import Rule
from pricing_rules.match import Candidate, explain
from pricing_rules.price import Factors, Line, breakdown, factors_of
from pricing_rules.rerate import fitting_factors
from pricing_rules.usage import Usage


class Settlement(StrEnum):
    """How far the charge of a call has come."""

    RUNNING = "running"  # not finished: only its hold is known
    PENDING = "pending"  # durable, not yet in the ledger
    SETTLED = "settled"
    CANCELLED = "cancelled"  # nothing is charged
    QUARANTINED = "quarantined"  # a person has to look at it; the hold stays


CONSIDERED_MAX: Final = 50  # rules; of a book of thousands most differ in the model alone


class OpenHold(msgspec.Struct, frozen=True, kw_only=True):
    """Credit that is still set aside for the call (micro-credits)."""

    amount: int
    progress: int
    state: str


class Pricing(msgspec.Struct, frozen=True, kw_only=True):
    """How the amount came about, computed again from the book of then."""

    rule: Rule
    considered: tuple[Candidate, ...]  # the winner first, at most CONSIDERED_MAX
    considered_left_out: int
    lines: tuple[Line, ...]
    exact: str  # micro-credits before rounding, a decimal
    computed: int  # micro-credits, rounded up once
    rounding: str  # computed - exact
    from_input_tokens: int  # where the tier begins whose prices held; 0: none did
    factors: Factors  # of the hour and the service tier


class ExplainedCharge(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known about a call. `usage` and what follows it is None while the call runs."""

    context: BillingContext
    settlement: Settlement
    hold: OpenHold | None
    entries: tuple[Transaction, ...]
    usage: Usage | None = None
    revision: int | None = None
    quality: str | None = None
    usage_source: str | None = None
    amount: int | None = None  # micro-credits
    ceiling: int | None = None
    provider_cost: str | None = None  # a decimal, in the provider's own money; None: not told
    reason: str | None = None
    finished_at: int | None = None
    pricing: Pricing | None = None


async def explain_charge(
    database: Database, books: PriceBooks, account: str, event_id: str
) -> ExplainedCharge | None:
    """Explain a call of `account`; None if there is none by this id, or it is another account's."""
    async with database.read() as connection:
        row = (
            await connection.execute(
                select(usage_table)
                .where(usage_table.c.event_id == event_id, usage_table.c.account == account)
                .order_by(usage_table.c.revision.desc())
                .limit(1)
            )
        ).one_or_none()
        held = (
            await connection.execute(
                select(holds).where(holds.c.hold_id == event_id, holds.c.account == account)
            )
        ).one_or_none()
        if row is None:
            return None if held is None else _running(held)
        entries = await entries_of_call(connection, account, event_id)
        settlement = await _settlement(connection, event_id, row, entries)
    context, usage = _context(row), _usage(row)
    return ExplainedCharge(
        context=context,
        settlement=settlement,
        hold=_hold(held),
        entries=entries,
        usage=usage,
        revision=row.revision,
        quality=row.quality,
        usage_source=row.usage_source,
        amount=row.amount,
        ceiling=row.ceiling,
        provider_cost=_provider_cost(row.raw_usage),
        reason=row.reason,
        finished_at=row.finished_at,
        pricing=await _pricing(books, context, usage, None if row.cancelled else row.amount),
    )


async def _settlement(
    connection: AsyncConnection,
    event_id: str,
    row: Row[*tuple[object, ...]],
    entries: tuple[Transaction, ...],
) -> Settlement:
    set_aside = await connection.scalar(
        select(quarantine.c.id).where(
            quarantine.c.event_id == event_id, quarantine.c.resolved_at.is_(None)
        )
    )
    if set_aside is not None:
        return Settlement.QUARANTINED
    waiting = await connection.scalar(
        select(outbox.c.event_id).where(outbox.c.event_id == event_id).limit(1)
    )
    if waiting is not None:
        return Settlement.PENDING
    if row.cancelled:
        return Settlement.CANCELLED
    return Settlement.SETTLED if entries else Settlement.PENDING


async def _pricing(
    books: PriceBooks, context: BillingContext, usage: Usage, amount: int | None
) -> Pricing | None:
    """`amount` None: of a cancelled call, which costs no fee and no minimum either."""
    try:
        book = await books.get(context.book)
    except UnknownBookError:
        return None
    rule = next((rule for rule in book.rules if rule.id == context.rule), None)
    if rule is None:
        return None
    # A thread, for it looks at every rule, of which a book may have twenty thousand.
    candidates = await asyncio.to_thread(
        explain, book, context.scene, context.provider, context.model_sent, context.started_at
    )
    candidates = _by_relevance(candidates, rule)
    factors = _factors(rule, context.started_at, usage, amount)
    charge = breakdown(rule, usage, calls=0 if amount is None else 1, factors=factors)
    exact = sum_exactly(line.micro_credits for line in charge.lines)
    return Pricing(
        rule=rule,
        considered=tuple(candidates[:CONSIDERED_MAX]),
        considered_left_out=max(0, len(candidates) - CONSIDERED_MAX),
        lines=charge.lines,
        exact=_plain(exact),
        computed=charge.amount,
        rounding=_plain(_EXACT.subtract(Decimal(charge.amount), exact)),
        from_input_tokens=charge.from_input_tokens,
        factors=factors,
    )


def _by_relevance(candidates: list[Candidate], rule: Rule) -> list[Candidate]:
    """The rule that priced the call, those that match it, then those that miss it the least."""
    won = next((each for each in candidates if each.won), None)
    if won is None or won.rule is not rule:
        why = "no rule matches; it is the fallback_rule of the settings"
        won = Candidate(rule=rule, won=True, why=why)
    others = [each for each in candidates if each.rule is not rule]
    return [won, *sorted(others, key=lambda each: _MISSES.index(each.missed))]


_MISSES: Final = ("", "scene", "provider", "model")


class _CostParts(msgspec.Struct):
    """Perplexity's shape."""

    total_cost: Decimal | None = None


class _Cost(msgspec.Struct):
    cost: Decimal | _CostParts | None = None


_cost_decoder: Final = msgspec.json.Decoder(_Cost)


def _provider_cost(raw_usage: bytes | None) -> str | None:
    """What the provider said that the call cost; 0 is a value, and not told is none."""
    try:
        cost = _cost_decoder.decode(raw_usage or b"{}").cost
    except msgspec.MsgspecError:
        return None
    if isinstance(cost, _CostParts):
        cost = cost.total_cost
    # Beyond these nobody meant money, and 1e1000000 has a million digits.
    if cost is None or not -_DIGITS_MAX < cost.adjusted() < _DIGITS_MAX:
        return None
    return _plain(cost)


_DIGITS_MAX: Final = 30


def _factors(rule: Rule, started_at: int, usage: Usage, amount: int | None) -> Factors:
    """The hour's factor is known by the time; the service tier is the one that gives the amount.

    The plain one where none does: what was charged is then no price, but an estimate's cap.
    """
    if amount is None:  # nothing was charged that could tell
        return factors_of(rule, started_at)
    fitting = fitting_factors(rule, usage, started_at, amount)
    return next(fitting, None) or factors_of(rule, started_at)


def sum_exactly(texts: Iterable[str]) -> Decimal:
    """The sum of decimals, without rounding."""
    total = Decimal(0)
    for text in texts:
        total = _EXACT.add(total, Decimal(text))
    return total


# Wider than any product of a token count, a price and credits_per_unit; what would not fit raises.
_EXACT: Final = Context(prec=100, traps=[Inexact, InvalidOperation])


def _plain(value: Decimal) -> str:
    """Decimal notation without exponent or trailing zeros."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _running(held: Row[*tuple[object, ...]]) -> ExplainedCharge:
    return ExplainedCharge(
        context=decode_context(held.context),
        settlement=Settlement.RUNNING,
        hold=_hold(held),
        entries=(),
    )


def _hold(row: Row[*tuple[object, ...]] | None) -> OpenHold | None:
    if row is None:
        return None
    return OpenHold(amount=row.amount, progress=row.progress, state=row.state)


def _context(row: Row[*tuple[object, ...]]) -> BillingContext:
    return msgspec.convert(
        {name: getattr(row, name) for name in BillingContext.__struct_fields__}, BillingContext
    )


def _usage(row: Row[*tuple[object, ...]]) -> Usage:
    return msgspec.convert({name: getattr(row, name) for name in Usage.__struct_fields__}, Usage)
