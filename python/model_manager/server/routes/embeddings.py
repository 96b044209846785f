"""`POST /v1/embeddings`: checked here; the core computes and writes the body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..._async import start_response
from ...errors import ConfigError, InputError
from ..bodies import read_json
from ..disconnect import watch_disconnect
from ..errors import ApiError, bad_request, overloaded, refused
from ..schemas import EmbeddingsAnswer, EmbeddingsRequest
from .token_ids import check_token_ids

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive

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
    "truncate_dim": "dimensions",
    "keep_alive": "keep_alive",
    "prompt_name": "prompt_name",
}
"""Arguments of the core and the request fields that they come from. All other arguments come from `input`."""
_MAX_DIMENSIONS = 65_536
_TEXTS = ("model", "instruction", "task", "prompt_name", "user")


def add_routes(routes: Routes, service: Service) -> None:
    """Register `/v1/embeddings`, and `/embeddings` for older clients."""

    async def embeddings(request: Request) -> Response:
        """Vectors of length 1 for one or several texts."""
        return await _answer(request, service)

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
    _check_texts(body)
    inputs, count = _inputs(body.get("input"), service.config.max_inputs)
    if not isinstance(inputs, str) and not isinstance(inputs[0], str):
        check_token_ids(service, "input")
    model = service.served(body.get("model"))
    options: dict[str, Any] = {
        "served_model": model.name,
        "encoding_format": _encoding(body.get("encoding_format")),
        "truncate": _truncate(body.get("truncate")),
        "timeout": service.config.request_timeout,
    }
    dimensions = _dimensions(body.get("dimensions"))
    if dimensions or model.dimensions:
        options["truncate_dim"] = dimensions or model.dimensions
    keep_alive = body.get("keep_alive")
    if keep_alive is not None:
        options["keep_alive"] = keep_alive
    if instruction := body.get("instruction"):
        options["prompt"] = f"{instruction}\n"
    elif prompt_name := body.get("prompt_name"):
        options["prompt_name"] = prompt_name
    # Token ids get no instruction.
    elif isinstance(inputs[0], str) and await service.takes_instructions(model):
        task = body.get("task") or DEFAULT_TASK
        options["prompt"] = f"{INSTRUCTIONS.get(task) or INSTRUCTIONS[DEFAULT_TASK]}\n"
    try:
        content, tokens = await _compute(service, request.receive, inputs, count, model.key, options)
    except (InputError, ConfigError, TypeError, OverflowError) as error:
        param = getattr(error, "param", None)
        if isinstance(error, ConfigError) and param not in options:
            # The mistake is in a setting of the server, not in a field of the request.
            raise
        if dimensions is None and param == "truncate_dim":
            raise ApiError(
                503, f"The dimensions configured for {model.name!r} do not fit it: {error}", code="misconfigured"
            ) from error
        raise refused(error, _FIELDS.get(param or ""), "input") from error
    service.metrics.embedded(model.name, count, tokens)
    return Response(content, media_type="application/json")


def _check_texts(body: dict[str, Any]) -> None:
    for name in _TEXTS:
        value = body.get(name)
        if value is not None and type(value) is not str:
            raise bad_request(f"{name} must be a string, not {_kind(value)}", name)


def _inputs(value: Any, most: int) -> tuple[Any, int]:
    """The inputs and their number."""
    if type(value) is str:
        if _blank(value):
            raise bad_request("input is blank: send a text, a list of texts, or token ids", "input", "empty_input")
        return value, 1
    if type(value) is not list:
        what = "is missing" if value is None else f"must be a string or a list, not {_kind(value)}"
        raise bad_request(f"input {what}", "input")
    if not value:
        raise bad_request("input is an empty list: send at least one text", "input", "empty_input")
    first = type(value[0])
    if first is int:
        return value, 1
    if len(value) > most:
        raise bad_request(
            f"input has {len(value)} items; {most} are allowed in one request", "input", "too_many_inputs"
        )
    if first is not str and first is not list:
        raise bad_request(f"input[0] must be a string or a list of token ids, not {_kind(value[0])}", "input")
    for index, item in enumerate(value):
        if type(item) is not first:
            raise bad_request(f"input[{index}] is {_kind(item)} where input[0] is {_kind(value[0])}", "input")
        if _blank(item):
            raise bad_request(f"input[{index}] is blank", "input", "empty_input")
    return value, len(value)


def _blank(item: str | list[Any]) -> bool:
    return not item or (isinstance(item, str) and item.isspace())


def _kind(value: Any) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    return {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}.get(
        type(value), "an object"
    )


def _encoding(value: Any) -> str:
    if value is None:
        return "float"
    if value in ("float", "base64"):
        return str(value)
    raise bad_request(f"encoding_format must be 'float' or 'base64', not {value!r}", "encoding_format")


def _truncate(value: Any) -> bool:
    if value is None or value is True:
        return True
    if value is False:
        return False
    raise bad_request(f"truncate must be true or false, not {_kind(value)}", "truncate")


def _dimensions(value: Any) -> int | None:
    if value is None:
        return None
    # JSON has one type of number: 256.0 is a whole number.
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and 1 <= value <= _MAX_DIMENSIONS:
        return value
    shown = value if isinstance(value, int | float) and not isinstance(value, bool) else _kind(value)
    raise bad_request(f"dimensions must be a whole number from 1 to {_MAX_DIMENSIONS}, not {shown}", "dimensions")


async def _compute(
    service: Service, receive: Receive, inputs: Any, count: int, slot: str, options: dict[str, Any]
) -> tuple[bytes, int]:
    """The answer's body and the number of tokens. When the client disconnects, its texts leave the queue."""
    future, ticket = start_response(service.manager, inputs, slot, **options)
    if future.done():
        # Everything was cached.
        return future.result()
    if service.waiting and service.waiting + count > service.config.max_waiting:
        ticket.cancel()
        future.cancel()
        raise overloaded(f"{service.waiting} texts already wait for vectors; try again later", service.retry_after())
    service.waiting += count

    async def leave() -> None:
        if not future.done():
            future.set_exception(ClientDisconnect())

    with watch_disconnect(receive, leave):
        try:
            return await future
        finally:
            service.waiting -= count
            if not ticket.done:
                ticket.cancel()
