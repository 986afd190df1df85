"""What an answer used, in disjoint token classes, and how reported counts become them. Pure."""

from typing import Final

import msgspec

# No model takes or gives this many tokens in one call; a larger count is a provider's mistake.
TOKENS_MAX: Final = 1_000_000_000


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens of one answer by class; every token is in exactly one class."""

    input: int = 0
    cached_input: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    audio_input: int = 0
    image_input: int = 0
    output: int = 0
    reasoning: int = 0
    audio_output: int = 0

    @property
    def total_input(self) -> int:
        """Tokens of the prompt over all input classes."""
        return (
            self.input
            + self.cached_input
            + self.cache_write_5m
            + self.cache_write_1h
            + self.audio_input
            + self.image_input
        )

    @property
    def total_output(self) -> int:
        """Tokens of the completion over all output classes."""
        return self.output + self.reasoning + self.audio_output

    @property
    def total(self) -> int:
        """Tokens of prompt and completion together."""
        return self.total_input + self.total_output


class Units(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one call used beside tokens; each has a price of its own in a rule, or costs nothing."""

    images: int = 0
    seconds: int = 0  # begun seconds of audio or video
    characters: int = 0
    searches: int = 0


NO_UNITS: Final = Units()


class ReportedUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts as an OpenAI-shaped provider reports them; None is a count it left out.

    `prompt` includes cached, cache-write, audio and image tokens; `completion` includes reasoning
    and audio tokens, unless total = prompt + completion + reasoning (xAI, Gemini).
    """

    prompt: int | None = None
    completion: int | None = None
    total: int | None = None
    cached: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    image_input: int | None = None
    audio_output: int | None = None


class Implausible(msgspec.Struct, frozen=True, kw_only=True):
    """A report that cannot be true; `reason` says which counts, so that the usage is estimated."""

    reason: str


def normalise(reported: ReportedUsage) -> Usage | Implausible:
    """Split reported counts into disjoint classes whose sum is the reported total.

    A part larger than what contains it is cut to it (cached > prompt: all of the prompt was
    cached). A missing prompt or completion is worked out from the total, and is never taken as 0.
    """
    counts: tuple[int | None, ...] = msgspec.structs.astuple(reported)
    for number, count in enumerate(counts):
        if count is not None and not 0 <= count <= TOKENS_MAX:
            name = ReportedUsage.__struct_fields__[number]
            return Implausible(reason=f"{name} = {count} is not a possible number of tokens")
    sides = _sides(reported)
    if isinstance(sides, Implausible):
        return sides
    prompt, completion = sides

    # What overlaps (a cached audio token) counts in the class named first.
    cached = min(reported.cached or 0, prompt)
    plain = prompt - cached
    write_5m = min(reported.cache_write_5m or 0, plain)
    plain -= write_5m
    write_1h = min(reported.cache_write_1h or 0, plain)
    plain -= write_1h
    audio_input = min(reported.audio_input or 0, plain)
    plain -= audio_input
    image_input = min(reported.image_input or 0, plain)
    reasoning = min(reported.reasoning or 0, completion)
    audio_output = min(reported.audio_output or 0, completion - reasoning)
    return Usage(
        input=plain - image_input,
        cached_input=cached,
        cache_write_5m=write_5m,
        cache_write_1h=write_1h,
        audio_input=audio_input,
        image_input=image_input,
        output=completion - reasoning - audio_output,
        reasoning=reasoning,
        audio_output=audio_output,
    )


def _sides(reported: ReportedUsage) -> tuple[int, int] | Implausible:
    """Tokens of the whole prompt and of the whole completion, reasoning included."""
    prompt, completion, total = reported.prompt, reported.completion, reported.total
    if prompt is None and completion is None:
        return Implausible(reason="nothing reported")
    if prompt is None or completion is None:
        known = completion if prompt is None else prompt
        missing = "prompt" if prompt is None else "completion"
        assert known is not None
        if total is None:
            return Implausible(reason=f"{missing} was not reported, and neither was the total")
        if total < known:
            return Implausible(reason=f"total = {total} is less than one of its parts, {known}")
        return (total - known, known) if prompt is None else (known, total - known)
    if total is None or total == prompt + completion:
        return prompt, completion
    reasoning = reported.reasoning or 0
    if total == prompt + completion + reasoning:
        return prompt, completion + reasoning
    return Implausible(
        reason=f"total = {total} contradicts prompt = {prompt}, completion = {completion}, "
        f"reasoning = {reasoning}"
    )
