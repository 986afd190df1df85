"""Prices as they are shown: integer cents and a currency code in, text out."""

from typing import Final

CENTS: Final = 100

_SYMBOLS: Final = {"CNY": "¥", "USD": "$"}


def price_text(cents: int, currency: str) -> str:
    """`¥9.90`, `$9.90`, else `EUR 9.90`; cents are hundredths in every currency. Raises ValueError."""
    if cents < 0:
        raise ValueError("a price is not negative")
    before = _SYMBOLS.get(currency, f"{currency} ")
    return f"{before}{cents // CENTS}.{cents % CENTS:02d}"
