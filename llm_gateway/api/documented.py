"""The OpenAPI document, with the errors that every address may answer.

Litestar derives it from the handlers, but for errors knows only a format of its own, which no
client ever sees: see problems.py.
"""

from typing import Any, Final

from litestar import Request
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin

_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The first field at fault."},
                "code": {"type": "string"},
                "problems": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "A line for each fault, where there may be several.",
                },
                "params": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "The fields at fault.",
                },
                "details": {
                    "type": "array",
                    "items": {"type": "object"},
                    "description": "Of a price book: each fault with its place, what was expected, "
                    "and an example.",
                },
            },
        }
    },
}
_ALWAYS: Final = {
    "400": "The request is not as this address expects it.",
    "500": "A fault of the gateway itself.",
    "503": "Something that the gateway depends on is away; try again.",
}
_WITH_KEY: Final = {
    "401": "The key or token is missing, unknown, expired or revoked.",
    "403": "The key, or the token's role, may not do this.",
}
# A version is an id.
_ALSO_BY_ID: Final = {"/admin/price-books/explain"}
_WITH_ID: Final = {"404": "There is nothing by this id."}
_ACTS: Final = {
    "404": "There is nothing by this id.",
    "409": "Not as things stand, or it conflicts with what is there.",
    "413": "The body is too large.",
    "415": "The body is in a format that is not read here.",
}

_SIMULATED: Final = {
    "404": "There is no such price book.",
    "429": "Another simulation is running in this process; try again when it is done.",
}


class JsonDocument(JsonRenderPlugin):
    """The document as JSON."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document, complete."""
        return super().render(request, complete(openapi_schema))


class YamlDocument(YamlRenderPlugin):
    """The document as YAML."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document, complete."""
        return super().render(request, complete(openapi_schema))


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """A document with the errors of each operation; what it says of success stays."""
    schemas = document["components"].setdefault("schemas", {})
    return document | {
        "paths": {
            path: {
                method: operation | {"responses": _responses(path, method, operation)}
                for method, operation in operations.items()
            }
            for path, operations in document["paths"].items()
        },
        "components": document["components"] | {"schemas": schemas | {"Error": _ERROR}},
    }


def _responses(path: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    told = dict(_ALWAYS)
    if operation.get("security") != [{}]:
        told |= _WITH_KEY
    if "{" in path or path in _ALSO_BY_ID:
        told |= _WITH_ID
    if "simulate" in path or "preview" in path:
        told |= _SIMULATED
    if method != "get":
        told |= _ACTS
    schema = {"$ref": "#/components/schemas/Error"}
    errors = {
        status: {"description": text, "content": {"application/json": {"schema": schema}}}
        for status, text in told.items()
    }
    good = {
        status: response
        for status, response in operation["responses"].items()
        if status.startswith("2")
    }
    if path == "/readyz":
        errors["503"] = good["200"] | {"description": "Something that it depends on is down."}
    return good | errors
