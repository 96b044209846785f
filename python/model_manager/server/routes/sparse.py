"""`POST /v1/embeddings/sparse` and `/embed_sparse`: sparse vectors in the form of text-embeddings-inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from ..bodies import read_json
from ..errors import bad_request, unknown_model
from ..fields import check_fields
from ..schemas import SparseAnswer, SparseRequest
from ..uses import is_source
from .vectors import inferred, json_kind, read_inputs, read_truncate

if TYPE_CHECKING:
    from starlette.requests import Request

    from ..routing import Routes
    from ..service import Service

_LARGE = 1 << 14
"""Weights. That many are about half a megabyte of JSON."""


def add_routes(routes: Routes, service: Service) -> None:
    """Register all endpoints."""

    async def embed_sparse(request: Request) -> Response:
        """Weights of entries of the vocabulary, one list per text."""
        body = await read_json(request, service)
        return Response(await _embed(request, service, body), media_type="application/json")

    for path in ("/v1/embeddings/sparse", "/embed_sparse"):
        routes.add(
            path,
            embed_sparse,
            method="POST",
            tags=["embeddings"],
            body=SparseRequest,
            answer=SparseAnswer,
            summary="Embed texts sparsely",
        )


async def _embed(request: Request, service: Service, body: dict[str, Any]) -> bytes:
    check_fields(body, SparseRequest)
    slot = _model(service, body.get("model"))
    given = [field for field in ("inputs", "input") if body.get(field) is not None]
    if len(given) > 1:
        raise bad_request("inputs and input mean the same: send one of them", "input")
    field = given[0] if given else "inputs"
    texts, count = read_inputs(body.get(field), service.config.max_inputs, field)
    single = isinstance(texts, str)
    texts = [texts] if single else texts
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise bad_request(f"{field}[{index}] must be a string, not {json_kind(text)}", field)
    prompt = body.get("prompt_name")
    if prompt is not None and not isinstance(prompt, str):
        raise bad_request(f"prompt_name must be a string, not {json_kind(prompt)}", "prompt_name")
    options = {
        "prompt_name": prompt,
        "truncate": read_truncate(body.get("truncate")),
        "timeout": service.config.request_timeout,
        "keep_alive": body.get("keep_alive"),
    }
    found, tokens = await inferred(
        service, request, "sparse", (texts, None), count, slot, options, field, single=single
    )
    service.metrics.embedded(slot, count, tokens)
    large = sum(len(indices) for indices, _ in found) > _LARGE
    return await service.apart(_body, found) if large else _body(found)


def _body(found: list[tuple[Any, Any]]) -> bytes:
    """The answer in JSON. Text by text, so that the event loop runs between two texts of a large answer."""
    rows = (
        [{"index": index, "value": value} for index, value in zip(indices.tolist(), values.tolist(), strict=True)]
        for indices, values in found
    )
    return b"[%b]" % b",".join([orjson.dumps(row) for row in rows])


def _model(service: Service, name: Any) -> str:
    """The slot: without a name the only one of such a model."""
    slots = {slot: state for slot, state in service.manager.stats()["slots"].items() if state["kind"] == "sparse"}
    if name is None or name == "":
        if len(slots) != 1:
            has = ", ".join(slots) or "none"
            raise bad_request(f"model is missing: name a slot of a model of sparse vectors; there is: {has}", "model")
        return next(iter(slots))
    if not isinstance(name, str):
        raise bad_request(f"model must be a string, not {json_kind(name)}", "model")
    plain = name.removesuffix(":latest")
    for slot, state in slots.items():
        if plain == slot or is_source(name, state):
            return slot
    if plain in service.manager.stats()["slots"]:
        # The core says what that slot can do.
        return plain
    raise unknown_model(name, list(slots))
