"""Text generation beyond the core's own calls: answers as plain text, and asyncio.

Events of the core's threads reach an event loop by `call_soon_threadsafe`: no thread per request, no polling, and a
model that must be loaded first blocks nobody.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, TypeAlias

    from typing_extensions import Self

    from ._core import GenerationTicket, Manager
    from ._types import Completion

    Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, str]]


_LONG = 1 << 14
"""Characters of a prompt that is submitted by a thread of its own."""
_AT_ONCE = 2
"""Such prompts whose tokens are made at the same time: more would take the cores from the models."""
_turns = threading.Semaphore(_AT_ONCE)


def _after_fork_child() -> None:
    """The threads that had their turn are the parent's."""
    global _turns
    _turns = threading.Semaphore(_AT_ONCE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_child)


def conversation(messages: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Messages as the core takes them; a text is none, though iterable."""
    if isinstance(messages, str | bytes):
        raise TypeError(
            'messages must be a list of {"role": ..., "content": ...}, not text; generate() continues a text'
        )
    return list(messages)


async def acomplete(manager: Manager, prompt: Prompt, model: str | None = None, **params: Any) -> Completion:
    """`Manager.complete` for asyncio. Cancelling the task ends the answer within one token."""
    answer = _Answer(manager, prompt, model, params, pieces=False)
    try:
        while not answer.ended:
            await answer.news()
        return answer.result()
    finally:
        answer.stop()


def _is_long(prompt: Prompt) -> bool:
    """Whether submitting `prompt` may take more than some milliseconds."""
    if isinstance(prompt, str):
        return len(prompt) > _LONG
    length = 0
    for message in prompt:
        # What is wrong with a message is the core's to say.
        content = message.get("content") if isinstance(message, dict) else None
        length += 1 + (len(content) if isinstance(content, str) else 0)
        if length > _LONG:
            return True
    return False


class AsyncTextStream:
    """The pieces of one answer: an asynchronous iterator of str, made inside a running event loop.

    The generation starts at once, not with the first piece asked for. Closing the stream, letting it go, or cancelling
    the task that waits for a piece ends the answer within one token.
    """

    __slots__ = ("_answer",)

    def __init__(self, manager: Manager, prompt: Prompt, model: str | None, params: dict[str, Any]) -> None:
        self._answer = _Answer(manager, prompt, model, params, pieces=True)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        answer = self._answer
        while not answer.pieces:
            if answer.ended:
                answer.raise_error()
                raise StopAsyncIteration
            if answer.waiter is not None:
                raise RuntimeError("another task waits for a piece of this answer already")
            try:
                await answer.news()
            except BaseException:
                answer.stop()
                raise
        return answer.pieces.popleft()

    def cancel(self) -> None:
        """End the answer within one token; the iterator gives what was written until then and stops."""
        self._answer.cancel()

    async def aclose(self) -> None:
        """End the answer within one token; the iterator stops at once."""
        self._answer.stop()

    @property
    def completion(self) -> Completion | None:
        """The whole answer and its figures once the iterator has ended; None before, and after an error."""
        return self._answer.completion

    def __del__(self) -> None:
        # Without it when the constructor raised.
        answer = getattr(self, "_answer", None)
        if answer is not None:
            answer.stop()


class _Answer:
    """Events of one generation, brought from the core's threads to the loop. Its callback keeps it alive until the end,
    so it must not be what a caller holds.
    """

    def __init__(
        self,
        manager: Manager,
        prompt: Prompt,
        model: str | None,
        params: dict[str, Any],
        pieces: bool,
    ) -> None:
        import asyncio

        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.wants_pieces = pieces
        self.pieces: deque[str] = deque()
        self.ended = False
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.ticket: GenerationTicket | None = None
        self.cancelled = False
        if _is_long(prompt):
            # Templates and tokens of a long prompt take seconds, which the loop cannot spare.
            submit = threading.Thread(
                target=self.submit_apart,
                args=(manager, prompt, model, params),
                name="model-manager-prompt",
                daemon=True,
            )
            submit.start()
        else:
            self.ticket = manager.submit_generation(prompt, self.on_event, model, **params)

    def submit_apart(self, manager: Manager, prompt: Prompt, model: str | None, params: dict[str, Any]) -> None:
        """Submit on another thread; what is wrong with the request is an event then."""
        try:
            with _turns:
                if self.cancelled and self.ended:
                    return
                self.ticket = manager.submit_generation(prompt, self.on_event, model, **params)
        except BaseException as error:  # noqa: BLE001  it is raised where the answer is awaited
            self.on_event(None, None, error)
        else:
            if self.cancelled:
                self.ticket.cancel()

    def cancel(self) -> None:
        """End the answer within one token, or before it starts."""
        # In this order: of a thread that submits meanwhile, either it sees the wish or this sees the ticket.
        self.cancelled = True
        if self.ticket is not None:
            self.ticket.cancel()

    def on_event(self, piece: str | None, completion: Completion | None, error: BaseException | None) -> None:
        """Called by the core, on any thread."""
        if piece is not None and not self.wants_pieces:
            return
        if threading.get_ident() == self.thread:
            self.take(piece, completion, error)
        elif not self.loop.is_closed():
            # A loop closed between the check and the call: nobody waits any more.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.take, piece, completion, error)

    def take(self, piece: str | None, completion: Completion | None, error: BaseException | None) -> None:
        if self.ended:
            return
        if piece is not None:
            self.pieces.append(piece)
        else:
            self.completion, self.error = completion, error
            self.ended = True
        self.wake()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def news(self) -> None:
        """Wait for the next event."""
        self.waiter = self.loop.create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None

    def stop(self) -> None:
        """Nobody wants the rest."""
        if not self.ended:
            self.cancel()
            self.ended = True
            self.pieces.clear()
            self.wake()

    def raise_error(self) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def result(self) -> Completion:
        self.raise_error()
        assert self.completion is not None  # an answer ends with a completion or an error
        return self.completion
