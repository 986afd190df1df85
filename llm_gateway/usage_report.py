"""Pure: the shapes in which OpenAI-compatible providers report usage, read into one."""

import re
from typing import Final

import msgspec

from llm_gateway.chunks import choices_of
from pricing_rules.usage import TOKENS_MAX, ReportedUsage, Usage

RAW_USAGE_BYTES_MAX: Final = 16 * 1024
_DEPTH_MAX: Final = 8  # of a usage object; no provider nests more than two
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NONSENSE: Final = -1  # a count of no sensible type: `normalise` finds it implausible


def is_all_zero(reported: ReportedUsage) -> bool:
    """Whether a report says that nothing was used: not to be believed of an answer with content."""
    return not (reported.prompt or reported.completion or reported.total)


class UsageReader:
    """Folds every report of one answer into one."""

    __slots__ = ("_by_choice", "_cost", "_model", "_raw", "_whole", "seen")

    def __init__(self) -> None:
        self.seen = 0  # usage objects read
        self._whole: ReportedUsage | None = None
        self._by_choice: dict[int, ReportedUsage] = {}
        self._raw: object = None
        self._cost: object = None  # the provider's own, wherever it was told last; 0 is not null
        self._model = ""

    @property
    def reported(self) -> ReportedUsage | None:
        """The report for the whole answer; those of single choices (Moonshot) added up."""
        if self._whole is not None or not self._by_choice:
            return self._whole
        return _sum_of_choices(list(self._by_choice.values()))

    @property
    def raw(self) -> bytes:
        """The last usage object that said something new, as JSON: its numbers, and no text.

        With the provider's own cost, also where another object had it.
        """
        if self._raw is None:
            return b""
        kept = _numbers(self._raw)
        if isinstance(kept, dict) and self._cost is not None:
            kept["cost"] = _numbers(self._cost)
        raw = msgspec.json.encode(kept)
        return raw if len(raw) <= RAW_USAGE_BYTES_MAX else b""

    def read(self, chunk: dict[object, object]) -> None:
        """Read all places of a chunk (or whole answer) where providers put usage."""
        if not self._model and isinstance(model := chunk.get("model"), str):
            self._model = model.lower()
        groq = chunk.get("x_groq")
        for usage in (
            chunk.get("usage"),
            groq.get("usage") if isinstance(groq, dict) else None,
            chunk.get("usageMetadata"),
        ):
            if usage is not None:
                self._whole = self._fold(self._whole, usage)
        for position, choice in enumerate(choices_of(chunk)):
            if (usage := choice.get("usage")) is not None:
                index = choice.get("index")
                which = index if type(index) is int else position
                if (folded := self._fold(self._by_choice.get(which), usage)) is not None:
                    self._by_choice[which] = folded

    def _fold(self, before: ReportedUsage | None, usage: object) -> ReportedUsage | None:
        self.seen += 1
        new = read_usage(usage, thoughts_in_total="gemini" in self._model)
        merged = new if before is None else before if new is None else merge_usage(before, new)
        if self._raw is None or merged != before:
            self._raw = usage
        if isinstance(usage, dict) and isinstance(usage.get("cost"), int | float | dict):
            self._cost = usage["cost"]
        return merged


def merge_usage(before: ReportedUsage, new: ReportedUsage) -> ReportedUsage:
    """Two reports on one answer, in order: counts only grow, so each field's larger one holds.

    A last report of zeros, or one that leaves the prompt out, takes nothing back. The total is
    that of the report whose prompt and completion hold; with parts of both there is none.
    """
    fields: dict[str, int | None] = {}
    for name in ReportedUsage.__struct_fields__:
        older, newer = getattr(before, name), getattr(new, name)
        fields[name] = newer if older is None else older if newer is None else max(older, newer)
    sides = (fields["prompt"], fields["completion"])
    if sides == (new.prompt, new.completion) and new.total is not None:
        fields["total"] = new.total
    elif sides == (before.prompt, before.completion):
        fields["total"] = before.total
    elif None not in sides:
        fields["total"] = None
    return ReportedUsage(**fields)


def read_usage(usage: object, *, thoughts_in_total: bool = False) -> ReportedUsage | None:
    """Read a usage object in any of the shapes that OpenAI-compatible providers send.

    None if it holds no count. A count of a wrong type becomes -1, which `normalise` refuses.
    `thoughts_in_total`: Gemini's compatible endpoint counts thoughts in the total alone.
    """
    if not isinstance(usage, dict):
        return None
    into = _details(usage, "prompt_tokens_details", "input_tokens_details")
    out = _details(usage, "completion_tokens_details", "output_tokens_details")
    writes = _details(usage, "cache_creation")
    prompt = _first(usage, "prompt_tokens", "input_tokens", "promptTokenCount")
    hit, miss = _first(usage, "prompt_cache_hit_tokens"), _first(usage, "prompt_cache_miss_tokens")
    if prompt is None and hit is not None and miss is not None:
        prompt = hit + miss if hit >= 0 and miss >= 0 else _NONSENSE
    write_5m = _first(writes, "ephemeral_5m_input_tokens")
    write_1h = _first(writes, "ephemeral_1h_input_tokens")
    if write_5m is None and write_1h is None:
        write_5m = _pick(
            _first(usage, "cache_creation_input_tokens"),
            _first(into, "cache_write_tokens", "cache_creation_tokens"),
        )
    reported = ReportedUsage(
        prompt=prompt,
        completion=_first(usage, "completion_tokens", "output_tokens", "candidatesTokenCount"),
        total=_first(usage, "total_tokens", "totalTokenCount"),
        cached=_pick(
            _first(into, "cached_tokens"),
            hit,
            _first(usage, "cached_tokens"),
            _first(usage, "cache_read_input_tokens"),
            _first(usage, "cachedContentTokenCount"),
        ),
        cache_write_5m=write_5m,
        cache_write_1h=write_1h,
        reasoning=_pick(
            _first(out, "reasoning_tokens"),
            _first(usage, "reasoning_tokens"),
            _first(usage, "thoughtsTokenCount"),
        ),
        audio_input=_first(into, "audio_tokens"),
        image_input=_first(into, "image_tokens"),
        audio_output=_first(out, "audio_tokens"),
    )
    if all(getattr(reported, name) is None for name in ReportedUsage.__struct_fields__):
        return None
    if "cache_read_input_tokens" in usage or "cache_creation_input_tokens" in usage:
        reported = _with_cache_in_prompt(reported, is_anthropic="prompt_tokens" not in usage)
    return _with_thoughts(reported) if thoughts_in_total else reported


