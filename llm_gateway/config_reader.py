"""TOML tables into strict structs; every problem is noted with its line, none ends the reading."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Final, TypeVar

import msgspec
from msgspec import inspect

from llm_gateway.secret import Secret
from pricing_rules.lines import Lines

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VISIBLE_ASCII: Final = re.compile(r"[!-~]+")
_REFERENCE_EXPECTED: Final = (
    'expected "env:NAME" or "file:PATH" that holds the secret, not the secret'
)

KeyPath = tuple[str | int, ...]  # ("providers", 0, "base_url")
Toml = object  # what tomllib makes: dict, list, str, int, float, bool, dates


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of gateway.toml. `computed` names the fields that are no settings."""

    computed: ClassVar[frozenset[str]] = frozenset()


SectionT = TypeVar("SectionT", bound=Section)


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with one setting. `line` counts from 1; 0 = it stands on no line."""

    line: int
    key: str
    message: str


class ConfigError(Exception):
    """The configuration cannot be used; `problems` are all that were found, in the file's order."""

    def __init__(self, path: Path | None, problems: Iterable[Problem]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(self._text(problem) for problem in self.problems))

    def _text(self, problem: Problem) -> str:
        place = str(self.path) if self.path else "configuration"
        line = f":{problem.line}" if problem.line else ""
        key = f"{problem.key}: " if problem.key else ""
        return f"{place}{line}: {key}{problem.message}"


