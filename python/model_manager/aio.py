"""Embedding from asyncio: a future that the core's reply thread resolves. No thread per request, no polling."""

from __future__ import annotations

import asyncio
import contextlib
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    import numpy as np
    from numpy.typing import NDArray

    from ._core import Manager, Ticket
    from ._types import Inputs

    Result = TypeVar("Result")


async def aembed(manager: Manager, texts: Inputs, model: str | None = None, **options: Any) -> NDArray[np.float32]:
    """`Manager.embed` for asyncio: same arguments (but `progress`), same result, same errors.

    Cancelling the task withdraws the texts that have not been computed yet.
    """

    def submit(settle: Callable[[NDArray[np.float32] | None, BaseException | None], None]) -> Ticket:
        return manager.submit(texts, settle, model, **options)

    return await _settled(*_started(submit))


async def aresponse(manager: Manager, inputs: Inputs, model: str | None = None, **options: Any) -> tuple[bytes, int]:
    """`Manager.submit_response` for asyncio: the body and its prompt tokens. Same arguments (but `on_done`) and errors.

    Cancelling the task withdraws the inputs that have not been computed yet.
    """
    return await _settled(*start_response(manager, inputs, model, **options))


def start_response(
    manager: Manager, inputs: Inputs, model: str | None = None, **options: Any
) -> tuple[asyncio.Future[tuple[bytes, int]], Ticket]:
    """`aresponse` without waiting: the future of its result, done already when everything was cached, and the ticket,
    to be cancelled when nobody waits for the future any more.
    """

    def submit(settle: Callable[[tuple[bytes, int] | None, BaseException | None], None]) -> Ticket:
        def on_done(body: bytes | None, tokens: int, error: BaseException | None) -> None:
            settle(None if body is None else (body, tokens), error)

        return manager.submit_response(inputs, on_done, model, **options)

    return _started(submit)


def _started(
    submit: Callable[[Callable[[Result | None, BaseException | None], None]], Ticket],
) -> tuple[asyncio.Future[Result], Ticket]:
    """The future of what `submit` hands to the callback that it is given, from whichever thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()
    loop_thread = threading.get_ident()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def on_done(result: Result | None, error: BaseException | None) -> None:
        if threading.get_ident() == loop_thread:
            settle(result, error)
        elif not loop.is_closed():
            # A loop closed between the check and the call: nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, result, error)

    return future, submit(on_done)


async def _settled(future: asyncio.Future[Result], ticket: Ticket) -> Result:
    try:
        return await future
    finally:
        if not ticket.done:
            ticket.cancel()
