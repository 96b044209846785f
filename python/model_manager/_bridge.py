"""The bridge from the core's threads to an event loop, which reports results and events there.

Requests need no thread of their own and nothing polls. What a program awaits over it is in `_async`.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import threading

from .errors import InputError, WaitTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any, TypeVar

    Result = TypeVar("Result")
    Request = TypeVar("Request")


def on_loop(callback: Callable[..., object]) -> Callable[..., None]:
    """A function that runs `callback` on the running event loop and may be called from any thread.

    On the loop's own thread it runs at once. After the loop is closed it does nothing.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    loop_thread = threading.get_ident()

    def call(*args: object) -> None:
        if threading.get_ident() == loop_thread:
            callback(*args)
        elif not loop.is_closed():
            # The loop may be closed between the check and the call.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(callback, *args)

    return call


def start(
    submit: Callable[[Callable[..., None]], Request], timeout: Any = None, what: str = "the result"
) -> tuple[asyncio.Future[Any], Request]:
    """A future, and what `submit` returns.

    `submit` gets the callback `on_done(result, error)`, which resolves the future from any thread. Later calls of it
    are ignored, and so are calls after the future was cancelled.

    Args:
        submit: Begins the work.
        timeout: The seconds that the core has for it. `GRACE` later the request is cancelled and the future
            raises `WaitTimeoutError`.
        what: The subject of that error's message.

    Raises:
        InputError: This is a thread of the core, in a callback, and the request waits for that thread.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    began = loop.time()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: object, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def give_up(error: WaitTimeoutError) -> None:
        settle(None, error)
        # Of a large request of the server there is no ticket yet.
        if (cancel := getattr(request, "cancel", None)) is not None:
            cancel()

    request = submit(on_loop(settle))
    if not future.done():
        check_thread(request)
        timer = when_late(loop, began, timeout, what, give_up)
        if timer is not None:
            future.add_done_callback(lambda _: timer.cancel())
    return future, request


_CALLBACK_WAITS = (
    "a callback cannot wait for another asynchronous call of the same manager, which is answered after the callback has"
    " returned; use embed or generate, submit without waiting, or another thread"
)


def check_thread(request: Any) -> None:
    """Cancel a request that this thread of the core would answer, and raise `InputError`: a callback waits here."""
    if getattr(request, "_waits_for_its_thread", False):
        request.cancel()
        raise InputError(_CALLBACK_WAITS)


GRACE = 0.25
"""Seconds after its timeout in which a call is given up. The core ends it earlier, unless a callback of another call
holds the thread that would.
"""


def when_late(
    loop: asyncio.AbstractEventLoop, began: float, timeout: Any, what: str, give_up: Callable[[WaitTimeoutError], None]
) -> asyncio.TimerHandle | None:
    """Have `give_up` called with the core's error when a call that began at `began`, on the loop's clock, is late. None
    without a limit. The timer belongs to the loop's thread.
    """
    seconds = seconds_of(timeout)
    if seconds is None:
        return None

    def end() -> None:
        reason = f"{what} was not ready within {seconds:.3f} s; raise the timeout or warm the model up first"
        give_up(WaitTimeoutError(reason))

    # When the loop itself was held up, a result that is there already comes first.
    return loop.call_at(began + seconds + GRACE, loop.call_soon, end)


def seconds_of(timeout: Any) -> float | None:
    """The seconds of a `timeout`; None without a limit, and for a value that the core refuses."""
    if timeout is None or isinstance(timeout, bool | str | bytes):
        return None
    try:
        seconds = float(timeout)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < math.inf else None


def in_thread(function: Callable[..., Result], *args: Any) -> asyncio.Future[Result]:
    """The future of what `function` returns or raises on a thread of its own.

    For calls that may take minutes: they do not occupy the loop's executor, and the interpreter does not wait for them
    when it exits.
    """

    def submit(on_done: Callable[..., None]) -> None:
        def work() -> None:
            result, error = None, None
            try:
                result = function(*args)
            except BaseException as caught:  # noqa: BLE001  it is raised where the future is awaited
                error = caught
            on_done(result, error)

        # The thread's calls belong to the trace of this one.
        target = contextvars.copy_context().run
        threading.Thread(target=target, args=(work,), name=f"mm-{function.__name__}", daemon=True).start()

    future, _ = start(submit)
    # An error counts as retrieved even when the caller has stopped waiting.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
