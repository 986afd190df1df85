"""/credit-store/transactions: what came into an account and what went out."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any, Literal

from litestar import Controller, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream

from billing.accounts import EntryFilter
from billing.lists import PageRequest
from billing.shop.exports import transactions_csv
from llm_gateway.api.periods import Range, provide_range
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.transactions import TransactionList, transaction_list
from llm_gateway.identity import Caller

Source = Annotated[str, QueryParameter(max_length=64)]
Direction = FromQuery[Literal["income", "expense"] | None]


_CSV = "text/csv; header=present"  # Litestar adds the charset


class TransactionsController(Controller):
    """An account's ledger entries."""

    path = "/"
    dependencies: Mapping[str, Provide | Callable[..., Any]] | None = {
        "times": Provide(provide_range, sync_to_thread=False)
    }

    @get("/transactions")
    async def transactions(
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        listing: NamedDependency[PageRequest],
        times: NamedDependency[Range],
        source: Source = "",
        direction: Direction = None,
    ) -> TransactionList:
        """The account's ledger entries, newest first; `from` and `to` by when they were made."""
        wanted = _wanted(times, source, direction)
        return transaction_list(await api.accounts.transactions(caller.account, listing, wanted))

    @get("/transactions.csv", media_type=_CSV)
    async def transactions_csv(
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        times: NamedDependency[Range],
        source: Source = "",
        direction: Direction = None,
    ) -> Stream:
        """All of the account's ledger entries as CSV, oldest first; times in UTC.

        Amounts stand in credits and in micro-credits. A text that a spreadsheet would take for a
        formula has an apostrophe in front.
        """
        pieces = transactions_csv(api.accounts, caller.account, _wanted(times, source, direction))
        first = await anext(pieces)  # what fails fails here, while it can be told

        async def body() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        return Stream(
            body,
            media_type=_CSV,
            headers={"content-disposition": 'attachment; filename="transactions.csv"'},
        )


def _wanted(times: Range, source: str, direction: str | None) -> EntryFilter:
    return EntryFilter(
        source=source.strip().lower(),
        direction=direction or "",
        from_at=times.from_at,
        to_at=times.to_at,
    )
