"""The credit store: what an account has, what it was charged and why, and what calls cost."""

from typing import Annotated, Literal

from litestar import Controller, Router, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, FromQuery, QueryParameter

from billing.charges import explain_charge
from billing.lists import PageRequest
from llm_gateway import errors
from llm_gateway.api.deps import provide_caller, provide_listing
from llm_gateway.api.state import ApiState
from llm_gateway.api.views import (
    BalanceView,
    ChargeView,
    PriceRuleList,
    TransactionList,
    balance_view,
    charge_view,
    price_rule_view,
    transaction_list,
)
from llm_gateway.identity import Caller, may_use_model
from pricing_rules import globs


class StoreController(Controller):
    """For the owner of an account: a user's key, or an app's key and X-Billing-User."""

    @get("/balance")
    async def balance(
        self, api: NamedDependency[ApiState], caller: NamedDependency[Caller]
    ) -> BalanceView:
        """Balance, held credit and totals; zeros for an account that was never posted to."""
        return balance_view(await api.accounts.read(caller.account))

    @get("/transactions")
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

    @get("/charges/{event_id:str}")
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

    @get("/price-rules")
    async def price_rules(
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        listing: NamedDependency[PageRequest],
    ) -> PriceRuleList:
        """The active rules that can apply to this key's calls, in the order of the book."""
        version, book = api.books.current(api.now_ms())
        scenes = {caller.key.default_scene, *caller.key.scenes}
        rules = [
            rule
            for rule in book.rules
            if rule.status == "active"
            and any(globs.matches(rule.scene, scene) for scene in scenes)
            and (not globs.is_exact(rule.model) or may_use_model(caller.key, rule.model))
        ]
        shown = rules[listing.offset : listing.offset + listing.page_size]
        return PriceRuleList(
            book=version,
            items=[price_rule_view(rule) for rule in shown],
            page=listing.page,
            page_size=listing.page_size,
            total=len(rules),
            has_more=listing.page * listing.page_size < len(rules),
        )


def store_router() -> Router:
    """Everything below /credit-store."""
    return Router(
        "/credit-store",
        route_handlers=[StoreController],
        dependencies={
            "caller": Provide(provide_caller),
            "listing": Provide(provide_listing, sync_to_thread=False),
        },
        tags=["credit store"],
    )
