"""`llm-gateway keys`: the keys that open the gateway, for users and for internal services."""

from datetime import UTC, datetime, timedelta

import rich_click as click
from msgspec import UnsetType

from llm_gateway import clock
from llm_gateway.api.views.keys import KeyView
from llm_gateway.api.views.shared import moment
from llm_gateway.cli.client import admin_command, json_option
from llm_gateway.cli.failure import CommandError
from llm_gateway.cli.operations import given_or_unset
from llm_gateway.cli.output import print_facts, print_json, print_rest, print_table
from llm_gateway.client import UNSET, AdminClient, KeyKind


@click.group()
def keys() -> None:
    """Make, list, change, rotate and revoke keys."""


@keys.command()
@click.option("--account", metavar="ID", help="Make a user key, which bills this account.")
@click.option("--app", metavar="NAME", help="Make an app key, for calls that name the account.")
@click.option(
    "--bills", multiple=True, metavar="ID", help="An account that an app key may bill (repeatable)."
)
@click.option("--default-scene", default="default", show_default=True, metavar="SCENE")
@click.option(
    "--scene", "scenes", multiple=True, help="A scene that X-Scene may name (repeatable)."
)
@click.option(
    "--model", "models", multiple=True, help="A model, or prefix*, that it may call (repeatable)."
)
@click.option("--rpm", type=click.IntRange(1), help="Requests a minute.")
@click.option("--tpm", type=click.IntRange(1), help="Tokens a minute.")
@click.option("--concurrent", type=click.IntRange(1), help="Calls at a time.")
@click.option("--expires", metavar="WHEN", help="A time such as 2027-01-31T12:00Z, or 90d, 12h.")
@click.option("--description", default="", help="What it is for.")
@json_option
@admin_command
def create(
    client: AdminClient,
    account: str | None,
    app: str | None,
    bills: tuple[str, ...],
    default_scene: str,
    scenes: tuple[str, ...],
    models: tuple[str, ...],
    rpm: int | None,
    tpm: int | None,
    concurrent: int | None,
    expires: str | None,
    description: str,
    as_json: bool,
) -> None:
    """Make a key and show it, this once."""
    if bool(account) == bool(app):
        raise CommandError("give either --account (a user key) or --app (an app key)")
    if bills and account:
        raise CommandError("--bills is for app keys: a user key bills its own account")
    made = client.create_key(
        KeyKind.USER if account else KeyKind.APP,
        account=account or "",
        app=app or "",
        accounts=bills,
        default_scene=default_scene,
        scenes=scenes,
        models=models,
        description=description,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        concurrent_calls=concurrent,
        expires_at=parse_when(expires, clock.now_ms()) if expires else None,
    )
    if as_json:
        print_json(made)
        return
    click.echo(made.token)
    click.echo(f"key {made.key.key_id}; it is not shown again", err=True)


@keys.command("list")
@click.option("--account", metavar="ID", help="Only this account's.")
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page-size", type=click.IntRange(1, 100), default=50, show_default=True)
@json_option
@admin_command
def list_keys(
    client: AdminClient, account: str | None, page: int, page_size: int, as_json: bool
) -> None:
    """List keys, without what makes them work."""
    found = client.keys(account=account or "", page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            key.key_id,
            f"{key.prefix}...",
            f"{key.kind} {key.account or key.app}",
            [key.default_scene, *(name for name in key.scenes if name != key.default_scene)],
            key.models or "any",
            _limits(key),
            _state(key),
        )
        for key in found.items
    ]
    print_table(("key", "begins", "for", "scenes", "models", "limits", "state"), rows)
    print_rest(len(found.items), found.total)


