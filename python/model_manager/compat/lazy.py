"""Decorators for a host's own models and results: lazily loaded properties and memoized functions."""

from __future__ import annotations

import functools
import itertools
import threading
import weakref

from .._arguments import an_int, check_plain
from .._core import Manager
from .chatbot import model_manager
from .kinds import KindProperty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Function = TypeVar("Function", bound=Callable[..., Any])

_instances = itertools.count(1)
_properties = itertools.count(1)
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
        # A number of its own: a property that overrides this one has another slot, also where both classes have the
        # same name.
        self._attribute = f"_lazy_slot_{kind}_{next(_properties)}"
        self._owner: type | None = None
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return self._manager(instance).get(self._own_slot(instance) or self._register(instance))

    def _own_slot(self, instance: Any) -> str | None:
        slot: _Slot | None = getattr(instance, "__dict__", {}).get(self._attribute)
        return slot.name if slot is not None and slot.owner() is instance else None

    @staticmethod
    def _manager(instance: Any) -> Manager:
        return instance if isinstance(instance, Manager) else model_manager

    def _register(self, instance: Any) -> str:
        with _registration:
            slot = self._own_slot(instance)
            if slot is not None:
                return slot
            _check_attributes(instance)
            # The manager holds the loader; a strong reference here would keep the instance alive.
            loader = functools.partial(_load, self.method, weakref.ref(instance))
            manager = self._manager(instance)
            # `Manager.register` and not the override: the loader is bound to this instance and must not be pickled.
            if manager is instance:
                slot = self._slot_of_manager(type(instance))
                Manager.register(manager, slot, loader=loader, replace=True)
            else:
                # Instances of other classes share the process-wide manager, so each gets its own slot.
                slot = f"{type(instance).__qualname__}.{self.kind}#{next(_instances)}"
                Manager.register(manager, slot, loader=loader)
                weakref.finalize(instance, Manager.unregister, manager, slot).atexit = False
            instance.__dict__[self._attribute] = _Slot(instance, slot)
            return slot

    def _slot_of_manager(self, kind: type) -> str:
        """The property's own kind; for one that is overridden, and reached by `super()`, another name."""
        found = next((vars(base)[self._name] for base in kind.__mro__ if self._name in vars(base)), None)
        if self._owner is None or found is self:
            return self.kind
        return f"{self._owner.__qualname__}.{self.kind}"


def _check_attributes(instance: Any) -> None:
    """Refuse an object whose class has `__slots__` and leaves no place for the property's slot."""
    missing = [] if hasattr(instance, "__dict__") else ["__dict__"]
    try:
        weakref.ref(instance)
    except TypeError:
        missing.append("__weakref__")
    if missing:
        raise TypeError(
            f"{type(instance).__name__} has __slots__ without {' and '.join(missing)}, which lazy_load_model needs;"
            " add them, or leave __slots__ out"
        )


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

    Raises:
        TypeError: A coroutine or generator function, whose result could be used once only.
    """

    def decorate(method: Callable[[Any], Any]) -> Any:
        check_plain(method, "the model")
        return LazyModel(str(getattr(kind, "value", kind)), method)

    return decorate


def memory_efficient_cache(maxsize: int = 50) -> Callable[[Function], Function]:
    """Cache the results of the `maxsize` latest distinct calls: thread-safe, exact LRU; exceptions are not cached.

    The decorated function has `cache_info()` and `cache_clear()`.

    Raises:
        TypeError: A coroutine or generator function, whose result could be used once only.
    """
    if callable(maxsize):  # the decorator without parentheses
        return memory_efficient_cache()(maxsize)
    if maxsize is not None:
        maxsize = an_int("maxsize", maxsize)

    def decorate(function: Callable[..., Any]) -> Any:
        check_plain(function, "a value")
        return functools.lru_cache(maxsize=maxsize)(function)

    return decorate
