"""JSON bodies, read strictly: a number in quotes is text, and no number.

Litestar by itself decodes a body and converts it leniently, as it has to for a query: "1" would pass
for 1, and "true" for true.
"""

import re
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

import msgspec
from litestar import Request
from litestar.datastructures import State

from billing.shop.fields import FieldProblem
from llm_gateway.api.problems import unreadable, wrong_fields
from llm_gateway.errors import InvalidRequestError, shorten

# How msgspec ends a message, and how it names a field that is missing or should not be there.
_AT: Final = re.compile(r" - at `\$\.?(.*)`$")
# PostgreSQL stores no NUL in a text.
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
STRANGE_SHOWN_MAX: Final = 10  # unknown fields that an answer names
_NAMED: Final = re.compile(r" field `([^`]*)`")


class StrictRequest(Request[None, None, State]):
    """A request whose JSON is decoded at once as what its handler takes as `data`."""

    async def json(self) -> object:
        """The body, of the type that the handler declares.

        Raises InvalidRequestError, which names every field that is wrong.
        """
        body = await self.body()
        declared = self.route_handler.parsed_data_field
        if _NUL.search(body):
            raise wrong_fields([FieldProblem(field="", message="A text holds the character NUL")])
        try:
            return msgspec.json.decode(body, type=declared.annotation if declared else object)
        except msgspec.ValidationError as error:
            raise _refusal(body, declared.annotation if declared else object, error) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise unreadable() from None


def _refusal(body: bytes, declared: object, first: msgspec.ValidationError) -> InvalidRequestError:
    """All that is wrong with a body: msgspec stops at the first, so each field is looked at alone."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return unreadable()  # of a wrong type where it begins, and no JSON further on
    shape = _struct_of(declared)
    problems = _problems(shape, content) if shape and isinstance(content, dict) else []
    return wrong_fields(problems or [_problem(str(first))])


def _struct_of(declared: object) -> type[msgspec.Struct] | None:
    kinds = get_args(declared) or (declared,)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return kind
    return None


def _problems(shape: type[msgspec.Struct], content: dict[str, object]) -> list[FieldProblem]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(shape)}
    found = []
    for name, field in fields.items():
        if name not in content:
            if field.required:
                found.append(FieldProblem(field=name, message="is missing"))
            continue
        try:
            msgspec.convert(content[name], _typed(field.type))
        except msgspec.ValidationError as error:
            found.append(_problem(str(error), name))
    strange = [name for name in content if name not in fields][:STRANGE_SHOWN_MAX]
    found += [FieldProblem(field=shorten(name), message="is not known here") for name in strange]
    return found


def _typed(kind: Any) -> Any:  # noqa: ANN401 - an annotation
    """A field's type without UNSET, which msgspec takes in structs alone."""
    kinds = get_args(kind)
    if get_origin(kind) in (Union, UnionType) and msgspec.UnsetType in kinds:
        return Union[tuple(each for each in kinds if each is not msgspec.UnsetType)]  # noqa: UP007
    return kind


def _problem(text: str, field: str = "") -> FieldProblem:
    at = _AT.search(text)
    message = text[: at.start()] if at else text
    named = _NAMED.search(message)
    path = [*([field] if field else []), *([at[1]] if at and at[1] else [])]
    field = ".".join([*path, named[1]] if named else path).replace(".[", "[")
    return FieldProblem(field=field, message=message)
