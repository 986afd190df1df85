"""Models in OpenAI's shape."""

from typing import Literal

import msgspec


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model in OpenAI's shape; `created` is not known and 0."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models in OpenAI's shape."""

    object: Literal["list"] = "list"
    data: list[ModelView]