class Reader:
    """Reads one document; then `problems` says what is wrong, `unset` which secrets are missing."""

    def __init__(self, lines: Lines, env: Mapping[str, str], base: Path) -> None:
        self._lines = lines
        self._env = env
        self._base = base  # relative "file:" secrets start here
        self.problems: list[Problem] = []
        self.unset: dict[KeyPath, str] = {}  # secrets whose variable is unset -> a sentence on it

    def problem(self, path: KeyPath, message: str) -> None:
        """Note a problem at the line of `path`, or of the nearest table around it."""
        self.problems.append(Problem(self._lines.of(*path), key_text(path), message))

    def referred(self, given: dict[str, object], section: str, key: str) -> dict[str, object]:
        """The document with an "env:NAME" or "file:PATH" in that place replaced by what it names.

        For addresses, which are written out unless they hold a password.
        """
        table = given.get(section)
        value = table.get(key) if isinstance(table, dict) else None
        if not isinstance(table, dict) or not isinstance(value, str):
            return given
        if not value.startswith(("env:", "file:")):
            return given
        path = (section, key)
        secret = self._secret(value, path)
        if path in self.unset:
            self.problem(path, self.unset[path])
        rest = {name: item for name, item in table.items() if name != key}
        return given | {section: rest | ({key: secret.reveal()} if secret else {})}

    def section(self, kind: type[SectionT], value: Toml, path: KeyPath) -> SectionT | None:
        """The struct of one table; None (and problems) if it cannot be made."""
        if not isinstance(value, dict):
            self.problem(path, f"expected a table, got {_shown(value)}")
            return None
        found = len(self.problems)
        fields = {field.name: field for field in _fields(kind)}
        for key in sorted(value.keys() - fields.keys()):
            self._unknown((*path, key), fields.keys())
        given: dict[str, object] = {}
        for name, field in fields.items():
            if name in value:
                given[name] = self._value(field.type, value[name], (*path, name))
            elif field.required:
                self.problem(path, f"{name} is missing: expected {_expected(field.type)}")
        return None if len(self.problems) > found else kind(**given)

    def _unknown(self, path: KeyPath, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(str(path[-1]), names, n=2)
        hint = f"did you mean {_either(near)}?" if near else f"known here: {', '.join(names)}"
        self.problem(path, f"unknown key; {hint}")

    def _value(self, kind: inspect.Type, value: Toml, path: KeyPath) -> object:
        if _is_secret(kind):
            return self._secret(value, path)
        if isinstance(kind, inspect.UnionType):  # "X or None": TOML has no null
            return self._value(kind.types[0], value, path)
        if isinstance(kind, inspect.VarTupleType) and (item := _section_of(kind.item_type)):
            return self._sections(item, value, path)
        if section := _section_of(kind):
            return self.section(section, value, path)
        if not _fits(kind, value):
            self.problem(path, f"expected {_expected(kind)}, got {_shown(value)}")
        return value

    def _sections(self, kind: type[SectionT], value: Toml, path: KeyPath) -> tuple[SectionT, ...]:
        """The structs of an array of tables."""
        if not isinstance(value, list):
            self.problem(path, f"expected an array of tables, written [[{path[-1]}]]")
            return ()
        read = (self.section(kind, item, (*path, index)) for index, item in enumerate(value))
        return tuple(item for item in read if item is not None)

    def _secret(self, value: Toml, path: KeyPath) -> Secret | None:
        """The secret that a reference names. Nothing of `value` goes into a message."""
        if value == "":
            return None
        scheme, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
        if scheme == "env" and _VARIABLE.fullmatch(rest):
            secret = self._env.get(rest, "").strip()
            if not secret:
                self.unset[path] = f"{rest} is not set"
                return None
        elif scheme == "file" and rest:
            secret, error = _secret_file(self._base / Path(rest).expanduser())
            if not secret:
                self.problem(path, error)
                return None
        else:
            self.problem(path, _REFERENCE_EXPECTED)
            return None
        if not _VISIBLE_ASCII.fullmatch(secret):
            self.problem(path, f"the secret in {value} holds a space or a character beyond ASCII")
            return None
        return Secret(secret, f"{scheme}:{rest}")


def _secret_file(path: Path) -> tuple[str, str]:
    """What a file holds, and if that is nothing, why."""
    try:
        return path.read_text("utf-8").strip(), f"{path} is empty"
    except OSError as error:
        return "", f"{path} cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        return "", f"{path} is not UTF-8 text"


def key_text(path: KeyPath) -> str:
    """A path as gateway.toml writes it: server.port, providers[0].base_url."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def near_names(name: str, known: Iterable[str]) -> str:
    """A hint that ends a message about an unknown name."""
    names = sorted(known)
    if near := difflib.get_close_matches(name, names, n=2):
        return f"did you mean {_either(near)}?"
    return f"known: {', '.join(names) or 'none'}"


def setting_names(kind: type[Section]) -> list[str]:
    """The keys that a table may have."""
    return [field.name for field in _fields(kind)]


def _fields(kind: type[Section]) -> list[inspect.Field]:
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    return [field for field in described.fields if field.name not in kind.computed]


def _section_of(kind: inspect.Type) -> type[Section] | None:
    if isinstance(kind, inspect.StructType) and issubclass(kind.cls, Section):
        return kind.cls
    return None


def _is_secret(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.UnionType) and any(
        isinstance(item, inspect.CustomType) and item.cls is Secret for item in kind.types
    )


def _fits(kind: inspect.Type, value: Toml) -> bool:
    match kind:
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return type(value) is int and _within(kind, value)
        case inspect.FloatType():
            return type(value) in (int, float) and _within(kind, value)
        case inspect.LiteralType(values=values):
            return isinstance(value, str) and value in values
        case inspect.StrType(pattern=pattern):
            return isinstance(value, str) and (
                pattern is None or re.search(pattern, value) is not None
            )
        case _:
            pass
    raise AssertionError(f"no setting has the type {kind}")


def _within(kind: inspect.IntType | inspect.FloatType, value: Toml) -> bool:
    # Written so that nan, which compares to nothing, is outside.
    return (
        isinstance(value, int | float)
        and (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
    )


def _expected(kind: inspect.Type) -> str:
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            low = f" from {kind.ge}" if kind.ge is not None else ""
            low = f" above {kind.gt}" if kind.gt is not None else low
            return f"{noun}{low}" + (f" to {kind.le}" if kind.le is not None else "")
        case inspect.LiteralType(values=values):
            return _either(str(value) for value in values)
        case inspect.VarTupleType():
            return "an array of tables"
        case inspect.UnionType(types=types):
            return _expected(types[0])
        case inspect.StrType(pattern=str()):
            return "a name (letters, digits and ._-, at most 64)"
        case _:
            pass
    return "a text in quotes"


def _either(names: Iterable[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def _shown(value: Toml) -> str:
    """A wrong value as the file writes it; what is long or nested only by its kind."""
    match value:
        case bool() | str():
            text = json.dumps(value, ensure_ascii=False)
            return text if len(text) <= 60 else "a text"
        case dict():
            return "a table"
        case list():
            return "an array"
        case _:
            pass
    return str(value)
