"""Where each key of a TOML text stands, which tomllib does not tell. Pure."""

import re
import tomllib
from bisect import bisect_right
from typing import Final

# ("rule", 2, "tiers", 0, "input") is the key `input` of the first tier of the third [[rule]].
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


class Spot(tuple[int, int]):
    """Line and column of a text, both counted from 1; (0, 0) for nowhere."""

    __slots__ = ()

    @property
    def line(self) -> int:
        return self[0]

    @property
    def column(self) -> int:
        return self[1]


NOWHERE: Final = Spot((0, 0))


class Lines:
    """Where the tables and keys of one document are; `text` must be TOML that tomllib accepts.

    The text is gone through as far as it is asked about: most books have nothing wrong with them,
    and of those that are wrong all over only the first problems are told.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._starts: list[int] = []
        self._scan: _Scan | None = None

    def of(self, *path: str | int) -> int:
        """The line of a key, counted from 1; of what contains it if it has none; else 0."""
        return self.spot(*path).line

    def spot(self, *path: str | int) -> Spot:
        """Line and column of a key; of what contains it if it has none."""
        if self._scan is None:
            self._scan = _Scan(self._text)
            self._starts = [0, *(match.end() for match in re.finditer("\n", self._text))]
        offsets = self._scan.offsets
        # All of a table of an array comes before the next one.
        last = (path[0], path[1] + 1) if len(path) > 1 and isinstance(path[1], int) else path
        while path not in offsets and last not in offsets and self._scan.advance():
            pass
        for length in range(len(path), 0, -1):
            offset = offsets.get(path[:length])
            if offset is not None:
                line = bisect_right(self._starts, offset)
                return Spot((line, offset - self._starts[line - 1] + 1))
        return NOWHERE


class _Scan:
    """A walk over the pieces of a document, noting where each path begins."""

    def __init__(self, text: str) -> None:
        self.offsets: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}  # the latest entry of each array of tables
        self._pieces = _PIECE.finditer(text)
        self._table: Path = ()

    def advance(self) -> bool:
        """Walk over one header, or one key and its value; False at the end."""
        for found in self._pieces:
            piece = found[0]
            if piece == "\n" or piece[0] == "#":
                continue
            if piece == "[":
                self._table = self._header(found.start())
            else:
                path = self._absolute(self._table, self._key(piece, "="))
                self._note(path, found.start())
                self._value(path)
            return True
        return False

    def _header(self, offset: int) -> Path:
        first = next(self._pieces)[0]
        is_array = first == "["
        if is_array:
            first = next(self._pieces)[0]
        keys = self._key(first, "]")
        if is_array:
            parent = self._absolute((), keys[:-1])
            path: Path = (*parent, keys[-1])
            self._arrays[path] = self._arrays.get(path, -1) + 1
            self._note(path, offset)
            path = (*path, self._arrays[path])
        else:
            path = self._absolute((), keys)
        self._note(path, offset)
        for found in self._pieces:
            if found[0] == "\n":
                break
        return path

    def _absolute(self, table: Path, keys: tuple[str, ...]) -> Path:
        """A path from the top, with the number of the latest entry of each array on its way."""
        path = table
        for key in keys:
            path = (*path, key)
            entry = self._arrays.get(path)
            if entry is not None:
                path = (*path, entry)
        return path

    def _note(self, path: Path, offset: int) -> None:
        for length in range(len(path), 0, -1):
            if path[:length] in self.offsets:
                break
            self.offsets[path[:length]] = offset

    def _key(self, first: str, end: str) -> tuple[str, ...]:
        """The parts of a bare, quoted or dotted key, up to and with the piece that ends it."""
        parts = [_plain(first)]
        for found in self._pieces:
            if found[0] == end:
                break
            if found[0] != ".":
                parts.append(_plain(found[0]))
        return tuple(parts)

    def _value(self, path: Path) -> None:
        """Read to the end of a value, noting the keys of the tables in it."""
        opened: list[_Open] = []
        for found in self._pieces:
            piece = found[0]
            if piece == "\n":
                if not opened:
                    return
            elif piece in "[{":
                if opened and opened[-1].entry >= 0:
                    path = (*opened[-1].path, opened[-1].entry)
                    self._note(path, found.start())
                opened.append(_Open(path, 0 if piece == "[" else -1))
            elif piece in "]}":
                opened.pop()
            elif piece == "," and opened:
                opened[-1].next()
            elif opened and opened[-1].awaits_key and piece[0] != "#":
                opened[-1].awaits_key = False
                path = (*opened[-1].path, *self._key(piece, "="))
                self._note(path, found.start())


class _Open:
    """An array or inline table that is not closed yet."""

    __slots__ = ("awaits_key", "entry", "path")

    def __init__(self, path: Path, entry: int) -> None:
        self.path = path
        self.entry = entry  # the number of the present one; -1 in a table
        self.awaits_key = entry < 0

    def next(self) -> None:
        """Behind a comma."""
        if self.entry < 0:
            self.awaits_key = True
        else:
            self.entry += 1


def _plain(part: str) -> str:
    """A part of a key without its quotes and escapes."""
    return next(iter(tomllib.loads(f"{part} = 0"))) if part[0] in "\"'" else part
