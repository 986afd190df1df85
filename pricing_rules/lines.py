"""On which line each key of a TOML text stands, which tomllib does not tell. Pure."""

import re
import tomllib
from collections.abc import Iterator
from typing import Final

# ("rule", 2, "input") is the key `input` of the third [[rule]].
Path = tuple[str | int, ...]

# Strings come first, so that a "#" or a bracket inside one is not taken for itself. A multi-line
# string may end in up to two quotes of its own before the closing three.
_PIECE: Final = re.compile(
    r'''"""(?:\\[\s\S]|[^\\])*?"""(?:"{0,2})'''
    r"""|'''[\s\S]*?'''(?:'{0,2})"""
    r'''|"(?:\\.|[^"\\\n])*"'''
    r"""|'[^'\n]*'"""
    r"""|\#[^\n]*"""
    r"""|\n|[\[\]{}=.,]"""
    r"""|[^\s"'\#\[\]{}=.,]+"""
)


class Lines:
    """Where the tables and keys of one document are; `text` must be TOML that tomllib accepts."""

    def __init__(self, text: str) -> None:
        self._found: dict[Path, int] = {}
        self._headers: dict[tuple[str, int, str], int] = {}
        self._arrays: dict[str, int] = {}  # entries seen so far of each top-level array of tables
        table: Path = ()
        for keys, line, is_array, is_header in _statements(text):
            if is_header:
                table = self._place(keys, line, is_array=is_array)
            else:
                self._note((*table, *keys) if table else self._absolute(keys), line)

    def of(self, *path: str | int) -> int:
        """The line of a key, counted from 1; of what contains it if it has none; else 0."""
        for length in range(len(path), 0, -1):
            line = self._found.get(path[:length])
            if line is not None:
                return line
        return 0

    def below(self, array: str, header: int, key: str) -> int:
        """The line of a key in the entry of an array of tables whose header is at a line."""
        return self._headers.get((array, header, key), header)

    def _place(self, keys: tuple[str, ...], line: int, *, is_array: bool) -> Path:
        if is_array and len(keys) == 1:
            self._arrays[keys[0]] = self._arrays.get(keys[0], -1) + 1
        path = self._absolute(keys)
        self._note(path, line)
        return path

    def _absolute(self, keys: tuple[str, ...]) -> Path:
        """A path from the top, with the number of the array's latest entry where there is one."""
        entry = self._arrays.get(keys[0])
        return keys if entry is None else (keys[0], entry, *keys[1:])

    def _note(self, path: Path, line: int) -> None:
        for length in range(1, len(path) + 1):
            self._found.setdefault(path[:length], line)
        match path:
            case (str(array), int(), str(key), *_):
                self._headers.setdefault((array, self._found[path[:2]], key), line)
            case _:
                pass  # a header, or a key outside of an array of tables


def _statements(text: str) -> Iterator[tuple[tuple[str, ...], int, bool, bool]]:
    """Each header and each assignment: its key's parts, its line, is it [[..]], is it a header."""
    pieces = _pieces(text)
    for piece, line in pieces:
        if piece == "\n":
            continue
        if piece != "[":
            yield _key(piece, pieces, "="), line, False, False
            _skip_value(pieces)
            continue
        first, _ = next(pieces)
        is_array = first == "["
        if is_array:
            first, _ = next(pieces)
        yield _key(first, pieces, "]"), line, is_array, True
        _skip_value(pieces, depth=1 if is_array else 0)


def _pieces(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for match in _PIECE.finditer(text):
        piece = match[0]
        if not piece.startswith("#"):
            yield piece, line
        line += piece.count("\n")


def _key(first: str, pieces: Iterator[tuple[str, int]], end: str) -> tuple[str, ...]:
    """The parts of a bare, quoted or dotted key, up to and with the piece that ends it."""
    parts = [_plain(first)]
    while (piece := next(pieces)[0]) != end:
        if piece != ".":
            parts.append(_plain(piece))
    return tuple(parts)


def _plain(part: str) -> str:
    """A part of a key without its quotes and escapes."""
    return next(iter(tomllib.loads(f"{part} = 0"))) if part[0] in "\"'" else part


def _skip_value(pieces: Iterator[tuple[str, int]], depth: int = 0) -> None:
    """Read on to the end of a statement; an array may go over several lines."""
    for piece, _ in pieces:
        if piece in "[{":
            depth += 1
        elif piece in "]}":
            depth -= 1
        elif piece == "\n" and depth <= 0:
            return
