"""Calls of the manager for asyncio. They block no other task, not even while a model is loaded."""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping

from ._arguments import a_manager
from ._bridge import check_thread, on_loop, seconds_of, start, when_late
from .errors import WaitTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, TypeAlias, TypeVar

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from ._core import GenerationTicket, Manager, Ticket
    from ._types import Completion, Inputs

    Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, Any]]
    OnEvent: TypeAlias = Callable[[str | None, Completion | None, BaseException | None], object]
    Result = TypeVar("Result")


# --- Embedding -------------------------------------------------------------------------------------------------------


async def aembed(manager: Manager, texts: Inputs, model: str | None = None, **options: Any) -> NDArray[np.float32]:
    """`Manager.embed` for asyncio: same arguments (except `progress`), same result, same errors.

    Cancelling the task withdraws the texts that have not been computed yet.
    """
    a_manager(manager)
    future, ticket = start(lambda on_done: manager.submit(texts, on_done, model, **options), options.get("timeout"))
    vectors: NDArray[np.float32] = await _result(future, ticket)
    return vectors


async def aresponse(manager: Manager, inputs: Inputs, model: str | None = None, **options: Any) -> tuple[bytes, int]:
    """`Manager.submit_response` for asyncio: the body and its prompt tokens. Same arguments (except `on_done`), same
    errors.

    Cancelling the task withdraws the inputs that have not been computed yet.
    """
    return await _result(*start_response(manager, inputs, model, **options))


def start_response(
    manager: Manager, inputs: Inputs, model: str | None = None, **options: Any
) -> tuple[asyncio.Future[tuple[bytes, int]], Ticket]:
    """`aresponse` without waiting: the future of its result, which is already done when everything was cached, and the
    ticket that cancels it.
    """
    a_manager(manager)

    def submit(on_done: Callable[..., None]) -> Ticket:
        def on_body(body: bytes | None, tokens: int, error: BaseException | None) -> None:
            on_done((body, tokens), error)

        return manager.submit_response(inputs, on_body, model, **options)

    return start(submit, options.get("timeout"))


async def ainfer(
    manager: Manager, kind: Any, first: Any, second: Any = None, model: str | None = None, **options: Any
) -> tuple[Any, int]:
    """`Manager._infer` for asyncio: the results and the tokens that were read. Cancelling the task withdraws what has
    not been computed yet.
    """

    def submit(on_done: Callable[..., None]) -> Ticket:
        def on_results(results: Any, tokens: int, error: BaseException | None) -> None:
            on_done((results, tokens), error)

        return manager._submit_inference(kind, on_results, first, second, model, **options)

    found: tuple[Any, int] = await _result(*start(submit, options.get("timeout")))
    return found


async def _result(future: asyncio.Future[Result], ticket: Ticket) -> Result:
    try:
        return await future
    finally:
        if not ticket.done:
            ticket.cancel()


# --- Generation ------------------------------------------------------------------------------------------------------

_LONG = 1 << 14
"""Characters from which on a prompt is submitted by a thread of its own: its template and tokens take seconds."""
_MAX_LONG = 2
"""Long prompts that are tokenized at the same time; more would take the cores from the models."""
_long_prompts = threading.Semaphore(_MAX_LONG)


def _after_fork_child() -> None:
    """The threads that held the semaphore exist in the parent only."""
    global _long_prompts
    _long_prompts = threading.Semaphore(_MAX_LONG)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_child)


async def acomplete(manager: Manager, prompt: Prompt, model: str | None = None, **params: Any) -> Completion:
    """`Manager.complete` for asyncio. Cancelling the task ends the answer within one token."""
    a_manager(manager)

    def submit(on_done: Callable[..., None]) -> _Generation:
        def on_event(piece: str | None, completion: Completion | None, error: BaseException | None) -> None:
            if piece is None:
                on_done(completion, error)

        return _Generation(manager, prompt, model, params, on_event)

    future, generation = start(submit, params.get("timeout"), _answer_of(model))
    try:
        completion: Completion = await future
        return completion
    except BaseException:
        generation.abandon()
        raise


def _answer_of(model: str | None) -> str:
    return f'the answer of model "{"text_generator" if model is None else model}"'


class AsyncTextStream:
    """The pieces of one answer: an asynchronous iterator of str, created inside a running event loop.

    The generation starts at once, not with the first piece. Closing or dropping the stream, or cancelling the task that
    waits for a piece, ends the answer within one token.
    """

    __slots__ = ("_pieces",)

    def __init__(self, manager: Manager, prompt: Prompt, model: str | None, params: dict[str, Any]) -> None:
        self._pieces = _Pieces(a_manager(manager), prompt, model, params)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        return await self._pieces.next()

    def cancel(self) -> None:
        """End the answer within one token; the iterator returns what was written until then and stops."""
        self._pieces.generation.cancel()

    async def aclose(self) -> None:
        """End the answer within one token; the iterator stops at once. The end of an ``async with`` does the same."""
        self._pieces.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.aclose()

    @property
    def completion(self) -> Completion | None:
        """The whole answer and its figures once the iterator has ended; None before, and after an error."""
        return self._pieces.completion

    def __del__(self) -> None:
        # The attribute is missing when the constructor raised.
        pieces = getattr(self, "_pieces", None)
        if pieces is not None:
            pieces.close()


