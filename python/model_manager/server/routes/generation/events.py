"""Streamed answers: the pieces of all streams of one request as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from ...disconnect import watch_disconnect
from ...errors import ApiError, from_exception, shut_down, timed_out
from ...middleware import FAILED
from .forms import Chat, usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence

    from starlette.types import Receive, Scope, Send

    from ...._async import AsyncTextStream
    from ...._types import Completion
    from ....thinking import ThinkingParser
    from ...service import Service
    from .forms import Form

_END = b"data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """The pieces of one request's answers, by default as server-sent events. The answers end when the client closes
    the connection.

    Args:
        events: The events. An exception that they raise becomes the last event: the status is already sent.
        answers: What they are written from.
        failed: The event of an error.
        media_type: The type of the stream.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        answers: Sequence[AsyncTextStream],
        failed: Callable[[ApiError], bytes],
        media_type: str = "text/event-stream",
    ) -> None:
        # Without these headers some proxies collect the whole answer first.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(self._until_failure(events, failed), media_type=media_type, headers=headers)
        self.answers = answers
        self.failure: int | None = None
        """The status that the error of this stream would have had."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        with watch_disconnect(receive, lambda: close(self.answers)) as watcher:
            try:
                await self.stream_response(send)
                if watcher.done() and any(answer.completion is None for answer in self.answers):
                    raise ClientDisconnect
            finally:
                if self.failure is not None:
                    scope[FAILED] = self.failure
                await close(self.answers)

    async def _until_failure(
        self, events: AsyncGenerator[bytes, None], failed: Callable[[ApiError], bytes]
    ) -> AsyncIterator[bytes]:
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
        except ClientDisconnect:
            return
        except Exception as caught:  # noqa: BLE001  every failure becomes an event
            error = from_exception(caught)
            self.failure = error.status_code
            yield failed(error)


async def next_piece(stream: AsyncTextStream) -> str | None:
    """The next piece; None at the end."""
    return await anext(stream, None)


async def close(streams: Sequence[AsyncTextStream]) -> None:
    """End the answers that are still being written."""
    for stream in streams:
        await stream.aclose()


def too_late() -> ApiError:
    """504: the answer took longer than `request_timeout`."""
    return timed_out("The answer was not complete within the server's request_timeout; ask for fewer tokens")


async def events(
    service: Service,
    streams: Sequence[AsyncTextStream],
    firsts: Sequence[str | None],
    head: dict[str, Any],
    form: Form,
    usage_per_prompt: int | None,
    deadline: float,
    parsers: Sequence[ThinkingParser] | None = None,
) -> AsyncGenerator[bytes, None]:
    """The events of one request. Raises what `pieces_until` raises.

    Args:
        streams: Its answers.
        firsts: The first piece of each answer, which was awaited before the status was sent.
        head: What all events have in common.
        form: How a piece looks.
        usage_per_prompt: Answers per prompt if a last event reports the usage, else None.
        deadline: When the answers must be complete, on the loop's clock.
        parsers: Those of the answers, if thoughts have events of their own.
    """

    def written(index: int, piece: str | Completion) -> Iterator[bytes]:
        if parsers is not None:
            thoughts, answer = parsers[index].feed(piece) if isinstance(piece, str) else parsers[index].end()
            if thoughts:
                yield event(index, Chat.thought(thoughts))
            if answer:
                yield event(index, form.piece(answer))
        elif isinstance(piece, str):
            yield event(index, form.piece(piece))
        if not isinstance(piece, str):
            yield event(index, form.piece(None), piece["finish_reason"])

    def event(index: int, piece: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": index, **piece, "logprobs": None, "finish_reason": finish_reason}
        # OpenAI's chunks have `"usage": null` only if the request asks for the usage.
        return _event({**head, "choices": [choice], **({} if usage_per_prompt is None else {"usage": None})})

    if form is Chat:
        for index in range(len(streams)):
            yield event(index, {"delta": {"role": "assistant", "content": ""}})
    async with contextlib.aclosing(pieces_until(service, streams, firsts, deadline)) as pieces:
        async for index, piece in pieces:
            for one in written(index, piece):
                yield one
    if usage_per_prompt is not None:
        ends = [stream.completion for stream in streams if stream.completion is not None]
        yield _event({**head, "choices": [], "usage": usage(ends, usage_per_prompt)})
    yield _END


async def pieces_until(
    service: Service, streams: Sequence[AsyncTextStream], firsts: Sequence[str | None], deadline: float
) -> AsyncGenerator[tuple[int, str | Completion], None]:
    """The pieces of all streams with their stream's number, in the order in which they arrive. A completion ends each
    stream.

    Raises the errors of the streams, `ApiError` 504 when `deadline` has passed, 503 when the server ends its requests,
    and `ClientDisconnect` when the streams were closed because the client closed the connection.
    """
    reason: ApiError | None = None

    def end(error: ApiError) -> None:
        nonlocal reason
        reason = error
        service.spawn(close(streams))

    def end_shut_down() -> None:
        end(shut_down())

    timer = asyncio.get_running_loop().call_at(deadline, lambda: end(too_late()))
    service.streams.add(end_shut_down)
    if service.ended_requests:
        end_shut_down()
    try:
        async with contextlib.aclosing(_merged(streams, firsts)) as pieces:
            async for index, piece in pieces:
                if piece is not None:
                    yield index, piece
                elif (done := streams[index].completion) is not None:
                    yield index, done
                else:
                    raise reason or ClientDisconnect
    finally:
        timer.cancel()
        service.streams.discard(end_shut_down)


async def _merged(
    streams: Sequence[AsyncTextStream], firsts: Sequence[str | None]
) -> AsyncGenerator[tuple[int, str | None], None]:
    """The pieces of all streams with their stream's number, in the order in which they arrive; None ends a stream."""
    waiting: dict[asyncio.Future[str | None], int] = {}
    try:
        for index, first in enumerate(firsts):
            if first is not None:
                waiting[asyncio.ensure_future(next_piece(streams[index]))] = index
            yield index, first
        while waiting:
            ready, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(ready, key=waiting.__getitem__):
                index, piece = waiting.pop(task), task.result()
                if piece is not None:
                    waiting[asyncio.ensure_future(next_piece(streams[index]))] = index
                yield index, piece
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def failure_event(error: ApiError) -> bytes:
    """The last event of a stream that failed."""
    return _event(error.to_dict())


def _event(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % line_json(value)


def line_json(value: dict[str, Any]) -> bytes:
    """JSON as a part of a line. Clients that read line by line, such as those with `httpx.iter_lines`, also end a line
    at U+0085, U+2028 and U+2029, so these are escaped, as Ollama does.
    """
    # They occur only within texts. No other character in UTF-8 has these bytes.
    body = orjson.dumps(value)
    if b"\xe2\x80" in body:
        body = body.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return body.replace(b"\xc2\x85", b"\\u0085")
