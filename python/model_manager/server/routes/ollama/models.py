"""`/api/tags`, `/api/show` and `/api/version`, and the refusal of endpoints that would change the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...bodies import read_json
from ...errors import ApiError
from ...fields import check_fields
from ...middleware import to_json
from ..models import all_models, find_model
from .describe import details, digest
from .fields import model_name, tagged, timestamp
from .schemas import OllamaShowAnswer, OllamaShowRequest, OllamaTags, OllamaVersion

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ...routing import Routes
    from ...service import Service

OLLAMA_VERSION = "0.12.0"
"""The release of Ollama whose API these endpoints follow. Clients decide by it which fields they send."""
_LARGEST_BODY = 1 << 20
"""Bytes. The body holds only a name."""
_MANAGED = (("pull", "POST"), ("push", "POST"), ("create", "POST"), ("copy", "POST"), ("delete", "DELETE"))


def add_routes(routes: Routes, service: Service) -> None:
    """Register all endpoints."""

    async def tags(request: Request) -> Response:
        """The models that requests may name. Loads nothing."""
        return to_json({"models": _tags(service)})

    async def show(request: Request) -> Response:
        """What is known of a model; after its first load also its sizes. Loads nothing."""
        body = await read_json(request, service, _LARGEST_BODY)
        check_fields(body, OllamaShowRequest)
        return to_json(_show(service, model_name(body, "model", "name")))

    async def version(request: Request) -> Response:
        """The version of Ollama's API."""
        return to_json({"version": OLLAMA_VERSION})

    async def managed(request: Request) -> Response:
        """Refused: the server's settings decide which models it serves."""
        raise ApiError(
            403, "Clients cannot add, change or remove models on this server: its settings list them", code="managed"
        )

    group = ["Ollama"]
    routes.add("/api/tags", tags, answer=OllamaTags, summary="List models", tags=group, plain_errors=True)
    routes.add(
        "/api/show",
        show,
        method="POST",
        body=OllamaShowRequest,
        answer=OllamaShowAnswer,
        summary="Describe a model",
        tags=group,
        plain_errors=True,
    )
    routes.add("/api/version", version, answer=OllamaVersion, summary="Version", tags=group, plain_errors=True)
    routes.add(
        "/api/blobs/{digest}",
        managed,
        method="POST",
        summary="Refused",
        tags=group,
        parameters=[{"name": "digest", "in": "path", "required": True, "schema": {"type": "string"}}],
        plain_errors=True,
    )
    for name, method in _MANAGED:
        routes.add(f"/api/{name}", managed, method=method, summary="Refused", tags=group, plain_errors=True)


def _tags(service: Service) -> list[dict[str, Any]]:
    slots = service.manager.stats()["slots"]
    listed = []
    for model in all_models(service):
        about = model["capabilities"]
        slot = _slot(service, model)
        for name in (model["id"], *about.get("aliases", ())):
            listed.append(
                {
                    "name": tagged(name),
                    "model": tagged(name),
                    "modified_at": timestamp(service.started),
                    "size": slots[slot]["bytes"],
                    "digest": digest(about["source"] or slot, about["adapter"]),
                    "details": details(service, slot, about["source"]),
                }
            )
    return listed


def _slot(service: Service, model: dict[str, Any]) -> str:
    """The slot of one of `all_models`."""
    name: str = model["id"]
    return service.served(name).key if model["capabilities"]["kind"] == "embedding" else name


def _show(service: Service, name: str) -> dict[str, Any]:
    model = find_model(service, name)
    about = model["capabilities"]
    slot = _slot(service, model)
    is_embedding = about["kind"] == "embedding"
    about_model = details(service, slot, about["source"])
    family = about_model["family"] or "general"
    info: dict[str, Any] = {"general.architecture": about_model["family"]} if about_model["family"] else {}
    if is_embedding and about["dimensions"] is not None:
        info[f"{family}.embedding_length"] = about["dimensions"]
    if is_embedding and about["max_tokens"] is not None:
        info[f"{family}.context_length"] = about["max_tokens"]
    can = ["embedding" if is_embedding else "completion"]
    if not is_embedding and (known := service.generator_description(slot)) is not None:
        info[f"{family}.context_length"] = known["context"]
        can += ["thinking"] if known["thinks"] else []
    return {
        "license": "",
        "modelfile": f"FROM {about['source'] or slot}\n",
        "parameters": "",
        "template": "",
        "modified_at": timestamp(service.started),
        "details": about_model,
        "model_info": info,
        "capabilities": can,
    }
