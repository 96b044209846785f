"""`POST /api/generate` and `/api/chat`: answers of the text generators in the form of Ollama's API.

Without `"stream": false` an answer is a stream of JSON objects, one a line. The last one has `done` and the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from ...._async import AsyncTextStream, acomplete
from ...._bridge import in_thread
from ....thinking import ThinkingParser
from ...bodies import is_large, read_json
from ...disconnect import unless_disconnected
from ...errors import ApiError, bad_request
from ...fields import check_fields, unsupported
from ...middleware import to_json
from ..generation.events import EventStream, line_json, next_piece, pieces_until, too_late
from ..generation.request import chat_messages, count_texts, flag, longest_text
from ..generation.shared import check_length, generator, naming_fields, prefix_scope
from ..generation.thinking import described, opens, switched, thoughts_of_messages
from .fields import FIELDS, Durations, is_zero, model_name, nanoseconds, now, parameters, read_think, text
from .schemas import OllamaChatAnswer, OllamaChatRequest, OllamaGenerateAnswer, OllamaGenerateRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import TypeAlias

    from starlette.requests import Request
    from starlette.responses import Response

    from ...._async import Prompt
    from ...._types import Completion
    from ....compat import ModelManager
    from ...routing import Routes
    from ...service import Service

    Piece: TypeAlias = Callable[[str, str], dict[str, Any]]
    """The keys of an answer that hold its text and its thoughts."""

_LINES = "application/x-ndjson"
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {_LINES: {"schema": {"type": "string"}}}}}


def add_routes(routes: Routes, service: Service) -> None:
    """Register both endpoints."""
    limit = service.config.max_prompt_bytes

    async def generate(request: Request) -> Response:
        """The answer to a prompt, through the model's chat template unless `raw`. No prompt: load the model."""
        body = await read_json(request, service, limit)
        check_fields(body, OllamaGenerateRequest)
        answer = _Answer(request, service, body, "prompt")
        return await answer.respond(_response, answer.completion_prompt)

    async def chat(request: Request) -> Response:
        """The next turn of a conversation. No messages: load the model."""
        body = await read_json(request, service, limit)
        check_fields(body, OllamaChatRequest)
        answer = _Answer(request, service, body, "messages")
        return await answer.respond(_message, answer.messages)

    post = partial(routes.add, method="POST", tags=["Ollama"], responses=_STREAM, plain_errors=True)
    post("/api/generate", generate, body=OllamaGenerateRequest, answer=OllamaGenerateAnswer, summary="Answer a prompt")
    post("/api/chat", chat, body=OllamaChatRequest, answer=OllamaChatAnswer, summary="Answer a conversation")


def _response(text: str, thoughts: str = "") -> dict[str, Any]:
    return {"response": text, **({"thinking": thoughts} if thoughts else {})}


def _message(text: str, thoughts: str = "") -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, **({"thinking": thoughts} if thoughts else {})}}