class _Pieces:
    """The buffer behind one `AsyncTextStream`. The core's callback keeps it alive until the generation ends, and with
    it a task that waits for a piece, to which the event loop has only a weak reference. So the caller holds the stream
    instead, and dropping the stream cancels the generation.
    """

    def __init__(self, manager: Manager, prompt: Prompt, model: str | None, params: dict[str, Any]) -> None:
        import asyncio

        self.loop = asyncio.get_running_loop()
        self.pieces: deque[str] = deque()
        self.ended = False
        self.stop_timer: Callable[[], None] | None = None
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self.waiter: asyncio.Future[None] | None = None
        began = self.loop.time()
        self.generation = _Generation(manager, prompt, model, params, on_loop(self.take))
        if not self.ended:
            check_thread(self.generation)
        # An answer that has failed already needs none.
        timeout = None if self.ended else params.get("timeout")
        timer = when_late(self.loop, began, timeout, _answer_of(model), self.give_up)
        # The stream may be dropped by another thread, to which the timer does not belong.
        self.stop_timer = None if timer is None else on_loop(timer.cancel)

    async def next(self) -> str:
        """The next piece; `StopAsyncIteration` after the last one."""
        while not self.pieces:
            if self.ended:
                self.raise_error()
                raise StopAsyncIteration
            if self.waiter is not None:
                raise RuntimeError("another task already waits for a piece of this answer")
            self.waiter = self.loop.create_future()
            try:
                await self.waiter
            except BaseException:
                self.close()
                raise
            finally:
                self.waiter = None
        return self.pieces.popleft()

    def take(self, piece: str | None, completion: Completion | None, error: BaseException | None) -> None:
        """Handle one event of the core, on the loop."""
        if self.ended:
            return
        if piece is not None:
            self.pieces.append(piece)
        else:
            self.completion, self.error = completion, error
            self.end()
        self.wake()

    def give_up(self, error: WaitTimeoutError) -> None:
        """End with `error` after the pieces that are there."""
        if not self.ended:
            self.generation.abandon()
            self.take(None, None, error)

    def end(self) -> None:
        self.ended = True
        if self.stop_timer is not None:
            self.stop_timer()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def close(self) -> None:
        """Drop what is left of the answer, also of one that is complete."""
        self.pieces.clear()
        self.error = None
        if not self.ended:
            self.generation.abandon()
            self.end()
            self.wake()

    def raise_error(self) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error


class _Generation:
    """One submitted generation. A long prompt is submitted by a thread of its own, so that the event loop goes on."""

    __slots__ = ("_abandoned", "_began", "_cancelled", "_ticket")

    def __init__(
        self, manager: Manager, prompt: Prompt, model: str | None, params: dict[str, Any], on_event: OnEvent
    ) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self._ticket: GenerationTicket | None = None
        self._cancelled = False
        self._abandoned = False

        def tell(piece: str | None, completion: Completion | None, error: BaseException | None) -> None:
            if loop.is_closed():
                self.abandon()  # nothing can read the rest
            else:
                on_event(piece, completion, error)

        # A thread of the core runs this loop in a callback, and nothing else.
        in_callback = isinstance(threading.current_thread(), threading._DummyThread)
        if not in_callback and _is_long(prompt, params.get("chat_template_kwargs")):
            threading.Thread(
                target=contextvars.copy_context().run,
                args=(self._submit_long, manager, prompt, model, params, tell),
                name="mm-prompt",
                daemon=True,
            ).start()
        else:
            self._ticket = manager.submit_generation(prompt, tell, model, **params)

    def _submit_long(
        self, manager: Manager, prompt: Prompt, model: str | None, params: dict[str, Any], on_event: OnEvent
    ) -> None:
        try:
            with _turn(params.get("timeout"), self._began) as left:
                if self._abandoned:
                    return
                if left is not None:
                    params = {**params, "timeout": left}
                self._ticket = manager.submit_generation(prompt, on_event, model, **params)
        except BaseException as error:  # noqa: BLE001  it is raised where the answer is awaited
            on_event(None, None, error)
        else:
            if self._cancelled:
                self._ticket.cancel()

    @property
    def _waits_for_its_thread(self) -> bool:
        return self._ticket is not None and self._ticket._waits_for_its_thread

    def cancel(self) -> None:
        """End the answer within one token, or before it starts. Its last event still comes."""
        # In this order: either the submitting thread sees the flag, or this thread sees the ticket.
        self._cancelled = True
        if self._ticket is not None:
            self._ticket.cancel()

    def abandon(self) -> None:
        """`cancel`, and do not submit a prompt that still waits for its turn: the last event is not needed."""
        self._abandoned = True
        self.cancel()


@contextlib.contextmanager
def _turn(timeout: Any, began: float) -> Iterator[float | None]:
    """The turn of a long prompt. Its value: the seconds that are left of `timeout` then; None without a limit, and for
    a value that the core refuses.

    Raises `WaitTimeoutError` when they pass before.
    """
    seconds = seconds_of(timeout)
    if not seconds:
        with _long_prompts:
            yield None
        return
    turns = _long_prompts
    left = seconds - (time.monotonic() - began)
    if left <= 0 or not turns.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
        raise WaitTimeoutError(
            f"other long prompts were read for {seconds:g} s; raise the timeout or send fewer at once"
        )
    try:
        yield max(seconds - (time.monotonic() - began), sys.float_info.min)
    finally:
        turns.release()


def _is_long(*parts: Any) -> bool:
    """Whether submitting a prompt of these parts, messages and variables of the template, may take more than a few
    milliseconds.
    """
    left = _LONG
    values = list(parts)
    while values and left >= 0:
        value = values.pop()
        if isinstance(value, str):
            left -= len(value)
        elif isinstance(value, Mapping):
            # Without a cost of its own, a mapping that holds itself would be looked at without end.
            left -= len(value)
            values.extend(value.values())
        elif isinstance(value, list | tuple):
            left -= len(value)
            if value and not isinstance(value[0], int):  # token ids need no tokenizer
                values.extend(value)
    return left < 0
