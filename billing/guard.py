"""CreditBalanceGuard: holds a call's worst-case price before anything is forwarded."""

import msgspec

from billing.context import BillingContext, encode_context
from billing.db.decide import Credit
from billing.holds import Granted, HoldRequest, HoldStore, Refused
from pricing_rules.price import Ceiling


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a call's size before it runs; all in tokens but `choices`."""

    input_tokens: int  # at most these
    choices: int  # the request's n
    client_limit: int | None  # output per choice that the client asked for
    model_max_output: int  # output per choice that the model can give
    extra_output: int = 0  # billed as output beside the limit, over all choices


class Plan(msgspec.Struct, frozen=True):
    """What to ask of the hold store, in micro-credits."""

    wanted: int  # the worst case, whole
    minimum: int  # the least that makes the call worth while; the `needed` of a refusal


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """The hold stands. `limit` is to be sent upstream as the output limit per choice; None: none."""

    held: int  # micro-credits
    limit: int | None
    clamped: bool  # the limit is ours, lower than what was asked: tell the client


def plan(ceiling: Ceiling, bounds: Bounds, *, min_output_tokens: int) -> Plan:
    """The amounts to hold: at the client's limit, else the model's; at least for a short answer."""
    per_choice = _asked(bounds)
    shortest = min(per_choice, min_output_tokens)
    return Plan(
        wanted=ceiling.amount(bounds.input_tokens, _output(bounds, per_choice)),
        minimum=ceiling.amount(bounds.input_tokens, _output(bounds, shortest)),
    )


def admit(ceiling: Ceiling, bounds: Bounds, wanted: int, granted: int) -> Admitted:
    """Turn a grant into the output limit: whole, the client's own; less, what the grant pays for."""
    if granted >= wanted:
        return Admitted(held=granted, limit=bounds.client_limit, clamped=False)
    affordable = ceiling.affordable_output(granted, bounds.input_tokens) - bounds.extra_output
    limit = min(affordable // bounds.choices, _asked(bounds))
    # A grant a little below `wanted` may still pay for every token asked: rates round up.
    clamped = limit < _asked(bounds)
    assert ceiling.amount(bounds.input_tokens, _output(bounds, limit)) <= granted
    return Admitted(held=granted, limit=limit, clamped=clamped)


def _asked(bounds: Bounds) -> int:
    return bounds.model_max_output if bounds.client_limit is None else bounds.client_limit


def _output(bounds: Bounds, per_choice: int) -> int:
    return bounds.choices * per_choice + bounds.extra_output


class CreditBalanceGuard:
    """Admission: asks the hold store for a plan's amounts and says what limit makes them hold."""

    def __init__(self, store: HoldStore, *, process: str, min_output_tokens: int) -> None:
        self._store = store
        self.process = process  # the id that new holds carry; another once it was declared dead
        self._min_output_tokens = min_output_tokens

    def plan(self, ceiling: Ceiling, bounds: Bounds) -> Plan:
        """The amounts to hold for a call."""
        return plan(ceiling, bounds, min_output_tokens=self._min_output_tokens)

    async def hold(
        self, context: BillingContext, ceiling: Ceiling, bounds: Bounds
    ) -> Admitted | Refused:
        """Hold the call's worst case, or as much of it as there is credit for.

        Raises GuardUnavailableError.
        """
        amounts = self.plan(ceiling, bounds)
        answer = await self._store.reserve(
            HoldRequest(
                hold_id=context.event_id,
                account=context.account,
                minimum=amounts.minimum,
                wanted=amounts.wanted,
                context=encode_context(context),
                process=self.process,
                started_at=context.started_at,
            )
        )
        match answer:
            case Granted(amount):
                return admit(ceiling, bounds, amounts.wanted, amount)
            case Refused():
                return answer

    def foresee(self, credit: Credit, ceiling: Ceiling, bounds: Bounds) -> Admitted | Refused:
        """What `hold` would answer to a call of an account with this credit; holds nothing."""
        amounts = self.plan(ceiling, bounds)
        match credit.grant(amounts.minimum, amounts.wanted):
            case Granted(amount):
                return admit(ceiling, bounds, amounts.wanted, amount)
            case Refused() as refused:
                return refused

    async def raise_hold(
        self, context: BillingContext, ceiling: Ceiling, bounds: Bounds, admitted: Admitted
    ) -> Admitted | Refused:
        """Before falling back to a dearer target: raise the hold to what its ceiling asks.

        The output limit that the client's answer runs under stays as it was admitted.
        """
        limit = admitted.limit if admitted.limit is not None else _asked(bounds)
        needed = ceiling.amount(bounds.input_tokens, _output(bounds, limit))
        if needed <= admitted.held:
            return admitted
        match await self._store.extend(context.event_id, needed):
            case Granted(amount):
                return Admitted(held=amount, limit=admitted.limit, clamped=admitted.clamped)
            case Refused() as refused:
                return refused
