"""Calls and price books for tests of re-rating, in round numbers.

With credits_per_unit = 1 a price of "1" per million tokens is one micro-credit per token. A call of
`used` has 10 plain, 2 cached input tokens, 5 output and 1 reasoning token: by OLD it costs
10 x 1 + 2 x 0.5 + 6 x 4 = 35, by DEARER 45, by CHEAPER 23; `other` models cost as they did.
"""

from typing import Final

import msgspec

from billing.context import BillingContext
from billing.events import Finish
from billing.rerating.calls import Window
from billing.rerating.runs import NewRun
from pricing_rules.usage import Usage
from tests.support.money import T0, charge
from tests.support.shop import Shop

HOUR_MS: Final = 3_600_000
WINDOW: Final = Window(from_at=T0 - HOUR_MS, to_at=T0 + HOUR_MS)
OLD_AMOUNT: Final = 35
DEARER_AMOUNT: Final = 45
CHEAPER_AMOUNT: Final = 23


def book(name: str, mini: str, more: str = "") -> str:
    """A book with one rule for the model mini-1."""
    return (
        f'[book]\nname = "{name}"\ncurrency = "USD"\ncredits_per_unit = "1"\n'
        f'[[rule]]\nid = "echo-mini"\nprovider = "echo"\nmodel = "mini-1"\n{mini}\n{more}'
    )


OTHER: Final = (
    '[[rule]]\nid = "other"\nprovider = "echo"\nmodel = "other"\ninput = "1"\noutput = "1"\n'
)
OLD: Final = book("old", 'input = "1"\ncached_input = "0.5"\noutput = "4"', OTHER)
DEARER: Final = book("dearer", 'input = "2"\ncached_input = "0.5"\noutput = "4"', OTHER)
CHEAPER: Final = book("cheaper", 'input = "1"\ncached_input = "0.5"\noutput = "2"', OTHER)
# Their numbers, by `with_books`.
OLD_BOOK: Final = 1
DEARER_BOOK: Final = 2
CHEAPER_BOOK: Final = 3


async def with_books(shop: Shop, *more: str) -> None:
    """The three books, and others behind them."""
    for number, text in enumerate((OLD, DEARER, CHEAPER, *more), 1):
        assert (await shop.books.upload(text, actor="test")).version == number


def used(
    shop: Shop,
    amount: int = OLD_AMOUNT,
    *,
    account: str = "ada",
    usage: Usage | None = None,
    finish: Finish | None = None,
    **fields: object,
) -> Finish:
    """A finished call at the shop's time; `fields`: of its context."""
    made = finish or charge(shop.new_id(), amount, account=account)
    context = msgspec.structs.replace(made.event.context, **{"started_at": shop.now, **fields})
    assert isinstance(context, BillingContext)
    event = msgspec.structs.replace(made.event, context=context, usage=usage or made.event.usage)
    return msgspec.structs.replace(made, event=event)


async def calls(shop: Shop, number: int, account: str = "ada", **fields: object) -> list[str]:
    """So many calls that were charged by OLD; their ids."""
    return [await shop.settled(used(shop, account=account, **fields)) for _ in range(number)]  # type: ignore[arg-type]


def run_asked(version: int, run_id: str | None = None, window: Window = WINDOW) -> NewRun:
    return NewRun(book=version, window=window, reason=" wrong price ", run_id=run_id)
