"""`POST /api/embed` and `/api/embeddings`: vectors in the form of Ollama's API."""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from ...._async import aembed
from ...._bridge import in_thread
from ...bodies import read_json
from ...disconnect import deadline_of, unless_disconnected
from ...errors import ApiError, bad_request, timed_out
from ...fields import check_fields
from ...middleware import to_json
from ..generation.shared import naming_fields
from ..vectors import LATE, json_kind, read_dimensions, read_inputs, read_truncate, vector_rows, vectors
from .fields import Durations, is_zero, model_name, read_keep_alive, read_options, text
from .schemas import OllamaEmbedAnswer, OllamaEmbeddingsAnswer, OllamaEmbeddingsRequest, OllamaEmbedRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.requests import Request

    from ...config import ServedModel
    from ...routing import Routes
    from ...service import Service

_FIELDS = {"truncate_dim": "dimensions", "keep_alive": "keep_alive"}
"""Arguments of the core and the request fields that they come from."""


def add_routes(routes: Routes, service: Service) -> None:
    """Register both endpoints."""

    async def embed(request: Request) -> Response:
        """Vectors of length 1 for one or several texts, which are embedded as they are. No text: load the model."""
        body = await read_json(request, service)
        check_fields(body, OllamaEmbedRequest)
        name, model = _model(service, body)
        options = _options(service, body)
        options["truncate"] = read_truncate(body.get("truncate"))
        dimensions = read_dimensions(body.get("dimensions"))
        texts = body.get("input")
        if texts is None or texts in ("", []):
            await _load(request, service, model.key, body)
            return to_json({"model": name, "embeddings": []})
        if isinstance(texts, list) and not isinstance(texts[0], str):
            raise bad_request(f"input[0] must be a string, not {json_kind(texts[0])}", "input")
        texts, count = read_inputs(texts, service.config.max_inputs)
        durations = Durations(service, model.key)
        content, tokens = await vectors(
            service, request, model, texts, count, dimensions, {**options, "served_model": name}, _FIELDS
        )
        figures = {**durations.figures(), "prompt_eval_count": tokens}
        head, end = orjson.dumps({"model": name})[:-1], orjson.dumps(figures)[1:]
        rows = await vector_rows(service, content)
        return Response(b'%b,"embeddings":[%b],%b' % (head, rows, end), media_type="application/json")

    async def embeddings(request: Request) -> Response:
        """The vector of one text; superseded by `/api/embed`."""
        body = await read_json(request, service)
        check_fields(body, OllamaEmbeddingsRequest)
        name, model = _model(service, body)
        options = _options(service, body)
        prompt = text(body, "prompt")
        if not prompt:
            await _load(request, service, model.key, body)
            return to_json({"embedding": []})
        if prompt.isspace():
            raise bad_request("prompt is blank", "prompt", "empty_input")
        content, _ = await vectors(
            service, request, model, prompt, 1, None, {**options, "served_model": name}, _FIELDS, "prompt"
        )
        rows = await vector_rows(service, content)
        return Response(b'{"embedding":%b}' % rows, media_type="application/json")

    post = partial(routes.add, method="POST", tags=["Ollama"], plain_errors=True)
    post("/api/embed", embed, body=OllamaEmbedRequest, answer=OllamaEmbedAnswer, summary="Embed texts")
    post(
        "/api/embeddings",
        embeddings,
        body=OllamaEmbeddingsRequest,
        answer=OllamaEmbeddingsAnswer,
        summary="Embed one text",
    )


def _model(service: Service, body: dict[str, Any]) -> tuple[str, ServedModel]:
    """The name in the request, and its model."""
    name = model_name(body)
    try:
        return name, service.served(name)
    except ApiError:
        if name.removesuffix(":latest") in service.config.generators:
            raise bad_request(f"{name!r} is a text generator: it does not support embeddings", "model") from None
        raise


def _options(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the core."""
    read_options(body, sampled=False)
    return {
        # Ollama embeds the text as it is, without the model's default prompt.
        "prompt": "",
        "timeout": service.config.request_timeout,
        **read_keep_alive(body),
    }


async def _load(request: Request, service: Service, slot: str, body: dict[str, Any]) -> None:
    """Load a model, or unload it if `keep_alive` is 0."""
    service.check_admin()
    keep = read_keep_alive(body)
    if is_zero(keep.get("keep_alive")):
        await in_thread(service.manager.unload, slot)
        return
    seconds = service.config.request_timeout
    # How long a model stays depends on its latest use, so a text is embedded that no cache holds.
    use = {"texts": secrets.token_hex(8), "model": slot, "timeout": seconds, **keep}
    work: Awaitable[Any] = aembed(service.manager, **use) if keep else service.load(slot)
    deadline = deadline_of(service)
    with naming_fields(keep, {}, "input"):
        await unless_disconnected(request.receive, work, deadline, timed_out(LATE))
