"""`POST /v1/chat/completions` and `/v1/completions`: answers of the text generators, whole or as server-sent events.

An answer ends within one token after its client disconnects. A stream begins when every answer has its first piece, so
that earlier failures (a refused prompt, a model that cannot be loaded, a full queue) have a status of their own.
Several prompts, and several answers to one prompt, are separate generations, which the engine decodes together.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from ....thinking import ThinkingParser
from ...bodies import is_large, read_json
from ...fields import check_fields, unsupported
from ..token_ids import check_token_ids
from .answers import Answers
from .events import EventStream, events, failure_event
from .forms import Chat, Continuation, usage
from .request import (
    chat_messages,
    choices,
    completion_prompts,
    continues,
    count_texts,
    flag,
    longest_text,
    parameters,
    stream_usage,
)
from .schemas import ChatAnswer, ChatRequest, CompletionAnswer, CompletionRequest
from .shared import check_length, generator, naming_fields, prefix_scope
from .thinking import opens, sent_fields, template_variables, thoughts_of_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request

    from ...._async import Prompt
    from ...routing import Routes
    from ...service import Service
    from .forms import Form

_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
_FIELDS = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
"""Parameters of the core whose request fields have other names."""
_NO_NAMES = frozenset({"dummy", "tgi"})
"""What clients of Hugging Face send as the model when they know only the server's address."""


def add_routes(routes: Routes, service: Service) -> None:
    """Register both endpoints."""
    limit = service.config.max_prompt_bytes

    async def chat(request: Request) -> Response:
        """The next turn of a conversation; with `stream` piece by piece as server-sent events."""
        body = await read_json(request, service, limit)
        check_fields(body, ChatRequest)
        slot = generator(service, body.get("model"), _NO_NAMES)
        thoughts = await thoughts_of_messages(service, slot, body.get("messages"), "reasoning_content")
        return await _answer(request, service, body, lambda body: [chat_messages(body, thoughts)], Chat)

    async def completions(request: Request) -> Response:
        """The continuation of a text; with `stream` piece by piece as server-sent events."""
        body = await read_json(request, service, limit)
        check_fields(body, CompletionRequest)
        return await _answer(request, service, body, completion_prompts, Continuation)

    post = partial(routes.add, method="POST", tags=["text generation"], responses=_EVENTS)
    post("/v1/chat/completions", chat, body=ChatRequest, answer=ChatAnswer, summary="Answer a conversation")
    post("/v1/completions", completions, body=CompletionRequest, answer=CompletionAnswer, summary="Continue a text")


async def _answer(
    request: Request,
    service: Service,
    body: dict[str, Any],
    read_prompts: Callable[[dict[str, Any]], Sequence[Prompt]],
    form: Form,
) -> Response:
    deadline = asyncio.get_running_loop().time() + service.config.request_timeout
    slot = generator(service, body.get("model"), _NO_NAMES)
    variables = await template_variables(service, slot, body)
    if variables and form is Continuation:
        raise unsupported(
            sent_fields(body)[0], "a prompt does not go through the chat template; use /v1/chat/completions"
        )
    if is_large(request):
        count = count_texts if form is Chat else longest_text
        await check_length(service, slot, body.get(form.prompt), form.prompt, count)
        prompts = await service.apart(read_prompts, body)
    else:
        prompts = read_prompts(body)
    if form is Continuation and not isinstance(prompts[0], str):
        check_token_ids(service, "prompt")
    params = parameters(body)
    params["timeout"] = service.config.request_timeout
    params["prefix_scope"] = prefix_scope(request, body)
    params["user"] = body.get("user")
    if variables:
        params["chat_template_kwargs"] = variables
    if form is Chat and continues(body):
        params["continue_final_message"] = True
    divides = flag(body, "separate_reasoning")
    answers = choices(body, len(prompts), service.config.max_choices)
    with_usage = stream_usage(body)
    head = {"id": form.mark + secrets.token_hex(12), "object": form.kind, "created": int(time.time()), "model": slot}
    asked = [(prompt, _seeded(params, number)) for prompt in prompts for number in range(answers)]
    computed = Answers(request, service, slot, asked, deadline)
    with naming_fields(params, _FIELDS, form.prompt):
        opened = divides and await opens(service, slot, prompts[0], params)
        parsers = [ThinkingParser(opened) for _ in asked] if divides else None
        if body.get("stream"):
            streams, firsts = await computed.begun()
            head["object"] = form.chunk
            pieces = events(service, streams, firsts, head, form, answers if with_usage else None, deadline, parsers)
            return EventStream(pieces, streams, failure_event)
        done = await computed.whole()
    written = [
        {
            "index": index,
            **(Chat.divided(*parsers[index].split(one["text"])) if parsers else form.whole(one["text"])),
            "logprobs": None,
            "finish_reason": one["finish_reason"],
        }
        for index, one in enumerate(done)
    ]
    answer = {**head, "choices": written, "usage": usage(done, answers)}
    return Response(orjson.dumps(answer), media_type="application/json")


def _seeded(params: dict[str, Any], number: int) -> dict[str, Any]:
    """The parameters of one of several answers to a prompt. Each gets its own seed, because equal seeds repeat."""
    if number == 0 or "seed" not in params:
        return params
    return {**params, "seed": (params["seed"] + number) % 2**64}