class _Answer:
    """One request, with its fields checked, and its answer."""

    def __init__(self, request: Request, service: Service, body: dict[str, Any], field: str) -> None:
        self.deadline = asyncio.get_running_loop().time() + service.config.request_timeout
        self.request, self.service, self.body, self.field = request, service, body, field
        self.name = model_name(body)
        self.params = parameters(body)
        self.stream = flag(body, "stream", default=True)
        self.raw = flag(body, "raw", default=False)
        self.system = text(body, "system")
        # Prompts are never cut and contexts never shifted, with either value.
        for name in ("truncate", "shift"):
            flag(body, name, default=True)
        self.think = read_think(body)
        self.parser: ThinkingParser | None = None
        if self.raw and self.think:
            raise unsupported("think", "a raw prompt does not go through the chat template; leave it out")
        if self.raw and self.system:
            raise bad_request("raw mode does not support system: put it into the prompt", "system")
        self.slot = _generator(service, self.name, field)
        self.durations = Durations(service, self.slot)
        self.params["timeout"] = service.config.request_timeout
        self.params["prefix_scope"] = prefix_scope(request, body)

    async def respond(self, piece: Piece, read_prompt: Callable[[], Awaitable[Prompt]]) -> Response:
        """The answer.

        Args:
            piece: The keys of an answer that hold its text.
            read_prompt: Loads the model and returns the core's prompt.
        """
        if _is_empty(self.body.get(self.field), self.field):
            reason = await self._load_or_unload()
            return to_json({**self._head(), **piece("", ""), "done": True, "done_reason": reason})
        if self.think is not None:
            await self._in_time(self._set_thinking())
        with naming_fields(self.params, FIELDS, self.field):
            if not self.stream:
                done = await self._in_time(self._complete(read_prompt))
                thoughts, answer = self.parser.split(done["text"]) if self.parser else ("", done["text"])
                return to_json({**self._head(), **piece(answer, thoughts), **self._end(done)})
            stream, first = await self._in_time(self._begin(read_prompt))
            return EventStream(self._lines(stream, first, piece), [stream], _failure_line, _LINES)

    async def completion_prompt(self) -> Prompt:
        """The prompt of `/api/generate`: messages for the model's chat template; a text without one, and if `raw`."""
        prompt = text(self.body, "prompt")
        await self.service.load(self.slot)
        if is_large(self.request):
            texts = [prompt, self.system]
            await check_length(self.service, self.slot, texts, "prompt", longest_text)
        if self.raw:
            return prompt
        if await in_thread(_takes_turns, self.service.manager, self.slot):
            system = [{"role": "system", "content": self.system}] if self.system else []
            return [*system, {"role": "user", "content": prompt}]
        if self.system:
            raise bad_request(
                f"{self.name!r} has no chat template, which system needs: put it into the prompt", "system"
            )
        return prompt

    async def messages(self) -> Prompt:
        """The prompt of `/api/chat`."""
        if is_large(self.request):
            await check_length(self.service, self.slot, self.body.get("messages"), "messages", count_texts)
            messages = await self.service.apart(chat_messages, self.body, await self._thoughts())
        else:
            messages = chat_messages(self.body, await self._thoughts())
        if messages[-1]["role"] == "assistant" and messages[-1]["content"]:
            self.params["continue_final_message"] = True
        await self.service.load(self.slot)
        return messages

    async def _thoughts(self) -> str | None:
        return await thoughts_of_messages(self.service, self.slot, self.body.get("messages"), "thinking")

    async def _set_thinking(self) -> None:
        """Set the variables of the chat template. Raises `ApiError` 400 if the model cannot do what `think` says."""
        about = await described(self.service, self.slot)
        if not self.think:
            variables = switched(about, "think", on=False)
        elif not about["thinks"]:
            raise bad_request(f'"{self.name}" does not support thinking', "think")
        elif self.think is True:
            variables = switched(about, "think", on=True)
        elif "reasoning_effort" in about["chat_template_variables"]:
            variables = {"reasoning_effort": self.think}
        else:
            raise bad_request(f'think value "{self.think}" is not supported for this model', "think")
        if variables and self.raw:
            raise unsupported("think", "a raw prompt does not go through the chat template; leave it out")
        if variables:
            self.params["chat_template_kwargs"] = variables

    async def _load_or_unload(self) -> str:
        """Load the model, or unload it if `keep_alive` is 0; the reason in the answer."""
        self.service.check_admin()
        keep = self.params.get("keep_alive")
        if is_zero(keep):
            await in_thread(self.service.manager.unload, self.slot)
            return "unload"
        if keep is None:
            await self._in_time(self.service.load(self.slot))
            return "load"
        # How long a model stays depends on its latest use, so one token is written.
        one_token = {"max_new_tokens": 1, "keep_alive": keep, "timeout": self.params["timeout"]}
        with naming_fields(one_token, FIELDS, self.field):
            await self._in_time(self._use(one_token))
        return "load"

    async def _use(self, params: dict[str, Any]) -> None:
        await self.service.load(self.slot)
        await acomplete(self.service.manager, "a", self.slot, **params)

    async def _in_time(self, work: Any) -> Any:
        return await unless_disconnected(self.request.receive, work, self.deadline, too_late())

    async def _complete(self, read_prompt: Callable[[], Awaitable[Prompt]]) -> Completion:
        prompt = await self._read(read_prompt)
        return await acomplete(self.service.manager, prompt, self.slot, **self.params)

    async def _read(self, read_prompt: Callable[[], Awaitable[Prompt]]) -> Prompt:
        prompt = await read_prompt()
        if self.think:
            self.parser = ThinkingParser(await opens(self.service, self.slot, prompt, self.params))
        return prompt

    async def _begin(self, read_prompt: Callable[[], Awaitable[Prompt]]) -> tuple[AsyncTextStream, str | None]:
        """The stream and its first piece: until then a failure has a status of its own."""
        stream = AsyncTextStream(self.service.manager, await self._read(read_prompt), self.slot, self.params)
        try:
            return stream, await next_piece(stream)
        except BaseException:
            await stream.aclose()
            raise

    async def _lines(self, stream: AsyncTextStream, first: str | None, piece: Piece) -> AsyncGenerator[bytes, None]:
        """The lines of a streamed answer. Raises what `pieces_until` raises."""
        async with contextlib.aclosing(pieces_until(self.service, [stream], [first], self.deadline)) as pieces:
            async for _, part in pieces:
                thoughts, answer = self._divided(part)
                if thoughts or answer:
                    yield _line({**self._head(), **piece(answer, thoughts), "done": False})
                if not isinstance(part, str):
                    yield _line({**self._head(), **piece("", ""), **self._end(part)})

    def _divided(self, part: str | Completion) -> tuple[str, str]:
        """The thoughts and the answer that a piece of a stream, or its end, adds."""
        if self.parser is None:
            return "", part if isinstance(part, str) else ""
        return self.parser.feed(part) if isinstance(part, str) else self.parser.end()

    def _head(self) -> dict[str, Any]:
        """What all objects have in common."""
        return {"model": self.name, "created_at": now()}

    def _end(self, done: Completion) -> dict[str, Any]:
        """The end of an answer and its figures."""
        return {
            "done": True,
            "done_reason": done["finish_reason"],
            **self.durations.figures(),
            "prompt_eval_count": done["prompt_tokens"],
            "prompt_eval_duration": nanoseconds(done["prefill_seconds"]),
            "eval_count": done["completion_tokens"],
            # Clients divide by it. The first token comes with the prompt.
            "eval_duration": max(1, nanoseconds(done["decode_seconds"])),
        }


def _generator(service: Service, name: str, field: str) -> str:
    """The slot of a text generator. Raises `ApiError` 404, or 400 for an embedding model."""
    try:
        return generator(service, name)
    except ApiError as unknown:
        try:
            service.served(name)
        except ApiError:
            raise unknown from None
    what = "generate" if field == "prompt" else "chat"
    raise bad_request(f"{name!r} is an embedding model: it does not support {what}", "model")


def _takes_turns(manager: ModelManager, slot: str) -> bool:
    """Whether the model has a chat template. For some families the core joins turns by the end of a text; a prompt for
    their models is continued, as Ollama does.
    """
    known = manager.describe_generator(slot)
    if not known["chat_template"]:
        return False
    return manager.apply_chat_template([{"role": "user", "content": "a"}], slot) != f"a{known['eos_token']}"


def _is_empty(value: Any, field: str) -> bool:
    return value is None or value == ("" if field == "prompt" else [])


def _line(value: dict[str, Any]) -> bytes:
    return line_json(value) + b"\n"


def _failure_line(error: ApiError) -> bytes:
    return _line({"error": error.detail})
