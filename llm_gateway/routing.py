"""Which providers serve a model, in the order they are tried. Pure."""

import difflib
from typing import Final

import msgspec

from llm_gateway.config import Config, ModelConfig, ProviderConfig
from llm_gateway.errors import ModelNotFoundError, ProviderOffError

ANY_MODEL: Final = "*"
NEAR_NAMES_MAX: Final = 5


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One way to serve a call: a provider, and the model's name there."""

    provider: ProviderConfig
    model_sent: str
    model: ModelConfig


def route(config: Config, model: str) -> list[Route]:
    """The targets of `model` whose providers are on; the first is tried first, the rest on failure.

    An entry of that very name comes before the entry "*". Raises ModelNotFoundError with near
    names, and ProviderOffError, saying what to set, if none of its providers is on.
    """
    entry = find_model(config, model)
    providers = {provider.name: provider for provider in config.providers}
    routes: list[Route] = []
    off: list[str] = []
    for target in entry.targets:
        provider = providers.get(target.provider)
        if provider is None:
            off.append(f"{target.provider} is not configured")
        elif not provider.on:
            off.append(f"{provider.name} is off ({provider.off_because})")
        else:
            sent = model if target.model == ANY_MODEL else target.model
            routes.append(Route(provider=provider, model_sent=sent, model=entry))
    if not routes:
        raise ProviderOffError(model, "; ".join(off) or "it has no targets")
    return routes


def find_model(config: Config, model: str) -> ModelConfig:
    """The entry that serves `model`; raises ModelNotFoundError."""
    passing: ModelConfig | None = None
    for entry in config.models:
        if entry.name == ANY_MODEL:
            passing = entry
        elif entry.name == model:
            return entry
    # Nobody may ask for the pass-through by its own name: it would be sent upstream as "*".
    if passing is None or model == ANY_MODEL:
        raise ModelNotFoundError(model, near_names(config, model))
    return passing


def list_models(config: Config) -> list[ModelConfig]:
    """The models that can be called by name now, in the order of the settings; without "*"."""
    on = {provider.name for provider in config.providers if provider.on}
    return [
        entry
        for entry in config.models
        if entry.name != ANY_MODEL and any(target.provider in on for target in entry.targets)
    ]


def near_names(config: Config, model: str) -> list[str]:
    """Names of callable models that resemble `model`, the nearest first."""
    names = {entry.name.casefold(): entry.name for entry in list_models(config)}
    # A long name is no slip of the pen, and comparing costs its square.
    wanted = model.casefold()[:_COMPARED_CHARACTERS_MAX]
    near = difflib.get_close_matches(wanted, names, n=NEAR_NAMES_MAX, cutoff=0.5)
    return [names[name] for name in near]


_COMPARED_CHARACTERS_MAX: Final = 64
