"""`llm-gateway usage`, `statement`, `outstanding`, `corrections`, `audit`: what was used, and what came of it."""

import rich_click as click

from llm_gateway import clock
from llm_gateway.api.views.audit import AuditView
from llm_gateway.api.views.consumption import ConsumptionView, SumsView
from llm_gateway.cli.client import admin_command, json_option, user_command
from llm_gateway.cli.keys import parse_when
from llm_gateway.cli.operations import paged
from llm_gateway.cli.output import Credits, print_facts, print_json, print_rest, print_table
from llm_gateway.client import AdminClient, GatewayClient
from llm_gateway.client.admin.accounts import CorrectionKind
from llm_gateway.client.admin.finance import UsageGroup
from llm_gateway.client.store import Group, Period

_PERIODS = ("24h", "7d", "30d", "all")
_GROUPS = ("model", "scene", "provider", "key")

period_option = click.option(
    "--period", type=click.Choice(_PERIODS), default="24h", show_default=True, help="How far back."
)
zone_option = click.option("--time-zone", metavar="ZONE", help="Such as Europe/Berlin; else UTC.")
run_option = click.option("--run-id", metavar="ID", help="The calls of this run alone.")
series_option = click.option("--series", is_flag=True, help="Over time, too.")


@click.command()
@click.option("--account", metavar="ID", help="Only this account's.")
@period_option
@click.option("--by", "group_by", type=click.Choice((*_GROUPS, "account")), help="Summed by this.")
@zone_option
@run_option
@series_option
@json_option
@admin_command
def usage(
    client: AdminClient,
    account: str | None,
    period: Period,
    group_by: UsageGroup | None,
    time_zone: str | None,
    run_id: str | None,
    series: bool,
    as_json: bool,
) -> None:
    """Show what calls used and cost, of one account or of all."""
    found = client.usage(
        account=account or "",
        period=period,
        group_by=group_by,
        time_zone=time_zone or "UTC",
        run_id=run_id or "",
    )
    _print_usage(found, series=series, as_json=as_json)


@click.command()
@period_option
@click.option("--by", "group_by", type=click.Choice(_GROUPS), help="Summed by this.")
@zone_option
@run_option
@series_option
@json_option
@user_command
def consumption(
    client: GatewayClient,
    period: Period,
    group_by: Group | None,
    time_zone: str | None,
    run_id: str | None,
    series: bool,
    as_json: bool,
) -> None:
    """Show what an account's calls used and cost."""
    found = client.consumption(
        period=period, group_by=group_by, time_zone=time_zone or "UTC", run_id=run_id or ""
    )
    _print_usage(found, series=series, as_json=as_json)


@click.command()
@click.argument("account")
@click.argument("month")
@json_option
@admin_command
def statement(client: AdminClient, account: str, month: str, as_json: bool) -> None:
    """Show an account's month (UTC), such as `statement ada 2026-11`."""
    found = client.statement(account, month)
    if as_json:
        print_json(found)
        return
    rows: list[tuple[object, ...]] = [
        ("opening", "", "", Credits(found.opening_micro_credits)),
        *(
            (line.source, line.direction, line.entries, Credits(line.amount_micro_credits))
            for line in found.lines
        ),
        ("closing", "", "", Credits(found.closing_micro_credits)),
    ]
    print_table(("source", "direction", "entries", "credits"), rows)
    if not found.closed:
        click.echo("The month is not over: this may still change.")


@click.command()
@click.option("--at", metavar="WHEN", help="A time such as 2026-12-01T00:00Z; now if left out.")
@json_option
@admin_command
def outstanding(client: AdminClient, at: str | None, as_json: bool) -> None:
    """Show what all accounts together had, at a moment."""
    found = client.outstanding(at=parse_when(at, clock.now_ms()) if at else None)
    if as_json:
        print_json(found)
        return
    rows = [
        ("credit", found.accounts_positive, Credits(found.positive_micro_credits)),
        ("debt", found.accounts_negative, Credits(found.negative_micro_credits)),
    ]
    print_table(("what", "accounts", "credits"), rows)
    click.echo(f"as of {found.at:%Y-%m-%d %H:%M:%S}Z")


@click.command()
@click.option("--account", metavar="ID", help="Only this account's.")
@click.option(
    "--kind", type=click.Choice(("adjustment", "charge_refund", "order_refund")), help="Only these."
)
@click.option("--of", "ref_id", metavar="ID", help="Only of this charge or order.")
@paged
@json_option
@admin_command
def corrections(
    client: AdminClient,
    account: str | None,
    kind: CorrectionKind | None,
    ref_id: str | None,
    page: int,
    page_size: int,
    as_json: bool,
) -> None:
    """List adjustments and refunds, newest first; see `accounts adjust | refund`, `orders refund`."""
    found = client.corrections(
        account=account or "", kind=kind, ref_id=ref_id or "", page=page, page_size=page_size
    )
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f"{item.created_at:%Y-%m-%d %H:%M:%S}Z",
            item.kind,
            item.account,
            Credits(item.wanted_micro_credits)
            if item.amount_micro_credits is None
            else Credits(item.amount_micro_credits),
            item.ref_id,
            item.actor,
            item.reason,
            "" if item.posted_at else "on its way",
        )
        for item in found.items
    ]
    print_table(("time", "kind", "account", "credits", "of", "by", "reason", "state"), rows)
    print_rest(len(found.items), found.total)


@click.command()
@click.option("--action", metavar="NAME", help="Only these acts, such as key.create.")
@click.option("--target", metavar="ID", help="Only on this account, key, order ...")
@paged
@json_option
@admin_command
def audit(
    client: AdminClient,
    action: str | None,
    target: str | None,
    page: int,
    page_size: int,
    as_json: bool,
) -> None:
    """List what administrators did, newest first."""
    found = client.audit(action=action or "", target=target or "", page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f"{item.created_at:%Y-%m-%d %H:%M:%S}Z",
            item.actor,
            item.action,
            item.target,
            _detail(item),
        )
        for item in found.items
    ]
    print_table(("time", "who", "did", "to", "detail"), rows)
    print_rest(len(found.items), found.total)


def _print_usage(found: ConsumptionView, *, series: bool, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_facts(
        [
            ("from", f"{found.from_:%Y-%m-%d %H:%M}Z"),
            ("to", f"{found.to:%Y-%m-%d %H:%M}Z"),
            ("account", found.account),
            ("run", found.run_id),
        ]
    )
    rows = [(group.name, *_sums(group)) for group in found.groups]
    print_table((found.group_by or "", *_HEAD), [*rows, ("total", *_sums(found.totals))])
    if found.groups_left_out:
        click.echo(f"({found.groups_left_out} more, all of them cheaper)")
    if series:
        click.echo()
        steps = [(f"{step.from_:%Y-%m-%d %H:%M}Z", *_sums(step)) for step in found.series]
        print_table(("from", *_HEAD), steps)


_HEAD = ("credits", "calls", "errors", "input", "output")


def _sums(sums: SumsView) -> tuple[object, ...]:
    tokens = sums.tokens
    read = tokens.input + tokens.cached_input + tokens.cache_write_5m + tokens.cache_write_1h
    return (
        Credits(sums.amount_micro_credits),
        sums.calls,
        sums.errors,
        read + tokens.audio_input + tokens.image_input,
        tokens.output + tokens.reasoning + tokens.audio_output,
    )


def _detail(act: AuditView) -> str:
    return ", ".join(f"{name} {value}" for name, value in act.detail.items() if value is not None)
