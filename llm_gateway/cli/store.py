"""`llm-gateway balance` and `transactions`: an account as its owner sees it."""

import rich_click as click

from llm_gateway.cli.client import json_option, user_command
from llm_gateway.cli.output import Credits, print_facts, print_json, print_rest, print_table
from llm_gateway.client import GatewayClient


@click.command()
@json_option
@user_command
def balance(client: GatewayClient, as_json: bool) -> None:
    """Show what an account has."""
    found = client.balance()
    if as_json:
        print_json(found)
        return
    print_facts(
        [
            ("account", found.account),
            ("balance", Credits(found.balance_micro_credits)),
            ("held", Credits(found.held_micro_credits)),
            ("available", Credits(found.available_micro_credits)),
            ("consumed", Credits(found.total_consumed_micro_credits)),
        ]
    )


@click.command()
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page-size", type=click.IntRange(1, 100), default=20, show_default=True)
@json_option
@user_command
def transactions(client: GatewayClient, page: int, page_size: int, as_json: bool) -> None:
    """List what came into an account and what went out, newest first."""
    found = client.transactions(page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f"{item.created_at:%Y-%m-%d %H:%M:%S}Z",
            item.source_label,
            Credits(item.amount_micro_credits),
            Credits(item.balance_after_micro_credits),
            item.status,
            item.transaction_id,
        )
        for item in found.items
    ]
    print_table(("time", "what", "amount", "balance", "status", "transaction"), rows)
    print_rest(len(found.items), found.total)
