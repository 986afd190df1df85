"""The control plane on either engine; what concerns no engine asks for none."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.control import Control, control


@pytest.fixture(params=["sqlite", "postgresql"])
async def plane(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Control]:
    on_sqlite = request.param == "sqlite"
    async with control(tmp_path if on_sqlite else request.getfixturevalue("postgres_url")) as made:
        yield made
