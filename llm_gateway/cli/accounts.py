"""`llm-gateway accounts`: who can spend credit, how much there is, and giving more."""

import rich_click as click

from llm_gateway.api.views.accounts import AccountView
from llm_gateway.api.views.corrections import CorrectionDoneView
from llm_gateway.cli.client import admin_command, json_option
from llm_gateway.cli.operations import key_option, reason_option
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
def accounts() -> None:
    """List, make, show and suspend accounts; grant, adjust and refund credit."""


@accounts.command("list")
@click.option("--contains", metavar="TEXT", help="Only accounts whose id or name contains this.")
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page-size", type=click.IntRange(1, 100), default=50, show_default=True)
@json_option
@admin_command
def list_accounts(
    client: AdminClient, contains: str | None, page: int, page_size: int, as_json: bool
) -> None:
    """List accounts."""
    found = client.accounts(contains=contains or "", page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            item.account,
            item.name,
            Credits(item.balance_micro_credits),
            Credits(item.held_micro_credits),
            Credits(item.total_consumed_micro_credits),
            _state(item),
        )
        for item in found.items
    ]
    print_table(("account", "name", "balance", "held", "consumed", "state"), rows)
    print_rest(len(found.items), found.total)


@accounts.command()
@click.argument("account")
@click.option("--name", default="", help="For people.")
@click.option("--note", default="", help="For administrators.")
@click.option("--credits", "amount", metavar="CREDITS", help="Grant this much at once.")
@json_option
@admin_command
def create(
    client: AdminClient, account: str, name: str, note: str, amount: str | None, as_json: bool
) -> None:
    """Make an account. Its id is the user's id with the calling services."""
    granted = micro_credits(amount) if amount else 0
    made = client.create_account(account, name=name, note=note)
    if granted:
        # The same id whatever happens on the way: asked for again, it is not given again.
        made = client.grant(
            account, amount_micro_credits=granted, event_id=f"accounts-create:{account}"
        ).account
    _print_account(made, as_json=as_json)


@accounts.command()
@click.argument("account")
@json_option
@admin_command
def show(client: AdminClient, account: str, as_json: bool) -> None:
    """Show an account with its totals."""
    _print_account(client.account(account), as_json=as_json)


@accounts.command()
@click.argument("account")
@click.argument("credits_")
@click.option("--description", default="", help="Shown to the account's owner.")
@click.option("--event-id", metavar="ID", help="Given again, it is the same grant, not another.")
@json_option
@admin_command
def grant(
    client: AdminClient,
    account: str,
    credits_: str,
    description: str,
    event_id: str | None,
    as_json: bool,
) -> None:
    """Give credit to an account, such as `grant alice 12.5`."""
    done = client.grant(
        account,
        amount_micro_credits=micro_credits(credits_),
        event_id=event_id or "",
        description=description,
    )
    if as_json:
        print_json(done)
        return
    verb = "were granted already" if done.repeated else "granted"
    amount = Credits(done.entry.amount_micro_credits)
    balance = Credits(done.account.balance_micro_credits)
    click.echo(f"{amount} credits {verb} to {account}; the balance is {balance}")


@accounts.command()
@click.argument("account")
@click.option("--reason", required=True, help="Why; shown to administrators and in the audit.")
@json_option
@admin_command
def suspend(client: AdminClient, account: str, reason: str, as_json: bool) -> None:
    """Refuse every further call of an account."""
    _print_account(client.suspend_account(account, reason=reason), as_json=as_json)


@accounts.command()
@click.argument("account")
@json_option
@admin_command
def unsuspend(client: AdminClient, account: str, as_json: bool) -> None:
    """Admit an account's calls again."""
    _print_account(client.unsuspend_account(account), as_json=as_json)


@accounts.command(context_settings={"ignore_unknown_options": True})
@click.argument("account")
@click.argument("credits_")
@reason_option
@key_option
@json_option
@admin_command
def adjust(
    client: AdminClient, account: str, credits_: str, reason: str, key: str | None, as_json: bool
) -> None:
    """Give credit, or take it, such as `adjust alice -2.5 --reason "paid twice"`."""
    amount = micro_credits(credits_.removeprefix("-"))
    done = client.adjust_account(
        account,
        amount_micro_credits=-amount if credits_.startswith("-") else amount,
        reason=reason,
        idempotency_key=key,
    )
    print_correction(done, as_json=as_json)


@accounts.command()
@click.argument("charge")
@click.option("--credits", "amount", metavar="CREDITS", help="Default: all that is left of it.")
@reason_option
@key_option
@json_option
@admin_command
def refund(
    client: AdminClient,
    charge: str,
    amount: str | None,
    reason: str,
    key: str | None,
    as_json: bool,
) -> None:
    """Give back what a call was charged; CHARGE is the call's event id."""
    done = client.refund_charge(
        charge,
        amount_micro_credits=micro_credits(amount) if amount else None,
        reason=reason,
        idempotency_key=key,
    )
    print_correction(done, as_json=as_json)


def print_correction(done: CorrectionDoneView, *, as_json: bool) -> None:
    """What was corrected, as one line."""
    if as_json:
        print_json(done)
        return
    again = " already" if done.repeated else ""
    amount = Credits(done.entry.amount_micro_credits)
    balance = Credits(done.entry.balance_after_micro_credits)
    click.echo(
        f"{amount} credits were posted{again} to {done.correction.account};"
        f" the balance was {balance} then"
    )


def _state(account: AccountView) -> str:
    if account.suspended:
        return "suspended"
    return "no credit" if account.blocked else ""


def _print_account(account: AccountView, *, as_json: bool) -> None:
    if as_json:
        print_json(account)
        return
    print_facts(
        [
            ("account", account.account),
            ("name", account.name),
            ("note", account.note),
            ("balance", Credits(account.balance_micro_credits)),
            ("held", Credits(account.held_micro_credits)),
            ("available", Credits(account.available_micro_credits)),
            ("recharged", Credits(account.total_recharged_micro_credits)),
            ("rewarded", Credits(account.total_rewarded_micro_credits)),
            ("consumed", Credits(account.total_consumed_micro_credits)),
            ("refunded", Credits(account.total_refunded_micro_credits)),
            ("state", _state(account)),
            ("reason", account.suspended_reason),
            ("created", account.created_at),
        ]
    )
