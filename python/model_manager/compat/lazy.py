"""Decorators for a host's own models and results: lazily loaded properties and memoized functions."""

from __future__ import annotations

import functools
import itertools
import threading
import weakref

from .._arguments import an_int
from .._core import Manager
from .chatbot import model_manager
from .kinds import KindProperty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Function = TypeVar("Function", bound=Callable[..., Any])

_instances = itertools.count(1)
_registration = threading.Lock()


class _Slot:
    """The slot of one property of one object, kept among the object's attributes. A copy of the object gets the same
    attributes, and must not take the slot for its own; a pickled one has none.
    """

    __slots__ = ("name", "owner")

    def __init__(self, owner: Any, name: str) -> None:
        self.owner = weakref.ref(owner)
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return (_no_slot, ())


def _no_slot() -> None:
    """What is left of a slot in another process, or in a deep copy."""


class LazyModel(KindProperty):
    """The property that `lazy_load_model` makes from a method. Its value lives in a slot of a manager."""

    def __init__(self, kind: str, method: Callable[[Any], Any]) -> None:
        self.kind = kind
        self.method = method
        self.__doc__ = method.__doc__
        self._attribute = f"_lazy_slot_{kind}"

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = f"_lazy_slot_{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return self._manager(instance).get(self._own_slot(instance) or self._register(instance))

    def _own_slot(self, instance: Any) -> str | None:
        slot: _Slot | None = instance.__dict__.get(self._attribute)
        return slot.name if slot is not None and slot.owner() is instance else None

    @staticmethod
    def _manager(instance: Any) -> Manager:
        return instance if isinstance(instance, Manager) else model_manager

    def _register(self, instance: Any) -> str:
        with _registration:
            slot = self._own_slot(instance)
            if slot is not None:
                return slot
            # The manager holds the loader; a strong reference here would keep the instance alive.
            loader = functools.partial(_load, self.method, weakref.ref(instance))
            manager = self._manager(instance)
            # `Manager.register` and not the override: the loader is bound to this instance and must not be pickled.
            if manager is instance:
                slot = self.kind
                Manager.register(manager, slot, loader=loader, replace=True)
            else:
                # Instances of other classes share the process-wide manager, so each gets its own slot.
                slot = f"{type(instance).__qualname__}.{self.kind}#{next(_instances)}"
                Manager.register(manager, slot, loader=loader)
                weakref.finalize(instance, Manager.unregister, manager, slot).atexit = False
            instance.__dict__[self._attribute] = _Slot(instance, slot)
            return slot


def _load(method: Callable[[Any], Any], reference: weakref.ref[Any]) -> Any:
    instance = reference()
    if instance is None:
        raise ReferenceError(f"the owner of {method.__qualname__} no longer exists")
    return method(instance)


def lazy_load_model(kind: Any) -> Callable[[Callable[[Any], Any]], Any]:
    """Turn a loader method into a property: loaded at first use, once under racing threads, tracked, unloaded when
    idle.

    `kind` names the slot (a str or `ModelType`). In a class derived from `ModelManager` the slot belongs to that
    manager: each property needs a kind of its own, and the kinds of the sentence models are refused when the class is
    made (`ArgumentError`). In any other class the slot belongs to the process-wide `model_manager`, with a unique name
    for every property of every instance.
    """

    def decorate(method: Callable[[Any], Any]) -> Any:
        return LazyModel(str(getattr(kind, "value", kind)), method)

    return decorate


def memory_efficient_cache(maxsize: int = 50) -> Callable[[Function], Function]:
    """Cache the results of the `maxsize` latest distinct calls: thread-safe, exact LRU; exceptions are not cached.

    The decorated function has `cache_info()` and `cache_clear()`.
    """
    if maxsize is not None and not callable(maxsize):
        maxsize = an_int("maxsize", maxsize)
    return functools.lru_cache(maxsize=maxsize)  # type: ignore[return-value]
