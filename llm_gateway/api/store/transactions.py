"""/credit-store/transactions: what came into an account and what went out."""

from typing import Annotated, Literal

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from billing.lists import PageRequest
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.transactions import TransactionList, transaction_list
from llm_gateway.identity import Caller


class TransactionsController(Controller):
    """An account's ledger entries."""

    path = "/transactions"

    @get("/")
    async def transactions(
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        listing: NamedDependency[PageRequest],
        source: Annotated[str, QueryParameter(max_length=64)] = "",
        direction: FromQuery[Literal["income", "expense"] | None] = None,
    ) -> TransactionList:
        """The account's ledger entries, newest first."""
        page = await api.accounts.transactions(
            caller.account, listing, source=source.strip().lower(), direction=direction or ""
        )
        return transaction_list(page)
