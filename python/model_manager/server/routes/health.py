"""`/health` and `/ready` for probes, `/api/health/ai` and `/api/health/ai/models` for the manager's own report."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from ..middleware import to_json
from ..schemas import AiHealth, Health, Ready

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from ..routing import Routes
    from ..service import Service


def add_routes(routes: Routes, service: Service) -> None:
    """Register all four endpoints."""

    async def health(request: Request) -> Response:
        """Whether the process runs. Always 200."""
        return to_json(health_of(service))

    async def ready(request: Request) -> Response:
        """200 if the server accepts requests; 503 while it drains or when its default model cannot be loaded."""
        status, reason = readiness(service)
        return to_json({"status": status, "reason": reason}, 200 if status == "ready" else 503)

    async def ai(request: Request) -> Response:
        """The manager's report on its models, its cache and its settings."""
        return to_json(_guarded(lambda: ai_health(service)))

    async def ai_models(request: Request) -> Response:
        """The manager's report on its loads."""
        return to_json(_guarded(lambda: ai_models_health(service)))

    tags = ["health"]
    routes.add("/health", health, answer=Health, summary="Liveness", tags=tags, probe=True)
    routes.add(
        "/ready",
        ready,
        answer=Ready,
        summary="Readiness",
        tags=tags,
        responses={503: {"model": Ready, "description": "Not now."}},
        probe=True,
    )
    routes.add("/api/health/ai", ai, answer=AiHealth, summary="The manager's report", tags=tags, probe=True)
    routes.add(
        "/api/health/ai/models", ai_models, answer=AiHealth, summary="The manager's loads", tags=tags, probe=True
    )


def health_of(service: Service) -> dict[str, Any]:
    """`GET /health`. Loads nothing."""
    model = service.default
    state = service.state(model.key)
    available = state is not None and state["last_error"] is None
    return {
        "status": "draining" if service.draining else "healthy" if available else "degraded",
        "model_available": available,
        "model_name": model.name,
        "dimensions": service.dimensions(model),
        "timestamp": _now(),
    }


def readiness(service: Service) -> tuple[str, str | None]:
    """`ready`, `loading` (only with `warm_up`), `unavailable` or `draining`, and the reason."""
    if service.draining:
        return "draining", "The server is shutting down."
    state = service.state(service.default.key)
    if state is None:
        return "unavailable", f"The slot {service.default.key!r} was unregistered."
    if state["last_error"] is not None and state["state"] != "ready":
        return "unavailable", state["last_error"]
    if service.config.warm_up and state["state"] != "ready" and service.warming:
        return "loading", f"{service.default.name} is being loaded."
    return "ready", None


def ai_health(service: Service) -> dict[str, Any]:
    """`GET /api/health/ai`."""
    manager = service.manager
    info = manager.get_model_info()
    return {
        "status": "healthy",
        "timestamp": _now(),
        "models": info,
        "lazy_loading": manager.get_lazy_loading_statistics(),
        "optimization": {
            "lazy_loading_enabled": manager.config.lazy_loading,
            "memory_efficient_caching": manager.config.cache_size > 0,
            "auto_cleanup": info["auto_cleanup_enabled"],
            "turkish_language_optimization": manager.config.prefer_turkish,
        },
        "profile": manager.config.profile,
    }


def ai_models_health(service: Service) -> dict[str, Any]:
    """`GET /api/health/ai/models`."""
    return {
        "status": "healthy",
        "lazy_loading_enabled": service.manager.config.lazy_loading,
        "lazy_loading_stats": service.manager.get_lazy_loading_statistics(),
        "timestamp": _now(),
    }


def _guarded(report: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The report, or an answer with status ``error`` when the manager fails."""
    try:
        return report()
    except Exception as error:  # noqa: BLE001  callers expect an answer whatever fails
        return {"status": "error", "error": str(error), "timestamp": _now()}


def _now() -> str:
    return dt.datetime.now(dt.timezone.utc).isoformat()
