"""`POST /v1/chat/completions` and `/v1/completions`: answers of the text generators, whole or as server-sent events.

An answer ends within one token of its client's leaving. A stream begins when every answer has its first piece, so that
everything that can go wrong before it (a refused prompt, a model that cannot be loaded, a full queue) has a status of
its own. Several prompts, and several answers to one, are generations of their own, which the engine decodes together.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from ..errors import ConfigError, InputError
from ..generation import AsyncTextStream, acomplete
from .bodies import is_large, read_json
from .embeddings import check_token_ids
from .errors import ApiError, bad_request, from_exception, timed_out, unknown_model
from .generation_request import (
    chat_messages,
    choices,
    completion_prompts,
    count_texts,
    longest_text,
    parameters,
    stream_usage,
)
from .generation_schemas import ChatAnswer, ChatRequest, CompletionAnswer, CompletionRequest
from .service import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
    from typing import TypeVar

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from .._types import Completion
    from ..generation import Prompt
    from .app import Routes
    from .service import Service

    T = TypeVar("T")

_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
_END = b"data: [DONE]\n\n"
_TOKEN_CHARACTERS = 256
"""Of the longest token: vocabularies have runs of 128 spaces, hardly anything beyond."""


def add_routes(routes: Routes, service: Service) -> None:
    """Both endpoints."""
    most = service.config.max_prompt_bytes

    async def chat(request: Request) -> Response:
        """The next turn of a conversation; with `stream` piece by piece as server-sent events."""
        body = await read_json(request, service, most)
        return await _answer(request, service, body, lambda body: [chat_messages(body)], Chat)

    async def completions(request: Request) -> Response:
        """The continuation of a text; with `stream` piece by piece as server-sent events."""
        body = await read_json(request, service, most)
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
    """The slot that requests for the model `name` go to: its slot's name or its source; None: the first generator.
    Raises `ApiError` 404 that names what is served.
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
    # A message takes a token at least.
    if texts > context or characters > context * _TOKEN_CHARACTERS:
        raise bad_request(
            f"{field} has {texts} text{'' if texts == 1 else 's'} of at least {characters} characters together but the "
            f"model holds {context} tokens, of which none has more than {_TOKEN_CHARACTERS} characters",
            field,
            "context_length_exceeded",
        )


class Chat:
    """How answers to a conversation look."""

    kind = "chat.completion"
    chunk = "chat.completion.chunk"
    mark = "chatcmpl-"
    prompt = "messages"

    @staticmethod
    def whole(text: str) -> dict[str, Any]:
        """The answer."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    @staticmethod
    def piece(text: str | None) -> dict[str, Any]:
        """A part of it; None: its end."""
        return {"delta": {} if text is None else {"content": text}}


class Continuation:
    """How continuations of a text look."""

    kind = "text_completion"
    chunk = "text_completion"
    mark = "cmpl-"
    prompt = "prompt"

    @staticmethod
    def whole(text: str) -> dict[str, Any]:
        """The answer."""
        return {"text": text}

    @staticmethod
    def piece(text: str | None) -> dict[str, Any]:
        """A part of it; None: its end."""
        return {"text": text or ""}


_Form = type[Chat] | type[Continuation]


async def _answer(
    request: Request,
    service: Service,
    body: dict[str, Any],
    read_prompts: Callable[[dict[str, Any]], Sequence[Prompt]],
    form: _Form,
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
    wishes = [(prompt, _seeded(params, number)) for prompt in prompts for number in range(count)]
    try:
        if body.get("stream"):
            streams: list[AsyncTextStream] = []
            try:
                streams.extend(AsyncTextStream(service.manager, prompt, slot, own) for prompt, own in wishes)
                together = _together([_next(stream) for stream in streams])
                firsts = await _unless_left(request.receive, together, deadline)
            except BaseException:
                await _close(streams)
                raise
            head["object"] = form.chunk
            pieces = _events(service, streams, firsts, head, form, count if with_usage else None, deadline)
            return EventStream(pieces, streams)
        works = [acomplete(service.manager, prompt, slot, **own) for prompt, own in wishes]
        done = await _unless_left(request.receive, _together(works), deadline)
    except (InputError, ConfigError, TypeError, OverflowError) as error:
        if isinstance(error, ConfigError) and error.param not in params:
            # A setting of the server's, not a field of the request.
            raise
        raise _refused(error, form.prompt) from error
    written = [
        {"index": index, **form.whole(one["text"]), "logprobs": None, "finish_reason": one["finish_reason"]}
        for index, one in enumerate(done)
    ]
    answer = {**head, "choices": written, "usage": _usage(done, count)}
    return Response(orjson.dumps(answer), media_type="application/json")


def _prefix_scope(request: Request, body: dict[str, Any]) -> str:
    """A name for the requests of one key and one `user`. Only they share what is computed of a prompt's beginning, so
    `cached_tokens` and the time of an answer tell a client nothing of the prompts of others.
    """
    user = body.get("user")
    if user is not None and not isinstance(user, str):
        raise bad_request("user must be a string", "user")
    # A key holds no zero byte. As a hash, none of it is kept with what was computed.
    parts = f"{request.headers.get('authorization', '')}\0{user or ''}"
    return hashlib.sha256(parts.encode()).hexdigest()


def _seeded(params: dict[str, Any], number: int) -> dict[str, Any]:
    """The parameters of one of several answers to a prompt: with equal seeds they would be equal."""
    if number == 0 or "seed" not in params:
        return params
    return {**params, "seed": (params["seed"] + number) % 2**64}


async def _together(works: Sequence[Awaitable[T]]) -> list[T]:
    """What all of `works` give. The first that fails cancels the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _next(stream: AsyncTextStream) -> str | None:
    """The next piece; None at the end."""
    return await anext(stream, None)


