"""Chat completions: what the gateway reads of a request, and the body it sends upstream. Pure.

Theory of operation. A body is decoded twice, both times by the same strict decoder: once into a
dict of raw values, once into the few fields that are read. The raw values give each member's
length, so one walk over the top level finds every member's place without a parser of ours. The
members that the gateway decides about are cut out, in whatever letter case they were written (some
upstreams match names without regard to case), and written once at the front; all other bytes stay.
"""

import re
from typing import Final, Literal

import msgspec

from llm_gateway.config import ModelConfig
from llm_gateway.errors import InvalidRequestError, UnboundedCostError, shorten

CHOICES_MAX: Final = 128  # the most that OpenAI's API takes as `n`
OUTPUT_LIMIT_MAX: Final = 2**31 - 1  # beyond any model; keeps amounts far below 2**53
TOP_LEVEL_MEMBERS_MAX: Final = 1_000  # OpenAI's API has some 40
MODEL_CHARACTERS_MAX: Final = 256
UNBOUNDED_MAX: Final = 8  # of the reasons that are listed


class Unbounded(msgspec.Struct, frozen=True):
    """A part of a request whose cost has no maximum: the field, and why."""

    param: str
    reason: str


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of a body; JSON's null reads as absent."""

    model: str
    stream: bool
    n: int  # choices asked for; 1 if not sent
    limit: int | None  # output tokens a choice: the smaller of both fields, None if none was sent
    include_usage: bool | None
    service_tier: str | None
    input_bytes: int  # of the whole body, less base64 payloads: never below its text tokens
    prediction_bytes: int  # of `prediction`: what is rejected of it is billed as output
    images: int
    audios: int
    files: int
    by_reference: int  # how many of these are addresses or ids, their bytes not in the body
    audio_output: bool
    unbounded: tuple[Unbounded, ...]
    # For rewrite() alone:
    body: bytes
    kept: tuple[tuple[int, int], ...]  # runs of members that stay, from key to end of value
    n_sent: bool
    other_stream_options: bytes  # the client's other members, each with a comma in front

    def __repr__(self) -> str:
        """Without the body, which is the prompt."""
        return f"ChatRequest(model={self.model!r}, stream={self.stream}, n={self.n})"


def parse(body: bytes) -> ChatRequest:
    """Read a request body.

    Raises InvalidRequestError naming the field: no JSON object, invalid UTF-8, nested too deep, a
    member sent twice, or a wrong type.
    """
    _check_text(body)
    raws = _decode_members(body)
    kept, misspelt = _walk(body, raws)
    fields = _decode_fields(body)
    options = b""
    if fields.stream_options is not None:
        options = _other_stream_options(bytes(raws["stream_options"]))
    parts = _Parts()
    for index, message in enumerate(fields.messages):
        # `is str` first: nearly all contents are plain text.
        if type(message.content) is not str or message.audio is not None:
            _count_message(parts, index, message)
    _find_server_side(parts, fields, raws, misspelt)
    return ChatRequest(
        model=fields.model,
        stream=bool(fields.stream),
        n=1 if fields.n is None else fields.n,
        limit=_smaller(fields.max_tokens, fields.max_completion_tokens),
        include_usage=fields.stream_options.include_usage if fields.stream_options else None,
        service_tier=fields.service_tier,
        input_bytes=len(body) - parts.payload,
        prediction_bytes=len(raws["prediction"]) if _present(raws, "prediction") else 0,
        images=parts.images,
        audios=parts.audios,
        files=parts.files,
        by_reference=parts.by_reference,
        audio_output=_present(raws, "audio") or "audio" in (fields.modalities or ()),
        unbounded=tuple(parts.unbounded),
        body=body,
        kept=kept,
        n_sent=fields.n is not None,
        other_stream_options=options,
    )


