"""`POST /v1/chat/completions` and `/v1/completions`: answers of the text generators, whole or as server-sent events.

An answer ends within one token after its client disconnects. A stream begins when every answer has its first piece, so
that earlier failures (a refused prompt, a model that cannot be loaded, a full queue) have a status of their own.
Several prompts, and several answers to one prompt, are separate generations, which the engine decodes together.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from ...._async import AsyncTextStream, acomplete, in_thread
from ....errors import ConfigError, InputError
from ...bodies import is_large, read_json
from ...disconnect import unless_disconnected
from ...errors import ApiError, bad_request, refused, unknown_model
from ..token_ids import check_token_ids
from .events import EventStream, close, events, next_piece, too_late
from .forms import Chat, Continuation, usage
from .request import (
    chat_messages,
    choices,
    completion_prompts,
    count_texts,
    longest_text,
    parameters,
    stream_usage,
)
from .schemas import ChatAnswer, ChatRequest, CompletionAnswer, CompletionRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeVar

    from starlette.requests import Request

    from ...._async import Prompt
    from ...routing import Routes
    from ...service import Service
    from .forms import Form

    T = TypeVar("T")

_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
_MAX_TOKEN_CHARACTERS = 256
"""Characters of the longest token: vocabularies have runs of 128 spaces and hardly anything longer."""
_FIELDS = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
"""Parameters of the core whose request fields have other names."""


def add_routes(routes: Routes, service: Service) -> None:
    """Register both endpoints."""
    limit = service.config.max_prompt_bytes

    async def chat(request: Request) -> Response:
        """The next turn of a conversation; with `stream` piece by piece as server-sent events."""
        body = await read_json(request, service, limit)
        return await _answer(request, service, body, lambda body: [chat_messages(body)], Chat)

    async def completions(request: Request) -> Response:
        """The continuation of a text; with `stream` piece by piece as server-sent events."""
        body = await read_json(request, service, limit)
        return await _answer(request, service, body, completion_prompts, Continuation)

    for path, handler, body, answer, summary in (
        ("/v1/chat/completions", chat, ChatRequest, ChatAnswer, "Answer a conversation"),
        ("/v1/completions", completions, CompletionRequest, CompletionAnswer, "Continue a text"),
    ):
        routes.add(
            path,
            handler,
            method="POST",
            body=body,
            answer=answer,
            summary=summary,
            tags=["text generation"],
            responses=_EVENTS,
        )


def generator(service: Service, name: Any) -> str:
    """The slot for requests with the model `name`: a slot's name or its source. None: the first generator.

    Raises `ApiError` 404 with the names that are served.
    """
    if name is not None and not isinstance(name, str):
        raise bad_request("model must be a string", "model")
    slots = service.slots("generator")
    served = [slot for slot in service.config.generators if slot in slots]
    if not served:
        wanted = ", ".join(service.config.generators) or "none is configured"
        raise ApiError(404, f"This server has no text generator ({wanted})", param="model", code="no_generator")
    if not name:
        return served[0]
    plain = name.removesuffix(":latest")
    for slot in served:
        if plain == slot or name == slots[slot]["source"]:
            return slot
    raise unknown_model(name, served)


async def _check_length(service: Service, slot: str, body: dict[str, Any], field: str) -> None:
    """Raise `ApiError` 400 for a prompt that cannot fit the model's context, before any work that grows with it."""
    await service.load(slot)
    context = (await in_thread(service.manager.describe_generator, slot))["context"]
    count = count_texts if field == Chat.prompt else longest_text
    texts, characters = await service.apart(count, body.get(field), context)
    # A message has one token at least.
    if texts > context or characters > context * _MAX_TOKEN_CHARACTERS:
        raise bad_request(
            f"{field} has {texts} text{'' if texts == 1 else 's'} with at least {characters} characters in total, but "
            f"the model holds {context} tokens, each with at most {_MAX_TOKEN_CHARACTERS} characters",
            field,
            "context_length_exceeded",
        )


async def _answer(
    request: Request,
    service: Service,
    body: dict[str, Any],
    read_prompts: Callable[[dict[str, Any]], Sequence[Prompt]],
    form: Form,
) -> Response:
    deadline = asyncio.get_running_loop().time() + service.config.request_timeout
    slot = generator(service, body.get("model"))
    if is_large(request):
        await _check_length(service, slot, body, form.prompt)
        prompts = await service.apart(read_prompts, body)
    else:
        prompts = read_prompts(body)
    if form is Continuation and not isinstance(prompts[0], str):
        check_token_ids(service, "prompt")
    params = parameters(body)
    params["timeout"] = service.config.request_timeout
    params["prefix_scope"] = _prefix_scope(request, body)
    count = choices(body, len(prompts), service.config.max_choices)
    with_usage = stream_usage(body)
    head = {"id": form.mark + secrets.token_hex(12), "object": form.kind, "created": int(time.time()), "model": slot}
    requests = [(prompt, _seeded(params, number)) for prompt in prompts for number in range(count)]
    try:
        if body.get("stream"):
            streams: list[AsyncTextStream] = []
            try:
                streams.extend(AsyncTextStream(service.manager, prompt, slot, own) for prompt, own in requests)
                first_pieces = _together([next_piece(stream) for stream in streams])
                firsts = await unless_disconnected(request.receive, first_pieces, deadline, too_late())
            except BaseException:
                await close(streams)
                raise
            head["object"] = form.chunk
            pieces = events(service, streams, firsts, head, form, count if with_usage else None, deadline)
            return EventStream(pieces, streams)
        works = [acomplete(service.manager, prompt, slot, **own) for prompt, own in requests]
        done = await unless_disconnected(request.receive, _together(works), deadline, too_late())
    except (InputError, ConfigError, TypeError, OverflowError) as error:
        param = getattr(error, "param", None)
        if isinstance(error, ConfigError) and param not in params:
            # The mistake is in a setting of the server, not in a field of the request.
            raise
        raise refused(error, _field(param), form.prompt) from error
    written = [
        {"index": index, **form.whole(one["text"]), "logprobs": None, "finish_reason": one["finish_reason"]}
        for index, one in enumerate(done)
    ]
    answer = {**head, "choices": written, "usage": usage(done, count)}
    return Response(orjson.dumps(answer), media_type="application/json")


def _field(param: str | None) -> str | None:
    """The request field that holds a parameter of the core; None for the prompt."""
    return None if param is None or param == "prompt" else _FIELDS.get(param, param)


def _prefix_scope(request: Request, body: dict[str, Any]) -> str:
    """A name for the requests of one key and one `user`. Computed prompt prefixes are reused only among these, so
    `cached_tokens` and response times reveal nothing about the prompts of others.
    """
    user = body.get("user")
    if user is not None and not isinstance(user, str):
        raise bad_request("user must be a string", "user")
    # A key never holds a zero byte. The hash keeps the key itself out of the prefix cache.
    parts = f"{request.headers.get('authorization', '')}\0{user or ''}"
    return hashlib.sha256(parts.encode()).hexdigest()


def _seeded(params: dict[str, Any], number: int) -> dict[str, Any]:
    """The parameters of one of several answers to a prompt. Each gets its own seed, because equal seeds repeat."""
    if number == 0 or "seed" not in params:
        return params
    return {**params, "seed": (params["seed"] + number) % 2**64}


async def _together(works: Sequence[Awaitable[T]]) -> list[T]:
    """The results of all `works`. The first failure cancels the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
