"""GET /v1/models in OpenAI's shape: what this key can call, and is priced for its scene."""

from collections.abc import Sequence

from litestar import Controller, Router, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath

from llm_gateway import errors
from llm_gateway.api.deps import provide_reader
from llm_gateway.api.state import ApiState, ModelOffer
from llm_gateway.api.views.models import ModelList, ModelView, model_pricing_view
from llm_gateway.identity import Caller, may_use_model
from pricing_rules import globs
from pricing_rules.book import Book

ANY_MODEL = "*"


class ModelsController(Controller):
    """Needs a key, never credit: an SDK lists models before it spends anything."""

    @get("/")
    async def list_models(
        self, api: NamedDependency[ApiState], reader: NamedDependency[Caller]
    ) -> ModelList:
        """List the models that this key can call, with what they cost it."""
        return ModelList(data=callable_models(api, reader))

    @get("/{model_id:path}")
    async def get_model(
        self,
        api: NamedDependency[ApiState],
        reader: NamedDependency[Caller],
        model_id: FromPath[str],
    ) -> ModelView:
        """Get one model; names may hold slashes."""
        name = model_id.removeprefix("/")
        for model in callable_models(api, reader):
            if model.id == name:
                return model
        raise errors.ModelNotFoundError(name)


def models_router() -> Router:
    """Everything below /v1/models."""
    return Router(
        "/v1/models",
        route_handlers=[ModelsController],
        dependencies={"reader": Provide(provide_reader)},
        tags=["models"],
    )


def callable_models(api: ApiState, reader: Caller) -> list[ModelView]:
    """The models that are offered, priced for the scene, and open to the key, by name."""
    at = api.now_ms()
    version, book = api.books.current(at)
    models: list[ModelView] = []
    for name, targets in sorted(_offered(api.offers(), book).items()):
        if not may_use_model(reader.key, name):
            continue
        for provider, model in targets:
            sent = name if model == ANY_MODEL else model
            if rule := api.quoter.rule(book, reader.scene, provider, sent, at):
                pricing = model_pricing_view(rule, version, at)
                models.append(ModelView(id=name, owned_by=provider, pricing=pricing))
                break  # the others are for when it fails
    return models


_Targets = tuple[tuple[str, str], ...]


def _offered(offers: Sequence[ModelOffer], book: Book) -> dict[str, _Targets]:
    """Who serves each model; as for a call, the entry of that very name comes before "*"."""
    passed = [offer for offer in offers if offer.name == ANY_MODEL]
    named = {offer.name: offer.targets for offer in offers if offer.name != ANY_MODEL}
    by_rules = {name: offer.targets for offer in passed for name in _named_by_rules(offer, book)}
    return by_rules | named


def _named_by_rules(offer: ModelOffer, book: Book) -> list[str]:
    """What a pass-through can be known to serve: the models that its providers' rules spell out."""
    passing = [provider for provider, model in offer.targets if model == ANY_MODEL]
    return [
        rule.model
        for rule in book.rules
        if globs.is_exact(rule.model)
        and any(globs.matches(rule.provider, provider) for provider in passing)
    ]
