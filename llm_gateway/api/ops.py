"""For whoever runs the gateway: is it alive, can it take calls, what does it count."""

from typing import Final

from litestar import Controller, Response, get
from litestar.di import NamedDependency

from llm_gateway.api.state import OpsState
from llm_gateway.api.views.health import DependencyView, HealthView, ReadyView

PROMETHEUS_TEXT: Final = "text/plain; version=0.0.4"


class HealthController(Controller):
    """Open to all, and telling nothing that is worth hiding."""

    @get("/healthz", tags=["operations"], security=[{}])
    async def alive(self) -> HealthView:
        """The process answers; says nothing about what it depends on."""
        return HealthView()

    @get("/readyz", tags=["operations"], security=[{}])
    async def ready(self, ops: NamedDependency[OpsState]) -> Response[ReadyView]:
        """A row for each dependency; 503 while one of them is down."""
        dependencies = await ops.readiness()
        up = all(dependency.up for dependency in dependencies)
        view = ReadyView(
            status="ready" if up else "unavailable",
            dependencies=[
                DependencyView(
                    name=dependency.name,
                    status="up" if dependency.up else "down",
                    detail=dependency.detail,
                )
                for dependency in dependencies
            ],
        )
        return Response(view, status_code=200 if up else 503)


class MetricsController(Controller):
    """Counts without accounts or keys."""

    @get("/metrics", media_type=PROMETHEUS_TEXT, tags=["operations"], security=[{}])
    async def metrics(self, ops: NamedDependency[OpsState]) -> str:
        """Prometheus' text format."""
        return await ops.metrics()
