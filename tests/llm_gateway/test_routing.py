"""Routing: the exact name, then "*"; targets in order; providers that are off are left out."""

import pytest

from llm_gateway.config import Config, ModelConfig, ProviderConfig, TargetConfig
from llm_gateway.errors import ModelNotFoundError, ProviderOffError
from llm_gateway.routing import find_model, list_models, near_names, route

OPENAI = ProviderConfig(name="openai")
BACKUP = ProviderConfig(name="backup")
OFF = ProviderConfig(name="off", off_because="OFF_API_KEY is not set")


def model(name: str, *targets: str) -> ModelConfig:
    """A model with targets written as provider/model."""
    pairs = [target.partition("/") for target in targets]
    return ModelConfig(
        name=name,
        max_output_tokens=100,
        targets=tuple(TargetConfig(provider=pair[0], model=pair[2]) for pair in pairs),
    )


def config(*models: ModelConfig) -> Config:
    """Settings with these models and all providers."""
    return Config(providers=(OPENAI, BACKUP, OFF), models=models)


def sent(settings: Config, name: str) -> list[tuple[str, str, str]]:
    """The routes as (provider, model sent, entry)."""
    return [
        (found.provider.name, found.model_sent, found.model.name) for found in route(settings, name)
    ]


def test_targets_are_tried_in_order() -> None:
    settings = config(model("m", "backup/b", "openai/o"))
    assert sent(settings, "m") == [("backup", "b", "m"), ("openai", "o", "m")]


def test_exact_name_comes_before_pass_through() -> None:
    settings = config(model("*", "backup/*"), model("m", "openai/o"))
    assert sent(settings, "m") == [("openai", "o", "m")]


def test_pass_through_sends_the_name_asked_for() -> None:
    settings = config(model("*", "backup/*", "openai/fixed"), model("m", "openai/o"))
    assert sent(settings, "any/name") == [("backup", "any/name", "*"), ("openai", "fixed", "*")]


def test_named_entry_may_keep_its_name() -> None:
    assert sent(config(model("m", "openai/*")), "m") == [("openai", "m", "m")]


def test_providers_that_are_off_are_left_out() -> None:
    settings = config(model("m", "off/x", "openai/o"))
    assert sent(settings, "m") == [("openai", "o", "m")]


def test_no_provider_left_names_the_variable() -> None:
    settings = config(model("m", "off/x"), model("*", "openai/*"))
    with pytest.raises(ProviderOffError, match="OFF_API_KEY is not set") as caught:
        route(settings, "m")
    assert caught.value.status == 503
    assert caught.value.headers == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("targets", "why"), [(["unknown/x"], "unknown is not configured"), ([], "it has no targets")]
)
def test_targets_without_provider_are_told(targets: list[str], why: str) -> None:
    with pytest.raises(ProviderOffError, match=why):
        route(config(model("m", *targets)), "m")


@pytest.mark.parametrize("name", ["x", "M", "m ", "", "m*"])
def test_names_match_exactly(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        route(config(model("m", "openai/o")), name)


def test_star_is_no_model_name() -> None:
    with pytest.raises(ModelNotFoundError):
        find_model(config(model("*", "openai/*")), "*")


def test_near_names_are_listed_nearest_first() -> None:
    settings = config(
        model("gpt-4o-mini", "openai/*"),
        model("gpt-4o", "openai/*"),
        model("qwen-max", "openai/*"),
        model("gpt-4", "off/*"),
    )
    with pytest.raises(ModelNotFoundError) as caught:
        route(settings, "GPT4o")
    assert caught.value.extra["near"] == ["gpt-4o", "gpt-4o-mini"]
    assert "Did you mean gpt-4o, gpt-4o-mini?" in caught.value.message
    assert near_names(settings, "zzz") == []


def test_long_names_are_compared_in_part() -> None:
    settings = config(model("m" * 64, "openai/*"))
    assert near_names(settings, "m" * 1_000_000) == ["m" * 64]


def test_listed_are_the_models_that_can_be_called() -> None:
    settings = config(
        model("b", "openai/*"),
        model("*", "openai/*"),
        model("a", "off/x", "backup/y"),
        model("c", "off/x"),
    )
    assert [entry.name for entry in list_models(settings)] == ["b", "a"]


def test_no_models_at_all() -> None:
    assert list_models(Config()) == []
    with pytest.raises(ModelNotFoundError):
        route(Config(), "m")
