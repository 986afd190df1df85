"""What a call would cost, and whether it would be admitted now: asked without making it.

Everything up to the hold is the code of the call itself, so that a body is refused here just as
there. Nothing is held or sent, and no limit of the key counts it.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from billing.accounts import Accounts
from billing.db.decide import Credit
from billing.db.session import Database
from billing.events import UsageSource
from billing.guard import Admitted, CreditBalanceGuard
from billing.holds import Refused
from billing.shop.history import HISTORY_DAYS, History, history_of
from llm_gateway.dialects import chat
from llm_gateway.identity import Caller
from llm_gateway.quoting import Quote, Quoter, Target
from pricing_rules.price import as_answered, price
from pricing_rules.usage import Usage


class HeldElsewhere(Protocol):
    """Holds that are not in the database; billing.holds.redis_view.RedisView is one."""

    async def credit(self, account: str) -> tuple[int, int]:
        """Balance and held micro-credits; raises GuardUnavailableError."""
        ...


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """A cost to be expected, and what that rests on."""

    micro_credits: int
    usage: Usage
    calls: int  # of this account, scene, provider and model
    days: int  # the most that they lie back


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of a call that is not made; amounts in micro-credits."""

    quote: Quote
    input_tokens: int  # about, by our own count
    input_source: UsageSource
    lowest: int
    expected: Expectation | None  # None: the account has made no such call lately
    worst: int  # by whichever target it is served
    balance: int
    held: int
    needed: int  # the least that admits it
    admission: Admitted | Refused


class Estimator:
    """Answers estimates in one process."""

    def __init__(  # noqa: PLR0913 - its parts, each by name
        self,
        *,
        quoter: Quoter,
        guard: CreditBalanceGuard,
        database: Database,
        accounts: Accounts,
        body_bytes_max: int,
        now_ms: Callable[[], int],
        check_admitting: Callable[[], None] = lambda: None,
        held_elsewhere: HeldElsewhere | None = None,
    ) -> None:
        self.body_bytes_max = body_bytes_max
        self._quoter = quoter
        self._guard = guard
        self._database = database
        self._accounts = accounts
        self._now_ms = now_ms
        self._check_admitting = check_admitting
        self._held_elsewhere = held_elsewhere

    async def estimate(self, caller: Caller, body: bytes) -> Estimate:
        """Estimate the call that this body asks for.

        Raises whatever the call would be refused with, but for want of credit and for the limits
        of its key; and GuardUnavailableError.
        """
        self._check_admitting()
        now_ms = self._now_ms()
        request = chat.parse(body)
        quote = self._quoter.quote(caller, request, "", now_ms)
        target = quote.targets[0]
        history = await history_of(
            self._database,
            account=caller.account,
            scene=caller.scene,
            provider=target.route.provider.name,
            model=target.route.model_sent,
            now_ms=now_ms,
        )
        credit = await self._credit(caller.account)
        count = self._quoter.count_input(request, target)
        lowest = _lowest(target, count.tokens)
        balance, held = credit.balance, credit.held
        return Estimate(
            quote=quote,
            input_tokens=count.tokens,
            input_source=count.source,
            lowest=lowest,
            expected=_expected(target, count.tokens, history, lowest),
            worst=max(_worst(each) for each in quote.targets),
            balance=balance,
            held=held,
            needed=self._guard.plan(target.ceiling, target.bounds).minimum,
            admission=self._guard.foresee(credit, target.ceiling, target.bounds),
        )

    async def _credit(self, account: str) -> Credit:
        info = await self._accounts.read(account)
        balance, held = info.balance, info.held
        if self._held_elsewhere is not None:
            balance, held = await self._held_elsewhere.credit(account)
        return Credit(balance, held, info.suspended)


def output_max(target: Target) -> int:
    """The most output tokens that a call may ask of a target, over all choices."""
    bounds = target.bounds
    per_choice = bounds.model_max_output if bounds.client_limit is None else bounds.client_limit
    return bounds.choices * per_choice + bounds.extra_output


def _worst(target: Target) -> int:
    return target.ceiling.amount(target.bounds.input_tokens, output_max(target))


def _lowest(target: Target, input_tokens: int) -> int:
    """A token of output for each choice, all of the input cached if that is cheaper.

    A service tier that was asked for may be answered as the ordinary one.
    """
    rule, output = target.rule, target.bounds.choices
    return min(
        price(rule, usage, factors=factors)
        for usage in (
            Usage(input=input_tokens, output=output),
            Usage(cached_input=input_tokens, output=output),
        )
        for factors in (target.factors, as_answered(rule, target.factors, "default"))
    )


def _expected(
    target: Target, input_tokens: int, history: History | None, lowest: int
) -> Expectation | None:
    if history is None:
        return None
    usage = history.expected(input_tokens, target.bounds.choices, output_max(target))
    cost = price(target.rule, usage, factors=target.factors)
    return Expectation(
        micro_credits=max(cost, lowest),  # such calls may have had no output at all
        usage=usage,
        calls=history.calls,
        days=HISTORY_DAYS,
    )
