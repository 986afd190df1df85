"""`llm-gateway admins`: who else is an administrator, and what for."""

import rich_click as click

from billing.kinds import Role
from llm_gateway import clock
from llm_gateway.api.views.admin_tokens import AdminTokenView
from llm_gateway.cli.client import admin_command, json_option
from llm_gateway.cli.keys import parse_when
from llm_gateway.cli.operations import paged
from llm_gateway.cli.output import print_facts, print_json, print_rest, print_table
from llm_gateway.client import AdminClient


@click.group()
def admins() -> None:
    """Make, list and revoke tokens of administrators. Only the owner may."""


@admins.command()
@click.argument("name")
@click.option(
    "--role", type=click.Choice([role.value for role in Role]), required=True, help="What for."
)
@click.option("--expires", metavar="WHEN", help="A time such as 2027-01-31T12:00Z, or 90d, 12h.")
@json_option
@admin_command
def create(client: AdminClient, name: str, role: str, expires: str | None, as_json: bool) -> None:
    """Make a token and show it, this once. NAME stands in the audit trail, and is used once."""
    expires_at = parse_when(expires, clock.now_ms()) if expires else None
    made = client.create_token(name, role=Role(role), expires_at=expires_at)
    if as_json:
        print_json(made)
        return
    click.echo(made.token)
    click.echo(f"token {made.admin.token_id} of {name}; it is not shown again", err=True)


@admins.command("list")
@paged
@json_option
@admin_command
def list_tokens(client: AdminClient, page: int, page_size: int, as_json: bool) -> None:
    """List tokens, without what makes them work."""
    found = client.tokens(page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            token.token_id,
            token.name,
            token.role.value,
            f"{token.prefix}...",
            token.created_by,
            _state(token),
        )
        for token in found.items
    ]
    print_table(("token", "name", "role", "begins", "made by", "state"), rows)
    print_rest(len(found.items), found.total)


@admins.command()
@click.argument("token_id")
@json_option
@admin_command
def revoke(client: AdminClient, token_id: str, as_json: bool) -> None:
    """Withdraw a token for good."""
    token = client.revoke_token(token_id)
    if as_json:
        print_json(token)
        return
    print_facts([("token", token.token_id), ("name", token.name), ("revoked", token.revoked_at)])


def _state(token: AdminTokenView) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return f"until {token.expires_at:%Y-%m-%d %H:%M}Z" if token.expires_at else ""
