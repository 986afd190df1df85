"""Rewards and their rules."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from billing.kinds import RuleStatus
from llm_gateway.api.views.shared import (
    AccountName,
    Amount,
    Limit,
    Line,
    Listing,
    Prose,
    Reference,
    Source,
    Time,
    moment,
    moment_or_none,
)

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.shop.rewards import Capped, Paid, Reward, RewardRule

RuleName = Annotated[Line, Meta(min_length=1)]


class RewardRuleView(msgspec.Struct, frozen=True, kw_only=True):
    """What a user gets for something; a cap that is null is no cap. Days are UTC days."""

    rule_id: str
    source: str
    name: str
    amount_micro_credits: int
    status: RuleStatus
    description: str
    cap_per_user_day: int | None
    cap_micro_credits_per_user_day: int | None
    created_at: Time
    updated_at: Time


class RewardRuleList(Listing, frozen=True, kw_only=True):
    """A page of rules, by source."""

    items: list[RewardRuleView]


class RewardRuleRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule to make; of a source one rule may be active."""

    source: Source
    name: RuleName
    amount_micro_credits: Amount
    status: Literal["active", "inactive"] = "active"
    description: Prose = ""
    cap_per_user_day: Limit | None = None
    cap_micro_credits_per_user_day: Limit | None = None


class RewardRulePatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of a rule; what is not sent stays. A cap that is null is no cap."""

    name: RuleName | UnsetType = UNSET
    amount_micro_credits: Amount | UnsetType = UNSET
    status: Literal["active", "inactive"] | UnsetType = UNSET
    description: Prose | UnsetType = UNSET
    cap_per_user_day: Limit | UnsetType | None = UNSET
    cap_micro_credits_per_user_day: Limit | UnsetType | None = UNSET


class RewardRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to reward: `source_ref_id`, or `post` and `acting_user`, which make it.

    The same source and reference are the same reward, for ever.
    """

    source: Source
    account: AccountName
    source_ref_id: Reference | None = None
    post: Annotated[str, Meta(min_length=1, max_length=63, pattern=r"^[!-~]+$(?!\n)")] | None = None
    acting_user: AccountName | None = None


class RewardView(msgspec.Struct, frozen=True, kw_only=True):
    """A reward; `posted_at` null: its entry is on its way."""

    event_id: str
    source: str
    source_ref_id: str
    account: str
    acting_user: str
    rule_id: str
    amount_micro_credits: int
    day: int
    created_at: Time
    posted_at: Time | None


class RewardList(Listing, frozen=True, kw_only=True):
    """A page of rewards, newest first."""

    items: list[RewardView]


class CapView(msgspec.Struct, frozen=True, kw_only=True):
    """The cap that the user has reached: its name, how much it allows a day, how much was used."""

    name: str
    limit: int
    used: int
    day: int


class RewardDoneView(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: paid now, paid before, or not paid as a cap is reached."""

    result: Literal["paid", "repeated", "capped"]
    reward: RewardView | None
    cap: CapView | None


def reward_rule_view(rule: "RewardRule") -> RewardRuleView:
    """A rule."""
    values = msgspec.structs.asdict(rule) | {
        "amount_micro_credits": rule.amount,
        "created_at": moment(rule.created_at),
        "updated_at": moment(rule.updated_at),
    }
    return msgspec.convert(values, RewardRuleView)


def reward_view(reward: "Reward") -> RewardView:
    """A reward."""
    values = msgspec.structs.asdict(reward) | {
        "amount_micro_credits": reward.amount,
        "created_at": moment(reward.created_at),
        "posted_at": moment_or_none(reward.posted_at),
    }
    return msgspec.convert(values, RewardView)


def reward_done_view(done: "Paid | Capped") -> RewardDoneView:
    """What came of a reward."""
    from billing.shop.rewards import Capped

    if isinstance(done, Capped):
        cap = CapView(name=done.cap, limit=done.limit, used=done.used, day=done.day)
        return RewardDoneView(result="capped", reward=None, cap=cap)
    result: Literal["paid", "repeated"] = "repeated" if done.repeated else "paid"
    return RewardDoneView(result=result, reward=reward_view(done.reward), cap=None)
