"""`llm-gateway rewards`: what users are rewarded for, and paying it."""

import rich_click as click

from llm_gateway.api.views.rewards import RewardRuleView
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
def rewards() -> None:
    """Pay and list rewards; list, make and change their rules."""


@rewards.command()
@click.argument("source")
@click.argument("account")
@click.option("--ref", "reference", metavar="ID", help="What is rewarded; the same is paid once.")
@click.option("--post", metavar="ID", help="Instead of --ref, with --by: the post.")
@click.option("--by", "acting_user", metavar="ID", help="Who liked or imported it.")
@json_option
@admin_command
def pay(
    client: AdminClient,
    source: str,
    account: str,
    reference: str | None,
    post: str | None,
    acting_user: str | None,
    as_json: bool,
) -> None:
    """Reward ACCOUNT by the rule of SOURCE, such as `pay forum_like ada --post p1 --by bob`."""
    done = client.pay_reward(
        source, account=account, source_ref_id=reference, post=post, acting_user=acting_user
    )
    if as_json:
        print_json(done)
    elif done.cap is not None:
        click.echo(f"nothing is paid: {done.cap.name} is {done.cap.limit}, used {done.cap.used}")
    elif done.reward is not None:
        verb = "were paid already" if done.result == "repeated" else "paid"
        click.echo(f"{Credits(done.reward.amount_micro_credits)} credits {verb} to {account}")


@rewards.command("list")
@click.option("--account", metavar="ID", help="Only this account's.")
@click.option("--source", help="Only of this source.")
@click.option("--day", type=int, metavar="YYYYMMDD", help="Only of this day, UTC.")
@paged
@json_option
@admin_command
def list_rewards(
    client: AdminClient,
    account: str | None,
    source: str | None,
    day: int | None,
    page: int,
    page_size: int,
    as_json: bool,
) -> None:
    """List rewards, newest first."""
    found = client.rewards(
        account=account or "", source=source or "", day=day, page=page, page_size=page_size
    )
    if as_json:
        print_json(found)
        return
    rows = [
        (
            item.source,
            item.source_ref_id,
            item.account,
            item.acting_user,
            Credits(item.amount_micro_credits),
            f"{item.created_at:%Y-%m-%d %H:%M:%S}Z",
            "" if item.posted_at else "on its way",
        )
        for item in found.items
    ]
    print_table(("source", "for", "account", "by", "credits", "time", "state"), rows)
    print_rest(len(found.items), found.total)


@rewards.command()
@click.option("--source", help="Only of this source.")
@paged
@json_option
@admin_command
def rules(
    client: AdminClient, source: str | None, page: int, page_size: int, as_json: bool
) -> None:
    """List rules."""
    found = client.reward_rules(source=source or "", page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            item.rule_id,
            item.source,
            item.name,
            Credits(item.amount_micro_credits),
            _cap_count(item),
            _cap_credits(item),
            item.status,
        )
        for item in found.items
    ]
    print_table(("rule", "source", "name", "credits", "a day", "credits a day", "status"), rows)
    print_rest(len(found.items), found.total)


@rewards.command("create-rule")
@click.argument("source")
@click.argument("credits_")
@click.option("--name", required=True, help="For people.")
@click.option("--description", default="")
@click.option("--cap", type=click.IntRange(1), help="Rewards for a user and day.")
@click.option("--cap-credits", metavar="CREDITS", help="Credits for a user and day.")
@json_option
@admin_command
def create_rule(
    client: AdminClient,
    source: str,
    credits_: str,
    name: str,
    description: str,
    cap: int | None,
    cap_credits: str | None,
    as_json: bool,
) -> None:
    """Make a rule: SOURCE is rewarded with CREDITS."""
    made = client.create_reward_rule(
        source,
        name=name,
        amount_micro_credits=micro_credits(credits_),
        description=description,
        cap_per_user_day=cap,
        cap_micro_credits_per_user_day=micro_credits(cap_credits) if cap_credits else None,
    )
    _print(made, as_json=as_json)


@rewards.command("update-rule")
@click.argument("rule")
@click.option("--credits", "credits_", metavar="CREDITS")
@click.option("--name")
@click.option("--status", type=click.Choice(["active", "inactive"]))
@click.option("--cap", type=click.IntRange(0), help="Rewards for a user and day; 0: no cap.")
@click.option("--cap-credits", metavar="CREDITS", help="Credits for a user and day; 0: no cap.")
@json_option
@admin_command
def update_rule(
    client: AdminClient,
    rule: str,
    credits_: str | None,
    name: str | None,
    status: Active | None,
    cap: int | None,
    cap_credits: str | None,
    as_json: bool,
) -> None:
    """Change a rule; what is not given stays."""
    if all(each is None for each in (credits_, name, status, cap, cap_credits)):
        raise CommandError("nothing to change: give an option, see --help")
    credit_cap = UNSET if cap_credits is None else micro_credits(cap_credits) or None
    changed = client.update_reward_rule(
        rule,
        amount_micro_credits=UNSET if credits_ is None else micro_credits(credits_),
        name=given_or_unset(name),
        status=given_or_unset(status),
        cap_per_user_day=UNSET if cap is None else cap or None,
        cap_micro_credits_per_user_day=credit_cap,
    )
    _print(changed, as_json=as_json)


def _print(rule: RewardRuleView, *, as_json: bool) -> None:
    if as_json:
        print_json(rule)
        return
    print_facts(
        [
            ("rule", rule.rule_id),
            ("source", rule.source),
            ("name", rule.name),
            ("credits", Credits(rule.amount_micro_credits)),
            ("a day", _cap_count(rule)),
            ("credits a day", _cap_credits(rule)),
            ("status", rule.status),
            ("description", rule.description),
        ]
    )


def _cap_count(rule: RewardRuleView) -> int | str:
    return "any" if rule.cap_per_user_day is None else rule.cap_per_user_day


def _cap_credits(rule: RewardRuleView) -> object:
    cap = rule.cap_micro_credits_per_user_day
    return "any" if cap is None else Credits(cap)
