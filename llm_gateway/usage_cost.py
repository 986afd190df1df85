"""Pure: what a call cost, written into the `usage` of its answer, for `X-Include-Cost: true`.

Only `usage` changes, every other byte of an answer stays. The places are found by Python's own JSON
parser on the bytes read as Latin-1, in which an offset is an offset, whatever the strings hold. The
number is printed from the integer: 320 micro-credits are 0.00032 credits.
"""

import json
import re
from typing import Final, NamedTuple

import msgspec

from llm_gateway.usage_report import usage_object
from pricing_rules.money import format_credits
from pricing_rules.usage import Usage

COST: Final = "cost"
# Where a provider's own cost (OpenRouter's and Perplexity's `cost`) is kept: what stands in `cost` is
# what the account paid.
PROVIDER_COST: Final = "provider_cost"

_USAGE: Final = "usage"
_BLANK: Final = re.compile(r"[ \t\r\n]*+")
# Numbers stay text: how many digits they have is no concern of ours.
_parser: Final = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)

_Splice = tuple[int, int, bytes]  # from, to, and what comes there


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is told of its charge."""

    micro_credits: int
    usage: Usage  # as charged; told where the answer itself has no usage object


def with_cost(answer: bytes, bill: Bill) -> bytes:
    """An answer, or a chunk, whose `usage.cost` is what the call cost.

    A `cost` that was there is kept as `provider_cost`. An answer without a usage object gets one, of
    what was charged. What is no JSON object stays as it is.
    """
    document = _open(answer)
    if document is None:
        return answer
    cost = format_credits(bill.micro_credits).encode()
    own = msgspec.json.encode(usage_object(bill.usage))[:-1] + b',"cost":' + cost + b"}"
    usage = document.last(_USAGE)
    if usage is None:
        return _spliced(answer, [document.one_more(_USAGE, own)])
    counts = _walk(document.text, usage.value)
    if counts is None:
        return _spliced(answer, [(usage.value, usage.end, own)])
    told = counts.every(COST)
    if told and counts.last(PROVIDER_COST) is not None:
        return _spliced(answer, [(each.value, each.end, cost) for each in told])
    return _spliced(answer, [*_renamed(told), counts.one_more(COST, cost)])


def with_cost_renamed(chunk: bytes) -> bytes:
    """A chunk that passes before its call's cost is known: nobody is to take its `cost` for ours."""
    document = _open(chunk)
    usage = None if document is None else document.last(_USAGE)
    if document is None or usage is None:
        return chunk
    counts = _walk(document.text, usage.value)
    if counts is None or counts.last(PROVIDER_COST) is not None:
        return chunk
    return _spliced(chunk, _renamed(counts.every(COST)))


class _Member(NamedTuple):
    """A member of an object: its name, and where its key and its value begin and end."""

    name: str
    key: int
    key_end: int
    value: int
    end: int


class _Object(NamedTuple):
    """An object within a text."""

    text: str
    start: int
    end: int
    members: list[_Member]

    def every(self, name: str) -> list[_Member]:
        return [member for member in self.members if member.name == name]

    def last(self, name: str) -> _Member | None:
        """The member of this name that readers go by, where it comes more than once."""
        found = self.every(name)
        return found[-1] if found else None

    def one_more(self, name: str, value: bytes) -> _Splice:
        """What makes it end with one more member."""
        at = self.members[-1].end if self.members else self.start + 1
        return at, at, b'%b"%b":%b' % (b"," if self.members else b"", name.encode(), value)


def _open(document: bytes) -> _Object | None:
    """The object that a document is; None if it is none, or no JSON at all."""
    text = document.decode("latin-1")
    try:
        found = _walk(text, _skip(text, 0))
    except (ValueError, RecursionError):
        return None
    return found if found is not None and _skip(text, found.end) == len(text) else None


def _walk(text: str, start: int) -> _Object | None:
    """The object that begins there, None if something else does; raises ValueError if it is no JSON."""
    if not text.startswith("{", start):
        return None
    members: list[_Member] = []
    at = _skip(text, start + 1)
    if text.startswith("}", at):
        return _Object(text, start, at + 1, members)
    while True:
        name, key_end = _parser.raw_decode(text, at)
        colon = _skip(text, key_end)
        if not isinstance(name, str) or text[at] != '"' or not text.startswith(":", colon):
            raise ValueError("a member without a name")
        value = _skip(text, colon + 1)
        end = _parser.raw_decode(text, value)[1]
        members.append(_Member(name, at, key_end, value, end))
        at = _skip(text, end)
        if text.startswith("}", at):
            return _Object(text, start, at + 1, members)
        if not text.startswith(",", at):
            raise ValueError("an object without an end")
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    assert blank is not None  # it matches the empty string too
    return blank.end()


def _renamed(members: list[_Member]) -> list[_Splice]:
    key = f'"{PROVIDER_COST}"'.encode()
    return [(member.key, member.key_end, key) for member in members]


def _spliced(text: bytes, splices: list[_Splice]) -> bytes:
    """The text with these in place of what stands there; they are in order and do not overlap."""
    parts: list[bytes] = []
    at = 0
    for begin, end, new in splices:
        parts += [text[at:begin], new]
        at = end
    parts.append(text[at:])
    return b"".join(parts)
