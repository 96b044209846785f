"""Streamed answers: server-sent events with a type and a number."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import ClientDisconnect

from ...errors import from_exception
from ..generation.events import pieces_until
from .answer import text_part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ...._async import AsyncTextStream
    from ...service import Service
    from .answer import Answer


class _Events:
    """Writes the events of one response, which number them."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self.number, **fields}
        self.number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(event))


async def response_events(
    service: Service, stream: AsyncTextStream, first: str | None, answer: Answer, deadline: float
) -> AsyncIterator[bytes]:
    """The events of one response in OpenAI's order.

    Args:
        service: The server.
        stream: The answer's text.
        first: Its first piece, which was awaited before the status was sent.
        answer: The response.
        deadline: When it must be complete, on the loop's clock.
    """
    event = _Events()
    where = {"item_id": answer.message_id, "output_index": 0, "content_index": 0}
    sent: list[str] = []
    yield event("response.created", response=answer.begun())
    yield event("response.in_progress", response=answer.begun())
    yield event("response.output_item.added", output_index=0, item=answer.message([], "in_progress"))
    yield event("response.content_part.added", **where, part=text_part(""))
    try:
        async with contextlib.aclosing(pieces_until(service, [stream], [first], deadline)) as pieces:
            async for _, piece in pieces:
                if isinstance(piece, str):
                    sent.append(piece)
                    yield event("response.output_text.delta", **where, delta=piece, logprobs=[])
                    continue
                done = answer.finished(piece)
                (message,) = done["output"]
                (content,) = message["content"]
                yield event("response.output_text.done", **where, text=content["text"], logprobs=[])
                yield event("response.content_part.done", **where, part=content)
                yield event("response.output_item.done", output_index=0, item=message)
                yield event(f"response.{done['status']}", response=done)
    except ClientDisconnect:
        return
    except Exception as error:  # noqa: BLE001  the status is already sent, so the stream carries the error
        yield event("response.failed", response=answer.failed(from_exception(error), "".join(sent)))
