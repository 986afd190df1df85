"""/credit-store/balance: what an account has."""

from litestar import Controller, get
from litestar.di import NamedDependency

from llm_gateway.api.state import ApiState
from llm_gateway.api.views.accounts import BalanceView, balance_view
from llm_gateway.identity import Caller


class BalanceController(Controller):
    """An account's balance."""

    path = "/balance"

    @get("/")
    async def balance(
        self, api: NamedDependency[ApiState], caller: NamedDependency[Caller]
    ) -> BalanceView:
        """Balance, held credit and totals; zeros for an account that was never posted to."""
        return balance_view(await api.accounts.read(caller.account))
