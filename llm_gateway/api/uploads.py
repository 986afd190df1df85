"""The file that a request brings: its whole body, or the one file of a form (RFC 7578).

curl's --data-binary sends the first, its -F the second. A form is read from the whole body, whose size
is limited before: https://www.rfc-editor.org/rfc/rfc7578.
"""

from typing import Final

import msgspec
from multipart import (
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

from llm_gateway import errors
from llm_gateway.api.problems import ApiRequest

FIELD: Final = "file"
# A browser's boundary has some 40 characters, and RFC 2046 allows 70.
_BOUNDARY_BYTES_MAX: Final = 70
_NAME_CHARACTERS_MAX: Final = 100
_FORM: Final = "multipart/form-data"
_CODED: Final = "application/x-www-form-urlencoded"


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A file, and what the client calls it; "" if it has no name."""

    name: str
    content: bytes


async def read_upload(request: ApiRequest) -> Upload:
    """The uploaded file; raises InvalidRequestError, UnsupportedMediaTypeError, RequestTooLarge."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise errors.UnsupportedMediaTypeError("Send the file as it is, not compressed.")
    return file_of(request.headers.get("content-type", ""), await request.body())


def file_of(content_type: str, body: bytes) -> Upload:
    """The file in a body of a content type; raises InvalidRequestError."""
    kind, options = parse_options_header(content_type)
    if kind == _FORM:
        return _file_in_form(options.get("boundary", ""), body)
    if kind == _CODED and b"\n" not in body and len(body) > 1:
        raise errors.InvalidRequestError(
            "The body has no line breaks, which curl's -d takes out: "
            "use --data-binary @prices.toml, or -F file=@prices.toml."
        )
    return Upload(name="", content=body)


def _file_in_form(boundary: str, body: bytes) -> Upload:
    if not 0 < len(boundary) <= _BOUNDARY_BYTES_MAX or not boundary.isascii():
        raise _refusal("the Content-Type names no boundary, or one that is none")
    try:
        return _only_file(boundary, body)
    except ParserLimitReached:
        raise _refusal("it has more than one part, or the head of its part is too long") from None
    except (MultipartError, UnicodeError):
        raise _refusal("it is not well-formed") from None


def _only_file(boundary: str, body: bytes) -> Upload:
    found: MultipartSegment | None = None
    pieces: list[bytes] = []
    with PushMultipartParser(
        boundary, content_length=len(body), max_segment_count=1, strict=True
    ) as parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                found = event
            elif event is not None:
                pieces.append(bytes(event))
    if found is None or found.name != FIELD:
        raise _refusal("it has no such part")
    if (found.header("content-transfer-encoding") or "binary") not in ("7bit", "8bit", "binary"):
        raise _refusal("its part is encoded, which RFC 7578 has done away with")
    return Upload(name=_shown(found.filename or ""), content=b"".join(pieces))


def _refusal(why: str) -> errors.InvalidRequestError:
    return errors.InvalidRequestError(
        f"The form cannot be read: {why}. Send one part, the file, by the name {FIELD!r}: "
        f"curl -F {FIELD}=@prices.toml.",
        param=FIELD,
    )


def _shown(name: str) -> str:
    """A client's name for a file, as it may stand in a message; without its folders."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:_NAME_CHARACTERS_MAX]
