"""`llm-gateway prices simulate | rerate | reratings`: what past calls would cost by a book, and charging it."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
import rich_click as click

from llm_gateway import clock
from llm_gateway.api.views.rerating import (
    ProgressLine,
    RerateGroupsView,
    RerateGroupView,
    RerateSumsView,
    ResultLine,
    RunStartedView,
    RunView,
    SimulationView,
)
from llm_gateway.cli.client import admin_command, json_option
from llm_gateway.cli.failure import REFUSED, CommandError
from llm_gateway.cli.keys import parse_when
from llm_gateway.cli.output import Credits, print_facts, print_json, print_rest, print_table
from llm_gateway.client import AdminClient

POLL_SECONDS: Final = 0.5  # between two looks at a run that is under way

_GAP: Final = "\n"
_WHEN: Final = "A time, as 2026-11-01 or 2026-11-01T12:00Z."


class _Line(msgspec.Struct, frozen=True):
    """Any line of a simulation: the members that a line has."""

    progress: msgspec.Raw = msgspec.Raw()
    result: msgspec.Raw = msgspec.Raw()
    error: dict[str, object] = {}


@click.command()
@click.argument("book", metavar="VERSION|FILE")
@click.option("--days", type=click.IntRange(1), help="Up to now. Default: 7.")
@click.option("--from", "from_", metavar="WHEN", help=_WHEN)
@click.option("--to", metavar="WHEN", help="Not included. Default: now.")
@json_option
@admin_command
def simulate(
    client: AdminClient,
    book: str,
    days: int | None,
    from_: str | None,
    to: str | None,
    as_json: bool,
) -> None:
    """Tell what the calls of the last days would have cost by a book.

    A version of the gateway, or a file, which is not stored. Exit status 1 if no rule matches some
    of the calls.
    """
    since, until = _time(from_), _time(to)
    if book.isascii() and book.isdigit():
        asked = client.simulate_price_book_lines(int(book), days=days, from_=since, to=until)
    else:
        toml = _file(Path(book))
        asked = client.simulate_toml_lines(toml, days=days, from_=since, to=until)
    found = _result(asked, as_json=as_json)
    if as_json:
        print_json(found)
    else:
        _print_simulation(found)
    if any(cause.reason == "no_rule" for cause in found.left_out):
        sys.exit(REFUSED)


@click.command()
@click.argument("version", type=click.IntRange(1))
@click.option("--from", "from_", required=True, metavar="WHEN", help=_WHEN)
@click.option("--to", required=True, metavar="WHEN", help=_WHEN)
@click.option("--post", is_flag=True, help="Post the differences; else they are only shown.")
@click.option("--reason", help="Why; it stands in every entry. Needed with --post.")
@click.option(
    "--run-id", metavar="ID", help="The run's id: the same one is the same run. Default: a new one."
)
@json_option
@admin_command
def rerate(
    client: AdminClient,
    version: int,
    from_: str,
    to: str,
    post: bool,
    reason: str | None,
    run_id: str | None,
    as_json: bool,
) -> None:
    """Charge the calls of a time by a version of the price book.

    Without --post it shows what would change. What is posted can be taken back by another run, by
    the version that held then.
    """
    since, until = parse_when(from_, clock.now_ms()), parse_when(to, clock.now_ms())
    if not post:
        if reason or run_id:
            raise CommandError("--reason and --run-id are for --post")
        asked = client.preview_rerating_lines(version, from_=since, to=until)
        found = _result(asked, as_json=as_json)
        if as_json:
            print_json(found)
            return
        _print_simulation(found)
        click.echo(f"{_GAP}Nothing was posted; --post --reason TEXT does it.")
        return
    if not reason:
        raise CommandError("--post needs --reason: it stands in every entry")
    begun = client.start_rerating(
        version, from_=since, to=until, reason=reason, idempotency_key=run_id
    )
    run = _follow(client, begun.run, as_json=as_json)
    if as_json:
        print_json(RunStartedView(repeated=begun.repeated, run=run))
    else:
        _print_run(run)


@click.command()
@click.argument("run_id", required=False)
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page-size", type=click.IntRange(1, 100), default=20, show_default=True)
@json_option
@admin_command
def reratings(
    client: AdminClient, run_id: str | None, page: int, page_size: int, as_json: bool
) -> None:
    """List the runs of re-rating, or show one."""
    if run_id:
        run = client.rerating(run_id)
        if as_json:
            print_json(run)
        else:
            _print_run(run)
        return
    found = client.reratings(page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            run.run_id,
            run.book,
            f"{run.from_:%Y-%m-%d %H:%M}Z",
            f"{run.to:%Y-%m-%d %H:%M}Z",
            "done" if run.state == "done" else f"{run.percent} %",
            run.entries,
            Credits(run.taken_micro_credits),
            Credits(run.given_back_micro_credits),
            run.actor,
        )
        for run in found.items
    ]
    head = ("run", "book", "from", "to", "state", "entries", "taken", "given back", "by")
    print_table(head, rows)
    print_rest(len(found.items), found.total)


COMMANDS: Final = (simulate, rerate, reratings)


def _result(asked: AbstractContextManager[Iterator[bytes]], *, as_json: bool) -> SimulationView:
    with asked as pieces, _bar(shown=not as_json) as show:
        for line in _lines(pieces):
            read = msgspec.json.decode(line, type=_Line)
            if bytes(read.progress):
                show(msgspec.json.decode(line, type=ProgressLine).progress.percent)
            elif bytes(read.result):
                show(100)
                return msgspec.json.decode(line, type=ResultLine).result
            elif read.error:
                raise CommandError(str(read.error.get("message")), REFUSED)
    raise CommandError("the answer broke off: ask again", REFUSED)


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _follow(client: AdminClient, run: RunView, *, as_json: bool) -> RunView:
    """Wait for the end of a run. Whoever breaks this off stops no run."""
    with _bar(shown=not as_json) as show:
        while run.state != "done":
            show(run.percent)
            time.sleep(POLL_SECONDS)
            run = client.rerating(run.run_id)
        show(100)
    return run


@contextmanager
def _bar(*, shown: bool) -> Iterator[Callable[[int], None]]:
    """Shows a percentage; on a terminal, and apart from what is printed for others."""
    if not shown or not sys.stderr.isatty():
        yield lambda _percent: None
        return
    with click.progressbar(length=100, file=sys.stderr) as bar:
        yield lambda percent: bar.update(percent - bar.pos)


def _print_simulation(found: SimulationView) -> None:
    totals = found.totals
    book = "this file" if found.book is None else f"book {found.book}"
    click.echo(
        f"calls from {found.from_:%Y-%m-%d %H:%M:%S}Z to {found.to:%Y-%m-%d %H:%M:%S}Z by {book},"
        " in credits"
    )
    print_facts(
        [
            ("calls", str(totals.calls)),
            ("before", Credits(totals.before_micro_credits)),
            ("after", Credits(totals.after_micro_credits)),
            ("difference", _signed(totals)),
            ("unchanged, for they cannot be re-rated", _left(totals)),
        ]
    )
    for cause in found.left_out:
        credits_ = Credits(cause.micro_credits)
        click.echo(f"  {cause.calls} calls of {credits_}: {cause.meaning}")
    _print_groups("no rule for", found.no_rule)
    _print_groups("by account", found.by_account)
    _print_groups("by scene", found.by_scene)
    _print_groups("by model", found.by_model)
    if found.movers:
        click.echo(f"{_GAP}what changes most")
        _print_rows(found.movers)
    if found.cut:
        click.echo("(too many accounts and models to keep apart: the lists may miss one)")


def _print_groups(title: str, groups: RerateGroupsView) -> None:
    if not groups.items:
        return
    click.echo(f"{_GAP}{title}")
    _print_rows(groups.items)
    rest = groups.rest
    if rest.calls or rest.left_out_calls:
        click.echo(
            f"(others: {rest.calls + rest.left_out_calls} calls,"
            f" {Credits(rest.before_micro_credits)} -> {Credits(rest.after_micro_credits)})"
        )


def _print_rows(groups: list[RerateGroupView]) -> None:
    rows = [
        (
            " ".join(part for part in (group.account, group.scene, _model(group)) if part),
            group.calls,
            Credits(group.before_micro_credits),
            Credits(group.after_micro_credits),
            _signed(group),
            _left(group),
        )
        for group in groups
    ]
    print_table(("", "calls", "before", "after", "difference", "cannot be re-rated"), rows)


def _model(group: RerateGroupView) -> str:
    return f"{group.provider}/{group.model}" if group.model else ""


def _signed(sums: RerateSumsView) -> str:
    difference = sums.difference_micro_credits
    sign = "+" if difference > 0 else ""
    if not sums.before_micro_credits or not difference:
        return f"{sign}{Credits(difference)}"
    # Half a tenth and more is one.
    tenths = (abs(difference) * 2000 // sums.before_micro_credits + 1) // 2
    direction = "+" if difference > 0 else "-"
    return f"{sign}{Credits(difference)} ({direction}{tenths // 10}.{tenths % 10} %)"


def _left(sums: RerateSumsView) -> str:
    if not sums.left_out_calls:
        return ""
    return f"{sums.left_out_calls} calls, {Credits(sums.left_out_micro_credits)}"


def _print_run(run: RunView) -> None:
    print_facts(
        [
            ("run", run.run_id),
            ("book", run.book),
            ("from", f"{run.from_:%Y-%m-%d %H:%M:%S}Z"),
            ("to", f"{run.to:%Y-%m-%d %H:%M:%S}Z"),
            ("reason", run.reason),
            ("by", run.actor),
            ("state", "done" if run.state == "done" else f"posting, {run.percent} %"),
            ("calls", str(run.calls)),
            ("entries", str(run.entries)),
            ("taken", Credits(run.taken_micro_credits)),
            ("given back", Credits(run.given_back_micro_credits)),
        ]
    )
    for cause in run.left_out:
        click.echo(f"  {cause.calls} calls keep their charge: {cause.meaning}")


def _time(text: str | None) -> datetime | None:
    return None if text is None else parse_when(text, clock.now_ms())


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read ({error.strerror})") from error
