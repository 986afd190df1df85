"""Where finished calls go while the database is away: one fsynced file per process.

Its owner keeps it locked (flock), and so does whoever replays it: a file that can be locked has
neither. A record is its length and CRC-32 (4 bytes each, big-endian), then the finish as JSON. A file that
breaks off within a record was cut by a crash: what stands before it is good.
"""

import asyncio
import fcntl
import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import msgspec

from billing.events import Finish
from billing.failpoints import reach

RECORD_BYTES_MAX: Final = 1 << 20  # a finish is a few kB; a longer length is damage
_OPEN_SUFFIX: Final = ".spool"
_SEALED_SUFFIX: Final = ".sealed"
_DAMAGED_SUFFIX: Final = ".damaged"
_HEAD: Final = struct.Struct(">II")


class SpoolError(Exception):
    """The file could not be written and fsynced."""


def nobody(_process: str) -> bool:
    """No other process is known to be gone."""
    return False


def everybody(_process: str) -> bool:
    """Every other process is known to be gone."""
    return True


class SpoolFile(msgspec.Struct, frozen=True):
    """What a spool file holds; `damaged` bytes could not be read and are no torn tail."""

    finishes: list[Finish]
    damaged: bool


def encode_record(finish: Finish) -> bytes:
    """A finish as it stands in a spool file."""
    payload = _encoder.encode(finish)
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def read_records(data: bytes) -> SpoolFile:
    """Every whole record of a file."""
    finishes: list[Finish] = []
    damaged = False
    at = 0
    while at + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, at)
        if length > RECORD_BYTES_MAX:
            damaged = True
            break  # where the next record begins is unknown
        payload = data[at + _HEAD.size : at + _HEAD.size + length]
        if len(payload) < length:
            break  # torn
        at += _HEAD.size + length
        if zlib.crc32(payload) != checksum:
            # Wrong bytes at the very end are a torn write as well: nobody was told it is durable.
            damaged = damaged or at < len(data)
            continue
        if payload:
            try:
                finishes.append(_decoder.decode(payload))
            except msgspec.MsgspecError:
                damaged = True
    return SpoolFile(finishes, damaged)


def bytes_waiting(directory: Path) -> int:
    """What lies in a spool directory still to be replayed, of all processes; 0 if unreadable."""
    try:
        paths = list(directory.iterdir())
    except OSError:
        return 0
    return sum(_size(path) for path in paths)


def damaged_files(directory: Path) -> list[str]:
    """Files of a spool directory with records that could not be read, kept for a person."""
    try:
        return sorted(path.name for path in directory.iterdir() if path.suffix == _DAMAGED_SUFFIX)
    except OSError:
        return []


