"""Built-in scenes, providers and models, in the shape that TOML gives them."""

from typing import Final, TypedDict


class Target(TypedDict):
    """A provider and the model's name there."""

    provider: str
    model: str


class Model(TypedDict, total=False):
    """An entry of [[models]]."""

    name: str
    max_output_tokens: int
    image_tokens_max: int
    targets: list[Target]


SCENES: Final[list[dict[str, object]]] = [{"name": "default"}, {"name": "chat"}, {"name": "agent"}]


def _provider(
    name: str, base_url: str, variable: str, *, limit: str = "max_tokens", enforced: bool = True
) -> dict[str, object]:
    return {
        "name": name,
        "kind": "openai",
        "base_url": base_url,
        "api_key": f"env:{variable}",
        "output_limit_field": limit,
        "enforces_output_limit": enforced,
    }


_COMPLETION: Final = "max_completion_tokens"

PROVIDERS: Final[list[dict[str, object]]] = [
    _provider("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", limit=_COMPLETION),
    _provider("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
    _provider(
        "google", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"
    ),
    _provider("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    # max_tokens bounds the answer there, not the reasoning before it.
    _provider(
        "qwen",
        "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        "DASHSCOPE_API_KEY",
        enforced=False,
    ),
    _provider("moonshot", "https://api.moonshot.ai/v1", "MOONSHOT_API_KEY", limit=_COMPLETION),
    {"name": "echo", "kind": "echo", "enforces_output_limit": True},
]


def _models(provider: str, output: int, image: int | None, *names: str) -> list[Model]:
    """Models of one provider with the same limits (tokens); image None: it takes no images."""
    models = []
    for name in names:
        target = Target(provider=provider, model=name)
        model = Model(name=name, max_output_tokens=output, targets=[target])
        if image is not None:
            model["image_tokens_max"] = image
        models.append(model)
    return models


# Output limits as the providers' model pages state them, or the context window where no lower limit
# is known: what is too high here is only held, never charged. Tokens of an image bound what is held
# as well: generous readings of the providers' rules for one image at the highest detail. Models
# whose limit could not be found are left out, and so is DeepSeek, whose prices depend on the hour.
MODELS: Final[list[Model]] = [
    *_models("echo", 4_096, 1_000, "echo", "echo-reasoning"),
    *_models("openai", 128_000, 25_000, "gpt-5.4-mini", "gpt-5.4-nano"),
    *_models("openai", 128_000, 4_000, "gpt-5.2", "gpt-5.1", "gpt-5", "gpt-5-mini", "gpt-5-nano"),
    *_models("openai", 32_768, 4_000, "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano"),
    *_models("openai", 16_384, 1_500, "gpt-4o"),
    *_models("openai", 16_384, 50_000, "gpt-4o-mini"),
    *_models("openai", 100_000, 4_000, "o4-mini", "o3", "o1"),
    *_models("openai", 100_000, None, "o3-mini"),
    *_models("openai", 4_096, 1_500, "gpt-4-turbo"),
    *_models("openai", 8_192, None, "gpt-4"),
    *_models("openai", 4_096, None, "gpt-3.5-turbo"),
    *_models("anthropic", 128_000, 5_000, "claude-opus-5-5", "claude-opus-5", "claude-opus-4-8"),
    *_models("anthropic", 128_000, 5_000, "claude-opus-4-7", "claude-opus-4-6"),
    *_models("anthropic", 128_000, 5_000, "claude-sonnet-5-5", "claude-sonnet-5"),
    *_models("anthropic", 64_000, 5_000, "claude-opus-4-5", "claude-opus-4-5-20251101"),
    *_models("anthropic", 64_000, 5_000, "claude-sonnet-4-6"),
    *_models("anthropic", 64_000, 5_000, "claude-haiku-4-5", "claude-haiku-4-5-20251001"),
    *_models("google", 65_536, 2_500, "gemini-3.5-flash"),
    *_models("qwen", 8_192, None, "qwq-plus"),
    *_models("moonshot", 262_144, 5_000, "kimi-k2.6", "kimi-k2.5"),
    *_models("moonshot", 262_144, None, "kimi-k2.7-code", "kimi-k2.7-code-highspeed"),
    *_models("moonshot", 8_192, None, "moonshot-v1-8k"),
    *_models("moonshot", 32_768, None, "moonshot-v1-32k"),
    *_models("moonshot", 131_072, None, "moonshot-v1-128k"),
]
