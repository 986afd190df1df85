"""Credits as text and as whole micro-credits, the only form in which they are reckoned. Pure."""

import re
from typing import Final

MICRO_CREDITS_PER_CREDIT: Final = 1_000_000
# Above 2**53 JSON readers and Redis' Lua numbers lose single units.
MAX_MICRO_CREDITS: Final = 2**53 - 1

_DECIMALS: Final = 6
# ASCII digits only: \d alone would take digits of every script.
_CREDITS: Final = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?")


def parse_credits(text: str) -> int:
    """Micro-credits for a decimal number of credits: "1.5" is 1500000, "-2" is -2000000.

    Digits with at most six decimals, a leading minus where a debit is meant, nothing else. Raises
    ValueError with a sentence for the person who typed it.
    """
    match = _CREDITS.fullmatch(text)
    if match is None:
        shown = text if len(text) <= 40 else text[:40] + "..."
        raise ValueError(
            f"{shown!r} is not an amount of credits: write plain digits like 12 or 12.5, "
            "without exponent, thousands separator, plus sign or spaces"
        )
    sign, whole, decimals = match[1], match[2], match[3] or ""
    if len(decimals) > _DECIMALS:
        raise ValueError(
            f"{text[:40]!r} has {len(decimals)} decimals: a credit has at most {_DECIMALS}"
        )
    # The length is judged before int(), which itself refuses texts of thousands of digits.
    digits = whole.lstrip("0")
    if (
        len(digits) > len(str(MAX_MICRO_CREDITS))
        or (micro := int(digits + decimals.ljust(_DECIMALS, "0"))) > MAX_MICRO_CREDITS
    ):
        raise ValueError(
            f"the amount is beyond {format_credits(MAX_MICRO_CREDITS)} credits, the most that an "
            "account can move at once"
        )
    return -micro if sign else micro


def format_credits(micro: int) -> str:
    """Credits as decimal text without needless zeros: 1500000 micro-credits is "1.5"."""
    whole, decimals = divmod(abs(micro), MICRO_CREDITS_PER_CREDIT)
    sign = "-" if micro < 0 else ""
    text = f"{sign}{whole}.{decimals:0{_DECIMALS}d}"
    return text.rstrip("0").rstrip(".")
