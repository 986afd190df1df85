"""/credit-store/charges: what calls cost, and why."""

from typing import Annotated

from litestar import Controller, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, QueryParameter

from billing.charges import explain_charge
from billing.lists import PageRequest
from billing.shop.calls import CallFilter, charged_calls
from llm_gateway import errors
from llm_gateway.api.periods import Range, RunId, provide_range
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.calls import ChargeList, charge_list
from llm_gateway.api.views.charges import ChargeView, charge_view
from llm_gateway.identity import Caller


class ChargesController(Controller):
    """An account's calls."""

    path = "/charges"

    @get("/", dependencies={"times": Provide(provide_range, sync_to_thread=False)})
    async def charges(  # noqa: PLR0913, PLR0917 - a filter each
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        listing: NamedDependency[PageRequest],
        times: NamedDependency[Range],
        model: Annotated[str, QueryParameter(max_length=256)] = "",
        scene: Annotated[str, QueryParameter(max_length=64)] = "",
        run_id: RunId = "",
    ) -> ChargeList:
        """The account's charged calls, the newest charge first, by cursor only.

        `from` and `to` by when a call began; `model` as asked for or as sent to the provider.
        """
        wanted = CallFilter(
            model=model, scene=scene, run_id=run_id, from_at=times.from_at, to_at=times.to_at
        )
        calls = await charged_calls(
            api.database, caller.account, wanted, after=listing.after, limit=listing.page_size
        )
        return charge_list(calls)

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
