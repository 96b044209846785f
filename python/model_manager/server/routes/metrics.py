"""`GET /metrics`, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.requests import Request

    from ..routing import Routes
    from ..service import Service


def add_routes(routes: Routes, service: Service) -> None:
    """Register `GET /metrics`."""

    async def metrics(request: Request) -> Response:
        """Metrics of the server, the cache, the queues and the models in Prometheus' text format."""
        service.sample()
        return Response(service.metrics.expose(), media_type=CONTENT_TYPE_LATEST)

    routes.add(
        "/metrics",
        metrics,
        summary="Metrics for Prometheus",
        tags=["health"],
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The metrics."}},
        probe=True,
    )
