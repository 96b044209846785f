"""Awaiting within a time, without a cost for what is ready at once."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, TypeVar

    from .errors import ApiError

    T = TypeVar("T")


async def in_time(work: Coroutine[Any, Any, T], seconds: float, late: Callable[[], ApiError]) -> T:
    """The result of `work`. After `seconds` it is cancelled, and what `late` returns is raised.

    It uses a plain timer: asyncio's `timeout` needs Python 3.11, and `wait_for` and anyio's scopes would slow down
    every cached answer.
    """
    task = asyncio.current_task()
    assert task is not None
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        return await work
    except asyncio.CancelledError:
        if not expired:
            raise
        if sys.version_info >= (3, 11) and task.uncancel():
            raise  # the task was cancelled from outside too
    finally:
        timer.cancel()
    raise late()
