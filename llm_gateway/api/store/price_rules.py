"""/credit-store/price-rules: what calls cost."""

from litestar import Controller, get
from litestar.di import NamedDependency

from billing.lists import PageRequest
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.prices import PriceRuleList, price_rule_view
from llm_gateway.identity import Caller, may_use_model
from pricing_rules import globs


class PriceRulesController(Controller):
    """The rules of the price book in effect."""

    path = "/price-rules"

    @get("/")
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