class _PlainInput(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    cached_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _PlainOutput(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class _PlainUsage(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """OpenAI's shape, whole.

    https://platform.openai.com/docs/api-reference/chat/object
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PlainInput | None = None
    completion_tokens_details: _PlainOutput | None = None


_plain_decoder: Final = msgspec.json.Decoder(_PlainUsage)
_NO_INPUT: Final = _PlainInput()
_NO_OUTPUT: Final = _PlainOutput()


def read_plain_usage(raw: msgspec.Raw, model: str) -> tuple[ReportedUsage, bytes] | None:
    """What UsageReader makes of one usage object of OpenAI's shape; None if it has another."""
    try:
        usage = _plain_decoder.decode(raw)
    except (ValueError, RecursionError):
        return None
    if len(raw) > RAW_USAGE_BYTES_MAX or "gemini" in model.lower():
        return None
    into = usage.prompt_tokens_details or _NO_INPUT
    out = usage.completion_tokens_details or _NO_OUTPUT
    reported = ReportedUsage(
        prompt=usage.prompt_tokens,
        completion=usage.completion_tokens,
        total=usage.total_tokens,
        cached=into.cached_tokens,
        reasoning=out.reasoning_tokens,
        audio_input=into.audio_tokens,
        image_input=into.image_tokens,
        audio_output=out.audio_tokens,
    )
    # Of known names and numbers alone: without its white space it is what would be written again.
    return reported, bytes(raw).translate(None, b" \t\r\n")


def _with_cache_in_prompt(reported: ReportedUsage, *, is_anthropic: bool) -> ReportedUsage:
    """Anthropic's input_tokens leave out what the cache read and wrote; ours include it.

    Translated to OpenAI's names it may be either; then the total, or a cache larger than the
    prompt, tells.
    """
    prompt, completion, total = reported.prompt, reported.completion, reported.total
    parts = (reported.cached, reported.cache_write_5m, reported.cache_write_1h)
    cache = sum(part or 0 for part in parts)
    if prompt is None or prompt < 0 or cache <= 0 or min(part or 0 for part in parts) < 0:
        return reported
    told_by_total = total == prompt + (completion or 0) + cache
    if not (is_anthropic or told_by_total or cache > prompt):
        return reported
    whole = None if completion is None or completion < 0 else prompt + cache + completion
    return msgspec.structs.replace(reported, prompt=prompt + cache, total=whole)


def _with_thoughts(reported: ReportedUsage) -> ReportedUsage:
    prompt, completion, total = reported.prompt, reported.completion, reported.total
    if prompt is None or completion is None or total is None or reported.reasoning is not None:
        return reported
    thoughts = total - prompt - completion
    if thoughts <= 0 or min(prompt, completion) < 0:
        return reported
    return msgspec.structs.replace(reported, reasoning=thoughts)


def _sum_of_choices(reports: list[ReportedUsage]) -> ReportedUsage:
    """Choices share the prompt and have each their own completion."""
    if len(reports) == 1:
        return reports[0]
    outputs = ("completion", "reasoning", "audio_output")
    fields: dict[str, int | None] = {}
    for name in ReportedUsage.__struct_fields__:
        counts = [count for report in reports if (count := getattr(report, name)) is not None]
        together = sum if name in outputs else max
        if counts:
            fields[name] = _NONSENSE if min(counts) < 0 else together(counts)
    fields["total"] = None
    return ReportedUsage(**fields)


def usage_object(usage: Usage) -> dict[str, object]:
    """Our own counts in OpenAI's shape."""
    return {
        "prompt_tokens": usage.total_input,
        "completion_tokens": usage.total_output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _count(value: object) -> int | None:
    if value is None:
        return None
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= TOKENS_MAX:
        return int(value)  # JavaScript's 12.0
    return _NONSENSE


def _first(counts: dict[object, object], *names: str) -> int | None:
    for name in names:
        if (count := _count(counts.get(name))) is not None:
            return count
    return None


def _pick(*counts: int | None) -> int | None:
    """One count told in several places: the largest, unless one is nonsense."""
    told = [count for count in counts if count is not None]
    if not told:
        return None
    return min(told) if min(told) < 0 else max(told)


def _details(usage: dict[object, object], *names: str) -> dict[object, object]:
    for name in names:
        if isinstance(found := usage.get(name), dict):
            return found
    return {}


def _numbers(value: object, depth: int = 0) -> object:
    """A usage object without its strings: whatever a provider puts there, it may be text of the call."""
    if depth > _DEPTH_MAX:
        return None
    if isinstance(value, dict):
        return {
            name: _numbers(part, depth + 1)
            for name, part in value.items()
            if isinstance(name, str) and _NAME.fullmatch(name) and not isinstance(part, str)
        }
    if isinstance(value, list):
        return [_numbers(part, depth + 1) for part in value if not isinstance(part, str)]
    return value if isinstance(value, int | float) else None
