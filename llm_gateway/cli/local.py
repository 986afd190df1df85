"""Commands that work on this machine: serve, worker, init, migrate, doctor."""

import sys
from pathlib import Path

import rich_click as click

from llm_gateway.cli.client import json_option
from llm_gateway.cli.failure import REFUSED, CommandError
from llm_gateway.cli.output import print_json
from llm_gateway.cli.settings import (
    FILE_NAME,
    config_option,
    data_dir_option,
    load_settings,
    settings_file,
)
from llm_gateway.config import Overrides


@click.command()
@config_option
@click.option("--host", metavar="ADDRESS", help="Instead of the file's host.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Instead of the file's; 0: any.")
@click.option(
    "--processes", type=click.IntRange(1, 1024), help="Instead of the file's; needs PostgreSQL."
)
@data_dir_option
def serve(
    config_path: Path | None,
    host: str | None,
    port: int | None,
    processes: int | None,
    data_dir: str | None,
) -> None:
    """Run the gateway until Ctrl-C or SIGTERM."""
    from llm_gateway.serving import serve as run

    overrides = Overrides(host=host, port=port, processes=processes, data_dir=data_dir)
    sys.exit(run(load_settings(config_path, overrides)))


@click.command()
@config_option
@data_dir_option
def worker(config_path: Path | None, data_dir: str | None) -> None:
    """Settle charges, apart from `serve`, until Ctrl-C or SIGTERM; several may run. Needs PostgreSQL."""
    from llm_gateway.worker import work

    sys.exit(work(load_settings(config_path, Overrides(data_dir=data_dir))))


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=FILE_NAME)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init(file: Path, force: bool) -> None:
    """Write a gateway.toml with every setting, what it does, and its default."""
    from llm_gateway.package_data import settings_text

    try:
        with file.open("w" if force else "x", encoding="utf-8") as target:
            target.write(settings_text())
    except FileExistsError as error:
        raise CommandError(f"{file} is there already; --force replaces it") from error
    except OSError as error:
        raise CommandError(f"{file} cannot be written ({error.strerror})") from error
    click.echo(f"wrote {file}; everything in it stands as it is by default")


@click.command()
@config_option
@data_dir_option
@json_option
def migrate(config_path: Path | None, data_dir: str | None, as_json: bool) -> None:
    """Bring the database to the schema of this version; with SQLite `serve` does so by itself."""
    from billing.db import migrate as schema

    config = load_settings(config_path, Overrides(data_dir=data_dir))
    url, shown = config.database.url, config.database.shown
    try:
        before = schema.current(url)
        schema.upgrade(url)
        after = schema.current(url)
    except Exception as error:
        # Drivers and Alembic have no common base; the first line says it, the rest is SQL.
        first = str(error).partition("\n")[0] or type(error).__name__
        raise CommandError(f"the database cannot be brought up to date: {first}") from error
    if as_json:
        print_json({"database": shown, "before": before, "after": after})
    elif before == after:
        click.echo(f"{shown} is up to date ({after})")
    else:
        click.echo(f"{shown}: from {before or 'nothing'} to {after}")


@click.command()
@config_option
@data_dir_option
@json_option
def doctor(config_path: Path | None, data_dir: str | None, as_json: bool) -> None:
    """Check settings, data, database, prices, providers and clock; exit status 1 if any is wrong."""
    from llm_gateway.doctor import Level, examine

    findings = examine(settings_file(config_path), Overrides(data_dir=data_dir))
    wrong = any(finding.level is Level.WRONG for finding in findings)
    if as_json:
        print_json({"ok": not wrong, "findings": findings})
    else:
        for finding in findings:
            click.echo(f"{finding.level.value:<6} {finding.subject:<12} {finding.text}")
            if finding.advice:
                click.echo(f"{'':<20}{finding.advice}")
    if wrong:
        sys.exit(REFUSED)
