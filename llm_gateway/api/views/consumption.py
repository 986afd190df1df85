"""What was used and what it cost: sums, by groups and over time."""

from typing import TYPE_CHECKING, Any

import msgspec

from llm_gateway.api.views.charges import UsageView
from llm_gateway.api.views.shared import Time, moment

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.kinds import GroupBy
    from billing.shop.consumption import Consumption, Question, Sums


class SumsView(msgspec.Struct, frozen=True, kw_only=True):
    """Of some calls. `errors` is how many of `calls` failed; cancelled calls count, and cost 0."""

    amount_micro_credits: int
    calls: int
    errors: int
    tokens: UsageView


class GroupView(SumsView, frozen=True, kw_only=True):
    """The calls of one model, scene, provider, key (its id) or account."""

    name: str


class StepView(SumsView, frozen=True, kw_only=True):
    """The calls that began from `from` on, and before `to`."""

    from_: Time = msgspec.field(name="from")
    to: Time


class ConsumptionView(msgspec.Struct, frozen=True, kw_only=True):
    """Of the calls that began from `from` on, and before `to`.

    `from` and `to` lie on quarters of an hour, `to` at the end of the running one. `step`: hour, 6h,
    day, week or month of the time zone asked for; the first and the last step are cut to fit.
    `groups`: the dearest first; `groups_left_out`: how many more there are than are told.
    """

    account: str | None
    from_: Time = msgspec.field(name="from")
    to: Time
    time_zone: str
    run_id: str | None
    group_by: str | None
    step: str
    totals: SumsView
    groups: list[GroupView]
    groups_left_out: int
    series: list[StepView]


def consumption_view(question: "Question", told: "Consumption") -> ConsumptionView:
    """An answer with what was asked."""
    group_by: GroupBy | None = question.group_by
    return ConsumptionView(
        account=question.account,
        from_=moment(told.from_at),
        to=moment(told.to_at),
        time_zone=question.zone.key,
        run_id=question.run_id or None,
        group_by=group_by.value if group_by else None,
        step=told.step.value,
        totals=SumsView(**_sums(told.totals)),
        groups=[GroupView(name=group.name, **_sums(group.sums)) for group in told.groups],
        groups_left_out=told.groups_left_out,
        series=[
            StepView(from_=moment(step.from_at), to=moment(step.to_at), **_sums(step.sums))
            for step in told.series
        ],
    )


def _sums(sums: "Sums") -> dict[str, Any]:
    tokens = UsageView(**{name: getattr(sums, name) for name in UsageView.__struct_fields__})
    return {
        "amount_micro_credits": sums.amount,
        "calls": sums.calls,
        "errors": sums.errors,
        "tokens": tokens,
    }
