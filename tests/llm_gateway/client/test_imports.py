"""What whoever imports the typed client, or starts a command, has to load with it."""

import subprocess
import sys

import pytest

from llm_gateway.cli import _COMMANDS

HEAVY = (
    "sqlalchemy",
    "alembic",
    "asyncpg",
    "aiosqlite",
    "redis",
    "litestar",
    "uvicorn",
    "tiktoken",
)


@pytest.mark.parametrize(
    "module",
    ["llm_gateway.client", *sorted({f"llm_gateway.cli.{name}" for name, _ in _COMMANDS.values()})],
)
def test_loads_no_database_server_or_tokenizer(module: str) -> None:
    program = (
        "import importlib, sys\n"
        f"importlib.import_module({module!r})\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
