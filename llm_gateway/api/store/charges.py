"""/credit-store/charges: what a call cost, and why."""

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from billing.charges import explain_charge
from llm_gateway import errors
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.charges import ChargeView, charge_view
from llm_gateway.identity import Caller


class ChargesController(Controller):
    """An account's calls."""

    path = "/charges"

    @get("/{event_id:str}")
    async def charge(
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        event_id: FromPath[str],
    ) -> ChargeView:
        """Explain a charge: usage, rule, every part of the price, hold, settlement, entries."""
        charge = await explain_charge(api.database, api.books, caller.account, event_id)
        if charge is None:
            raise errors.NotFoundError("This account has no call by that id.")
        return charge_view(charge)
