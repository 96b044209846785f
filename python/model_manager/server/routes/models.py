"""`GET /v1/models` and `/v1/models/{id}`: the served embedding models and text generators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ApiError, unknown_model
from ..middleware import to_json
from ..schemas import Model, ModelList

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ..routing import Routes
    from ..service import Service


def add_routes(routes: Routes, service: Service) -> None:
    """Register both endpoints."""

    async def list_models(request: Request) -> Response:
        """All models that requests may name."""
        return to_json({"object": "list", "data": all_models(service)})

    async def get_model(request: Request) -> Response:
        """One model, by name, alias, source or slot."""
        return to_json(find_model(service, request.path_params["model_id"].removesuffix("/")))

    routes.add("/v1/models", list_models, answer=ModelList, summary="List models", tags=["models"])
    routes.add(
        "/v1/models/{model_id:path}",
        get_model,
        answer=Model,
        summary="Describe a model",
        tags=["models"],
        parameters=[{"name": "model_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}],
    )


def all_models(service: Service) -> list[dict[str, Any]]:
    """All served models in the form of the protocol."""
    slots = service.manager.stats()["slots"]
    found = []
    names = set()
    for model in service.models():
        # Two slots may have one public name; requests go to the first.
        if model.name in names or model.key not in slots:
            continue
        names.add(model.name)
        description = service.description(model.key)
        found.append(
            {
                "id": model.name,
                "object": "model",
                "created": int(service.started),
                "owned_by": "model_manager",
                "capabilities": {
                    "kind": "embedding",
                    "aliases": list(model.aliases),
                    "source": slots[model.key]["source"],
                    "adapter": slots[model.key]["adapter"],
                    "state": slots[model.key]["state"],
                    "dimensions": service.dimensions(model),
                    "max_tokens": description["max_length"] if description else None,
                    "prompts": sorted(description["prompts"]) if description else None,
                    "instructions": service.instructions_known(model),
                },
            }
        )
    found.extend(
        {
            "id": name,
            "object": "model",
            "created": int(service.started),
            "owned_by": "model_manager",
            "capabilities": {"kind": "generator"} | {key: slots[name][key] for key in ("source", "adapter", "state")},
        }
        for name in service.generators()
        if name not in names and name in slots
    )
    return found


def find_model(service: Service, name: str) -> dict[str, Any]:
    """One of `all_models`. Raises `ApiError` 404."""
    models = all_models(service)
    for model in models:
        about = model["capabilities"]
        named = name.removesuffix(":latest") == model["id"] or (name == about["source"] and not about["adapter"])
        if about["kind"] == "generator" and named:
            return model
    try:
        public = service.served(name).name
    except ApiError:
        public = None
    for model in models:
        if model["id"] == public:
            return model
    raise unknown_model(name, [model["id"] for model in models])
