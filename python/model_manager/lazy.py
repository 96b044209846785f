"""Decorators for code that keeps models or results of its own: lazily loaded properties and memoised functions."""

from __future__ import annotations

import functools
import itertools
import threading
import weakref

from ._core import Manager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Function = TypeVar("Function", bound=Callable[..., Any])

_instances = itertools.count(1)
_registration = threading.Lock()


class LazyModel:
    """What `lazy_load_model` makes of a method: a property whose value lives in a slot of a manager."""

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
        slot = instance.__dict__.get(self._attribute) or self._register(instance)
        return self._manager(instance).get(slot)

    @staticmethod
    def _manager(instance: Any) -> Manager:
        from .chatbot import model_manager

        return instance if isinstance(instance, Manager) else model_manager

    def _register(self, instance: Any) -> str:
        with _registration:
            slot: str | None = instance.__dict__.get(self._attribute)
            if slot is not None:
                return slot
            # The manager keeps the loader, so the loader must not keep the instance.
            loader = functools.partial(_load, self.method, weakref.ref(instance))
            manager = self._manager(instance)
            # `Manager.register`, not an override: a loader bound to this instance must not be pickled with it.
            if manager is instance:
                slot = self.kind
                Manager.register(manager, slot, loader=loader, replace=True)
            else:
                # Instances of a foreign class share the process-wide manager: each has a slot of its own.
                slot = f"{type(instance).__qualname__}.{self.kind}#{next(_instances)}"
                Manager.register(manager, slot, loader=loader)
                weakref.finalize(instance, Manager.unregister, manager, slot).atexit = False
            instance.__dict__[self._attribute] = slot
            return slot


def _load(method: Callable[[Any], Any], reference: weakref.ref[Any]) -> Any:
    instance = reference()
    if instance is None:
        raise ReferenceError(f"the owner of {method.__qualname__} is gone")
    return method(instance)


def lazy_load_model(kind: Any) -> Callable[[Callable[[Any], Any]], Any]:
    """Turn a loader method into a property: loaded at first use, once under racing threads, tracked, unloaded when
    idle.

    `kind` names the slot (a str or `ModelType`). In a class derived from `ModelManager` the slot is that manager's;
    in any other class it is one of the process-wide `model_manager`, under a name of its own for every instance.
    """

    def decorate(method: Callable[[Any], Any]) -> Any:
        return LazyModel(str(getattr(kind, "value", kind)), method)

    return decorate


def memory_efficient_cache(maxsize: int = 50) -> Callable[[Function], Function]:
    """Remember the results of the `maxsize` latest different calls: thread-safe, exact LRU, exceptions not remembered.

    The decorated function has `cache_info()` and `cache_clear()`.
    """
    return functools.lru_cache(maxsize=maxsize)  # type: ignore[return-value]
