"""The credit store and the models, for the owner of an account: a method for each address.

A new address below /credit-store or /v1 gets its method here.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from billing.kinds import OrderStatus
from llm_gateway.api.views.accounts import BalanceView
from llm_gateway.api.views.calls import CallSummary, ChargeList
from llm_gateway.api.views.charges import ChargeView
from llm_gateway.api.views.consumption import ConsumptionView
from llm_gateway.api.views.estimates import EstimateView
from llm_gateway.api.views.models import ModelList, ModelView
from llm_gateway.api.views.orders import (
    OrderList,
    OrderRequest,
    OrderView,
    OwnPaidOrderView,
    PlacedOrderView,
)
from llm_gateway.api.views.prices import PriceRuleList, PriceRuleView
from llm_gateway.api.views.products import ProductList, ProductView
from llm_gateway.api.views.transactions import TransactionList, TransactionView
from llm_gateway.client.methods import AskList, download, get, pages, post
from llm_gateway.client.requests import PAGE_SIZE, Ask

Direction = Literal["income", "expense"]
Period = Literal["24h", "7d", "30d", "all"]
Group = Literal["model", "scene", "provider", "key"]


class Models:
    """What can be called, and what it would cost."""

    @get("/v1/models")
    def models(self) -> Ask[ModelList]:
        """The models that this key can call."""
        return Ask(ModelList)

    @get("/v1/models/{model_id}")
    def model(self, model_id: str) -> Ask[ModelView]:
        """Get one model."""
        return Ask(ModelView, model_id)

    @post("/v1/estimate")
    def estimate(self, body: Mapping[str, object], *, scene: str = "") -> Ask[EstimateView]:
        """Say what a call with this body would cost, and whether it would be admitted now."""
        return Ask(EstimateView, body=body, repeatable=True).with_header("x-scene", scene)


class Store:
    """An account as its owner sees it."""

    @get("/credit-store/balance")
    def balance(self) -> Ask[BalanceView]:
        """Balance, held credit and totals; zeros for an account that was never posted to."""
        return Ask(BalanceView)

    @get("/credit-store/consumption")
    def consumption(
        self,
        *,
        period: Period = "24h",
        group_by: Group | None = None,
        time_zone: str = "UTC",
        run_id: str = "",
    ) -> Ask[ConsumptionView]:
        """Credits, tokens, calls and errors of a period, by group and over time."""
        query = {
            "period": period, "group_by": group_by, "time_zone": time_zone, "run_id": run_id
        }  # fmt: skip
        return Ask(ConsumptionView, query=query)

    @pages("/credit-store/transactions")
    def transactions(
        self,
        *,
        source: str = "",
        direction: Direction | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
        page: int = 1,
        page_size: int = PAGE_SIZE,
        after: str = "",
    ) -> AskList[TransactionList, TransactionView]:
        """The account's ledger entries, newest first."""
        return AskList(
            TransactionList,
            page=page,
            page_size=page_size,
            after=after,
            source=source,
            direction=direction,
            from_=from_,
            to=to,
        )

    @download("/credit-store/transactions.csv")
    def transactions_csv(
        self,
        *,
        source: str = "",
        direction: Direction | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
    ) -> Ask[bytes]:
        """All of the account's ledger entries as CSV, oldest first; times in UTC."""
        query = {"source": source, "direction": direction, "from": from_, "to": to}
        return Ask(bytes, query=query)

    @pages("/credit-store/charges")
    def charges(
        self,
        *,
        model: str = "",
        scene: str = "",
        run_id: str = "",
        from_: datetime | None = None,
        to: datetime | None = None,
        page: int = 1,
        page_size: int = PAGE_SIZE,
        after: str = "",
    ) -> AskList[ChargeList, CallSummary]:
        """The account's charged calls, the newest first; a page may be short and others follow."""
        return AskList(
            ChargeList,
            page=page,
            page_size=page_size,
            after=after,
            model=model,
            scene=scene,
            run_id=run_id,
            from_=from_,
            to=to,
        )

    @get("/credit-store/charges/{event_id}")
    def charge(self, event_id: str) -> Ask[ChargeView]:
        """Explain a charge; the id is the X-Request-Id of the call's answer."""
        return Ask(ChargeView, event_id)

    @pages("/credit-store/price-rules")
    def price_rules(
        self, *, page: int = 1, page_size: int = PAGE_SIZE, after: str = ""
    ) -> AskList[PriceRuleList, PriceRuleView]:
        """The active rules that can apply to this key's calls."""
        return AskList(PriceRuleList, page=page, page_size=page_size, after=after)

    @pages("/credit-store/products")
    def products(
        self, *, page: int = 1, page_size: int = PAGE_SIZE, after: str = ""
    ) -> AskList[ProductList, ProductView]:
        """What is for sale, in the order of the store."""
        return AskList(ProductList, page=page, page_size=page_size, after=after)

    @pages("/credit-store/orders")
    def orders(
        self,
        *,
        status: OrderStatus | None = None,
        page: int = 1,
        page_size: int = PAGE_SIZE,
        after: str = "",
    ) -> AskList[OrderList, OrderView]:
        """The account's orders, newest first."""
        return AskList(OrderList, page=page, page_size=page_size, after=after, status=status)

    @post("/credit-store/orders")
    def create_order(
        self,
        product_id: str,
        *,
        quantity: int = 1,
        payment_mode: str | None = None,
        idempotency_key: str | None = None,
    ) -> Ask[PlacedOrderView]:
        """Order a product. Without an Idempotency-Key each call of this method has its own."""
        body = OrderRequest(product_id=product_id, quantity=quantity, payment_mode=payment_mode)
        return Ask(PlacedOrderView, body=body).once(idempotency_key)

    @get("/credit-store/orders/{order_id}")
    def order(self, order_id: str) -> Ask[OrderView]:
        """Get one order of the account."""
        return Ask(OrderView, order_id)

    @post("/credit-store/orders/{order_id}/cancel")
    def cancel_order(self, order_id: str) -> Ask[OrderView]:
        """Cancel an order that is not paid."""
        return Ask(OrderView, order_id)

    @post("/credit-store/orders/{order_id}/pay")
    def pay_order(self, order_id: str) -> Ask[OwnPaidOrderView]:
        """Say that an order is paid, where its payment mode leaves that to the owner."""
        return Ask(OwnPaidOrderView, order_id, repeatable=True)
