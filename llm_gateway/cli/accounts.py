"""`llm-gateway accounts`: who can spend credit, how much there is, and giving more."""

import rich_click as click

from llm_gateway import clock
from llm_gateway.api.views.accounts import AccountList, AccountView
from llm_gateway.api.views.corrections import CorrectionDoneView
from llm_gateway.api.views.grants import GrantView
from llm_gateway.cli.client import Client, admin_command, json_option, segment
from llm_gateway.cli.operations import key_option, reason_option
from llm_gateway.cli.output import (
    Credits,
    micro_credits,
    print_facts,
    print_json,
    print_rest,
    print_table,
)


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
    client: Client, contains: str | None, page: int, page_size: int, as_json: bool
) -> None:
    """List accounts."""
    found = client.get(
        "/admin/accounts", AccountList, contains=contains, page=page, page_size=page_size
    )
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
    client: Client, account: str, name: str, note: str, amount: str | None, as_json: bool
) -> None:
    """Make an account. Its id is the user's id with the calling services."""
    granted = micro_credits(amount) if amount else 0
    body = {"account": account, "name": name, "note": note}
    made = client.post("/admin/accounts", AccountView, body)
    if granted:
        # The same id whatever happens on the way: asked for again, it is not given again.
        made = _grant(client, account, granted, f"accounts-create:{account}", "").account
    _print_account(made, as_json=as_json)


@accounts.command()
@click.argument("account")
@json_option
@admin_command
def show(client: Client, account: str, as_json: bool) -> None:
    """Show an account with its totals."""
    path = f"/admin/accounts/{segment(account)}"
    _print_account(client.get(path, AccountView), as_json=as_json)


@accounts.command()
@click.argument("account")
@click.argument("credits_")
@click.option("--description", default="", help="Shown to the account's owner.")
@click.option("--event-id", metavar="ID", help="Given again, it is the same grant, not another.")
@json_option
@admin_command
def grant(
    client: Client,
    account: str,
    credits_: str,
    description: str,
    event_id: str | None,
    as_json: bool,
) -> None:
    """Give credit to an account, such as `grant alice 12.5`."""
    done = _grant(
        client,
        account,
        micro_credits(credits_),
        event_id or f"grant:{clock.new_event_id(clock.now_ms())}",
        description,
    )
    if as_json:
        print_json(done)
        return
    verb = "was granted already" if done.repeated else "granted"
    amount = Credits(done.entry.amount_micro_credits)
    balance = Credits(done.account.balance_micro_credits)
    click.echo(f"{amount} credits {verb} to {account}; the balance is {balance}")


@accounts.command()
@click.argument("account")
@click.option("--reason", required=True, help="Why; shown to administrators and in the audit.")
@json_option
@admin_command
def suspend(client: Client, account: str, reason: str, as_json: bool) -> None:
    """Refuse every further call of an account."""
    path = f"/admin/accounts/{segment(account)}/suspend"
    _print_account(client.post(path, AccountView, {"reason": reason}), as_json=as_json)


@accounts.command()
@click.argument("account")
@json_option
@admin_command
def unsuspend(client: Client, account: str, as_json: bool) -> None:
    """Admit an account's calls again."""
    path = f"/admin/accounts/{segment(account)}/unsuspend"
    _print_account(client.post(path, AccountView), as_json=as_json)


@accounts.command(context_settings={"ignore_unknown_options": True})
@click.argument("account")
@click.argument("credits_")
@reason_option
@key_option
@json_option
@admin_command
def adjust(
    client: Client, account: str, credits_: str, reason: str, key: str | None, as_json: bool
) -> None:
    """Give credit, or take it, such as `adjust alice -2.5 --reason "paid twice"`."""
    amount = micro_credits(credits_.removeprefix("-"))
    body = {
        "amount_micro_credits": -amount if credits_.startswith("-") else amount,
        "reason": reason,
    }
    path = f"/admin/accounts/{segment(account)}/adjust"
    print_correction(client.post(path, CorrectionDoneView, body, key=key), as_json=as_json)


@accounts.command()
@click.argument("charge")
@click.option("--credits", "amount", metavar="CREDITS", help="Default: all that is left of it.")
@reason_option
@key_option
@json_option
@admin_command
def refund(
    client: Client, charge: str, amount: str | None, reason: str, key: str | None, as_json: bool
) -> None:
    """Give back what a call was charged; CHARGE is the call's event id."""
    body = {"amount_micro_credits": micro_credits(amount) if amount else None, "reason": reason}
    path = f"/admin/charges/{segment(charge)}/refund"
    print_correction(client.post(path, CorrectionDoneView, body, key=key), as_json=as_json)


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


def _grant(client: Client, account: str, amount: int, event_id: str, description: str) -> GrantView:
    body = {
        "account": account,
        "amount_micro_credits": amount,
        "event_id": event_id,
        "description": description,
    }
    return client.post("/admin/grants", GrantView, body)


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
