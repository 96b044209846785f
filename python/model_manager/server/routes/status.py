"""`GET /`: the description of the server, as JSON for clients and as a page for browsers. `GET /api/status`: the data
of that page.

The page is one document without external assets. The Content-Security-Policy allows its style and script by their
hashes, so nothing else can run in it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import os
import platform
import time
from importlib import resources
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ... import __version__, isa
from ..._machine import cpu_name, usable_cores
from ..errors import bad_request
from ..middleware import to_json
from ..service import SAMPLE_SECONDS

if TYPE_CHECKING:
    from starlette.requests import Request

    from ..._types import AdaptiveStatistics, SlotStatistics, TrackerStatistics
    from ..routing import Routes
    from ..service import Service

_MB = 1e6
"""The unit of the service's history."""
_LINKS = ("v1/models", "health", "ready", "metrics", "api/ps", "openapi.json")


class ServiceDescription(BaseModel):
    """The models and endpoints of this server."""

    service: str
    description: str
    version: str
    status: str = Field(description="serving, loading or draining.")
    models: list[str] = Field(description="Names of the embedding models.")
    default_model: str
    generators: list[str] = Field(description="Names of the text generators.")
    endpoints: dict[str, str]


class Status(BaseModel):
    """The data of the status page. Times are in seconds, sizes in bytes."""

    model_config = ConfigDict(extra="allow")

    status: str = Field(description="serving, loading or draining.")
    version: str
    time: float
    started: float
    uptime_seconds: float
    admin: bool = Field(description="Whether clients may load and unload models.")
    default_model: str
    links: list[str]
    models: list[dict[str, Any]]
    memory: dict[str, Any]
    cache: dict[str, Any]
    queue: dict[str, Any]
    requests: dict[str, Any]
    generation: dict[str, Any]
    process: dict[str, Any]


def add_routes(routes: Routes, service: Service) -> None:
    """Register both endpoints."""

    async def front(request: Request) -> Response:
        """The description of the server: JSON, or a live page for clients that prefer text/html."""
        # Several headers with one name form one list.
        if _prefers_html(",".join(request.headers.getlist("accept"))):
            document, policy = _document()
            headers = {
                "content-security-policy": policy,
                "cache-control": "no-cache",
                "vary": "accept",
                "referrer-policy": "no-referrer",
                "x-content-type-options": "nosniff",
            }
            return Response(document, media_type="text/html; charset=utf-8", headers=headers)
        return to_json(description(service), headers={"vary": "accept"})

    async def status(request: Request) -> Response:
        """The data of the status page. Loads nothing."""
        return to_json(status_of(service, _since(request)), headers={"cache-control": "no-store"})

    routes.add(
        "/",
        front,
        answer=ServiceDescription,
        summary="Description of the server",
        tags=["status"],
        responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
        probe=True,
    )
    routes.add(
        "/api/status",
        status,
        answer=Status,
        summary="Data of the status page",
        tags=["status"],
        parameters=[
            {
                "name": "since",
                "in": "query",
                "required": False,
                "description": "Leave out samples of memory up to this time, seconds since the epoch.",
                "schema": {"type": "number"},
            }
        ],
        probe=True,
    )


# --- The page ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _document() -> tuple[bytes, str]:
    """The page and its Content-Security-Policy."""
    folder = resources.files("model_manager.server") / "ui"

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    style = read("page.css")
    script = "".join(read(name) for name in ("words.js", "chart.js", "page.js"))
    document = read("page.html").replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return document.encode(), policy


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _prefers_html(accept: str) -> bool:
    """Whether the header gives text/html a higher quality than JSON. Equal qualities, as for ``*/*``, mean JSON: only
    browsers ask for HTML.
    """
    return _quality(accept, "text", "html") > _quality(accept, "application", "json")


def _quality(accept: str, kind: str, subtype: str) -> float:
    """The quality of a media type in the header: that of the most specific matching range."""
    best = (0, 0.0)
    for part in accept.lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        specificity = {f"{kind}/{subtype}": 3, f"{kind}/*": 2, "*/*": 1}.get(media, 0)
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
                # Other values, such as nan, are invalid.
                if not 0 <= quality <= 1:
                    quality = 0.0
        if specificity:
            best = max(best, (specificity, quality))
    return best[1]


# --- The data ----------------------------------------------------------------------------------------------------


def description(service: Service) -> dict[str, Any]:
    """`GET /` for clients: names, version, endpoints."""
    slots = service.manager.stats()["slots"]
    return {
        "service": "model_manager",
        "description": "Sentence embeddings and text generation with OpenAI's protocol.",
        "version": __version__,
        "status": _state(service, slots),
        "models": [model.name for model in service.models()],
        "default_model": service.default.name,
        "generators": list(service.generators()),
        "endpoints": {
            "embeddings": "/v1/embeddings",
            "chat": "/v1/chat/completions",
            "completions": "/v1/completions",
            "responses": "/v1/responses",
            "models": "/v1/models",
            "health": "/health",
            "ready": "/ready",
            "metrics": "/metrics",
            "status": "/api/status",
            "openapi": "/openapi.json",
        },
    }


