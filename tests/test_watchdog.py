"""A test that no signal reaches is ended and explained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

STUCK = """
import asyncio, pytest, uvloop
from tests.support import watchdog

watchdog.PATIENCE_SECONDS = 0.5

@pytest.mark.timeout(0.5)
def test_waits_for_ever():
    async def main():
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
"""


@pytest.mark.slow
def test_stuck_test_is_ended_and_explained(tmp_path: Path) -> None:
    """An alarm is not heard in uvloop, so pytest-timeout alone would wait for ever."""
    (tmp_path / "test_stuck.py").write_text(STUCK)
    options = ["-p", "tests.support.watchdog", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout
    assert "Timeout (0:00:01)!" in ended.stderr
    assert "in test_waits_for_ever" in ended.stderr
