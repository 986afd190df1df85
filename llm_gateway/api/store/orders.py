"""/credit-store/orders: buying credit."""

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from billing.kinds import OrderStatus
from billing.lists import PageRequest
from billing.shop.orders import NewOrder
from llm_gateway.api.deps import IdempotencyKey
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.orders import (
    OrderList,
    OrderRequest,
    OrderView,
    OwnPaidOrderView,
    PlacedOrderView,
    order_view,
    payment_view,
)
from llm_gateway.identity import Caller


class OrdersController(Controller):
    """An account's orders; another account's are not there."""

    path = "/orders"

    @get("/")
    async def list_orders(
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        listing: NamedDependency[PageRequest],
        status: FromQuery[OrderStatus | None] = None,
    ) -> OrderList:
        """The account's orders, newest first."""
        page = await api.shop.orders.page(listing, account=caller.account, status=status or "")
        return OrderList(
            items=[order_view(order) for order in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @post("/")
    async def create_order(
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        data: JSONBody[OrderRequest],
        idempotency_key: IdempotencyKey = "",
    ) -> PlacedOrderView:
        """Order a product. With an Idempotency-Key, repeating gives the same order.

        409 if the key was used for another order, or the product is not for sale.
        """
        placed = await api.shop.checkout.create(
            NewOrder(
                account=caller.account,
                product_id=data.product_id,
                quantity=data.quantity,
                payment_mode=data.payment_mode or "",
                idempotency_key=idempotency_key.strip() or None,
            ),
            created_by=caller.key.key_id,
        )
        payment = placed.instructions
        return PlacedOrderView(
            repeated=placed.repeated,
            order=order_view(placed.order),
            payment=None if payment is None else payment_view(payment),
        )

    @get("/{order_id:str}")
    async def get_order(
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        order_id: FromPath[str],
    ) -> OrderView:
        """Get one order of the account."""
        return order_view(await api.shop.orders.get(order_id, account=caller.account))

    @post("/{order_id:str}/cancel", status_code=200)
    async def cancel_order(
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        order_id: FromPath[str],
    ) -> OrderView:
        """Cancel an order that is not paid; 409 for any other."""
        order = await api.shop.orders.cancel(
            order_id, account=caller.account, cancelled_by=caller.key.key_id, admin=False
        )
        return order_view(order)

    @post("/{order_id:str}/pay", status_code=200)
    async def pay_order(
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        order_id: FromPath[str],
    ) -> OwnPaidOrderView:
        """Say that an order is paid, where its payment mode leaves that to the owner; else 403."""
        done = await api.shop.checkout.pay_as_owner(order_id, account=caller.account)
        return OwnPaidOrderView(repeated=done.repeated, order=order_view(done.order))
