"""Loading and unloading: `/api/ps`, `/api/load`, `/api/unload`, `/api/warmup`, `/api/hint`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from ..._bridge import in_thread
from ..._scoring import RERANKER
from ..bodies import read_json
from ..errors import ApiError, bad_request, unknown_model
from ..fields import check_fields
from ..middleware import to_json
from ..schemas import AllLoaded, Hinted, HintRequest, Loaded, LoadRequest, Running, WarmUpRequest
from ..uses import is_source
from .ollama.describe import details, digest
from .ollama.fields import tagged, timestamp

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ..routing import Routes
    from ..schemas import RequestBody
    from ..service import Service

_INDEFINITELY = "9999-12-31T23:59:59Z"
"""When a model leaves that stays. Ollama's own command takes null for a time that has passed."""
_END = 253_402_300_799.0
"""The same in seconds since the epoch. Python writes no later times."""
_LARGEST_BODY = 1 << 20
"""Bytes. The body holds only names of models."""


def add_routes(routes: Routes, service: Service) -> None:
    """Register all five endpoints."""

    async def ps(request: Request) -> Response:
        """The models in memory, in the form of Ollama's `/api/ps`."""
        return to_json({"models": running(service)})

    async def load(request: Request) -> Response:
        """Load a model and wait for it."""
        name, slot = _named(service, (await _allowed(request, service, LoadRequest)).get("model"))
        return to_json(await _load(service, name, slot))

    async def unload(request: Request) -> Response:
        """Unload a model. Running requests finish first."""
        name, slot = _named(service, (await _allowed(request, service, LoadRequest)).get("model"))
        started = time.perf_counter()
        await in_thread(service.manager.unload, slot)
        return to_json(_result(service, name, slot, started))

    async def warm_up(request: Request) -> Response:
        """Load several models at the same time and wait for them."""
        names = (await _allowed(request, service, WarmUpRequest)).get("models")
        if names is None:
            names = [model.name for model in service.config.models]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise bad_request("models must be a list of names", "models")
        wanted = dict(_named(service, name) for name in names)
        loaded = await asyncio.gather(*(_load(service, name, slot) for name, slot in wanted.items()))
        return to_json({"models": loaded})

    async def hint(request: Request) -> Response:
        """Say that a model will be needed soon. One with `keep_alive` auto is loaded if all is idle."""
        body = await _allowed(request, service, HintRequest)
        name, slot = _named(service, body.get("model"))
        user = body.get("user")
        if user is not None and not isinstance(user, str):
            raise bad_request("user must be a string", "user")
        expected = service.manager.hint(slot, user)
        loaded = service.manager.is_loaded(slot)
        return to_json({"model": name, "slot": slot, "expected": expected, "loaded": loaded})

    tags = ["models in memory"]
    routes.add("/api/hint", hint, method="POST", body=HintRequest, answer=Hinted, summary="Announce a use", tags=tags)
    routes.add("/api/ps", ps, answer=Running, summary="Models in memory", tags=tags, plain_errors=True)
    routes.add("/api/load", load, method="POST", body=LoadRequest, answer=Loaded, summary="Load a model", tags=tags)
    routes.add(
        "/api/unload", unload, method="POST", body=LoadRequest, answer=Loaded, summary="Unload a model", tags=tags
    )
    routes.add(
        "/api/warmup", warm_up, method="POST", body=WarmUpRequest, answer=AllLoaded, summary="Load models", tags=tags
    )


async def _allowed(request: Request, service: Service, schema: type[RequestBody]) -> dict[str, Any]:
    """The body of a request, if clients may load and unload models."""
    service.check_admin()
    body = await read_json(request, service, _LARGEST_BODY)
    check_fields(body, schema)
    return body


def _named(service: Service, name: Any) -> tuple[str, str]:
    """The public name and the slot of a model: a served one, or any slot by its name or source."""
    if name is not None and not isinstance(name, str):
        raise bad_request("model must be a string", "model")
    slots = service.manager.stats()["slots"]
    if name:
        plain = name.removesuffix(":latest")
        # The built-in slot of rerankers appears with its first use.
        if plain == RERANKER or (plain in slots and slots[plain]["kind"] != "embedding"):
            return plain, plain
    try:
        model = service.served(name)
    except ApiError:
        assert name is not None
        for slot, state in slots.items():
            if is_source(name, state):
                return slot, slot
        served = [model.name for model in service.models()]
        raise unknown_model(name, list(dict.fromkeys([*served, *slots]))) from None
    return model.name, model.key


async def _load(service: Service, name: str, slot: str) -> dict[str, Any]:
    started = time.perf_counter()
    await service.load(slot)
    return _result(service, name, slot, started)


def _result(service: Service, name: str, slot: str, started: float) -> dict[str, Any]:
    return {
        "model": name,
        "slot": slot,
        "loaded": service.manager.is_loaded(slot),
        "seconds": round(time.perf_counter() - started, 6),
    }


def _context(service: Service, slot: str) -> int | None:
    """The tokens that the slot's model reads; None if that is not known."""
    if (text := service.generator_description(slot)) is not None:
        return text["context"]
    return None if (known := service.description(slot)) is None else known["max_length"]


def running(service: Service) -> list[dict[str, Any]]:
    """The models in memory, and when each leaves if it is not used."""
    names = {model.key: model.name for model in service.models()}
    now = time.time()
    found = []
    for slot, state in service.manager.stats()["slots"].items():
        if state["state"] != "ready":
            continue
        left = state["unload_in_seconds"]
        name = tagged(names.get(slot, slot))
        found.append(
            {
                "name": name,
                "model": name,
                "digest": digest(state["source"] or slot, state["adapter"]),
                "details": details(service, slot, state["source"]),
                "slot": slot,
                "source": state["source"],
                "kind": state["kind"],
                "size": state["bytes"],
                "size_vram": state["device_bytes"],
                "context_length": _context(service, slot),
                "leases": state["leases"],
                "expires_at": _INDEFINITELY if left is None or now + left >= _END else timestamp(now + left),
            }
        )
    return found
