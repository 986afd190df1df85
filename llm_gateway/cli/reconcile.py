"""`llm-gateway reconcile`: opens the database itself and checks every invariant of it."""

import asyncio
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from llm_gateway.cli.client import json_option
from llm_gateway.cli.failure import REFUSED, CommandError
from llm_gateway.cli.output import print_json
from llm_gateway.cli.settings import config_option, data_dir_option, load_settings
from llm_gateway.config import Config, Overrides

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from billing.db.session import Database
    from billing.holds.redis_view import RedisView
    from billing.settlement.reconcile import Repaired, Report


@click.command()
@config_option
@data_dir_option
@click.option(
    "--repair",
    is_flag=True,
    help="Before: rebuild held credit and the rollup of usage. Nothing else.",
)
@json_option
def reconcile(config_path: Path | None, data_dir: str | None, repair: bool, as_json: bool) -> None:
    """Check that ledger, charges, holds and rollups agree; exit status 1 if they do not.

    Holds in Redis are compared with the ledger; --repair leaves them alone (guard rebuild).
    Reads alone (but for --repair), and may run beside gateways and workers.
    """
    from llm_gateway.api.views.reconcile import RepairView, repaired_view, report_view

    config = load_settings(config_path, Overrides(data_dir=data_dir))
    repaired, report = asyncio.run(_reconcile(config, repair=repair))
    if as_json:
        view = report_view(report)
        print_json(
            view if repaired is None else RepairView(repaired=repaired_view(repaired), report=view)
        )
    else:
        _print(repaired, report)
    if not report.ok:
        sys.exit(REFUSED)


async def _reconcile(config: Config, *, repair: bool) -> "tuple[Repaired | None, Report]":
    from sqlalchemy.exc import SQLAlchemyError

    from billing.db import migrate
    from billing.db.session import Database
    from billing.holds.redis_connection import RedisAddressError
    from billing.settlement.reconcile import Reconciler
    from llm_gateway import clock

    try:
        schema = await asyncio.to_thread(migrate.current, config.database.url)
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise CommandError(f"the database cannot be read: {first}") from error
    if schema != migrate.head():
        has = schema or "no schema"
        raise CommandError(
            f"the database has {has}, this version needs {migrate.head()}: llm-gateway migrate"
        )
    database = Database(config.database.url)
    try:
        reconciler = Reconciler(
            database, now_ms=clock.now_ms, call_seconds_max=config.guard.call_seconds_max
        )
        repaired = await reconciler.repair() if repair else None
        async with _guard(config, database) as guard:
            reconciler = Reconciler(
                database,
                now_ms=clock.now_ms,
                call_seconds_max=config.guard.call_seconds_max,
                guard=guard,
            )
            return repaired, await reconciler.run()
    except RedisAddressError as error:
        raise CommandError(f"[guard] {error}") from error
    except (SQLAlchemyError, OSError) as error:
        raise CommandError(f"the database failed ({type(error).__name__})") from error
    finally:
        await database.dispose()


@asynccontextmanager
async def _guard(config: Config, database: "Database") -> "AsyncIterator[RedisView | None]":
    """Holds in Redis, looked at from outside; None: they are in the database."""
    from billing.holds.redis_connection import parse_address
    from billing.holds.redis_view import RedisReader, RedisView
    from llm_gateway import clock

    if config.guard.store == "database":
        yield None
        return
    reader = RedisReader(parse_address(config.guard.redis_url))
    try:
        yield RedisView(
            reader,
            database,
            now_ms=clock.now_ms,
            call_seconds_max=config.guard.call_seconds_max,
        )
    finally:
        await reader.close()


def _print(repaired: "Repaired | None", report: "Report") -> None:
    if repaired is not None:
        click.echo(
            f"repaired: held credit of {repaired.held_accounts} accounts,"
            f" {repaired.rollup_groups} groups of the rollup"
        )
    for finding in report.findings:
        if finding.error:
            verdict = f"could not be run ({finding.error})"
        else:
            verdict = "ok" if finding.ok else f"{finding.count} wrong"
        click.echo(f"{finding.check:<4} {verdict:<10} {finding.sentence}")
        for example in finding.examples:
            click.echo(f"{'':<5}{example.id}: {example.what}")
        if finding.count > len(finding.examples):
            click.echo(f"{'':<5}and {finding.count - len(finding.examples)} more")