@keys.command("update")
@click.argument("key_id")
@click.option("--default-scene", metavar="SCENE")
@click.option("--scene", "scenes", multiple=True, help="All scenes of X-Scene (repeatable).")
@click.option("--no-scenes", is_flag=True, help="Only the default scene.")
@click.option("--model", "models", multiple=True, help="All models it may call (repeatable).")
@click.option("--any-model", is_flag=True, help="Any model.")
@click.option("--rpm", type=click.IntRange(0), help="Requests a minute; 0: no limit.")
@click.option("--tpm", type=click.IntRange(0), help="Tokens a minute; 0: no limit.")
@click.option("--concurrent", type=click.IntRange(0), help="Calls at a time; 0: no limit.")
@click.option("--expires", metavar="WHEN", help="A time such as 2027-01-31T12:00Z, or 90d, 12h.")
@click.option("--no-expiry", is_flag=True, help="Good until it is revoked.")
@click.option("--description", help="What it is for.")
@json_option
@admin_command
def update_key(
    client: AdminClient,
    key_id: str,
    default_scene: str | None,
    scenes: tuple[str, ...],
    no_scenes: bool,
    models: tuple[str, ...],
    any_model: bool,
    rpm: int | None,
    tpm: int | None,
    concurrent: int | None,
    expires: str | None,
    no_expiry: bool,
    description: str | None,
    as_json: bool,
) -> None:
    """Change what a key may do; what is not given stays."""
    if (scenes and no_scenes) or (models and any_model) or (expires and no_expiry):
        raise CommandError(
            "give either --scene or --no-scenes, either --model or --any-model, either --expires"
            " or --no-expiry"
        )
    given = (default_scene, rpm, tpm, concurrent, description)
    flags = (scenes, no_scenes, models, any_model, expires, no_expiry)
    if all(each is None for each in given) and not any(flags):
        raise CommandError("nothing to change: give an option, see --help")
    key = client.update_key(
        key_id,
        default_scene=given_or_unset(default_scene),
        scenes=scenes if scenes or no_scenes else UNSET,
        models=models if models or any_model else UNSET,
        description=given_or_unset(description),
        expires_at=_end(expires, none=no_expiry),
        requests_per_minute=_limit(rpm),
        tokens_per_minute=_limit(tpm),
        concurrent_calls=_limit(concurrent),
    )
    if as_json:
        print_json(key)
        return
    print_facts(
        [
            ("key", key.key_id),
            ("scenes", [key.default_scene, *key.scenes]),
            ("models", key.models or "any"),
            ("limits", _limits(key)),
            ("state", _state(key)),
            ("description", key.description),
        ]
    )


@keys.command()
@click.argument("key_id")
@click.option(
    "--grace",
    "grace_seconds",
    type=click.IntRange(0, 30 * 86_400),
    default=0,
    show_default=True,
    metavar="SECONDS",
    help="For how long the old key stays good.",
)
@json_option
@admin_command
def rotate(client: AdminClient, key_id: str, grace_seconds: int, as_json: bool) -> None:
    """Make a key in the place of another and show it, this once."""
    made = client.rotate_key(key_id, grace_seconds=grace_seconds)
    if as_json:
        print_json(made)
        return
    click.echo(made.token)
    click.echo(
        f"key {made.key.key_id}; it is not shown again; {key_id} is good until"
        f" {made.old.expires_at:%Y-%m-%d %H:%M:%S}Z",
        err=True,
    )


@keys.command()
@click.argument("key_id")
@json_option
@admin_command
def revoke(client: AdminClient, key_id: str, as_json: bool) -> None:
    """Withdraw a key for good."""
    key = client.revoke_key(key_id)
    if as_json:
        print_json(key)
        return
    print_facts([("key", key.key_id), ("revoked", key.revoked_at)])


def parse_when(text: str, now_ms: int) -> datetime:
    """A moment of the command line: ISO 8601 (UTC if it names no zone), or days or hours from now.

    Raises CommandError.
    """
    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdigit() and unit in ("d", "h") and len(number) <= 5:
        hours = int(number) * (24 if unit == "d" else 1)
        return moment(now_ms) + timedelta(hours=hours)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        message = f'"{text}" is no time: expected 2027-01-31T12:00Z, or 90d, or 12h'
        raise CommandError(message) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _limit(number: int | None) -> int | UnsetType | None:
    """An option's limit: 0 takes it away, left out it stays."""
    return UNSET if number is None else number or None


def _end(expires: str | None, *, none: bool) -> datetime | UnsetType | None:
    """When a key ends: at a moment, never, or as before."""
    if expires:
        return parse_when(expires, clock.now_ms())
    return None if none else UNSET


def _limits(key: KeyView) -> str:
    limits = (
        (key.requests_per_minute, "rpm"),
        (key.tokens_per_minute, "tpm"),
        (key.concurrent_calls, "at a time"),
    )
    return ", ".join(f"{limit} {what}" for limit, what in limits if limit is not None)


def _state(key: KeyView) -> str:
    if key.revoked:
        return "revoked"
    return f"until {key.expires_at:%Y-%m-%d %H:%M}Z" if key.expires_at else ""
