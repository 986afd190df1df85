"""Reported counts become disjoint classes that keep the total, or are refused by name."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pricing_rules.usage import TOKENS_MAX, Implausible, ReportedUsage, Usage, normalise

COUNT = st.none() | st.integers(0, 2_000)
REPORTS = st.builds(ReportedUsage, **dict.fromkeys(ReportedUsage.__struct_fields__, COUNT))


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (ReportedUsage(prompt=10, completion=5), Usage(input=10, output=5)),
        (ReportedUsage(prompt=10, completion=5, total=15), Usage(input=10, output=5)),
        (ReportedUsage(prompt=0, completion=0, total=0), Usage()),
        (
            ReportedUsage(prompt=10, completion=5, cached=4),
            Usage(input=6, cached_input=4, output=5),
        ),
        # Cached beyond the prompt is cut to it, as reasoning is to the completion.
        (ReportedUsage(prompt=10, completion=5, cached=11), Usage(cached_input=10, output=5)),
        (ReportedUsage(prompt=1, completion=5, reasoning=9), Usage(input=1, reasoning=5)),
        (
            ReportedUsage(prompt=1, completion=5, total=6, reasoning=3),
            Usage(input=1, output=2, reasoning=3),
        ),
        # The total shows that reasoning was not part of the completion (xAI, Gemini).
        (
            ReportedUsage(prompt=10, completion=5, total=22, reasoning=7),
            Usage(input=10, output=5, reasoning=7),
        ),
        (
            ReportedUsage(
                prompt=100, completion=9, cache_write_5m=20, cache_write_1h=30, cached=40
            ),
            Usage(input=10, cached_input=40, cache_write_5m=20, cache_write_1h=30, output=9),
        ),
        (
            ReportedUsage(prompt=100, completion=9, audio_input=60, image_input=30, audio_output=4),
            Usage(input=10, audio_input=60, image_input=30, output=5, audio_output=4),
        ),
        # Cached audio is counted once, as cached.
        (
            ReportedUsage(prompt=100, completion=0, cached=80, audio_input=50, image_input=7),
            Usage(cached_input=80, audio_input=20),
        ),
        (
            ReportedUsage(prompt=1, completion=9, reasoning=6, audio_output=8),
            Usage(input=1, reasoning=6, audio_output=3),
        ),
        # A missing side comes from the total: embeddings report no completion.
        (ReportedUsage(prompt=8, total=8), Usage(input=8)),
        (ReportedUsage(prompt=8, total=11), Usage(input=8, output=3)),
        (ReportedUsage(completion=3, total=11), Usage(input=8, output=3)),
        (ReportedUsage(prompt=TOKENS_MAX, completion=0), Usage(input=TOKENS_MAX)),
    ],
)
def test_counts_become_disjoint_classes(reported: ReportedUsage, expected: Usage) -> None:
    assert normalise(reported) == expected


@pytest.mark.parametrize(
    ("reported", "reason"),
    [
        (ReportedUsage(), "nothing reported"),
        (ReportedUsage(total=7), "nothing reported"),
        (ReportedUsage(prompt=7), "completion was not reported"),
        (ReportedUsage(completion=7), "prompt was not reported"),
        (ReportedUsage(prompt=7, total=6), "total = 6 is less than one of its parts, 7"),
        (ReportedUsage(completion=7, total=6), "total = 6 is less than one of its parts, 7"),
        (
            ReportedUsage(prompt=1, completion=2, total=4),
            "total = 4 contradicts prompt = 1, completion = 2, reasoning = 0",
        ),
        (ReportedUsage(prompt=1, completion=2, total=0), "total = 0 contradicts"),
        (ReportedUsage(prompt=1, completion=2, total=9, reasoning=5), "total = 9 contradicts"),
        (
            ReportedUsage(prompt=TOKENS_MAX + 1, completion=2),
            "prompt = 1000000001 is not a possible number",
        ),
        *(
            (
                ReportedUsage(**{"prompt": 9, "completion": 9, name: -1}),
                f"{name} = -1 is not a possible number of tokens",
            )
            for name in ReportedUsage.__struct_fields__
        ),
    ],
)
def test_contradictions_are_refused_by_name(reported: ReportedUsage, reason: str) -> None:
    refused = normalise(reported)
    assert isinstance(refused, Implausible)
    assert reason in refused.reason


@given(REPORTS)
@example(ReportedUsage(prompt=3, completion=4, total=12, reasoning=5, audio_output=4, cached=9))
def test_normalise_conserves_totals(reported: ReportedUsage) -> None:
    usage = normalise(reported)
    if isinstance(usage, Implausible):
        return
    counts = [getattr(usage, name) for name in Usage.__struct_fields__]
    assert all(count >= 0 for count in counts)
    assert usage.total == sum(counts) == usage.total_input + usage.total_output
    if reported.total is not None:
        assert usage.total == reported.total
    if reported.prompt is not None:
        assert usage.total_input == reported.prompt
    if reported.completion is not None and reported.total is None:
        assert usage.total_output == reported.completion


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))
def test_reasoning_beside_the_completion_is_added(
    prompt: int, completion: int, reasoning: int, cached: int
) -> None:
    total = prompt + completion + reasoning
    usage = normalise(
        ReportedUsage(
            prompt=prompt, completion=completion, total=total, reasoning=reasoning, cached=cached
        )
    )
    assert isinstance(usage, Usage)
    assert (usage.total_input, usage.total_output) == (prompt, completion + reasoning)
    assert usage.reasoning == reasoning
    assert usage.cached_input == min(cached, prompt)


def test_every_class_belongs_to_one_side() -> None:
    usage = Usage(**{name: 2**bit for bit, name in enumerate(Usage.__struct_fields__)})
    assert usage.total_input + usage.total_output == usage.total == 2**9 - 1


def test_a_report_of_nothing_says_so() -> None:
    nothing = dict.fromkeys(ReportedUsage.__struct_fields__)
    assert normalise(ReportedUsage(**nothing)) == Implausible(reason="nothing reported")
