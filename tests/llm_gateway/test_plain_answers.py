"""Ordinary JSON answers are read by a short way of their own; it must say what the long way says."""

import copy
import json
from contextlib import suppress
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from llm_gateway import meter

PLAIN_ANSWER: Final[dict[str, object]] = {
    "id": "x",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "h"}}],
    "usage": {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1, "audio_tokens": 1},
    },
}
CHOICE: Final = ("choices", 0)
INTO: Final = ("usage", "prompt_tokens_details")
OUT: Final = ("usage", "completion_tokens_details")
PLACES: Final[list[tuple[str | int, ...]]] = [
    *(("model",), ("choices",), ("usage",), ("error",), ("type",), ("x_groq",)),
    *(("usageMetadata",), CHOICE, INTO, OUT),
    *((*CHOICE, name) for name in ("message", "delta", "usage", "text", "index")),
    *((*CHOICE, "message", name) for name in ("content", "tool_calls", "refusal", "audio")),
    *(("usage", name) for name in ("prompt_tokens", "completion_tokens", "total_tokens", "cost")),
    *(("usage", name) for name in ("cached_tokens", "reasoning_tokens", "input_tokens")),
    *((*INTO, name) for name in ("cached_tokens", "audio_tokens", "image_tokens", "text_tokens")),
    *((*OUT, name) for name in ("reasoning_tokens", "audio_tokens", "image_tokens")),
]
ODD: Final[list[object]] = [
    *(None, True, 0, -1, 1.0, 2.5, 5, 10**12, 10**30, "", "x", "Gemini-3", "error", [], {}, [{}]),
    *({"content": ""}, {"content": "y"}, {"cached_tokens": 9}, {"usage": {"prompt_tokens": 99}}),
    {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 19},
]
_GONE: Final = object()


def changed(*changes: tuple[tuple[str | int, ...], object]) -> dict[str, object]:
    """The plain answer with other values at some places, as far as these are there."""
    answer = copy.deepcopy(PLAIN_ANSWER)
    for place, value in changes:
        at: Any = answer
        with suppress(KeyError, IndexError, TypeError):
            for name in place[:-1]:
                at = at[name]
            if value is _GONE:
                del at[place[-1]]
            else:
                at[place[-1]] = copy.deepcopy(value)  # later changes may go into it
    return answer


def short_and_long(answer: object, indent: int | None = None) -> bool:
    """Whether there is a short way to read it; both must say the same."""
    body = json.dumps(answer, indent=indent).encode()
    short = meter._read_plain_answer(body)
    assert short in (None, meter._read_any_answer(body)), answer
    return short is not None


def test_the_short_way_to_read_an_answer_says_what_the_long_way_says() -> None:
    ways = [short_and_long(changed((place, odd))) for place in PLACES for odd in (*ODD, _GONE)]
    assert 100 < sum(ways) < len(ways) / 2, "both ways are taken"
    for indent in (None, 1):
        assert short_and_long(PLAIN_ANSWER, indent)
    thoughts = ((OUT, _GONE), (("usage", "total_tokens"), 19))
    assert short_and_long(changed(*thoughts))
    assert not short_and_long(changed((("model",), "Gemini-3"), *thoughts))


CHANGES = st.tuples(st.sampled_from(PLACES), st.sampled_from([*ODD, _GONE]))


@given(st.lists(CHANGES, max_size=4), st.sampled_from([None, 1]))
def test_the_short_way_holds_for_answers_that_differ_in_many_places(
    changes: list[tuple[tuple[str | int, ...], object]], indent: int | None
) -> None:
    short_and_long(changed(*changes), indent)
