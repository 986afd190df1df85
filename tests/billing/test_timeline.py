"""The timeline of price books: what holds when, what is to come, what to go back to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.timeline import Activation, Timeline

DECIDED = st.lists(
    st.builds(Activation, version=st.integers(1, 4), effective_from=st.integers(0, 12)), max_size=12
)


def timeline(*versions: int) -> Timeline:
    """One version after the other, at 1, 2, 3 ..."""
    return Timeline(
        Activation(version=version, effective_from=at) for at, version in enumerate(versions, 1)
    )


@pytest.mark.parametrize(
    ("versions", "before"),
    [
        ((), None),
        ((1,), None),
        ((1, 1), None),
        ((1, 2), 1),
        ((1, 2, 2), 1),
        ((1, 2, 1), None),
        ((1, 2, 3), 2),
        ((1, 2, 3, 2), 1),
        ((1, 2, 3, 2, 1), None),
        ((1, 2, 3, 2, 4), 2),
        ((1, 2, 3, 1), 3),
        ((1, 2, 3, 1, 3), 2),
    ],
)
def test_going_back_is_one_step_at_a_time(versions: tuple[int, ...], before: int | None) -> None:
    assert timeline(*versions).before(99) == before


def test_what_is_to_come_is_nothing_to_go_back_from() -> None:
    assert timeline(1, 2, 3).before(2) == 1
    assert timeline(1, 2, 3).before(0) is None


def test_a_process_knows_what_held_before_and_all_that_is_to_come() -> None:
    assert [each.version for each in timeline(1, 2, 3, 4).of_late(3)] == [2, 3, 4]
    assert [each.version for each in timeline(1, 2).of_late(0)] == [1, 2]


@given(DECIDED, st.integers(-1, 13))
def test_what_was_decided_last_for_the_latest_moment_holds(
    decided: list[Activation], asked: int
) -> None:
    made = Timeline(decided)
    expected = None
    for moment in range(asked + 1):
        for each in decided:
            expected = each if each.effective_from == moment else expected
    assert made.at(asked) == expected
    assert all(each.effective_from > asked for each in made.after(asked))
    assert made.of_late(asked)[-1:] == made.activations[-1:]


@given(DECIDED)
def test_rolling_back_again_and_again_comes_to_an_end(decided: list[Activation]) -> None:
    made, seen = Timeline(decided), 0
    while (version := made.before(100 + seen)) is not None:
        back = Activation(version=version, effective_from=100 + seen)
        made = Timeline([*made.activations, back])
        held = made.at(100 + seen)
        assert held is not None
        assert held.version == version
        seen += 1
        assert seen <= len(decided)
