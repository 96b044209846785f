"""`POST /v1/embeddings` and `/embed`: checked here; the core computes and writes the body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from ..bodies import read_json
from ..disconnect import deadline_of, seconds_until, unless_disconnected
from ..errors import bad_request, timed_out
from ..fields import check_fields
from ..schemas import EmbeddingsAnswer, EmbeddingsRequest, PlainEmbeddingsAnswer, PlainEmbeddingsRequest
from .token_ids import check_token_ids
from .vectors import LATE, json_kind, read_dimensions, read_inputs, read_truncate, shown, vector_rows, vectors

if TYPE_CHECKING:
    from starlette.requests import Request

    from ..config import ServedModel
    from ..routing import Routes
    from ..service import Service

DEFAULT_TASK = "text_search"
INSTRUCTIONS = {
    "text_search": "Represent this text for semantic search and retrieval:",
    "code_search": "Represent this code for semantic search and similarity matching:",
    "code_indexing": "Represent this code for indexing and retrieval:",
    "document_retrieval": "Represent this document for retrieval and similarity search:",
    "question_answering": "Represent this text for question-answering tasks:",
    "clustering": "Represent this text for clustering and categorization:",
    "classification": "Represent this text for classification tasks:",
    "similarity": "Represent this text for semantic similarity comparison:",
    "general": "Represent this text for semantic understanding:",
}
"""The instruction of each task, for models that take instructions."""

_FIELDS = {
    "prompt": "instruction",
    "truncate_dim": "dimensions",
    "keep_alive": "keep_alive",
    "prompt_name": "prompt_name",
}
"""Arguments of the core and the request fields that they come from. All other arguments come from `input`."""
_TEXTS = ("model", "instruction", "task", "prompt_name", "user")


def add_routes(routes: Routes, service: Service) -> None:
    """Register `/v1/embeddings`, `/embeddings` for older clients, and `/embed` as text-embeddings-inference has it."""

    async def embeddings(request: Request) -> Response:
        """Vectors of length 1 for one or several texts."""
        return await _answer(request, service)

    async def embed(request: Request) -> Response:
        """The vectors alone, in the form of text-embeddings-inference. Texts are embedded as they are."""
        return await _answer_plainly(request, service)

    routes.add(
        "/embed",
        embed,
        method="POST",
        body=PlainEmbeddingsRequest,
        answer=PlainEmbeddingsAnswer,
        summary="Embed texts",
        tags=["embeddings"],
    )
    for path in ("/v1/embeddings", "/embeddings"):
        routes.add(
            path,
            embeddings,
            method="POST",
            body=EmbeddingsRequest,
            answer=EmbeddingsAnswer,
            summary="Embed texts",
            tags=["embeddings"],
        )


async def _answer(request: Request, service: Service) -> Response:
    body = await read_json(request, service)
    check_fields(body, EmbeddingsRequest)
    _check_texts(body)
    inputs, count = read_inputs(body.get("input"), service.config.max_inputs)
    if not isinstance(inputs, str) and not isinstance(inputs[0], str):
        check_token_ids(service, "input")
    model = service.served(body.get("model"))
    options: dict[str, Any] = {
        "served_model": model.name,
        "encoding_format": _encoding(body.get("encoding_format")),
        "truncate": read_truncate(body.get("truncate")),
        "timeout": service.config.request_timeout,
    }
    dimensions = read_dimensions(body.get("dimensions"))
    keep_alive = body.get("keep_alive")
    if keep_alive is not None:
        options["keep_alive"] = keep_alive
    if user := body.get("user"):
        options["user"] = user
    if instruction := body.get("instruction"):
        options["prompt"] = f"{instruction}\n"
    elif prompt_name := body.get("prompt_name"):
        options["prompt_name"] = prompt_name
    # Token ids get no instruction.
    elif isinstance(inputs[0], str) and await _takes_instructions(request, service, model, options):
        task = body.get("task") or DEFAULT_TASK
        options["prompt"] = f"{INSTRUCTIONS.get(task) or INSTRUCTIONS[DEFAULT_TASK]}\n"
    content, _ = await vectors(service, request, model, inputs, count, dimensions, options, _FIELDS)
    return Response(content, media_type="application/json")


async def _takes_instructions(request: Request, service: Service, model: ServedModel, options: dict[str, Any]) -> bool:
    """`Service.takes_instructions`. The time of a load is taken from the `timeout` of `options`."""
    known = service.instructions_known(model)
    if known is None:
        deadline = deadline_of(service)
        work = service.takes_instructions(model)
        known = await unless_disconnected(request.receive, work, deadline, timed_out(LATE))
        options["timeout"] = seconds_until(deadline)
    return known


async def _answer_plainly(request: Request, service: Service) -> Response:
    body = await read_json(request, service)
    check_fields(body, PlainEmbeddingsRequest)
    _check_texts(body, "model", "prompt_name")
    inputs, count = read_inputs(body.get("inputs"), service.config.max_inputs, "inputs")
    if not isinstance(inputs, str) and not isinstance(inputs[0], str):
        check_token_ids(service, "inputs")
    model = service.served(body.get("model"))
    options: dict[str, Any] = {
        "served_model": model.name,
        "truncate": read_truncate(body.get("truncate")),
        "timeout": service.config.request_timeout,
        "keep_alive": body.get("keep_alive"),
    }
    if prompt_name := body.get("prompt_name"):
        options["prompt_name"] = prompt_name
    elif isinstance(inputs[0], str):
        # Without a name text-embeddings-inference puts nothing in front of a text.
        options["prompt"] = ""
    dimensions = read_dimensions(body.get("dimensions"))
    content, _ = await vectors(service, request, model, inputs, count, dimensions, options, _FIELDS, "inputs")
    return Response(b"[%b]" % await vector_rows(service, content), media_type="application/json")


def _check_texts(body: dict[str, Any], *names: str) -> None:
    for name in names or _TEXTS:
        value = body.get(name)
        if value is not None and type(value) is not str:
            raise bad_request(f"{name} must be a string, not {json_kind(value)}", name)


def _encoding(value: Any) -> str:
    if value is None:
        return "float"
    if value in ("float", "base64"):
        return str(value)
    raise bad_request(f"encoding_format must be 'float' or 'base64', not {shown(value)}", "encoding_format")
