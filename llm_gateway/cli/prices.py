"""`llm-gateway prices`: check a price book, upload it, say from when on it holds, see what applies."""

import sys
from pathlib import Path
from typing import Final

import rich_click as click

from llm_gateway import clock
from llm_gateway.api.views.price_books import (
    ActivationView,
    BookList,
    ExplainView,
    ProblemView,
    UploadView,
)
from llm_gateway.cli.client import Client, admin_command, json_option
from llm_gateway.cli.failure import REFUSED, CommandError
from llm_gateway.cli.keys import parse_when
from llm_gateway.cli.output import print_facts, print_json, print_rest, print_table
from llm_gateway.cli.rerating import COMMANDS
from pricing_rules.lint import lint as lint_book

CANDIDATES_MAX: Final = 12  # rules shown that do not apply
_BOOK_FILE: Final = click.Path(path_type=Path)


@click.group()
def prices() -> None:
    """Check, upload and activate price books."""


@prices.command()
@click.argument("file", type=_BOOK_FILE)
@json_option
def lint(file: Path, as_json: bool) -> None:
    """Check a price book without a gateway. Exit status 1 if it would be refused."""
    problems = lint_book(_read(file))
    errors = sum(problem.level == "error" for problem in problems)
    if as_json:
        print_json({"acceptable": not errors, "problems": problems})
    else:
        for problem in problems:
            click.echo(f"{file}: {problem}")
        click.echo(f"{errors} errors, {len(problems) - errors} warnings")
    if errors:
        sys.exit(REFUSED)


@prices.command()
@click.argument("file", type=_BOOK_FILE)
@json_option
@admin_command
def upload(client: Client, file: Path, as_json: bool) -> None:
    """Upload a price book as a new version. It holds only once it is activated."""
    text = _read(file)
    refused = [problem for problem in lint_book(text) if problem.level == "error"]
    if refused:
        # All of them, which the gateway's one message would not show line by line.
        lines = "\n".join(f"{file}: {problem}" for problem in refused)
        raise CommandError(f"{file} would be refused\n{lines}", REFUSED)
    done = client.post_toml("/admin/price-books", UploadView, text)
    if as_json:
        print_json(done)
        return
    for warning in done.warnings:
        click.echo(f"{file}: {_problem_text(warning)}", err=True)
    what = "is there already as" if done.repeated else "is now"
    click.echo(f"{file} {what} version {done.version}; it holds from its activation on:")
    click.echo(f"llm-gateway prices activate {done.version}")


@prices.command()
@click.argument("version", type=click.IntRange(1))
@click.option("--at", metavar="WHEN", help="From when on; default: in a few seconds.")
@json_option
@admin_command
def activate(client: Client, version: int, at: str | None, as_json: bool) -> None:
    """Let a version hold from now or from a later moment on."""
    body = {"at": parse_when(at, clock.now_ms()) if at else None}
    path = f"/admin/price-books/{version}/activate"
    _print_activation(client.post(path, ActivationView, body), as_json=as_json)


@prices.command()
@json_option
@admin_command
def rollback(client: Client, as_json: bool) -> None:
    """Go back to the version that held before the present one."""
    done = client.post("/admin/price-books/rollback", ActivationView)
    _print_activation(done, as_json=as_json)


@prices.command("list")
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page-size", type=click.IntRange(1, 100), default=20, show_default=True)
@json_option
@admin_command
def list_books(client: Client, page: int, page_size: int, as_json: bool) -> None:
    """List the versions."""
    found = client.get("/admin/price-books", BookList, page=page, page_size=page_size)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            book.version,
            book.name,
            book.rules,
            f"{book.uploaded_at:%Y-%m-%d %H:%M}Z",
            f"{book.effective_from:%Y-%m-%d %H:%M:%S}Z" if book.effective_from else "",
            "in effect" if book.current else "",
        )
        for book in found.items
    ]
    print_table(("version", "name", "rules", "uploaded", "holds from", ""), rows)
    print_rest(len(found.items), found.total)


@prices.command()
@click.option("--scene", required=True)
@click.option("--provider", required=True)
@click.option("--model", required=True, help="The model's name at the provider.")
@json_option
@admin_command
def explain(client: Client, scene: str, provider: str, model: str, as_json: bool) -> None:
    """Show which rule prices a call, and why the others do not. Exit status 1 if none does."""
    found = client.get(
        "/admin/price-books/explain", ExplainView, scene=scene, provider=provider, model=model
    )
    if as_json:
        print_json(found)
    else:
        _print_explained(found)
    if found.rule is None:
        sys.exit(REFUSED)


for _command in COMMANDS:
    prices.add_command(_command)


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
                ("input", rule.input_price),
                ("cached input", rule.cached_input_price),
                ("output", rule.output_price),
                ("reasoning", rule.reasoning_price),
                ("per call", rule.per_call_price),
            ]
        )
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
    else:
        click.echo(f"version {done.version} holds from {done.effective_from.isoformat()} on")


def _problem_text(problem: ProblemView) -> str:
    place = f"line {problem.line}: " if problem.line else ""
    rule = f'rule "{problem.rule}": ' if problem.rule else ""
    return f"{place}{problem.level}: {rule}{problem.message}"


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except OSError as error:
        raise CommandError(f"{file} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{file} is not UTF-8 text") from error
