"""`llm-gateway products`: what is for sale."""

from decimal import Decimal

import rich_click as click

from llm_gateway.api.views.products import AdminProductView
from llm_gateway.cli.client import admin_command, json_option
from llm_gateway.cli.failure import CommandError
from llm_gateway.cli.operations import given_or_unset, paged
from llm_gateway.cli.output import (
    Credits,
    micro_credits,
    print_facts,
    print_json,
    print_rest,
    print_table,
)
from llm_gateway.client import UNSET, AdminClient
from llm_gateway.client.admin.shop import Active


@click.group()
def products() -> None:
    """Make, list and change products: credit that is for sale."""


@products.command("list")
@click.option("--status", type=click.Choice(["active", "inactive"]))
@paged
@json_option
@admin_command
def list_products(
    client: AdminClient, status: Active | None, page: int, page_size: int, as_json: bool
) -> None:
    """List products in the order of the store."""
    found = client.products(status=status, page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            item.product_id,
            item.sku,
            item.name,
            Credits(item.credit_amount_micro_credits),
            item.price_text,
            item.badge,
            item.status,
        )
        for item in found.items
    ]
    print_table(("product", "sku", "name", "credits", "price", "badge", "status"), rows)
    print_rest(len(found.items), found.total)


@products.command()
@click.argument("sku")
@click.option("--name", required=True, help="As buyers see it.")
@click.option("--credits", "credits_", required=True, metavar="CREDITS", help="What is bought.")
@click.option("--price", required=True, metavar="PRICE", help="Such as 9.90.")
@click.option("--currency", default="CNY", show_default=True, metavar="CODE")
@click.option("--original-price", metavar="PRICE", help="The price before it was lowered.")
@click.option("--description", default="", help="As buyers see it.")
@click.option("--badge", default="", help="A word that stands out.")
@click.option("--sort-order", type=int, default=0, show_default=True, help="Lower is first.")
@click.option("--inactive", is_flag=True, help="Not for sale yet.")
@json_option
@admin_command
def create(
    client: AdminClient,
    sku: str,
    name: str,
    credits_: str,
    price: str,
    currency: str,
    original_price: str | None,
    description: str,
    badge: str,
    sort_order: int,
    inactive: bool,
    as_json: bool,
) -> None:
    """Make a product."""
    made = client.create_product(
        sku,
        name=name,
        credit_amount_micro_credits=micro_credits(credits_),
        price_cent=cents(price),
        currency=currency,
        original_price_cent=cents(original_price) if original_price else 0,
        description=description,
        badge=badge,
        sort_order=sort_order,
        status="inactive" if inactive else "active",
    )
    _print(made, as_json=as_json)


@products.command("update")
@click.argument("product_id")
@click.option("--sku")
@click.option("--name")
@click.option("--credits", "credits_", metavar="CREDITS")
@click.option("--price", metavar="PRICE")
@click.option("--currency", metavar="CODE")
@click.option("--original-price", metavar="PRICE", help="0: none.")
@click.option("--description")
@click.option("--badge")
@click.option("--sort-order", type=int)
@click.option("--status", type=click.Choice(["active", "inactive"]), help="Whether it is for sale.")
@json_option
@admin_command
def update_product(
    client: AdminClient,
    product_id: str,
    sku: str | None,
    name: str | None,
    credits_: str | None,
    price: str | None,
    currency: str | None,
    original_price: str | None,
    description: str | None,
    badge: str | None,
    sort_order: int | None,
    status: Active | None,
    as_json: bool,
) -> None:
    """Change a product; what is not given stays. Orders keep what they say."""
    words = (sku, name, currency, description, badge, sort_order, status)
    if all(each is None for each in (*words, credits_, price, original_price)):
        raise CommandError("nothing to change: give an option, see --help")
    changed = client.update_product(
        product_id,
        sku=given_or_unset(sku),
        name=given_or_unset(name),
        credit_amount_micro_credits=UNSET if credits_ is None else micro_credits(credits_),
        price_cent=UNSET if price is None else cents(price),
        currency=given_or_unset(currency),
        original_price_cent=UNSET if original_price is None else cents(original_price),
        description=given_or_unset(description),
        badge=given_or_unset(badge),
        sort_order=given_or_unset(sort_order),
        status=given_or_unset(status),
    )
    _print(changed, as_json=as_json)


def cents(text: str) -> int:
    """A price such as 9.90 as integer cents; raises CommandError."""
    try:
        price = Decimal(text)
        whole = int(price * 100)
    except (ArithmeticError, ValueError):
        price, whole = Decimal(0), -1
    if not text.isascii() or whole < 0 or whole != price * 100:
        raise CommandError(f"{text!r} is no price: expected 9.90, or 12")
    return whole


def _print(product: AdminProductView, *, as_json: bool) -> None:
    if as_json:
        print_json(product)
        return
    print_facts(
        [
            ("product", product.product_id),
            ("sku", product.sku),
            ("name", product.name),
            ("description", product.description),
            ("credits", Credits(product.credit_amount_micro_credits)),
            ("price", product.price_text),
            ("badge", product.badge),
            ("sort order", product.sort_order),
            ("status", product.status),
        ]
    )
