"""The lock on a data directory: who has it knows that every former process on the same data is gone."""

import fcntl
import os
from pathlib import Path


class DataInUseError(Exception):
    """Another process serves this data; `pid` is 0 if it did not say which it is."""

    def __init__(self, path: Path, pid: int) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{path.parent} is in use by {who}: stop that gateway, or give this one "
            "a data directory of its own (--data-dir)"
        )
        self.pid = pid


class DataLock:
    """An flock on `<data_dir>/lock`: the kernel lets go of it when the process dies, however it dies."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "lock"
        self._file = -1

    def take(self) -> None:
        """Raises DataInUseError, or OSError if the directory cannot be written."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise DataInUseError(self._path, int(said) if said.isdigit() else 0) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._file = descriptor

    def release(self) -> None:
        """Let go; harmless if it was never taken. The file stays: removing it would race."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
