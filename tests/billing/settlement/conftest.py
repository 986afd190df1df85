"""The ledger on both engines."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.books import Books, postgres_books, sqlite_books


@pytest.fixture(params=["sqlite", "postgres"])
async def books(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Books]:
    """A fresh ledger."""
    if request.param == "sqlite":
        async with sqlite_books(tmp_path) as made:
            yield made
        return
    async with postgres_books(request.getfixturevalue("postgres_url")) as made:
        yield made
