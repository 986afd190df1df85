"""`llm-gateway holds`, `outbox`, `quarantine`, `guard`: what is stuck, and what to do about it."""

from collections.abc import Callable
from typing import Final, TypeVar

import rich_click as click
from msgspec import UnsetType

from llm_gateway.api.views.charges import CallView, EventView
from llm_gateway.api.views.quarantine import ResolvedView
from llm_gateway.api.views.shared import Time
from llm_gateway.cli.client import admin_command, json_option
from llm_gateway.cli.output import Credits, print_facts, print_json, print_rest, print_table
from llm_gateway.client import UNSET, AdminClient

T = TypeVar("T")

REVISIONS: Final = {1: "estimate", 2: "final"}

page_option = click.option("--page", type=click.IntRange(1), default=1, show_default=True)
size_option = click.option(
    "--page-size", type=click.IntRange(1, 100), default=50, show_default=True
)
reason_option = click.option(
    "--reason", required=True, help="Why; it stands in the audit trail for ever."
)

key_option = click.option(
    "--idempotency-key", "key", metavar="KEY", help="Given again, it is the same act, not another."
)


def paged(function: Callable[..., None]) -> Callable[..., None]:
    """The options of a list."""
    return page_option(size_option(function))


def given_or_unset(value: T | None) -> T | UnsetType:
    """An option's value; UNSET, which changes nothing, if it was not given."""
    return UNSET if value is None else value


# -- holds -------------------------------------------------------------------------------------


@click.group()
def holds() -> None:
    """Credit that is set aside for calls: list, show, release."""


@holds.command("list")
@click.option("--account", metavar="ID", help="Only this account's.")
@paged
@json_option
@admin_command
def list_holds(
    client: AdminClient, account: str | None, page: int, page_size: int, as_json: bool
) -> None:
    """List holds, newest first."""
    found = client.holds(account=account or "", page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            item.hold_id,
            item.account,
            Credits(item.held_micro_credits),
            Credits(item.progress_micro_credits),
            item.state,
            _when(item.started_at),
            item.process,
        )
        for item in found.items
    ]
    print_table(("hold", "account", "held", "progress", "state", "started", "process"), rows)
    print_rest(len(found.items), found.total)


@holds.command("show")
@click.argument("hold")
@json_option
@admin_command
def show_hold(client: AdminClient, hold: str, as_json: bool) -> None:
    """Show a hold, its call, and whether its process lives."""
    found = client.hold(hold)
    if as_json:
        print_json(found)
        return
    print_facts(
        [
            ("hold", found.hold.hold_id),
            ("account", found.hold.account),
            ("held", Credits(found.hold.held_micro_credits)),
            ("progress", Credits(found.hold.progress_micro_credits)),
            ("state", found.hold.state),
            ("started", _when(found.hold.started_at)),
            ("process", found.hold.process),
            ("process lives", found.process_alive),
            ("recorded", _revisions(found.recorded_revisions)),
            ("charge waits", found.waiting),
            ("in quarantine", found.quarantined),
            *_call_facts(found.call),
        ]
    )


@holds.command("release")
@click.argument("hold")
@reason_option
@json_option
@admin_command
def release_hold(client: AdminClient, hold: str, reason: str, as_json: bool) -> None:
    """Let go of a hold whose process is gone; nothing is charged for its call."""
    done = client.release_hold(hold, reason=reason)
    if as_json:
        print_json(done)
        return
    verb = "was released before" if done.repeated else "is released"
    click.echo(f"hold {done.hold_id} {verb}")


# -- the outbox --------------------------------------------------------------------------------


@click.group()
def outbox() -> None:
    """Charges on their way into the ledger: list, show."""


@outbox.command("list")
@paged
@json_option
@admin_command
def list_outbox(client: AdminClient, page: int, page_size: int, as_json: bool) -> None:
    """List what waits, oldest first."""
    found = client.outbox(page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            item.event_id,
            _revision(item.revision),
            item.account,
            item.cancelled,
            item.attempts,
            _when(item.created_at),
        )
        for item in found.items
    ]
    print_table(("event", "word", "account", "cancelled", "attempts", "since"), rows)
    print_rest(len(found.items), found.total)


@outbox.command("show")
@click.argument("event")
@click.option(
    "--revision",
    type=click.IntRange(1, 2),
    default=2,
    show_default=True,
    help="1: a sweeper's estimate, 2: the final.",
)
@json_option
@admin_command
def show_waiting(client: AdminClient, event: str, revision: int, as_json: bool) -> None:
    """Show a waiting event."""
    found = client.waiting_event(event, revision)
    if as_json:
        print_json(found)
        return
    print_facts(
        [
            ("event", found.row.event_id),
            ("word", _revision(found.row.revision)),
            ("account", found.row.account),
            ("since", _when(found.row.created_at)),
            ("attempts", found.row.attempts),
            ("cancelled", found.row.cancelled),
            ("payload bytes", found.payload_bytes),
            *_event_facts(found.event),
        ]
    )


