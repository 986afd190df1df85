"""GET /v1/models in OpenAI's shape: what this key can call, and is priced for its scene."""

from collections.abc import Sequence

from litestar import Controller, Router, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath

from billing.keys import KeyInfo
from llm_gateway import errors
from llm_gateway.api.deps import provide_reader
from llm_gateway.api.state import ApiState, ModelOffer
from llm_gateway.api.views.models import ModelList, ModelView
from llm_gateway.identity import Caller, may_use_model
from pricing_rules import globs
from pricing_rules.book import Book
from pricing_rules.match import match

ANY_MODEL = "*"


class ModelsController(Controller):
    """Needs a key, never credit: an SDK lists models before it spends anything."""

    @get("/")
    async def list_models(
        self, api: NamedDependency[ApiState], reader: NamedDependency[Caller]
    ) -> ModelList:
        """List the models that this key can call."""
        now_ms = api.now_ms()
        _, book = api.books.current(now_ms)
        return ModelList(data=callable_models(api.offers(), book, reader.scene, reader.key, now_ms))

    @get("/{model_id:path}")
    async def get_model(
        self,
        api: NamedDependency[ApiState],
        reader: NamedDependency[Caller],
        model_id: FromPath[str],
    ) -> ModelView:
        """Get one model; names may hold slashes."""
        name = model_id.removeprefix("/")
        now_ms = api.now_ms()
        _, book = api.books.current(now_ms)
        models = callable_models(api.offers(), book, reader.scene, reader.key, now_ms)
        for model in models:
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


def callable_models(
    offers: Sequence[ModelOffer], book: Book, scene: str, key: KeyInfo, at: int
) -> list[ModelView]:
    """The models that are offered, priced for the scene, and open to the key, by name. Pure.

    `at`: for when they are to be priced, milliseconds since the epoch.
    """
    found: dict[str, ModelView] = {}
    for offer in offers:
        names = _named_by_rules(offer, book) if offer.name == ANY_MODEL else [offer.name]
        for name in names:
            provider = _priced_by(offer, book, scene, name, at)
            if provider and may_use_model(key, name):
                found.setdefault(name, ModelView(id=name, owned_by=provider))
    return [found[name] for name in sorted(found)]


def _priced_by(offer: ModelOffer, book: Book, scene: str, name: str, at: int) -> str:
    """The first provider whose model has a price, "" if none has."""
    for provider, model in offer.targets:
        if match(book, scene, provider, name if model == ANY_MODEL else model, at):
            return provider
    return ""


def _named_by_rules(offer: ModelOffer, book: Book) -> list[str]:
    """What a pass-through can be known to serve: the models that its providers' rules spell out."""
    passing = [provider for provider, model in offer.targets if model == ANY_MODEL]
    return [
        rule.model
        for rule in book.rules
        if globs.is_exact(rule.model)
        and any(globs.matches(rule.provider, provider) for provider in passing)
    ]
