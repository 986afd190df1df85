"""A migrated SQLite file at the price of a copy: migrating takes longer than most tests."""

import tempfile
from functools import cache
from pathlib import Path

from billing.db import migrate


def migrated(directory: Path) -> Path:
    """A new, empty database, `gateway.db` in that directory."""
    path = directory / "gateway.db"
    path.write_bytes(_content())
    return path


@cache
def _content() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "gateway.db"
        migrate.upgrade(f"sqlite+aiosqlite:///{path}")
        assert not path.with_name("gateway.db-wal").exists()
        return path.read_bytes()
