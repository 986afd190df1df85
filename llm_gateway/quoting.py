"""What a call may cost, before anything is held or sent: its route, its rule, and its bounds.

Calls, estimates and the list of models go by the same code, so none can promise what another refuses.
"""

from typing import TYPE_CHECKING, Final

import msgspec

from billing.books import BooksStaleError, NoBookError
from billing.context import BillingContext
from billing.guard import Bounds
from llm_gateway import errors
from llm_gateway.config import Config
from llm_gateway.dialects import chat
from llm_gateway.identity import Caller, may_use_model
from llm_gateway.routing import Route, route
from llm_gateway.tokens import Count, TokenCounter
from pricing_rules.book import Book, Rule
from pricing_rules.lint import near_rule_toml
from pricing_rules.match import holds, match
from pricing_rules.price import Ceiling, Factors, UnlistedServiceTierError, ceiling_of, factors_of

if TYPE_CHECKING:
    from billing.books import PriceBooks

# What the chat template adds to each message:
# https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken
TEMPLATE_TOKENS: Final = 3
_ROUTES_KEPT_MAX: Final = 1_000  # where "*" serves what has no entry, clients make names up


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One way to serve a call, priced: the route, the rule, and what is to be held for it."""

    route: Route
    scene: str
    rule: Rule
    factors: Factors  # of the hour and the service tier, fixed at admission as the rule is
    ceiling: Ceiling
    bounds: Bounds


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What a call may cost, fixed at admission: book, rules and targets in the order they are tried."""

    request: chat.ChatRequest
    context: BillingContext
    targets: tuple[Target, ...]


class Quoter:
    """Routes and prices calls by the settings and the price book in effect."""

    def __init__(self, config: Config, books: "PriceBooks", tokens: TokenCounter) -> None:
        self._config = config
        self._books = books
        self._tokens = tokens
        self._routes: dict[str, list[Route]] = {}  # of the settings, which never change

    def quote(
        self, caller: Caller, request: chat.ChatRequest, event_id: str, started_at: int
    ) -> Quote:
        """Route and price a call before anything is sent.

        Raises ModelNotAllowedError, ModelNotFoundError, NoPriceRuleError, UnboundedCostError,
        BooksStaleError, ProviderOffError.
        """
        if not may_use_model(caller.key, request.model):
            raise errors.ModelNotAllowedError(request.model)
        try:
            version, book = self._books.current(started_at)
        except (BooksStaleError, NoBookError):
            raise errors.BooksStaleError from None
        routes = self._routes.get(request.model)
        if routes is None:
            routes = route(self._config, request.model)
            if len(self._routes) < _ROUTES_KEPT_MAX:
                self._routes[request.model] = routes
        targets = self._targets(book, caller.scene, request, routes, started_at)
        if not targets:
            raise self._no_rule(caller.scene, routes[0])
        first = targets[0]
        context = BillingContext(
            event_id=event_id,
            account=caller.account,
            key_id=caller.key.key_id,
            app=caller.key.app,
            scene=caller.scene,
            provider=first.route.provider.name,
            model_requested=request.model,
            model_sent=first.route.model_sent,
            run_id=caller.run_id,
            client_request_id=caller.client_request_id,
            book=version,
            rule=first.rule.id,
            started_at=started_at,
        )
        return Quote(
            request=request,
            context=context,
            targets=tuple(targets),
        )

    def _targets(
        self, book: Book, scene: str, request: chat.ChatRequest, routes: list[Route], at: int
    ) -> list[Target]:
        """The priced routes; a fallback without a price for the service tier asked for is left out.

        Raises UnboundedCostError if it is the first that has none: a client must not choose a tier
        that costs us more than its rule asks of the account.
        """
        targets: list[Target] = []
        for one in routes:
            try:
                target = self._target(book, scene, request, one, at)
            except UnlistedServiceTierError as unlisted:
                if targets:
                    continue
                raise errors.UnboundedCostError(str(unlisted), param="service_tier") from None
            if target is not None:
                targets.append(target)
        return targets

    def _target(
        self, book: Book, scene: str, request: chat.ChatRequest, one: Route, at: int
    ) -> Target | None:
        """Raises UnlistedServiceTierError."""
        rule = self.rule(book, scene, one.provider.name, one.model_sent, at)
        if rule is None:
            return None
        bounds = Bounds(
            input_tokens=chat.input_bound(request, one.model),
            choices=request.n,
            client_limit=request.limit,
            model_max_output=one.model.max_output_tokens,
            # What an answer does not use of a prediction is billed as output, beside the limit:
            # https://platform.openai.com/docs/guides/predicted-outputs
            extra_output=request.n * request.prediction_bytes,
        )
        factors = factors_of(rule, at, request.service_tier)
        return Target(
            route=one,
            scene=scene,
            rule=rule,
            factors=factors,
            ceiling=ceiling_of(rule, factors),
            bounds=bounds,
        )

    def rule(self, book: Book, scene: str, provider: str, model: str, at: int) -> Rule | None:
        """The rule that prices a call, or that of the settings for whatever no rule prices."""
        rule = match(book, scene, provider, model, at)
        if rule is None and self._config.pricing.unknown_model == "fallback":
            return self._fallback_rule(book, at)
        return rule

    def _fallback_rule(self, book: Book, at: int) -> Rule | None:
        wanted = self._config.pricing.fallback_rule
        found = next((r for r in book.rules if r.id == wanted and r.status == "active"), None)
        return found if found is not None and holds(found, at) else None

    def _no_rule(self, scene: str, one: Route) -> errors.NoPriceRuleError:
        provider, model = one.provider.name, one.model_sent
        toml = near_rule_toml(scene, provider, model)
        return errors.NoPriceRuleError(scene=scene, provider=provider, model=model, rule_toml=toml)

    def count_input(self, request: chat.ChatRequest, target: Target) -> Count:
        """About how many tokens the input of a request has, for answers that report no usage."""
        prompt = chat.prompt(request)
        count = self._tokens.count(target.route.model_sent, prompt.text)
        model = target.route.model
        others = (
            request.images * (model.image_tokens_max or 0)
            + request.audios * (model.audio_tokens_max or 0)
            + request.files * (model.file_tokens_max or 0)
        )
        return Count(count.tokens + TEMPLATE_TOKENS * prompt.messages + others, count.source)
