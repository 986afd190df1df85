"""Checks a value against the part of JSON Schema 2020-12 that our schemas use."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
}
ANNOTATIONS = {"$schema", "title", "description", "examples", "format"}


def errors(schema: Mapping[str, object], value: object, path: str = "") -> Iterator[str]:
    """What is wrong with the value; raises KeyError for a keyword that is not known here."""
    for keyword, argument in schema.items():
        if keyword not in ANNOTATIONS and not CHECKS[keyword](argument, value, schema):
            yield f"{path or '/'}: {keyword} {argument!r}: {value!r}"[:300]
    yield from _below(schema, value, path)


def _below(schema: Mapping[str, object], value: object, path: str) -> Iterator[str]:
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            yield from errors(_schema(schema["items"]), item, f"{path}/{number}")
    if isinstance(value, dict):
        known = _schema(schema.get("properties", {}))
        rest = schema.get("additionalProperties", {})
        for key, item in value.items():
            below = known.get(key, rest)
            if below is False:
                yield f"{path}/{key}: is not known"
            else:
                yield from errors(_schema(below), item, f"{path}/{key}")
            if "propertyNames" in schema:
                yield from errors(_schema(schema["propertyNames"]), key, f"{path}/{key}")
    if "if" in schema and "else" in schema and any(errors(_schema(schema["if"]), value)):
        yield from errors(_schema(schema["else"]), value, path)


def _schema(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value)


def _fits(schema: object, value: object) -> bool:
    return not any(errors(_schema(schema), value))


def _is(name: object, value: object) -> bool:
    return isinstance(value, TYPES[str(name)]) and (name == "boolean" or value is not bool(value))


def _count(value: object) -> int:
    return len(value) if isinstance(value, dict | list | str) else 0


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


CHECKS: dict[str, Callable[[Any, Any, object], bool]] = {
    "type": lambda name, value, _: _is(name, value),
    "enum": lambda words, value, _: value in words,
    "const": lambda word, value, _: value == word,
    "required": lambda names, value, _: not isinstance(value, dict) or set(names) <= set(value),
    "pattern": lambda text, value, _: not isinstance(value, str) or bool(re.search(text, value)),
    "minLength": lambda least, value, _: not isinstance(value, str) or len(value) >= least,
    "maxLength": lambda most, value, _: not isinstance(value, str) or len(value) <= most,
    "minItems": lambda least, value, _: not isinstance(value, list) or len(value) >= least,
    "maxItems": lambda most, value, _: not isinstance(value, list) or len(value) <= most,
    "minProperties": lambda least, value, _: not isinstance(value, dict) or len(value) >= least,
    "maxProperties": lambda most, value, _: not isinstance(value, dict) or len(value) <= most,
    "minimum": lambda least, value, _: _number(value) >= least,
    "maximum": lambda most, value, _: _number(value) <= most,
    "not": lambda schema, value, _: not _fits(schema, value),
    "oneOf": lambda schemas, value, _: sum(_fits(schema, value) for schema in schemas) == 1,
    "allOf": lambda schemas, value, _: all(_fits(schema, value) for schema in schemas),
    "items": lambda *_: True,
    "properties": lambda *_: True,
    "additionalProperties": lambda *_: True,
    "propertyNames": lambda *_: True,
    "if": lambda *_: True,
    "else": lambda *_: True,
}
