"""Pure: foreign JSON of answers and chunks: decoded leniently, and searched for what was delivered."""

import json

import msgspec


def choices_of(chunk: dict[object, object]) -> list[dict[object, object]]:
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return []
    return [choice for choice in choices if isinstance(choice, dict)]


def is_error(chunk: dict[object, object]) -> bool:
    return bool(chunk.get("error")) or chunk.get("type") == "error"


def collect_text(choice: dict[object, object], texts: list[bytes]) -> bool:
    """Add the texts of a choice's delta or message; whether it says anything."""
    count = len(texts)
    _add(choice.get("text"), texts)
    delta = choice.get("delta")
    delta = delta if isinstance(delta, dict) else choice.get("message")
    if not isinstance(delta, dict):
        return len(texts) > count
    _add(delta.get("content"), texts)
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    _add(thought or delta.get("reasoning_details"), texts)
    _add(delta.get("refusal"), texts)
    _add_call(delta.get("function_call"), texts)
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict):
            _add_call(call.get("function") or call.get("custom"), texts)
    audio = delta.get("audio")
    if isinstance(audio, dict):
        _add(audio.get("transcript"), texts)
    return len(texts) > count or bool(
        calls or audio or delta.get("function_call") or delta.get("images")
    )


def _add(value: object, texts: list[bytes]) -> None:
    """Add a text, or the texts of a list of parts."""
    if isinstance(value, str):
        if value:
            texts.append(value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, list):
        for part in value:
            if isinstance(part, dict):
                text = part.get("text") or part.get("thinking") or part.get("summary")
                _add(text, texts)


def _add_call(call: object, texts: list[bytes]) -> None:
    if isinstance(call, dict):
        for name in ("name", "arguments", "input"):
            if isinstance(value := call.get(name), str):
                _add(value, texts)


def decode(data: bytes) -> object:
    """Foreign JSON as Python values; None if it is none, even when read leniently."""
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        pass
    # A character cut in half, a lone surrogate, NaN: some providers send them.
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def decode_prefix(data: bytes) -> object:
    """The JSON value that the data begins with; None if there is none."""
    try:
        value: object = json.JSONDecoder().raw_decode(data.decode("utf-8", "replace"))[0]
    except (ValueError, RecursionError):
        return None
    return value


def unescape(text: bytes) -> bytes:
    decoded = decode(b'"%b"' % text)
    return decoded.encode("utf-8", "surrogatepass") if isinstance(decoded, str) else text
