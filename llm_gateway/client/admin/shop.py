"""Products, orders, rewards and their rules."""

from typing import Literal

from msgspec import UNSET, UnsetType

from billing.kinds import OrderStatus
from llm_gateway.api.views.corrections import CorrectionDoneView, RefundRequest
from llm_gateway.api.views.orders import (
    AdminOrderList,
    AdminOrderView,
    OrderPayment,
    PaidOrderView,
)
from llm_gateway.api.views.products import (
    AdminProductList,
    AdminProductView,
    ProductPatch,
    ProductRequest,
)
from llm_gateway.api.views.rewards import (
    RewardDoneView,
    RewardList,
    RewardRequest,
    RewardRuleList,
    RewardRulePatch,
    RewardRuleRequest,
    RewardRuleView,
    RewardView,
)
from llm_gateway.client.methods import AskList, get, pages, patch, post
from llm_gateway.client.requests import PAGE_SIZE, Ask

Active = Literal["active", "inactive"]


class Products:
    """What is for sale."""

    @pages("/admin/products")
    def products(
        self,
        *,
        status: Active | None = None,
        page: int = 1,
        page_size: int = PAGE_SIZE,
        after: str = "",
    ) -> AskList[AdminProductList, AdminProductView]:
        """List products in their order."""
        return AskList(AdminProductList, page=page, page_size=page_size, after=after, status=status)

    @post("/admin/products")
    def create_product(
        self,
        sku: str,
        *,
        name: str,
        credit_amount_micro_credits: int,
        price_cent: int,
        currency: str,
        original_price_cent: int = 0,
        description: str = "",
        badge: str = "",
        sort_order: int = 0,
        status: Active = "active",
    ) -> Ask[AdminProductView]:
        """Make a product."""
        body = ProductRequest(
            sku=sku,
            name=name,
            credit_amount_micro_credits=credit_amount_micro_credits,
            price_cent=price_cent,
            currency=currency,
            original_price_cent=original_price_cent,
            description=description,
            badge=badge,
            sort_order=sort_order,
            status=status,
        )
        return Ask(AdminProductView, body=body)

    @get("/admin/products/{product_id}")
    def product(self, product_id: str) -> Ask[AdminProductView]:
        """Get one product."""
        return Ask(AdminProductView, product_id)

    @patch("/admin/products/{product_id}")
    def update_product(
        self,
        product_id: str,
        *,
        sku: str | UnsetType = UNSET,
        name: str | UnsetType = UNSET,
        credit_amount_micro_credits: int | UnsetType = UNSET,
        price_cent: int | UnsetType = UNSET,
        currency: str | UnsetType = UNSET,
        original_price_cent: int | UnsetType = UNSET,
        description: str | UnsetType = UNSET,
        badge: str | UnsetType = UNSET,
        sort_order: int | UnsetType = UNSET,
        status: Active | UnsetType = UNSET,
    ) -> Ask[AdminProductView]:
        """Change a product, or take it off sale; what is not given stays."""
        body = ProductPatch(
            sku=sku,
            name=name,
            credit_amount_micro_credits=credit_amount_micro_credits,
            price_cent=price_cent,
            currency=currency,
            original_price_cent=original_price_cent,
            description=description,
            badge=badge,
            sort_order=sort_order,
            status=status,
        )
        return Ask(AdminProductView, product_id, body=body, repeatable=True)


class Orders:
    """What was bought."""

    @pages("/admin/orders")
    def orders(
        self,
        *,
        account: str = "",
        status: OrderStatus | None = None,
        page: int = 1,
        page_size: int = PAGE_SIZE,
        after: str = "",
    ) -> AskList[AdminOrderList, AdminOrderView]:
        """List orders, newest first."""
        return AskList(
            AdminOrderList,
            page=page,
            page_size=page_size,
            after=after,
            account=account,
            status=status,
        )

    @get("/admin/orders/{order_id}")
    def order(self, order_id: str) -> Ask[AdminOrderView]:
        """Get one order."""
        return Ask(AdminOrderView, order_id)

    @post("/admin/orders/{order_id}/pay")
    def pay_order(self, order_id: str, *, payment_ref: str = "") -> Ask[PaidOrderView]:
        """Confirm that an order is paid: it is credited, once."""
        body = OrderPayment(payment_ref=payment_ref)
        return Ask(PaidOrderView, order_id, body=body, repeatable=True)

    @post("/admin/orders/{order_id}/cancel")
    def cancel_order(self, order_id: str) -> Ask[AdminOrderView]:
        """Cancel an order that is not paid."""
        return Ask(AdminOrderView, order_id)

    @post("/admin/orders/{order_id}/refund")
    def refund_order(
        self,
        order_id: str,
        *,
        reason: str,
        amount_micro_credits: int | None = None,
        idempotency_key: str | None = None,
    ) -> Ask[CorrectionDoneView]:
        """Take back an order's credit, as far as it was not spent."""
        body = RefundRequest(amount_micro_credits=amount_micro_credits, reason=reason)
        return Ask(CorrectionDoneView, order_id, body=body).once(idempotency_key)


