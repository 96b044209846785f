"""`POST /v1/responses`: an answer of a text generator in the form of OpenAI's Responses API.

The answer is computed as that of `/v1/chat/completions`. The server keeps no responses: a conversation's earlier turns
are sent as items of `input`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ....thinking import ThinkingParser
from ...bodies import is_large, read_json
from ...disconnect import unless_disconnected
from ...errors import ApiError
from ...fields import check_fields
from ...middleware import to_json
from ..generation.answers import Answers
from ..generation.events import EventStream, too_late
from ..generation.request import count_texts, stream_usage
from ..generation.shared import check_length, generator, naming_fields, prefix_scope
from ..generation.thinking import described, opens, template_variables
from .answer import Answer
from .events import Events, response_events
from .items import conversation, texts
from .output import Message, Thoughts
from .request import core_parameters, effort, repeated
from .schemas import ResponseAnswer, ResponseRequest

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ...routing import Routes
    from ...service import Service

_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
_FIELDS = {"max_new_tokens": "max_output_tokens", "min_new_tokens": "min_tokens"}
"""Parameters of the core whose request fields have other names."""
_ID = {"name": "response_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def add_routes(routes: Routes, service: Service) -> None:
    """Register the endpoints."""
    limit = service.config.max_prompt_bytes

    async def create(request: Request) -> Response:
        """The next turn of a conversation; with `stream` as server-sent events."""
        body = await read_json(request, service, limit)
        check_fields(body, ResponseRequest)
        return await _respond(request, service, body)

    async def retrieve(request: Request) -> Response:
        """Always 404, for every method and path below a response: the server keeps no responses."""
        if not request.path_params["response_id"].startswith("resp_"):
            # Other operations of that API, such as input_tokens.
            raise ApiError(
                404, f"Nothing is served at {request.url.path}; GET / lists the endpoints", code="unknown_path"
            )
        raise ApiError(
            404,
            f"{request.path_params['response_id']!r} is not kept: this server keeps no responses; use the answer of "
            "POST /v1/responses, and send a conversation's earlier turns as items of input",
            param="response_id",
            code="response_not_found",
        )

    routes.add(
        "/v1/responses",
        create,
        method="POST",
        body=ResponseRequest,
        answer=ResponseAnswer,
        summary="Answer a conversation in the form of OpenAI's Responses API",
        tags=["text generation"],
        responses=_EVENTS,
    )
    routes.add(
        "/v1/responses/{response_id:path}",
        retrieve,
        any_method=True,
        summary="Say that no responses are kept",
        tags=["text generation"],
        parameters=[_ID],
    )


async def _respond(request: Request, service: Service, body: dict[str, Any]) -> Response:
    deadline = asyncio.get_running_loop().time() + service.config.request_timeout
    slot = generator(service, body.get("model"))
    asked = {**body, "reasoning": effort(body)}
    params = core_parameters(body)
    params["timeout"] = service.config.request_timeout
    params["prefix_scope"] = prefix_scope(request, body)
    params["user"] = body.get("user")
    stream_usage(body)
    answer = Answer(slot, repeated(body, service.manager.config.temperature))
    thinks = (await unless_disconnected(request.receive, described(service, slot), deadline, too_late()))["thinks"]
    if variables := await template_variables(service, slot, asked):
        params["chat_template_kwargs"] = variables
    if is_large(request):
        await check_length(service, slot, texts(body), "input", count_texts)
        messages = await service.apart(conversation, body, thinks)
    else:
        messages = conversation(body, thinks)
    computed = Answers(request, service, slot, [(messages, params)], deadline)
    with naming_fields(params, _FIELDS, "input"):
        parser = ThinkingParser(await opens(service, slot, messages, params)) if thinks else None
        if body.get("stream"):
            (stream,), (first,) = await computed.begun()
            write = Events(answer)
            written = response_events(service, stream, first, write, deadline, parser)
            return EventStream(written, [stream], write.failed)
        (done,) = await computed.whole()
    thoughts, text = parser.split(done["text"]) if parser else ("", done["text"])
    if thoughts:
        answer.output.add(Thoughts).pieces.append(thoughts)
    if text or not thoughts:
        answer.output.add(Message).pieces.append(text)
    return to_json(answer.finished(done))
