"""/admin/reward-rules and /admin/rewards: what is paid for, and paying it."""

from typing import Annotated, Literal

import msgspec
from litestar import Controller, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from billing.admins import Admin, Permission
from billing.lists import PageRequest
from billing.shop.fields import Fields
from billing.shop.rewards import NewReward, NewRewardRule, RewardRuleChange, source_ref
from llm_gateway.api.admin.params import AccountId, Filter
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.rewards import (
    RewardDoneView,
    RewardList,
    RewardRequest,
    RewardRuleList,
    RewardRulePatch,
    RewardRuleRequest,
    RewardRuleView,
    reward_done_view,
    reward_rule_view,
    reward_view,
)


class RewardRulesController(Controller):
    """What users are rewarded for, and how much of it a day."""

    path = "/reward-rules"

    @get("/", permission=Permission.READ)
    async def list_rules(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        source: Filter = "",
        status: FromQuery[Literal["active", "inactive"] | None] = None,
    ) -> RewardRuleList:
        """List rules by source."""
        page = await api.shop.reward_rules.page(listing, source=source, status=status or "")
        return RewardRuleList(
            items=[reward_rule_view(rule) for rule in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @post("/", permission=Permission.REWARDS)
    async def create_rule(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        data: JSONBody[RewardRuleRequest],
    ) -> RewardRuleView:
        """Make a rule; 409 if another active rule has its source."""
        values = msgspec.structs.asdict(data)
        values["amount"] = values.pop("amount_micro_credits")
        new = NewRewardRule(**values)
        return reward_rule_view(await api.shop.reward_rules.create(new, actor=admin.name))

    @get("/{rule_id:str}", permission=Permission.READ)
    async def get_rule(
        self, api: NamedDependency[ApiState], rule_id: FromPath[str]
    ) -> RewardRuleView:
        """Get one rule."""
        return reward_rule_view(await api.shop.reward_rules.get(rule_id))

    @patch("/{rule_id:str}", permission=Permission.REWARDS)
    async def update_rule(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        rule_id: FromPath[str],
        data: JSONBody[RewardRulePatch],
    ) -> RewardRuleView:
        """Change a rule, or switch it off; what was paid stays paid."""
        values = msgspec.structs.asdict(data)
        values["amount"] = values.pop("amount_micro_credits")
        change = RewardRuleChange(**values)
        rule = await api.shop.reward_rules.update(rule_id, change, actor=admin.name)
        return reward_rule_view(rule)


class RewardsController(Controller):
    """Rewards that were paid."""

    path = "/rewards"

    @get("/", permission=Permission.READ)
    async def list_rewards(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        account: AccountId = "",
        source: Filter = "",
        day: Annotated[int | None, QueryParameter(ge=19700101, le=99991231)] = None,
    ) -> RewardList:
        """List rewards, newest first; `day` is a UTC day as yyyymmdd."""
        page = await api.shop.rewards.page(listing, account=account, source=source, day=day)
        return RewardList(
            items=[reward_view(reward) for reward in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @post("/", status_code=200, permission=Permission.REWARDS)
    async def pay_reward(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        data: JSONBody[RewardRequest],
    ) -> RewardDoneView:
        """Reward an account by the rule of a source, once for each reference, within its caps."""
        done = await api.shop.rewards.reward(_new_reward(data), actor=admin.name)
        return reward_done_view(done)


def _new_reward(data: RewardRequest) -> NewReward:
    """The reference as given, or made of the post and who acted on it."""
    reference = data.source_ref_id
    fields = Fields()
    if reference is None:
        fields.check(
            "source_ref_id", "is missing; or send post and acting_user", ok=bool(data.post)
        )
        if data.post is not None:
            fields.check("acting_user", "is missing beside post", ok=data.acting_user is not None)
    else:
        fields.check("post", "is not for a reward with source_ref_id", ok=data.post is None)
    fields.done()
    return NewReward(
        source=data.source,
        source_ref_id=reference or source_ref(data.post or "", data.acting_user or ""),
        account=data.account,
        acting_user=data.acting_user or "",
    )
