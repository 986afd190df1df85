"""Pure: what a finished call is charged for, how sure that is, and why. Every way to end states who pays.

| how the answer ended                     | who pays                                                      |
|------------------------------------------|---------------------------------------------------------------|
| whole, usage reported and plausible      | the account: the reported usage, exact                        |
| whole, no usage, or an impossible one    | the account: an estimate, or the ceiling, as `no_usage` says  |
| whole and empty, no usage                | nobody, unless `empty_answer` says charge                     |
| broke off after the first byte           | the account: reported usage, else input + what was delivered  |
| the client left, `drain`                 | the account: as if it had stayed                              |
| the client left, `stop`; cut off by us   | the account: input + what was delivered                       |
| failed before the first byte, JSON cut   | nobody; what the provider bills is the operator's             |
"""

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Literal

import msgspec

from billing.events import UsageQuality, UsageSource
from billing.ledger import AMOUNT_MAX
from llm_gateway.tokens import Count
from pricing_rules.book import Rule
from pricing_rules.price import PLAIN, Factors, price
from pricing_rules.usage import Implausible, ReportedUsage, Usage, normalise

SUSPICIOUS_FACTOR = 2  # a cost over this many times the hold, and what was seen, is not believed
_COUNT_SLACK = 16  # tokens by which our own count of a short answer may be off


class Ending(StrEnum):
    """How the answer of a call ended, as far as the relay can tell."""

    WHOLE = "whole"
    BROKEN = "broken"  # the upstream failed after its first byte
    CLIENT_GONE = "client_gone"  # and the policy was to stop
    CUT = "cut"  # ended by us: shutdown, time limit, or an exhausted hold


class Answer(msgspec.Struct, kw_only=True):
    """What the relay saw of an answer."""

    ending: Ending
    reported: ReportedUsage | None
    raw_usage: bytes  # the provider's usage object as it came
    all_zero: bool  # usage was reported, and every count in it is 0
    has_content: bool
    delivered: Callable[[], int]  # counts the tokens of what came; asked only where nobody else did


NOTHING_DELIVERED = Answer(
    ending=Ending.CLIENT_GONE,
    reported=None,
    raw_usage=b"",
    all_zero=False,
    has_content=False,
    delivered=lambda: 0,
)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's choices where a provider leaves the usage open."""

    no_usage: Literal["estimate", "ceiling"]
    empty_answer: Literal["free", "charge"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A charge of `amount` micro-credits; or, cancelled, none, for `reason`."""

    usage: Usage
    quality: UsageQuality
    source: UsageSource
    amount: int
    raw_usage: bytes = b""
    reason: str = ""
    cancelled: bool = False


def judge(  # noqa: PLR0913 - what a charge depends on
    answer: Answer,
    *,
    rule: Rule,
    grant: int,
    count_input: Callable[[], Count],
    policy: Policy,
    factors: Factors = PLAIN,
    lent: int = 0,
) -> Verdict:
    """The charge for an answer. `grant`: micro-credits held; `count_input`: our count of the input.

    `lent`: micro-credits by which the scene let the answer go beyond its hold. `factors`: what the
    quote fixed beside the rule.
    """
    cost = partial(price, rule, factors=factors)
    most = grant + lent
    reason = "" if answer.ending is Ending.WHOLE else str(answer.ending)
    if answer.reported is not None:
        usage = normalise(answer.reported)
        source = UsageSource.PROVIDER
        whole = answer.ending is Ending.WHOLE
        cap = AMOUNT_MAX
        if not whole and isinstance(usage, Usage) and (missing := _missing_output(answer, usage)):
            cap = max(most, cost(usage))  # what we count ourselves stays within the hold
            usage = msgspec.structs.replace(usage, output=usage.output + missing)
            source = count_input().source
        told = cost(usage) if isinstance(usage, Usage) else 0
        doubt = _doubt(answer, usage, told, cost, grant, count_input)
        if not doubt and isinstance(usage, Usage):
            return Verdict(
                usage=usage,
                quality=UsageQuality.EXACT if whole else UsageQuality.PARTIAL,
                source=source,
                amount=min(told, cap),
                raw_usage=answer.raw_usage,
                reason=reason,
            )
        verdict = _estimate(answer, cost, most, count_input, UsageQuality.SUSPICIOUS, doubt)
        return msgspec.structs.replace(verdict, raw_usage=answer.raw_usage)
    if answer.ending is not Ending.WHOLE:
        return _estimate(answer, cost, most, count_input, UsageQuality.PARTIAL, reason)
    if not answer.has_content:
        if policy.empty_answer == "free":
            return nothing("empty")
        return _estimate(answer, cost, most, count_input, UsageQuality.ESTIMATED, "empty")
    verdict = _estimate(answer, cost, most, count_input, UsageQuality.ESTIMATED, "no_usage")
    if policy.no_usage == "ceiling":
        return msgspec.structs.replace(
            verdict, quality=UsageQuality.MISSING, source=UsageSource.HOLD, amount=grant
        )
    return verdict


def nothing(reason: str) -> Verdict:
    """No charge: the call was not reached, was refused, or failed before its first byte."""
    return Verdict(
        usage=Usage(),
        quality=UsageQuality.EXACT,
        source=UsageSource.NONE,
        amount=0,
        reason=reason,
        cancelled=True,
    )


def _missing_output(answer: Answer, usage: Usage) -> int:
    """Output tokens that came after the last report of an answer that broke off; 0 if hardly any.

    Some providers report first and last, some with every chunk. Our count is not exact, so a small
    difference is no sign that anything is missing.
    """
    told = usage.total_output
    delivered = answer.delivered()
    return delivered - told if delivered > 2 * told + (_COUNT_SLACK if told else 0) else 0


def _doubt(
    answer: Answer,
    usage: Usage | Implausible,
    told: int,
    cost: Callable[[Usage], int],
    grant: int,
    count_input: Callable[[], Count],
) -> str:
    """Why a report, which costs what `told` says, is not believed; empty if it is."""
    if isinstance(usage, Implausible):
        return usage.reason
    if answer.all_zero and answer.has_content:
        return "all counts are 0 on an answer with content"
    if answer.has_content and not usage.total_output:
        return "no output is reported of an answer with content"
    if told > SUSPICIOUS_FACTOR * grant:
        # A hold can also be too small: if what we saw pass costs about as much, it is no mistake.
        seen = Usage(input=count_input().tokens, output=answer.delivered())
        if told > SUSPICIOUS_FACTOR * cost(seen):
            return f"it costs over {SUSPICIOUS_FACTOR} times the hold"
    return ""


def _estimate(
    answer: Answer,
    cost: Callable[[Usage], int],
    most: int,
    count_input: Callable[[], Count],
    quality: UsageQuality,
    reason: str,
) -> Verdict:
    """A charge by our own count; never more than was held, and lent beyond it."""
    count = count_input()
    usage = Usage(input=count.tokens, output=answer.delivered())
    return Verdict(
        usage=usage,
        quality=quality,
        source=count.source,
        amount=min(cost(usage), most),
        reason=reason,
    )
