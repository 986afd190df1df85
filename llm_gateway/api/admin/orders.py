"""/admin/orders: what was bought; payments are confirmed here."""

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from billing.admins import Admin, Permission
from billing.corrections import OrderRefund
from billing.kinds import OrderStatus
from billing.lists import PageRequest
from llm_gateway.api.admin.params import AccountId
from llm_gateway.api.deps import IdempotencyKey
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.corrections import (
    CorrectionDoneView,
    RefundRequest,
    correction_done_view,
)
from llm_gateway.api.views.orders import (
    AdminOrderList,
    AdminOrderView,
    OrderPayment,
    PaidOrderView,
    admin_order_view,
)


class OrdersController(Controller):
    """Orders of all accounts."""

    path = "/orders"

    @get("/", permission=Permission.READ)
    async def list_orders(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        account: AccountId = "",
        status: FromQuery[OrderStatus | None] = None,
    ) -> AdminOrderList:
        """List orders, newest first."""
        page = await api.shop.orders.page(listing, account=account or None, status=status or "")
        return AdminOrderList(
            items=[admin_order_view(order) for order in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @get("/{order_id:str}", permission=Permission.READ)
    async def get_order(
        self, api: NamedDependency[ApiState], order_id: FromPath[str]
    ) -> AdminOrderView:
        """Get one order."""
        return admin_order_view(await api.shop.orders.get(order_id))

    @post("/{order_id:str}/pay", status_code=200, permission=Permission.ORDERS)
    async def pay_order(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        order_id: FromPath[str],
        data: JSONBody[OrderPayment | None] = None,
    ) -> PaidOrderView:
        """Confirm that an order is paid: it is credited, once, however often this is sent."""
        done = await api.shop.checkout.pay_as_admin(
            order_id, payment_ref=data.payment_ref if data else "", admin=admin.name
        )
        return PaidOrderView(repeated=done.repeated, order=admin_order_view(done.order))

    @post("/{order_id:str}/cancel", status_code=200, permission=Permission.ORDERS)
    async def cancel_order(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        order_id: FromPath[str],
    ) -> AdminOrderView:
        """Cancel an order that is not paid; 409 for any other."""
        order = await api.shop.orders.cancel(order_id, cancelled_by=admin.name)
        return admin_order_view(order)

    @post("/{order_id:str}/refund", status_code=200, permission=Permission.REFUNDS)
    async def refund_order(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        order_id: FromPath[str],
        data: JSONBody[RefundRequest],
        idempotency_key: IdempotencyKey = "",
    ) -> CorrectionDoneView:
        """Take back an order's credit, as far as it was not spent; the money is not our concern."""
        asked = OrderRefund(
            order_id=order_id,
            amount=data.amount_micro_credits,
            reason=data.reason,
            idempotency_key=idempotency_key.strip() or None,
        )
        done = await api.shop.corrections.refund_order(asked, actor=admin.name)
        return correction_done_view(done)
