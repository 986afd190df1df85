"""JSON bodies, read strictly: a number in quotes is text, and no number.

Litestar by itself decodes a body and converts it leniently, as it has to for a query: "1" would pass
for 1, and "true" for true.
"""

import re
from typing import Final

import msgspec
from litestar import Request
from litestar.datastructures import State

from llm_gateway.api.problems import unreadable, wrong_field
from llm_gateway.errors import InvalidRequestError

# How msgspec ends a message, and how it names a field that is missing or should not be there.
_AT: Final = re.compile(r" - at `\$\.?(.*)`$")
_NAMED: Final = re.compile(r" field `([^`]*)`")


class StrictRequest(Request[None, None, State]):
    """A request whose JSON is decoded at once as what its handler takes as `data`."""

    async def json(self) -> object:
        """The body, of the type that the handler declares.

        Raises InvalidRequestError, which names the field.
        """
        body = await self.body()
        declared = self.route_handler.parsed_data_field
        try:
            return msgspec.json.decode(body, type=declared.annotation if declared else object)
        except msgspec.ValidationError as error:
            raise _as_problem(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise unreadable() from None


def _as_problem(text: str) -> InvalidRequestError:
    at = _AT.search(text)
    message = text[: at.start()] if at else text
    named = _NAMED.search(message)
    path = [at[1]] if at and at[1] else []
    return wrong_field(".".join([*path, named[1]] if named else path), message)
