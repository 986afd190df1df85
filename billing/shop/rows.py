"""Database rows as values: the columns that a struct names, in its own types."""

from typing import TypeVar

import msgspec
from sqlalchemy.engine import Row

T = TypeVar("T", bound=msgspec.Struct)


def fields_of(row: Row[*tuple[object, ...]], kind: type[msgspec.Struct]) -> dict[str, object]:
    """Of a row, the columns that `kind` has as fields."""
    columns = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    return {name: columns[name] for name in kind.__struct_fields__}


def of_row(row: Row[*tuple[object, ...]], kind: type[T]) -> T:
    """A row as a struct whose fields are columns of it."""
    return msgspec.convert(fields_of(row, kind), kind)
