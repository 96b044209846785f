"""Streamed answers: server-sent events with a type and a number."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ..generation.events import line_json, pieces_until
from .answer import end_status
from .output import Message, Thoughts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from ...._async import AsyncTextStream
    from ...._types import Completion
    from ....thinking import ThinkingParser
    from ...errors import ApiError
    from ...service import Service
    from .answer import Answer
    from .output import Item


class Events:
    """Writes the events of one response, which number them."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.number = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        """One event."""
        event = {"type": kind, "sequence_number": self.number, **fields}
        self.number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), line_json(event))

    def failed(self, error: ApiError) -> bytes:
        """The last event of a response that failed."""
        return self.event("response.failed", response=self.answer.failed(error))

    def text(self, kind: type[Item], text: str) -> Iterator[bytes]:
        """The events of a piece of text, which may begin an item."""
        if not self.answer.output.writes(kind):
            yield from self.end("completed")
            yield from self.begin(kind)
        item = self.answer.output.items[-1]
        item.pieces.append(text)
        yield self.event(f"{item.event}.delta", **_part(item), delta=text, **item.noted)

    def end(self, status: str) -> Iterator[bytes]:
        """The events of the last item's end."""
        for item in self.answer.output.items[-1:]:
            ended = item.ended(status)
            (part,) = ended["content"]
            yield self.event(f"{item.event}.done", **_part(item), text=part["text"], **item.noted)
            yield self.event("response.content_part.done", **_part(item), part=part)
            yield self.event("response.output_item.done", output_index=item.index, item=ended)

    def begin(self, kind: type[Item]) -> Iterator[bytes]:
        """The events of an item's beginning."""
        item = self.answer.output.add(kind)
        yield self.event("response.output_item.added", output_index=item.index, item=item.begun())
        yield self.event("response.content_part.added", **_part(item), part=item.part(""))


def _part(item: Item) -> dict[str, Any]:
    return {"item_id": item.id, "output_index": item.index, "content_index": 0}


def divided(piece: str | Completion, parser: ThinkingParser | None) -> Iterator[tuple[type[Item], str]]:
    """The texts that a piece, or the end, adds to the items."""
    if parser is None:
        if isinstance(piece, str):
            yield Message, piece
        return
    thoughts, answer = parser.feed(piece) if isinstance(piece, str) else parser.end()
    if thoughts:
        yield Thoughts, thoughts
    if answer:
        yield Message, answer


async def response_events(
    service: Service,
    stream: AsyncTextStream,
    first: str | None,
    write: Events,
    deadline: float,
    parser: ThinkingParser | None,
) -> AsyncGenerator[bytes, None]:
    """The events of one response in OpenAI's order. Raises what `pieces_until` raises.

    Args:
        service: The server.
        stream: The answer's text.
        first: Its first piece, which was awaited before the status was sent.
        write: Writes the events.
        deadline: When it must be complete, on the loop's clock.
        parser: Separates the thoughts, if the model thinks.
    """
    answer = write.answer
    yield write.event("response.created", response=answer.begun())
    yield write.event("response.in_progress", response=answer.begun())
    async with contextlib.aclosing(pieces_until(service, [stream], [first], deadline)) as pieces:
        async for _, piece in pieces:
            for kind, text in divided(piece, parser):
                for event in write.text(kind, text):
                    yield event
            if isinstance(piece, str):
                continue
            if not answer.output.items:
                for event in write.begin(Message):
                    yield event
            for event in write.end(end_status(piece)):
                yield event
            done = answer.finished(piece)
            yield write.event(f"response.{done['status']}", response=done)