# -- the quarantine ----------------------------------------------------------------------------


@click.group()
def quarantine() -> None:
    """Charges that could not be posted as they are: list, show, replay, discard."""


@quarantine.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that are resolved.")
@paged
@json_option
@admin_command
def list_quarantine(
    client: AdminClient, everything: bool, page: int, page_size: int, as_json: bool
) -> None:
    """List what waits for a person, newest first."""
    found = client.quarantine(unresolved_only=not everything, page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            item.id,
            item.event_id,
            _revision(item.revision),
            item.account,
            item.origin,
            _when(item.created_at),
            item.resolution or item.reason,
        )
        for item in found.items
    ]
    print_table(("number", "event", "word", "account", "from", "since", "why"), rows)
    print_rest(len(found.items), found.total)


@quarantine.command("show")
@click.argument("number", type=click.IntRange(1))
@json_option
@admin_command
def show_quarantined(client: AdminClient, number: int, as_json: bool) -> None:
    """Show an event, decoded."""
    found = client.quarantined(number)
    if as_json:
        print_json(found)
        return
    held = found.held_micro_credits
    print_facts(
        [
            ("number", found.row.id),
            ("event", found.row.event_id),
            ("word", _revision(found.row.revision)),
            ("account", found.row.account),
            ("from", found.row.origin),
            ("why", found.row.reason),
            ("resolution", found.row.resolution),
            ("since", _when(found.row.created_at)),
            ("recorded", _revisions(found.recorded_revisions)),
            ("held", None if held is None else Credits(held)),
            ("payload bytes", found.payload_bytes),
            *(_event_facts(found.event) if found.event else _call_facts(found.call)),
        ]
    )


@quarantine.command("replay")
@click.argument("number", type=click.IntRange(1))
@reason_option
@json_option
@admin_command
def replay(client: AdminClient, number: int, reason: str, as_json: bool) -> None:
    """Let the ledger worker try an event again."""
    _print_resolved(client.replay_quarantined(number, reason=reason), as_json=as_json)


@quarantine.command("discard")
@click.argument("number", type=click.IntRange(1))
@reason_option
@json_option
@admin_command
def discard(client: AdminClient, number: int, reason: str, as_json: bool) -> None:
    """Drop an event for good: it is never charged."""
    _print_resolved(client.discard_quarantined(number, reason=reason), as_json=as_json)


def _print_resolved(done: ResolvedView, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    before = "before: " if done.repeated else ""
    hold = "; its hold is released" if done.hold_released else ""
    click.echo(f"event {done.row.event_id} {before}{done.row.resolution}{hold}")


# -- the guard ---------------------------------------------------------------------------------


@click.group()
def guard() -> None:
    """The hold store."""


@guard.command()
@reason_option
@json_option
@admin_command
def rebuild(client: AdminClient, reason: str, as_json: bool) -> None:
    """Make it forget what it derived from the ledger and load it anew; calls wait meanwhile."""
    done = client.rebuild_guard(reason=reason)
    if as_json:
        print_json(done)
        return
    found = "" if done.accounts is None else f"; held was wrong in {done.accounts} accounts"
    click.echo(f"rebuilt{found}")


# -- facts -------------------------------------------------------------------------------------


def _call_facts(call: CallView | None) -> list[tuple[str, object]]:
    if call is None:
        return [("call", "cannot be read")]
    return [
        ("key", call.key_id),
        ("app", call.app),
        ("scene", call.scene),
        ("provider", call.provider),
        ("model", call.model_sent),
        ("run", call.run_id),
        ("client's request id", call.client_request_id),
        ("price rule", f"{call.rule_id} of book {call.book}"),
        ("call began", _when(call.started_at)),
    ]


def _event_facts(event: EventView | None) -> list[tuple[str, object]]:
    if event is None:
        return [("payload", "cannot be read")]
    usage = event.usage
    return [
        ("charge", Credits(event.amount_micro_credits)),
        ("ceiling", Credits(event.ceiling_micro_credits)),
        ("quality", f"{event.quality} ({event.usage_source})"),
        ("input tokens", usage.input + usage.cached_input),
        ("output tokens", usage.output + usage.reasoning),
        ("call ended", _when(event.finished_at)),
        *_call_facts(event.call),
    ]


def _revision(revision: int) -> str:
    return REVISIONS.get(revision, str(revision))


def _revisions(revisions: list[int]) -> str:
    return ", ".join(_revision(revision) for revision in revisions) or "nothing"


def _when(at: Time) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}Z"
