"""Embedding from asyncio: a future that the core's reply thread resolves. No thread per request, no polling."""

from __future__ import annotations

import asyncio
import contextlib
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from ._core import Manager


async def aembed(
    manager: Manager, texts: str | Iterable[str], model: str | None = None, **options: Any
) -> NDArray[np.float32]:
    """`Manager.embed` for asyncio: same arguments (but `progress`), same result, same errors.

    Cancelling the task withdraws the texts that have not been computed yet.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[NDArray[np.float32]] = loop.create_future()
    loop_thread = threading.get_ident()

    def settle(result: NDArray[np.float32] | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def on_done(result: NDArray[np.float32] | None, error: BaseException | None) -> None:
        if threading.get_ident() == loop_thread:
            settle(result, error)
        elif not loop.is_closed():
            # A loop closed between the check and the call: nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, result, error)

    ticket = manager.submit(texts, on_done, model, **options)
    try:
        return await future
    finally:
        if not ticket.done:
            ticket.cancel()
