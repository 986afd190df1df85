"""`llm-gateway prices`: check a price book, upload it, say from when on it holds, see what applies."""

import csv
import io
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec
import rich_click as click

from billing.kinds import ACTIVATION_LEAD_MS
from billing.shop.exports import safe_text
from llm_gateway import clock
from llm_gateway.api.views.price_books import ActivationView, DiffView, ExplainView, diff_view
from llm_gateway.api.views.shared import Time, moment
from llm_gateway.cli.client import admin_command, json_option
from llm_gateway.cli.failure import REFUSED, CommandError
from llm_gateway.cli.keys import parse_when
from llm_gateway.cli.output import print_facts, print_json, print_rest, print_table
from llm_gateway.cli.price_changes import print_changes, summary
from llm_gateway.cli.rerating import COMMANDS
from llm_gateway.client import AdminClient
from pricing_rules.book import Book, BookError, Problem, parse_book
from pricing_rules.diff import diff as compare
from pricing_rules.export import TABLE_HEAD, dump_book, table_rows
from pricing_rules.lint import lint as lint_book

CANDIDATES_MAX: Final = 12  # rules shown that do not apply
# More than it takes until an activation holds: what is scheduled before counts as in effect.
_SOON: Final = timedelta(milliseconds=ACTIVATION_LEAD_MS + 1_000)
_BOOK_FILE: Final = click.Path(path_type=Path)

replaces_option = click.option(
    "--replaces",
    type=click.IntRange(1),
    metavar="VERSION",
    help="Refuse if it takes another one's place. Default: whichever holds by then.",
)


@click.group()
def prices() -> None:
    """Check, compare, upload and activate price books."""


@prices.command()
@click.argument("file", type=_BOOK_FILE)
@json_option
def lint(file: Path, as_json: bool) -> None:
    """Check a price book without a gateway. Exit status 1 if it would be refused."""
    _print_linted(file, lint_book(_read(file)), as_json=as_json)


@prices.command()
@click.argument("file", type=_BOOK_FILE)
@click.option(
    "--dry-run", is_flag=True, help="Store nothing; tell what the gateway would say of it."
)
@json_option
@admin_command
def upload(client: AdminClient, file: Path, dry_run: bool, as_json: bool) -> None:
    """Upload a price book as a new version. It holds only once it is activated.

    The gateway also warns of prices far from those in effect, and of models called in the last
    seven days that no rule prices. Exit status 1 if the book has errors.
    """
    text = _read(file)
    problems = lint_book(text)
    if any(problem.level == "error" for problem in problems):
        _print_linted(file, problems, as_json=as_json)
    if dry_run:
        found = client.lint_price_book(text)
        _print_linted(file, _problems(found.problems), as_json=as_json)
        return
    done = client.upload_price_book(text)
    if as_json:
        print_json(done)
        return
    _print_problems(file, _problems(done.warnings), to_stderr=True)
    what = "is there already as" if done.repeated else "is now"
    click.echo(f"{file} {what} version {done.version}; it holds from its activation on:")
    click.echo(f"llm-gateway prices activate {done.version}")


@prices.command()
@click.argument("book", metavar="FILE|VERSION")
@click.argument("against", type=click.IntRange(1), required=False, metavar="[VERSION]")
@json_option
@admin_command
def diff(client: AdminClient, book: str, against: int | None, as_json: bool) -> None:
    """Show what a file or a version changes against another version, or the one in effect."""
    if book.isascii() and book.isdigit():
        found = _diff_versions(client, int(book), against)
    else:
        found = _diff_file(client, Path(book), against)
    if as_json:
        print_json(found)
        return
    print_changes(found)


@prices.command()
@click.argument("version", type=click.IntRange(1))
@click.option("--at", metavar="WHEN", help="From when on; default: in a few seconds.")
@replaces_option
@json_option
@admin_command
def activate(
    client: AdminClient, version: int, at: str | None, replaces: int | None, as_json: bool
) -> None:
    """Let a version hold from now or from a later moment on; shows what that changes.

    It is refused if meanwhile somebody else activates another version.
    """
    now = clock.now_ms()
    book = client.price_book(version)
    asked = parse_when(at, now) if at else None
    begin = max(each for each in (moment(now) + _SOON, asked, book.planned_from) if each)
    held, follower = _around(client, begin)
    if held not in (None, version) and not as_json:
        changes = _diff_versions(client, version, held)
        click.echo(f"against version {held}: {summary(changes)}")
    done = client.activate_price_book(
        version, at=asked, replaces=replaces or held, followed_by=follower
    )
    _print_activation(done, as_json=as_json)


@prices.command()
@replaces_option
@json_option
@admin_command
def rollback(client: AdminClient, replaces: int | None, as_json: bool) -> None:
    """Go back to the version that held before the present one; again: one step further back."""
    held, follower = _around(client, moment(clock.now_ms()) + _SOON)
    done = client.roll_back_price_book(replaces=replaces or held, followed_by=follower)
    _print_activation(done, as_json=as_json)


@prices.command("list")
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page-size", type=click.IntRange(1, 100), default=20, show_default=True)
@json_option
@admin_command
def list_books(client: AdminClient, page: int, page_size: int, as_json: bool) -> None:
    """List the versions: which holds, and which are to hold when."""
    found = client.price_books(page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            book.version,
            book.name,
            book.rules,
            book.uploaded_by,
            f"{book.uploaded_at:%Y-%m-%d %H:%M}Z",
            _shown(book.effective_from),
            _shown(book.scheduled_from),
            "in effect" if book.current else "",
        )
        for book in found.items
    ]
    head = ("version", "name", "rules", "by", "uploaded", "held from", "scheduled", "")
    print_table(head, rows)
    print_rest(len(found.items), found.total)


