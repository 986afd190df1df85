"""Whether the process lives, and can take calls."""

from typing import Literal

import msgspec


class HealthView(msgspec.Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class DependencyView(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the gateway depends on."""

    name: str
    status: Literal["up", "down"]
    detail: str


class ReadyView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether calls can be taken, dependency by dependency."""

    status: Literal["ready", "unavailable"]
    dependencies: list[DependencyView]
