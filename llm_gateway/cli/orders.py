"""`llm-gateway orders`: what was bought; payments are confirmed here."""

import rich_click as click

from billing.kinds import OrderStatus
from llm_gateway.api.views.orders import AdminOrderView
from llm_gateway.cli.accounts import print_correction
from llm_gateway.cli.client import admin_command, json_option
from llm_gateway.cli.operations import key_option, paged, reason_option
from llm_gateway.cli.output import (
    Credits,
    micro_credits,
    print_facts,
    print_json,
    print_rest,
    print_table,
)
from llm_gateway.client import AdminClient


@click.group()
def orders() -> None:
    """List orders, confirm their payment, cancel or refund them."""


@orders.command("list")
@click.option("--account", metavar="ID", help="Only this account's.")
@click.option("--status", type=click.Choice([status.value for status in OrderStatus]))
@paged
@json_option
@admin_command
def list_orders(
    client: AdminClient,
    account: str | None,
    status: str | None,
    page: int,
    page_size: int,
    as_json: bool,
) -> None:
    """List orders, newest first."""
    found = client.orders(
        account=account or "",
        status=OrderStatus(status) if status else None,
        page=page,
        page_size=page_size,
    )
    if as_json:
        print_json(found)
        return
    rows = [
        (
            item.order_id,
            item.account,
            item.product_name,
            item.quantity,
            Credits(item.credit_amount_micro_credits),
            item.price_text,
            item.payment_mode,
            item.status.value,
            f"{item.created_at:%Y-%m-%d %H:%M}Z",
        )
        for item in found.items
    ]
    head = ("order", "account", "what", "times", "credits", "price", "by", "status", "made")
    print_table(head, rows)
    print_rest(len(found.items), found.total)


@orders.command()
@click.argument("order")
@json_option
@admin_command
def show(client: AdminClient, order: str, as_json: bool) -> None:
    """Show an order."""
    _print(client.order(order), as_json=as_json)


@orders.command()
@click.argument("order")
@click.option("--payment-ref", default="", help="The payment's id where the money was taken.")
@json_option
@admin_command
def pay(client: AdminClient, order: str, payment_ref: str, as_json: bool) -> None:
    """Confirm that an order is paid: it is credited, once."""
    done = client.pay_order(order, payment_ref=payment_ref)
    if as_json:
        print_json(done)
        return
    verb = "were credited already" if done.repeated else "credited"
    amount = Credits(done.order.credit_amount_micro_credits)
    click.echo(f"{amount} credits {verb} to {done.order.account} for order {done.order.order_no}")


@orders.command()
@click.argument("order")
@json_option
@admin_command
def cancel(client: AdminClient, order: str, as_json: bool) -> None:
    """Cancel an order that is not paid."""
    _print(client.cancel_order(order), as_json=as_json)


@orders.command()
@click.argument("order")
@click.option("--credits", "amount", metavar="CREDITS", help="Default: all that is left of it.")
@reason_option
@key_option
@json_option
@admin_command
def refund(
    client: AdminClient, order: str, amount: str | None, reason: str, key: str | None, as_json: bool
) -> None:
    """Take back an order's credit, as far as it was not spent."""
    done = client.refund_order(
        order,
        amount_micro_credits=micro_credits(amount) if amount else None,
        reason=reason,
        idempotency_key=key,
    )
    print_correction(done, as_json=as_json)


def _print(order: AdminOrderView, *, as_json: bool) -> None:
    if as_json:
        print_json(order)
        return
    print_facts(
        [
            ("order", order.order_id),
            ("number", order.order_no),
            ("account", order.account),
            ("what", order.product_name),
            ("sku", order.product_snapshot.sku),
            ("times", order.quantity),
            ("credits", Credits(order.credit_amount_micro_credits)),
            ("price", order.price_text),
            ("paid by way of", order.payment_mode),
            ("status", order.status.value),
            ("made", order.created_at),
            ("paid", order.paid_at),
            ("confirmed by", order.paid_by),
            ("payment", order.payment_ref),
            ("credited", order.credited_at),
            ("cancelled", order.cancelled_at),
        ]
    )
