"""Forks while other threads use a `SemanticCache`: the child must inherit no lock that a thread of the parent holds."""

from __future__ import annotations

import os
import threading
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Forked(Protocol):
        """What a fork copies."""

        def _short_locks(self) -> tuple[threading.Lock, ...]:
            """The locks under which nothing is computed, in the order in which they are taken."""

        def _after_fork_child(self) -> None:
            """Make new locks, because their holders are threads of the parent."""


_WAIT = 2.0
"""Seconds that a fork waits for one lock, as it waits for models that compute."""

_known: weakref.WeakSet[Forked] = weakref.WeakSet()
_known_lock = threading.Lock()
_taken: list[threading.Lock] = []


def follow(one: Forked) -> None:
    """Carry `one` over forks from now on."""
    with _known_lock:
        _known.add(one)


def _before() -> None:
    _known_lock.acquire()
    _taken.extend(lock for one in _known for lock in one._short_locks() if lock.acquire(timeout=_WAIT))


def _after_parent() -> None:
    while _taken:
        _taken.pop().release()
    _known_lock.release()


def _after_child() -> None:
    _taken.clear()
    for one in _known:
        one._after_fork_child()
    _known_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_parent, after_in_child=_after_child)
