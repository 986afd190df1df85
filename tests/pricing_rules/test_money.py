"""Credits as text: exact both ways, and a sentence for everything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing_rules.money import MAX_MICRO_CREDITS, format_credits, parse_credits


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        ("0", 0),
        ("-0", 0),
        ("1.5", 1_500_000),
        ("-2", -2_000_000),
        ("0.000001", 1),
        ("-0.000001", -1),
        ("007.10", 7_100_000),
        ("1000", 1_000_000_000),
        ("9007199254.740991", MAX_MICRO_CREDITS),
        ("0" * 6000 + "1", 1_000_000),
    ],
)
def test_credits_are_read_exactly(text: str, micro: int) -> None:
    assert parse_credits(text) == micro


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        ".5",
        "5.",
        "1e3",
        "1E3",
        "+1",
        "--1",
        " 1",
        "1 ",
        "1\n",
        "1,000",
        "1_000",
        "0x10",
        "nan",
        "inf",
        "1.2.3",
        "¥5",
        "١٢",  # Arabic-Indic digits
        "１",  # full-width digit
        "1.٢",
        "x" * 10_000,
    ],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an amount of credits: write plain digits") as info:
        parse_credits(text)
    assert len(str(info.value)) < 250


def test_a_seventh_decimal_is_refused() -> None:
    with pytest.raises(ValueError, match="has 7 decimals: a credit has at most 6"):
        parse_credits("1.0000000")


@pytest.mark.parametrize("text", ["9007199254.740992", "-9007199254.740992", "9" * 5000])
def test_amounts_beyond_the_maximum_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"beyond 9007199254\.740991 credits"):
        parse_credits(text)


@pytest.mark.parametrize(
    ("micro", "text"),
    [
        (0, "0"),
        (1, "0.000001"),
        (-1, "-0.000001"),
        (1_500_000, "1.5"),
        (-2_000_000, "-2"),
        (10_000_000, "10"),
        (1_000_010, "1.00001"),
    ],
)
def test_credits_are_written_without_needless_zeros(micro: int, text: str) -> None:
    assert format_credits(micro) == text


@given(st.integers(-MAX_MICRO_CREDITS, MAX_MICRO_CREDITS))
def test_what_is_written_can_be_read(micro: int) -> None:
    assert parse_credits(format_credits(micro)) == micro


WHAT_TO_WRITE = (
    "is not an amount of credits: write plain digits like 12 or 12.5, "
    "without exponent, thousands separator, plus sign or spaces"
)


@pytest.mark.parametrize(("text", "shown"), [("x" * 40, "x" * 40), ("x" * 41, "x" * 40 + "...")])
def test_a_long_text_is_shown_by_its_beginning(text: str, shown: str) -> None:
    with pytest.raises(ValueError, match="is not an amount") as info:
        parse_credits(text)
    assert str(info.value) == f"'{shown}' {WHAT_TO_WRITE}"


def test_too_many_decimals_are_shown_by_their_beginning() -> None:
    with pytest.raises(ValueError, match="decimals") as info:
        parse_credits("1." + "0" * 50)
    assert str(info.value) == (f"'1.{'0' * 38}' has 50 decimals: a credit has at most 6")


def test_beyond_the_maximum_says_so_in_full() -> None:
    with pytest.raises(ValueError, match="beyond") as info:
        parse_credits("9007199254.740992")
    assert str(info.value) == (
        "the amount is beyond 9007199254.740991 credits, the most that an account can move at once"
    )