def rewrite(
    request: ChatRequest,
    *,
    model: str,
    limit: int | None,
    limit_field: Literal["max_tokens", "max_completion_tokens"],
    ask_usage: bool,
) -> bytes:
    """The body for an upstream: our members once, in front, then the client's as they were.

    `limit` is written as it is given, the client's own never by itself. `ask_usage` is false for
    providers that refuse `stream_options`, which is then left out whole.
    """
    body = request.body
    ours = [
        b'"model":' + _encode(model),
        b'"stream":true' if request.stream else b'"stream":false',
    ]
    if request.n_sent or request.n != 1:
        ours.append(b'"n":%d' % request.n)
    if limit is not None:
        ours.append(b'"%s":%d' % (limit_field.encode(), limit))
    if request.stream and ask_usage:
        ours.append(b'"stream_options":{"include_usage":true' + request.other_stream_options + b"}")
    if request.service_tier is not None:
        ours.append(b'"service_tier":' + _encode(request.service_tier))
    ours.extend(body[start:end] for start, end in request.kept)
    return b"{" + b",".join(ours) + b"}"


def input_bound(request: ChatRequest, model: ModelConfig) -> int:
    """The most input tokens that the request can come to.

    A token of a byte-level vocabulary is at least one byte, and the keys and punctuation of the
    body cover what the chat template adds. Raises UnboundedCostError where there is no maximum.
    """
    if request.unbounded:
        first = request.unbounded[0]
        raise UnboundedCostError(first.reason, param=first.param)
    bound = request.input_bytes
    for count, tokens_max, setting in (
        (request.images, model.image_tokens_max, "image_tokens_max"),
        (request.audios, model.audio_tokens_max, "audio_tokens_max"),
        (request.files, model.file_tokens_max, "file_tokens_max"),
    ):
        if not count:
            continue
        if tokens_max is None:
            reason = f"model {shorten(request.model)!r} has no {setting} in the gateway's settings"
            raise UnboundedCostError(reason, param="messages")
        bound += count * tokens_max
    return bound


class Prompt(msgspec.Struct, frozen=True):
    """What is counted where no provider did: the text of a request, and its messages."""

    text: bytes  # UTF-8: contents, refusals, tool calls and definitions; no base64
    messages: int

    def __repr__(self) -> str:
        """Without the text."""
        return f"Prompt({len(self.text)} bytes, {self.messages} messages)"


def prompt(request: ChatRequest) -> Prompt:
    """The text that a request asks a model to read. Decodes the body again: for rare use."""
    fields = _prompt_decoder.decode(request.body)
    parts = [bytes(raw) for raw in (fields.tools, fields.functions) if raw != _NOTHING]
    for message in fields.messages:
        if isinstance(message.content, str):
            parts.append(message.content.encode())
        elif message.content is not None:
            texts = (part.text for part in message.content if bytes(part.text).startswith(b'"'))
            parts.extend(_text_decoder.decode(text).encode() for text in texts)
        if message.tool_calls != _NOTHING:
            parts.append(bytes(message.tool_calls))
    return Prompt(b"\n".join(parts), len(fields.messages))


# ---- What is read -------------------------------------------------------------------------------


class _Address(msgspec.Struct, gc=False):
    url: str | None = None


class _InputAudio(msgspec.Struct, gc=False):
    data: str | None = None


class _File(msgspec.Struct, gc=False):
    file_data: str | None = None


class _Part(msgspec.Struct, gc=False):
    """A content part. Its kind is judged by its type and by the members it has.

    Both, since upstreams differ in which of the two they look at.
    """

    type: str
    image_url: _Address | str | None = None
    input_audio: _InputAudio | None = None
    audio_url: _Address | str | None = None
    file: _File | None = None


class _Reference(msgspec.Struct, gc=False):
    id: str | None = None


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Part] | None = None
    audio: _Reference | None = None  # an earlier spoken answer


