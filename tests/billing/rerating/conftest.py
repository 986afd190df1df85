"""A store with three price books, on both engines."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.migrated import migrated
from tests.support.money import Place
from tests.support.rerating import with_books
from tests.support.shop import Shop, open_shop


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A fresh, migrated database."""
    if request.param == "sqlite":
        return migrated(tmp_path)
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def shop(place: Place) -> AsyncIterator[Shop]:
    """A store whose calls are made at T0; its invariants are checked at the end."""
    async with open_shop(place) as made:
        await with_books(made)
        yield made