class Spool:
    """This process's spool; records that come together are fsynced together, on a thread."""

    def __init__(self, directory: Path, process: str) -> None:
        self._directory = directory
        self._stem = quote(process, safe="")
        self._generation = 0
        self._file: int | None = None
        self._path = directory  # of the open file
        self._end = 0  # bytes of the open file that are whole records
        self._claimed: dict[
            Path, int
        ] = {}  # sealed files that we alone may replay, and their locks
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._draining = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="spool")

    def append(self, finish: Finish) -> asyncio.Future[None]:
        """Resolves once the finish is on disk; raises SpoolError if it is not."""
        return self._append(encode_record(finish))

    def probe(self) -> asyncio.Future[None]:
        """Find out whether the spool takes records, with an empty one."""
        return self._append(_HEAD.pack(0, 0))

    def bytes_waiting(self) -> int:
        """What lies in the directory still to be replayed, of all processes; 0 if unreadable."""
        return bytes_waiting(self._directory)

    def has_files(self) -> bool:
        """Whether anything of anybody may still have to be replayed; True if that cannot be told."""
        try:
            with os.scandir(self._directory) as files:
                return any(file.name.endswith((_OPEN_SUFFIX, _SEALED_SUFFIX)) for file in files)
        except FileNotFoundError:
            return False
        except OSError:
            return True

    async def seal(self, gone: Callable[[str], bool] = nobody) -> list[Path]:
        """Close the open file and give all that can be replayed; they stay ours until `done`.

        `gone` says which other processes will write no more: their files are taken as well, unless
        somebody has them locked.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._seal, gone)

    def owners(self) -> set[str]:
        """The other processes that files lie here of."""
        try:
            found = {_owner(path) for path in self._waiting_files()}
        except OSError:
            return set()
        return found - {unquote(self._stem)}

    async def read(self, path: Path) -> SpoolFile:
        """Read a sealed file; raises OSError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: read_records(path.read_bytes()))

    async def done(self, path: Path, *, damaged: bool) -> None:
        """A sealed file is replayed: remove it, or keep it under another name for a person."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._done, path, damaged)

    def close(self) -> None:
        """Let what is being written end, then close the file; an empty one is removed."""
        self._executor.submit(self._close_files).result()
        self._executor.shutdown()

    def _append(self, record: bytes) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        self._waiting.append((record, written))
        if not self._draining:
            self._draining = True
            loop.call_soon(self._drain, loop)
        return written

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        group, self._waiting = self._waiting, []
        job = loop.run_in_executor(self._executor, self._write, b"".join(r for r, _ in group))
        job.add_done_callback(lambda ended: self._drained(loop, group, ended))

    def _drained(
        self,
        loop: asyncio.AbstractEventLoop,
        group: list[tuple[bytes, asyncio.Future[None]]],
        job: asyncio.Future[None],
    ) -> None:
        error = job.exception()
        for _, written in group:
            if written.done():
                continue
            if error is None:
                written.set_result(None)
            else:
                written.set_exception(SpoolError(f"the spool cannot be written: {error}"))
        if self._waiting:
            self._drain(loop)
        else:
            self._draining = False

    # --- on the spool's thread -------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = self._open()
            self._end = 0
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            reach("spool_unsynced")
            os.fsync(self._file)
        except OSError:
            self._abandon()
            raise
        self._end += len(data)

    def _abandon(self) -> None:
        """After a failed write or fsync the file is not to be trusted further: cut it and leave it."""
        assert self._file is not None
        file, self._file = self._file, None
        try:
            os.ftruncate(file, self._end)
        except OSError:
            pass  # then its checksum says where the good records end
        finally:
            os.close(file)

    def _open(self) -> int:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            self._generation += 1
            path = self._directory / f"{self._stem}.{self._generation}{_OPEN_SUFFIX}"
            if path.with_suffix(_SEALED_SUFFIX).exists():
                continue  # not replayed yet: sealing must not overwrite it
            try:
                file = os.open(
                    path,
                    os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND,
                    0o600,
                )
            except FileExistsError:
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sync_directory()
            self._path = path
            return file

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _seal(self, gone: Callable[[str], bool]) -> list[Path]:
        if self._file is not None:
            # The lock goes along: nobody can take the file in between.
            file, self._file = self._file, None
            self._path.replace(_sealed(self._path))
            self._claimed[_sealed(self._path)] = file
        for path in self._waiting_files():
            ours = path.name.startswith(f"{self._stem}.")
            if _sealed(path) not in self._claimed and (ours or gone(_owner(path))):
                self._claim(path)
        return sorted(self._claimed)

    def _claim(self, path: Path) -> None:
        """Lock a file and seal it, unless somebody else has it, or has just replayed it."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), path.stat()):
                path.replace(_sealed(path))
                self._claimed[_sealed(path)] = file
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            if _sealed(path) not in self._claimed:
                os.close(file)

    def _done(self, path: Path, damaged: bool) -> None:  # noqa: FBT001 - an executor takes no keywords
        if damaged:
            path.replace(path.with_suffix(_DAMAGED_SUFFIX))
        else:
            path.unlink()
        os.close(self._claimed.pop(path))

    def _waiting_files(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return [
            path
            for path in self._directory.iterdir()
            if path.suffix in (_OPEN_SUFFIX, _SEALED_SUFFIX)
        ]

    def _close_files(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        while self._claimed:
            os.close(self._claimed.popitem()[1])


def _sealed(path: Path) -> Path:
    return path.with_suffix(_SEALED_SUFFIX)


def _size(path: Path) -> int:
    """Bytes of a file to be replayed; one that was open when it was listed may be sealed by now."""
    if path.suffix not in (_OPEN_SUFFIX, _SEALED_SUFFIX):
        return 0
    for name in (path, _sealed(path)):
        with suppress(OSError):
            return name.stat().st_size
    return 0  # replayed meanwhile


def _owner(path: Path) -> str:
    """The process that wrote a file, from its name: "<process>.<generation>.<suffix>"."""
    return unquote(path.name.rsplit(".", 2)[0])


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Finish)