class _Tool(msgspec.Struct, gc=False):
    type: str


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Fields(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream_options: _StreamOptions | None = None
    service_tier: str | None = None
    tools: list[_Tool] | None = None
    modalities: list[str] | None = None


# Not `Raw | None`: of that msgspec takes null alone, and refuses whatever else there is.
_NOTHING: Final = msgspec.Raw(b"null")


class _PromptPart(msgspec.Struct):
    # No provider has to mind it in a part of another type, so it may be anything, 1e999 included.
    text: msgspec.Raw = _NOTHING


class _PromptMessage(msgspec.Struct):
    content: str | list[_PromptPart] | None = None
    tool_calls: msgspec.Raw = _NOTHING


class _PromptFields(msgspec.Struct):
    messages: list[_PromptMessage]
    tools: msgspec.Raw = _NOTHING
    functions: msgspec.Raw = _NOTHING


# Written by us, so removed in any letter case.
_OURS: Final = frozenset(
    {
        "model",
        "stream",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "stream_options",
        "service_tier",
    }
)
# Searches and the like that the provider does by itself, billed by no rule of ours.
_SERVER_SIDE: Final = ("web_search_options", "search_parameters", "enable_search", "plugins")
# What some providers read besides our own members, and would undo what these say.
_UNDOING: Final = {
    "models": "names models to fall back to, at other prices",  # OpenRouter
    "fallbacks": "names models to fall back to, at other prices",  # LiteLLM
    "n_predict": "is another limit of the output; send max_tokens",  # llama.cpp, where it wins
    "max_new_tokens": "is another limit of the output; send max_tokens",
    "max_output_tokens": "is another limit of the output; send max_tokens",
    "deferred": "asks for an answer that is to be fetched later",  # xAI
}
# What the ceiling rests on: under another spelling it is not read here, but may be upstream.
_EXACT_ONLY: Final = frozenset(
    {"messages", "tools", "modalities", "audio", "prediction", *_SERVER_SIDE, *_UNDOING}
)
_READ: Final = _OURS | _EXACT_ONLY
_ELSEWHERE: Final = frozenset((*_SERVER_SIDE, *_UNDOING))
_TEXT_PARTS: Final = frozenset({"text", "refusal", "thinking", "reasoning"})
_IMAGE_PARTS: Final = frozenset({"image_url"})
_AUDIO_PARTS: Final = frozenset({"input_audio", "audio_url"})
_FILE_PARTS: Final = frozenset({"file"})
_LOCAL_TOOLS: Final = frozenset({"function", "custom"})

_encode = msgspec.json.encode
_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_fields_decoder = msgspec.json.Decoder(_Fields)
_prompt_decoder = msgspec.json.Decoder(_PromptFields)
_text_decoder = msgspec.json.Decoder(str)

# Possessive, so that no body makes them go back. What they run over is known to be valid JSON.
_FIRST_KEY: Final = re.compile(
    rb'[ \t\r\n]*+\{[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL
)
_NEXT_KEY: Final = re.compile(
    rb'[ \t\r\n]*+,[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL
)
# What nearly all clients send that send stream options at all.
_USAGE_ONLY: Final = re.compile(
    rb'\{[ \t\r\n]*+"include_usage"[ \t\r\n]*+:[ \t\r\n]*+\w++[ \t\r\n]*+\}'
)
_CLOSING: Final = re.compile(rb"[ \t\r\n]*+\}[ \t\r\n]*+")
_DECODER_MESSAGE: Final = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?", re.DOTALL)


# ---- Decoding -----------------------------------------------------------------------------------


def _check_text(body: bytes) -> None:
    if not body:
        raise InvalidRequestError("The body is empty; send a JSON object.")
    if body.startswith(b"\xef\xbb\xbf"):
        raise InvalidRequestError("The body starts with a byte order mark; JSON has none.")
    # The decoder does not look into strings that it skips.
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as exc:
            raise InvalidRequestError(f"The body is not UTF-8 (byte {exc.start}).") from None


def _decode_members(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        members = _members_decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise _refusal(exc) from None
    if len(members) > TOP_LEVEL_MEMBERS_MAX:
        raise InvalidRequestError(f"The body has more than {TOP_LEVEL_MEMBERS_MAX} fields.")
    return members


def _decode_fields(body: bytes) -> _Fields:
    try:
        fields = _fields_decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise _refusal(exc) from None
    if not 0 < len(fields.model) <= MODEL_CHARACTERS_MAX:
        message = f"model must have 1 to {MODEL_CHARACTERS_MAX} characters."
        raise InvalidRequestError(message, param="model")
    _check_range("n", fields.n, CHOICES_MAX)
    _check_range("max_tokens", fields.max_tokens, OUTPUT_LIMIT_MAX)
    _check_range("max_completion_tokens", fields.max_completion_tokens, OUTPUT_LIMIT_MAX)
    return fields


def _check_range(name: str, value: int | None, most: int) -> None:
    if value is not None and not 1 <= value <= most:
        raise InvalidRequestError(f"{name} must be between 1 and {most}.", param=name)


def _refusal(exc: Exception) -> InvalidRequestError:
    """The decoder's complaint in our words; it names types and places, never values."""
    if isinstance(exc, RecursionError):
        return InvalidRequestError("The body is nested too deep.")
    match = _DECODER_MESSAGE.fullmatch(str(exc))
    what, path = (match["what"], match["path"]) if match else ("", None)
    if not isinstance(exc, msgspec.ValidationError):
        if what.startswith("Input data was truncated"):
            what = "it ends too early, or a string has half a surrogate pair"
        return InvalidRequestError(f"The body is not valid JSON: {what}.")
    missing = _MISSING.fullmatch(what)
    if missing:
        inside = f"{path.removeprefix('$').removeprefix('.')}." if path else ""
        param = f"{inside}{missing['name']}"
        return InvalidRequestError(f"{param} is required.", param=param)
    if path is None or path == "$":
        return InvalidRequestError("The body must be a JSON object.")
    param = path.removeprefix("$.")
    what = what[:1].lower() + what[1:].replace("`", "").replace(" | ", " or ")
    return InvalidRequestError(f"{param}: {what}.", param=param)


_MISSING: Final = re.compile(r"Object missing required field `(?P<name>\w+)`")


# ---- The top level's members and their places ---------------------------------------------------


def _walk(
    body: bytes, raws: dict[str, msgspec.Raw]
) -> tuple[tuple[tuple[int, int], ...], list[str]]:
    """The runs of members that stay, and the keys that only in another spelling would be read.

    `raws` has the keys in the order of their first appearance, each with its last value. So a key
    out of order, or bytes at hand that are not its value, mean that a key comes twice.
    """
    kept: list[tuple[int, int]] = []
    misspelt: list[str] = []
    run_start = run_end = -1
    position = 0
    pattern = _FIRST_KEY
    previous = ""
    for key, raw in raws.items():
        match = pattern.match(body, position)
        if match is None:
            raise _repeated(previous)
        found = _text_decoder.decode(match[1])
        value = bytes(raw)
        position = match.end()
        if found != key or not body.startswith(value, position):
            raise _repeated(found)
        position += len(value)
        name = key if key in _READ else key.casefold()
        if name in _OURS:
            if run_end >= 0:
                kept.append((run_start, run_end))
                run_end = -1
        else:
            if run_end < 0:
                run_start = match.start(1)
            run_end = position
            if name in _EXACT_ONLY and name != key:
                misspelt.append(key)
        pattern = _NEXT_KEY
        previous = key
    if run_end >= 0:
        kept.append((run_start, run_end))
    if raws and not _CLOSING.fullmatch(body, position):
        following = _NEXT_KEY.match(body, position)
        raise _repeated(_text_decoder.decode(following[1]) if following else previous)
    return tuple(kept), misspelt


def _repeated(key: str) -> InvalidRequestError:
    name = shorten(key)
    return InvalidRequestError(f"The field {name!r} is sent twice.", param=name)


def _other_stream_options(raw: bytes) -> bytes:
    """The client's stream options except include_usage, each with a comma in front."""
    if _USAGE_ONLY.fullmatch(raw):
        return b""
    members = _decode_members(raw)
    _walk(raw, members)
    return b"".join(
        b"," + _encode(key) + b":" + bytes(value)
        for key, value in members.items()
        if key.casefold() != "include_usage"
    )


# ---- What the ceiling rests on ------------------------------------------------------------------


class _Parts:
    """Running counts over the content parts of all messages."""

    __slots__ = ("audios", "by_reference", "files", "images", "payload", "unbounded")

    def __init__(self) -> None:
        self.images = 0
        self.audios = 0
        self.files = 0
        self.by_reference = 0
        self.payload = 0  # bytes of base64
        self.unbounded: list[Unbounded] = []

    def refuse(self, param: str, reason: str) -> None:
        # One is enough for a 400; a body of 20 MB could hold a million of them.
        if len(self.unbounded) < UNBOUNDED_MAX:
            self.unbounded.append(Unbounded(param, reason))


def _count_message(parts: _Parts, index: int, message: _Message) -> None:
    if message.audio is not None:
        parts.audios += 1
        parts.by_reference += 1
    if type(message.content) is not list:
        return
    for number, part in enumerate(message.content):
        kind = part.type
        if kind in _IMAGE_PARTS or part.image_url is not None:
            parts.images += 1
            _count_payload(parts, _data_of_address(part.image_url))
        if kind in _AUDIO_PARTS or part.input_audio is not None or part.audio_url is not None:
            parts.audios += 1
            spoken = part.input_audio.data if part.input_audio else None
            _count_payload(parts, len(spoken) if spoken else _data_of_address(part.audio_url))
        if kind in _FILE_PARTS or part.file is not None:
            parts.files += 1
            content = part.file.file_data if part.file else None
            _count_payload(parts, len(content) if content else 0)
        if kind not in _COUNTED_PARTS:
            param = f"messages[{index}].content[{number}].type"
            reason = f"content parts of type {shorten(kind)!r} have no known maximum"
            parts.refuse(param, reason)


def _count_payload(parts: _Parts, payload: int) -> None:
    """Subtract base64 bytes; a part without any refers to something elsewhere."""
    if payload:
        parts.payload += payload
    else:
        parts.by_reference += 1


def _data_of_address(address: _Address | str | None) -> int:
    """How many bytes of base64 a data: URL (RFC 2397) carries; 0 for any other address."""
    url = address.url if isinstance(address, _Address) else address
    if url is None or not url.startswith("data:"):
        return 0
    head, comma, data = url[:_DATA_HEAD_CHARACTERS_MAX].partition(",")
    if not comma or not head.endswith(";base64") or not data:
        return 0
    return len(url) - len(head) - 1


def _find_server_side(
    parts: _Parts, fields: _Fields, raws: dict[str, msgspec.Raw], misspelt: list[str]
) -> None:
    for index, tool in enumerate(fields.tools or ()):
        if tool.type not in _LOCAL_TOOLS:
            reason = f"tools of type {shorten(tool.type)!r} run at the provider, at no known price"
            parts.refuse(f"tools[{index}].type", reason)
    if raws.keys().isdisjoint(_ELSEWHERE) and not misspelt:
        return
    for key in _SERVER_SIDE:
        if _present(raws, key):
            parts.refuse(key, f"{key} runs at the provider, at no known price")
    for key, what in _UNDOING.items():
        if _present(raws, key):
            parts.refuse(key, f"{key} {what}")
    for key in misspelt:
        name = shorten(key)
        reason = f"the field {name!r} may be taken for {name.casefold()!r}"
        parts.refuse(name, reason)


def _present(raws: dict[str, msgspec.Raw], key: str) -> bool:
    raw = raws.get(key)
    return raw is not None and bytes(raw) not in _ABSENT


def _smaller(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


_ABSENT: Final = frozenset({b"null", b"false"})
_COUNTED_PARTS: Final = _TEXT_PARTS | _IMAGE_PARTS | _AUDIO_PARTS | _FILE_PARTS
_DATA_HEAD_CHARACTERS_MAX: Final = 200
