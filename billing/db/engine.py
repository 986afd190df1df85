"""Chooses the engine that an address names."""

from collections.abc import Callable
from typing import Protocol

from billing.db.hot import ANSWER_SECONDS, HotDatabase
from billing.db.outbox import OutboxDatabase
from billing.db.postgres import PostgresHotDatabase
from billing.db.postgres_url import is_postgres
from billing.db.session import sqlite_path
from billing.db.sqlite import SqliteHotDatabase


class Engine(HotDatabase, OutboxDatabase, Protocol):
    """All that an engine does."""


def hot_database(
    url: str,
    *,
    clock: Callable[[], int],
    holds_here: bool = True,
    answer_seconds: float = ANSWER_SECONDS,
) -> Engine:
    """The engine for an address, not started; ValueError if there is none for it.

    `clock` gives milliseconds since the epoch. Without `holds_here` holds live elsewhere. After
    `answer_seconds` whoever asked is told that the database is away.
    """
    if is_postgres(url):
        return PostgresHotDatabase(
            url, clock=clock, holds_here=holds_here, answer_seconds=answer_seconds
        )
    if path := sqlite_path(url):
        return SqliteHotDatabase(
            path, clock=clock, holds_here=holds_here, answer_seconds=answer_seconds
        )
    raise ValueError("the database must be a SQLite file or a PostgreSQL")
