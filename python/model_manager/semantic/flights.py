"""One computation at a time for each key: who asks meanwhile gets its result."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
from concurrent.futures import Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from typing import Any


class AbandonedError(Exception):
    """Whoever computed was interrupted or cancelled: another one may begin."""


class Flight:
    """A computation under way."""

    def __init__(self) -> None:
        self.result: list[Any] = []
        self.outcome: Future[Any] = Future()
        self.outcome.set_running_or_notify_cancel()  # who stops waiting does not cancel it
        self.needs: list[Flight] = []
        """Those that its computation waits for, one for each thread or task that does."""


_own: contextvars.ContextVar[tuple[Flight, ...]] = contextvars.ContextVar("flights", default=())
"""Those that the present code computes, be it in another task, or on a thread of `asyncio.to_thread`."""


class Flights:
    """The computations under way, by key. Safe for threads, and for tasks of several event loops."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held for moments."""
        self._flights: dict[Hashable, Flight] = {}

    @contextlib.contextmanager
    def computing(self, key: Hashable) -> Iterator[list[Any] | None]:
        """The caller computes `key` in the block, and appends the result to the list. None where it is being computed
        already. Whoever waits gets the result, or the error that the block raises; `AbandonedError` where it is
        interrupted or cancelled.
        """
        flight, token = Flight(), None
        try:
            with self.lock:
                leads = self._flights.setdefault(key, flight) is flight
            if leads:
                token = _own.set((*_own.get(), flight))
            yield flight.result if leads else None
        except Exception as error:
            self._end(key, flight)
            flight.outcome.set_exception(error)
            raise
        except BaseException:
            self._end(key, flight)
            flight.outcome.set_exception(AbandonedError())
            raise
        else:
            self._end(key, flight)
            flight.outcome.set_result(flight.result[0] if flight.result else None)
        finally:
            if token is not None:
                _own.reset(token)

    def _end(self, key: Hashable, flight: Flight) -> None:
        with self.lock:
            if self._flights.get(key) is flight:
                del self._flights[key]

    @contextlib.contextmanager
    def waiting(self, key: Hashable) -> Iterator[Future[Any] | None]:
        """In the block, the caller waits for the future. None where `key` is not computed now, or not before the caller
        ends: the caller computes it itself, or something that it waits for.
        """
        callers = _own.get()
        with self.lock:
            flight = self._flights.get(key)
            if flight is not None and _needs(flight, callers):
                flight = None
            if flight is not None:
                for caller in callers:
                    caller.needs.append(flight)
        try:
            yield None if flight is None else flight.outcome
        finally:
            if flight is not None:
                with self.lock:
                    for caller in callers:
                        caller.needs.remove(flight)

    def is_under_way(self, key: Hashable) -> bool:
        """Whether `key` is being computed."""
        with self.lock:
            return key in self._flights


def _needs(flight: Flight, others: tuple[Flight, ...]) -> bool:
    """Whether `flight` is one of `others`, or waits for one of them, be it through further ones."""
    seen: list[Flight] = []
    left = [flight]
    while left:
        one = left.pop()
        if one in others:
            return True
        if one not in seen:
            seen.append(one)
            left.extend(one.needs)
    return False


def in_event_loop() -> bool:
    """Whether this thread runs an event loop, whose tasks go on only after the present call."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