class Rewards:
    """What users are rewarded for."""

    @pages("/admin/reward-rules")
    def reward_rules(
        self,
        *,
        source: str = "",
        status: Active | None = None,
        page: int = 1,
        page_size: int = PAGE_SIZE,
        after: str = "",
    ) -> AskList[RewardRuleList, RewardRuleView]:
        """List rules by source."""
        return AskList(
            RewardRuleList,
            page=page,
            page_size=page_size,
            after=after,
            source=source,
            status=status,
        )

    @post("/admin/reward-rules")
    def create_reward_rule(
        self,
        source: str,
        *,
        name: str,
        amount_micro_credits: int,
        status: Active = "active",
        description: str = "",
        cap_per_user_day: int | None = None,
        cap_micro_credits_per_user_day: int | None = None,
    ) -> Ask[RewardRuleView]:
        """Make a rule; a cap that is None is no cap."""
        body = RewardRuleRequest(
            source=source,
            name=name,
            amount_micro_credits=amount_micro_credits,
            status=status,
            description=description,
            cap_per_user_day=cap_per_user_day,
            cap_micro_credits_per_user_day=cap_micro_credits_per_user_day,
        )
        return Ask(RewardRuleView, body=body)

    @get("/admin/reward-rules/{rule_id}")
    def reward_rule(self, rule_id: str) -> Ask[RewardRuleView]:
        """Get one rule."""
        return Ask(RewardRuleView, rule_id)

    @patch("/admin/reward-rules/{rule_id}")
    def update_reward_rule(
        self,
        rule_id: str,
        *,
        name: str | UnsetType = UNSET,
        amount_micro_credits: int | UnsetType = UNSET,
        status: Active | UnsetType = UNSET,
        description: str | UnsetType = UNSET,
        cap_per_user_day: int | UnsetType | None = UNSET,
        cap_micro_credits_per_user_day: int | UnsetType | None = UNSET,
    ) -> Ask[RewardRuleView]:
        """Change a rule, or switch it off; what is not given stays. A cap that is None is no cap."""
        body = RewardRulePatch(
            name=name,
            amount_micro_credits=amount_micro_credits,
            status=status,
            description=description,
            cap_per_user_day=cap_per_user_day,
            cap_micro_credits_per_user_day=cap_micro_credits_per_user_day,
        )
        return Ask(RewardRuleView, rule_id, body=body, repeatable=True)

    @pages("/admin/rewards")
    def rewards(
        self,
        *,
        account: str = "",
        source: str = "",
        day: int | None = None,
        page: int = 1,
        page_size: int = PAGE_SIZE,
        after: str = "",
    ) -> AskList[RewardList, RewardView]:
        """List rewards, newest first; `day` is a UTC day as yyyymmdd."""
        return AskList(
            RewardList,
            page=page,
            page_size=page_size,
            after=after,
            account=account,
            source=source,
            day=day,
        )

    @post("/admin/rewards")
    def pay_reward(
        self,
        source: str,
        *,
        account: str,
        source_ref_id: str | None = None,
        post: str | None = None,
        acting_user: str | None = None,
    ) -> Ask[RewardDoneView]:
        """Reward an account by the rule of a source, once for each reference, within its caps.

        The reference is `source_ref_id`, or made of `post` and `acting_user`.
        """
        body = RewardRequest(
            source=source,
            account=account,
            source_ref_id=source_ref_id,
            post=post,
            acting_user=acting_user,
        )
        return Ask(RewardDoneView, body=body, repeatable=True)
