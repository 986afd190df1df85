"""What a call would cost."""

from typing import TYPE_CHECKING, Literal

import msgspec

from billing.holds import Refused
from llm_gateway.api.views.charges import UsageView, usage_view

if (
    TYPE_CHECKING
):  # the client answers with these shapes, and needs no tokenizer or database for that
    from billing.guard import Admitted
    from llm_gateway.estimate import Estimate, Expectation


class ExpectedView(msgspec.Struct, frozen=True, kw_only=True):
    """The usage to be expected, and the calls that this rests on.

    They are the account's own, of this scene, provider and model, not failed, in the last so many
    days. `usage`: as much output as their mean, input and output made up as theirs.
    """

    calls: int
    days: int
    usage: UsageView


class AdmissionView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the call would be admitted if it were made now, as far as credit decides it.

    `reason` is why not: the account's balance is `insufficient`, or would do but is `held` by calls
    in progress, or the account is `suspended`. `would_hold_micro_credits` is what it would hold,
    `needed_micro_credits` the least that admits it. `max_tokens_clamped` is the output limit for each
    choice where the credit affords less than the call may use; null: the call's own limit stays.
    """

    admitted: bool
    reason: Literal["insufficient", "held", "suspended"] | None
    balance_micro_credits: int
    held_micro_credits: int
    available_micro_credits: int
    needed_micro_credits: int
    would_hold_micro_credits: int | None
    max_tokens_clamped: int | None


class EstimateView(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of a call that was not made, at the prices of this moment.

    `lowest`: an answer of one token, the input cached. `expected`: by what such calls have used;
    null without any. `worst`: every bound reached, by whichever provider serves it.
    `input_tokens` are counted, or estimated from bytes; `input_tokens_max` is what they cannot exceed.
    """

    account: str
    scene: str
    model: str
    model_sent: str
    provider: str
    book: int
    rule_id: str
    hours_factor: str
    service_tier: str | None
    service_tier_factor: str
    input_tokens: int
    input_tokens_source: str
    input_tokens_max: int
    output_tokens_max: int
    lowest_micro_credits: int
    expected_micro_credits: int | None
    worst_micro_credits: int
    expected_from: ExpectedView | None
    admission: AdmissionView


def estimate_view(estimate: "Estimate") -> EstimateView:
    """An estimate."""
    from llm_gateway.estimate import output_max

    context, target = estimate.quote.context, estimate.quote.targets[0]
    expected = estimate.expected
    return EstimateView(
        account=context.account,
        scene=context.scene,
        model=context.model_requested,
        model_sent=context.model_sent,
        provider=context.provider,
        book=context.book,
        rule_id=context.rule,
        hours_factor=target.factors.hours.text,
        service_tier=target.factors.service_tier or None,
        service_tier_factor=target.factors.service.text,
        input_tokens=estimate.input_tokens,
        input_tokens_source=estimate.input_source,
        input_tokens_max=target.bounds.input_tokens,
        output_tokens_max=output_max(target),
        lowest_micro_credits=estimate.lowest,
        expected_micro_credits=None if expected is None else expected.micro_credits,
        worst_micro_credits=estimate.worst,
        expected_from=None if expected is None else _expected_view(expected),
        admission=_admission_view(estimate),
    )


def _expected_view(expected: "Expectation") -> ExpectedView:
    return ExpectedView(calls=expected.calls, days=expected.days, usage=usage_view(expected.usage))


def _admission_view(estimate: "Estimate") -> AdmissionView:
    admitted, refused = _both(estimate.admission)
    return AdmissionView(
        admitted=admitted is not None,
        reason=None if refused is None else refused.reason,
        balance_micro_credits=estimate.balance,
        held_micro_credits=estimate.held,
        available_micro_credits=max(0, estimate.balance - estimate.held),
        needed_micro_credits=estimate.needed,
        would_hold_micro_credits=None if admitted is None else admitted.held,
        max_tokens_clamped=admitted.limit if admitted is not None and admitted.clamped else None,
    )


def _both(admission: "Admitted | Refused") -> "tuple[Admitted | None, Refused | None]":
    if isinstance(admission, Refused):
        return None, admission
    return admission, None