async def _close(streams: Sequence[AsyncTextStream]) -> None:
    for stream in streams:
        await stream.aclose()


async def _merged(
    streams: Sequence[AsyncTextStream], firsts: Sequence[str | None]
) -> AsyncGenerator[tuple[int, str | None], None]:
    """The pieces of all streams with their numbers, as they come, after their first ones; None ends one."""
    waiting: dict[asyncio.Future[str | None], int] = {}
    try:
        for index, first in enumerate(firsts):
            if first is not None:
                waiting[asyncio.ensure_future(_next(streams[index]))] = index
            yield index, first
        while waiting:
            ready, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(ready, key=waiting.__getitem__):
                index, piece = waiting.pop(task), task.result()
                if piece is not None:
                    waiting[asyncio.ensure_future(_next(streams[index]))] = index
                yield index, piece
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _events(
    service: Service,
    streams: Sequence[AsyncTextStream],
    firsts: Sequence[str | None],
    head: dict[str, Any],
    form: _Form,
    usage_of: int | None,
    deadline: float,
) -> AsyncIterator[bytes]:
    """`usage_of`: answers to each prompt, when a last event is to tell the usage."""

    def event(index: int, piece: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": index, **piece, "logprobs": None, "finish_reason": finish_reason}
        # OpenAI's chunks say `"usage": null` only where usage was asked for.
        return _event({**head, "choices": [choice], **({} if usage_of is None else {"usage": None})})

    if form is Chat:
        for index in range(len(streams)):
            yield event(index, {"delta": {"role": "assistant", "content": ""}})
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        service.spawn(_close(streams))

    timer = asyncio.get_running_loop().call_at(deadline, expire)
    try:
        async with contextlib.aclosing(_merged(streams, firsts)) as pieces:
            async for index, piece in pieces:
                if piece is not None:
                    yield event(index, form.piece(piece))
                    continue
                done = streams[index].completion
                if done is None:
                    # The client left, and nobody reads on; or it is too late.
                    if expired:
                        yield _event(_timeout().to_dict())
                    return
                yield event(index, form.piece(None), done["finish_reason"])
    except Exception as error:  # noqa: BLE001  the status is sent: what is left is to tell it in the stream
        yield _event(from_exception(error).to_dict())
        return
    finally:
        timer.cancel()
    if usage_of is not None:
        ends = [stream.completion for stream in streams if stream.completion is not None]
        yield _event({**head, "choices": [], "usage": _usage(ends, usage_of)})
    yield _END


def _event(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(value)


class EventStream(StreamingResponse):
    """Server-sent events of one request's answers, which end when its client leaves."""

    def __init__(self, events: AsyncIterator[bytes], answers: Sequence[AsyncTextStream]) -> None:
        # Some proxies would collect the whole answer first.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        watcher = asyncio.ensure_future(_left(receive, lambda: _close(self.answers)))
        try:
            await self.stream_response(send)
            if watcher.done() and any(answer.completion is None for answer in self.answers):
                raise ClientDisconnect
        finally:
            watcher.cancel()
            await _close(self.answers)


async def _left(receive: Receive, then: Callable[[], Awaitable[None]]) -> None:
    """Wait until the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    await then()


def _timeout() -> ApiError:
    return timed_out("The answer was not complete within the server's request_timeout; ask for fewer tokens")


async def _unless_left(receive: Receive, work: Awaitable[T], deadline: float) -> T:
    """What `work` gives. It is cancelled, and `ClientDisconnect` raised, when the client closes the connection; at
    `deadline`, of the loop's clock, with `ApiError` 504.
    """

    async def nothing() -> None:
        pass

    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_left(receive, nothing))
    try:
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        await asyncio.wait((task, watcher), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect if watcher.done() else _timeout()
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


def _usage(done: Sequence[Completion], each: int) -> dict[str, Any]:
    """Of all answers, `each` to a prompt: a prompt counts once."""
    prompts = done[::each]
    prompt, answer = sum(one["prompt_tokens"] for one in prompts), sum(one["completion_tokens"] for one in done)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(one["reused_tokens"] for one in prompts)},
    }


_PARAMS = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
"""What the core calls a parameter, and what the request does, where they differ."""


def _refused(error: Exception, prompt: str) -> ApiError:
    """What the core did not take, in the words of the request."""
    message, param, code = str(error), getattr(error, "param", None), getattr(error, "code", None)
    if param is None or param == "prompt":
        return bad_request(message, prompt, code)
    field = _PARAMS.get(param, param)
    return bad_request(message.replace(param, field), field, code)