def status_of(service: Service, since: float = -math.inf) -> dict[str, Any]:
    """`GET /api/status`, with the memory history after `since`, seconds since the epoch.

    A `since` in the future was sent before the clock was set back; then the whole history is returned.
    """
    now = time.time()
    if since > now:
        since = -math.inf
    stats = service.manager.stats()
    slots, cache = stats["slots"], stats["cache"]
    lookups = cache["hits"] + cache["misses"]
    expected: dict[str, float] = {}
    for planned in service.manager.forecast():
        expected.setdefault(planned["slot"], planned["seconds"])
    done = [slot["generation"] for slot in slots.values() if slot["generation"] is not None]
    return {
        "status": _state(service, slots),
        "version": __version__,
        "time": now,
        "started": service.started,
        "uptime_seconds": service.uptime,
        "admin": service.config.admin,
        "default_model": service.default.name,
        "links": list(_LINKS),
        "models": [
            {
                **_model(service, name, slot, stats["tracker"]),
                "expected_in_seconds": expected.get(name),
                "saved": _saved(stats["adaptive"].get(name)),
            }
            for name, slot in slots.items()
        ],
        "memory": {
            **stats["memory"],
            "history_seconds": SAMPLE_SECONDS * (service.history.maxlen or 0),
            "history": [
                (at, round(process * _MB), round(models * _MB)) for at, process, models in service.history if at > since
            ],
        },
        "cache": {**cache, "hit_ratio": cache["hits"] / lookups if lookups else None},
        # Those that this server refused, for whichever queue was full.
        "queue": {**stats["queue"], "rejected": service.metrics.rejected},
        "requests": {**service.metrics.traffic(), "in_flight": service.in_flight},
        "generation": {
            key: sum(figures[key] for figures in done)
            for key in (
                *("requests", "generated_tokens", "drafted_tokens", "accepted_tokens"),
                *("busy_seconds", "active", "waiting"),
            )
        },
        "process": {
            "pid": os.getpid(),
            "workers": service.config.workers,
            "cpu": cpu_name(),
            "cores": usable_cores(),
            "threads": stats["threads"],
            "isa": isa(),
            "device": stats["device"],
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
        },
    }


def _saved(figures: AdaptiveStatistics | None) -> dict[str, float] | None:
    """Cold starts and seconds in memory that `keep_alive` auto has saved, compared with a fixed timer."""
    if figures is None:
        return None
    fixed, adaptive = figures["fixed"], figures["adaptive"]
    return {
        "cold_starts": fixed["cold_starts"] - adaptive["cold_starts"],
        "resident_seconds": fixed["resident_seconds"] - adaptive["resident_seconds"],
    }


def _state(service: Service, slots: dict[str, SlotStatistics]) -> str:
    if service.draining:
        return "draining"
    return "loading" if any(slot["state"] == "loading" for slot in slots.values()) else "serving"


def _model(service: Service, name: str, slot: SlotStatistics, tracker: TrackerStatistics) -> dict[str, Any]:
    found = service.description(name) if slot["kind"] == "embedding" and slot["state"] == "ready" else None
    return {
        "name": name,
        "served_as": _public_names(service, name, slot["kind"]),
        **{key: slot[key] for key in ("state", "source", "kind", "pinned", "keep_alive", "bytes", "leases", "queued")},
        "last_error": slot["last_error"],
        "idle_seconds": slot["idle_seconds"],
        "unload_in_seconds": None if slot["leases"] else slot["unload_in_seconds"],
        "dtype": found and found["dtype"],
        "dimension": found and found["dimension"],
        "load_seconds": tracker["load_times"].get(name),
        "load_median_seconds": tracker["load_time_p50"].get(name),
        "loads": tracker["load_counts"].get(name, 0),
        "unloads": tracker["unload_counts"].get(name, 0),
    }


def _public_names(service: Service, slot: str, kind: str) -> list[str]:
    """The names of this slot's model in requests; none if it is not served."""
    if kind == "embedding":
        named = [name for model in service.config.models if model.key == slot for name in (model.name, *model.aliases)]
        return named or [slot]
    if kind == "generator":
        return [slot] if slot in service.config.generators else []
    return [slot] if kind in ("reranker", "classifier", "sparse") else []


def _since(request: Request) -> float:
    value = request.query_params.get("since")
    if value is None:
        return -math.inf
    try:
        since = float(value)
    except ValueError:
        raise bad_request(f"since={value!r} must be a number of seconds since the epoch", "since") from None
    return -math.inf if math.isnan(since) else since
