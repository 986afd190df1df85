"""A disk of a few megabytes of its own, for tests that fill it; needs the right to mount."""

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BLOCK = b"\0" * 4096


class SmallDisk:
    """A file system that can be filled to its last block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Nothing more fits."""
        full = False
        with self._ballast.open("ab", buffering=0) as file:
            while not full:
                try:
                    file.write(BLOCK)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    full = True

    def free(self) -> None:
        """Room again."""
        self._ballast.unlink()


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mounted at `path` for one block; skips the test where mounting is not allowed."""
    path.mkdir()
    options = f"size={megabytes}m"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
