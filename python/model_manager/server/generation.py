"""`POST /v1/chat/completions` and `/v1/completions`: answers of the text generators, whole or as server-sent events.

An answer ends within one token of its client's leaving. A stream begins with the first piece, so that everything that
can go wrong before it (a refused prompt, a model that cannot be loaded, a full queue) has a status of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from ..errors import ConfigError, InputError
from ..generation import AsyncTextStream, acomplete
from .bodies import is_large, read_json
from .errors import ApiError, bad_request, from_exception, timed_out, unknown_model
from .generation_request import chat_messages, completion_prompt, count_texts, parameters, stream_usage
from .generation_schemas import ChatAnswer, ChatRequest, CompletionAnswer, CompletionRequest
from .service import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import TypeVar

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from .._types import Completion
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
        return await _answer(request, service, body, chat_messages, Chat)

    async def completions(request: Request) -> Response:
        """The continuation of a text; with `stream` piece by piece as server-sent events."""
        body = await read_json(request, service, most)
        return await _answer(request, service, body, completion_prompt, Continuation)

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
    texts, characters = await service.apart(count_texts, body.get(field), context)
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
    read_prompt: Callable[[dict[str, Any]], str | list[dict[str, str]]],
    form: _Form,
) -> Response:
    deadline = asyncio.get_running_loop().time() + service.config.request_timeout
    slot = generator(service, body.get("model"))
    if is_large(request):
        await _check_length(service, slot, body, form.prompt)
        prompt = await service.apart(read_prompt, body)
    else:
        prompt = read_prompt(body)
    params = parameters(body)
    params["timeout"] = service.config.request_timeout
    with_usage = stream_usage(body)
    head = {"id": form.mark + secrets.token_hex(12), "object": form.kind, "created": int(time.time()), "model": slot}
    try:
        if body.get("stream"):
            stream = AsyncTextStream(service.manager, prompt, slot, params)
            try:
                first = await _unless_left(request.receive, anext(stream, None), deadline)
            except BaseException:
                await stream.aclose()
                raise
            head["object"] = form.chunk
            return EventStream(_events(service, stream, first, head, form, with_usage, deadline), stream)
        done = await _unless_left(request.receive, acomplete(service.manager, prompt, slot, **params), deadline)
    except (InputError, ConfigError, TypeError, OverflowError) as error:
        raise _refused(error, form.prompt) from error
    choice = {"index": 0, **form.whole(done["text"]), "logprobs": None, "finish_reason": done["finish_reason"]}
    return Response(orjson.dumps({**head, "choices": [choice], "usage": _usage(done)}), media_type="application/json")


async def _events(
    service: Service,
    stream: AsyncTextStream,
    first: str | None,
    head: dict[str, Any],
    form: _Form,
    with_usage: bool,
    deadline: float,
) -> AsyncIterator[bytes]:
    def event(piece: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, **piece, "logprobs": None, "finish_reason": finish_reason}
        # OpenAI's chunks say `"usage": null` only where usage was asked for.
        return _event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

    if form is Chat:
        yield event({"delta": {"role": "assistant", "content": ""}})
    if first is not None:
        yield event(form.piece(first))
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        service.spawn(stream.aclose())

    timer = asyncio.get_running_loop().call_at(deadline, expire)
    try:
        async for piece in stream:
            yield event(form.piece(piece))
    except Exception as error:  # noqa: BLE001  the status is sent: what is left is to tell it in the stream
        yield _event(from_exception(error).to_dict())
        return
    finally:
        timer.cancel()
    if expired and stream.completion is None:
        yield _event(_timeout().to_dict())
        return
    done = stream.completion
    # None: the client left, and nobody reads on.
    if done is not None:
        yield event(form.piece(None), done["finish_reason"])
        if with_usage:
            yield _event({**head, "choices": [], "usage": _usage(done)})
        yield _END


def _event(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(value)


class EventStream(StreamingResponse):
    """Server-sent events of one answer, which ends when its client leaves."""

    def __init__(self, events: AsyncIterator[bytes], answer: AsyncTextStream) -> None:
        # Some proxies would collect the whole answer first.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        watcher = asyncio.ensure_future(_left(receive, self.answer.aclose))
        try:
            await self.stream_response(send)
            if watcher.done() and self.answer.completion is None:
                raise ClientDisconnect
        finally:
            watcher.cancel()
            await self.answer.aclose()


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


def _usage(done: Completion) -> dict[str, Any]:
    prompt, answer = done["prompt_tokens"], done["completion_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": done["reused_tokens"]},
    }


_PARAMS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    **{
        name: name
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram_size", "seed")
    },
    "keep_alive": "keep_alive",
    "stop": "stop",
}
"""What the core calls a parameter, and what the request does."""


def _refused(error: Exception, prompt: str) -> ApiError:
    """What the core did not take, in the words of the request."""
    message = str(error)
    for name, param in _PARAMS.items():
        if name in message:
            return bad_request(message.replace(name, param), param)
    code = "context_length_exceeded" if "tokens but the model holds" in message else None
    return bad_request(message, prompt, code)