@prices.command()
@click.argument("version", type=click.IntRange(1), required=False, metavar="[VERSION]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["original", "toml", "csv"]),
    default="original",
    show_default=True,
    help="As uploaded; written anew without comments; or a table for spreadsheets.",
)
@click.option("--output", "-o", type=_BOOK_FILE, metavar="FILE", help="Default: standard output.")
@admin_command
def export(client: AdminClient, version: int | None, form: str, output: Path | None) -> None:
    """Write a version, or the one in effect, as TOML or CSV."""
    text = client.price_book_text(_current(client) if version is None else version)
    if form == "toml":
        text = dump_book(_parsed(text))
    elif form == "csv":
        text = _csv(_parsed(text))
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_bytes(text.encode())
    except OSError as error:
        raise CommandError(f"{output} cannot be written ({error.strerror})") from error
    click.echo(f"wrote {output}")


@prices.command()
@click.option("--scene", required=True)
@click.option("--provider", required=True)
@click.option("--model", required=True, help="The model's name at the provider.")
@click.option("--version", type=click.IntRange(1), help="Default: the one in effect.")
@json_option
@admin_command
def explain(
    client: AdminClient, scene: str, provider: str, model: str, version: int | None, as_json: bool
) -> None:
    """Show which rule prices a call, and why the others do not. Exit status 1 if none does."""
    found = client.explain_price(scene=scene, provider=provider, model=model, version=version or 0)
    if as_json:
        print_json(found)
    else:
        _print_explained(found)
    if found.rule is None:
        sys.exit(REFUSED)


# -- asking ------------------------------------------------------------------------------------


def _around(client: AdminClient, begin: Time) -> tuple[int | None, int | None]:
    """The version that holds at a moment as things stand, and the next that follows."""
    found = client.price_books(page_size=1)
    held = found.current
    for each in found.scheduled:
        if each.effective_from > begin:
            return held, each.version
        held = each.version
    return held, None


def _current(client: AdminClient) -> int:
    current = client.price_books(page_size=1).current
    if current is None:
        raise CommandError("no price book is in effect: name a version", REFUSED)
    return current


def _diff_versions(client: AdminClient, version: int, against: int | None) -> DiffView:
    return client.diff_price_book(version, against=against or 0)


def _diff_file(client: AdminClient, file: Path, against: int | None) -> DiffView:
    try:
        after = parse_book(_read(file))
    except BookError as error:
        lines = "\n".join(problem.in_file(str(file)) for problem in error.problems)
        raise CommandError(f"{file} would be refused\n{lines}", REFUSED) from error
    against = _current(client) if against is None else against
    return diff_view(compare(_parsed(client.price_book_text(against)), after), None, against)


def _parsed(text: str) -> Book:
    try:
        return parse_book(text)
    except BookError as error:
        first = error.problems[0]
        message = f"the gateway's book is not understood by this version of llm-gateway: {first}"
        raise CommandError(message, REFUSED) from error


def _csv(book: Book) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(TABLE_HEAD)
    writer.writerows([safe_text(cell) for cell in row] for row in table_rows(book))
    return text.getvalue()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CommandError(f"{file} cannot be read ({error.strerror})") from error


# -- showing -----------------------------------------------------------------------------------


def _problems(views: Sequence[msgspec.Struct]) -> list[Problem]:
    return [msgspec.convert(view, Problem, from_attributes=True) for view in views]


def _print_linted(file: Path, problems: Sequence[Problem], *, as_json: bool) -> None:
    """All that was found; ends the command if the book would be refused."""
    errors = sum(problem.level == "error" for problem in problems)
    if as_json:
        print_json({"acceptable": not errors, "problems": problems})
    else:
        _print_problems(file, problems)
        click.echo(f"{errors} errors, {len(problems) - errors} warnings")
    if errors:
        sys.exit(REFUSED)


def _print_problems(file: Path, problems: Sequence[Problem], *, to_stderr: bool = False) -> None:
    for problem in problems:
        click.echo(problem.in_file(str(file)), err=to_stderr)
        for name, text in problem.hints():
            for line in text.rstrip().split("\n"):
                click.echo(f"    {name}: {line}", err=to_stderr)


def _print_explained(found: ExplainView) -> None:
    if found.rule is None:
        click.echo(f"no rule of book {found.book} prices this call")
    else:
        rule = found.rule
        print_facts(
            [
                ("rule", rule.rule_id),
                ("book", found.book),
                ("description", rule.description),
                ("free", "yes" if rule.free else ""),
                ("currency", f"{rule.currency}, {rule.credits_per_unit} credits each"),
            ]
        )
        click.echo()
        click.echo(found.rule_toml)
    if found.considered:
        click.echo()
        # The likeliest come first; of a long book, the rest says nothing.
        shown = found.considered[:CANDIDATES_MAX]
        print_table(("", "rule", "why"), [("->" if c.won else "", c.rule_id, c.why) for c in shown])
        if len(found.considered) > len(shown):
            click.echo(f"({len(found.considered) - len(shown)} others; --json shows all)")


def _print_activation(done: ActivationView, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    since = done.effective_from.isoformat()
    if done.repeated:
        click.echo(f"version {done.version} holds from {since} on already: nothing was done")
        return
    instead = "" if done.replaced is None else f", in the place of version {done.replaced}"
    click.echo(f"version {done.version} holds from {since} on{instead}")
    if done.followed_by is not None:
        click.echo(f"version {done.followed_by} is scheduled to follow it")


def _shown(time: Time | None) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}Z" if time else ""


for _command in COMMANDS:
    prices.add_command(_command)
