"""The one watcher for clients that close the connection while their request is computed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import TypeVar

    from starlette.types import Receive

    from .errors import ApiError
    from .service import Service

    T = TypeVar("T")


@contextlib.contextmanager
def watch_disconnect(
    receive: Receive, then: Callable[[], Awaitable[object]] | None = None
) -> Iterator[asyncio.Task[None]]:
    """While the block runs, a task that ends when the client closes the connection, after awaiting `then`."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if then is not None:
            await then()

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        yield watcher
    finally:
        watcher.cancel()


def deadline_of(service: Service) -> float:
    """When a request that begins now must be answered, on the loop's clock."""
    return asyncio.get_running_loop().time() + service.config.request_timeout


def seconds_until(deadline: float) -> float:
    """What the core may take; a little more than nothing when the deadline has passed."""
    return max(0.001, deadline - asyncio.get_running_loop().time())


async def unless_disconnected(receive: Receive, work: Awaitable[T], deadline: float, late: ApiError) -> T:
    """The result of `work`. When the client closes the connection, `work` is cancelled and `ClientDisconnect` is
    raised; at `deadline`, on the loop's clock, `work` is cancelled and `late` is raised.
    """
    task = asyncio.ensure_future(work)
    with watch_disconnect(receive) as watcher:
        try:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait((task, watcher), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ClientDisconnect if watcher.done() else late
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
