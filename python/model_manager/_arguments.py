"""Arguments that Python code checks. As in the core, an error names the argument, what was given and what it takes."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Mapping

from .errors import ArgumentError, InputTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from typing import Any

    from .errors import ModelManagerError

_SHOWN = 80
"""Characters of a value in an error."""


def argument_error(param: str, message: str) -> ArgumentError:
    """The error for a value of the argument `param` that cannot be used."""
    error = ArgumentError(message)
    error.param = param
    return error


def type_error(param: str, takes: str, given: object, remedy: str = "") -> TypeError:
    """The error for a value of another type than the argument `param`, or an item of it (``texts[3]``), takes."""
    error = TypeError(f"{param} must be {takes}, not {type(given).__name__}{remedy}")
    error.param = param.partition("[")[0]  # type: ignore[attr-defined]
    return error


def item_error(param: str, number: int, takes: str, given: object, remedy: str = "") -> InputTypeError:
    """The error for an item of the argument `param` that has another type than it takes."""
    rest = f" must be {takes}, not {type(given).__name__}{remedy}"
    error = InputTypeError(f"{param}[{number}]{rest}")
    error.param, error._place, error._rest = param, (number,), rest
    return error


def rename(
    error: ModelManagerError, known: str, name: str, place: Callable[[tuple[int, ...]], tuple[int, ...]]
) -> None:
    """Have an error about the core's argument `known` name the one that the caller gave, and `place` of the item."""
    if error.param == known and error._rest is not None:
        error.param, error._place = name, place(error._place or ())
        error.args = ("".join([name, *(f"[{number}]" for number in error._place), error._rest]),)


def a_text(name: str, given: Any) -> str:
    """`given`, if it is a str."""
    if not isinstance(given, str):
        raise type_error(name, "a str", given)
    return given


def a_pair(name: str, number: int, given: Any, takes: str = "a pair of str") -> Sequence[str]:
    """`given`, the item `number` of the argument `name`, if it is a list or tuple of two str."""
    if not isinstance(given, list | tuple):
        raise item_error(name, number, takes, given)
    if len(given) != 2 or not all(isinstance(text, str) for text in given):
        kinds = ", ".join(type(text).__name__ for text in given[:3])
        raise item_error(name, number, takes, given, f" of ({kinds}{', …' if len(given) > 3 else ''})")
    return given


def a_flag(name: str, given: Any) -> bool:
    """`given`, if it is True or False, also numpy's."""
    if isinstance(given, bool):
        return given
    if type(given).__name__ in ("bool", "bool_") and type(given).__module__ == "numpy":
        return bool(given)
    raise type_error(name, "True or False", given)


def an_int(name: str, given: Any, least: int | None = None) -> int:
    """`given`, if it is an int of at least `least`, also numpy's. A bool is none."""
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise type_error(name, "an int", given)
    number = operator.index(given)
    if least is not None and number < least:
        raise argument_error(name, f"{name}={number}: must be at least {least}")
    return number


def a_number(name: str, given: Any) -> float:
    """`given`, if it is a number. A bool is none."""
    if isinstance(given, bool | str | bytes) or not (hasattr(given, "__float__") or hasattr(given, "__index__")):
        raise type_error(name, "a number", given)
    try:
        return float(given)
    except OverflowError:
        raise argument_error(name, f"{name} is too large") from None
    except TypeError:  # an array of several numbers
        raise type_error(name, "a number", given) from None


def an_iterable(name: str, given: Any, takes: str) -> Iterable[Any]:
    """`given`, if it is an iterable of several items. Of a text, bytes, a mapping or a frame one gets characters,
    numbers, keys and names of columns, which are not meant.
    """
    remedy = ""
    if isinstance(given, str | bytes | bytearray | memoryview):
        remedy = "; put a single one into a list"
    elif isinstance(given, Mapping):
        remedy = "; put a single one into a list, or give the mapping's values()"
    elif hasattr(given, "columns"):
        remedy = "; give one of its columns, or its rows one by one"
    if remedy or not hasattr(given, "__iter__"):
        raise type_error(name, takes, given, remedy)
    items: Iterable[Any] = given
    return items


def a_function(name: str, given: Any) -> Any:
    """`given`, if it can be called."""
    if not callable(given):
        raise type_error(name, "a function", given)
    return given


_ONCE = 0x20 | 0x80 | 0x200
"""`CO_GENERATOR`, `CO_COROUTINE` and `CO_ASYNC_GENERATOR` of `inspect`, whose import takes milliseconds: functions
whose results can be used once.
"""


def check_plain(function: Callable[..., Any], result: str) -> None:
    """Refuse a coroutine or generator function, also as a method, in a `partial` or as ``__call__`` of an object: its
    result, which is kept for all callers, could be used once only.
    """
    plain: Any = function
    while isinstance(plain, functools.partial):
        plain = plain.func
    code = getattr(plain, "__code__", None) or getattr(type(plain).__call__, "__code__", None)
    flags = getattr(code, "co_flags", 0)
    if isinstance(flags, int) and flags & _ONCE:
        name = getattr(plain, "__qualname__", None) or repr(plain)
        raise TypeError(f"{name} must be a plain function that returns {result}: its result is kept")


def one_of(name: str, given: Any, known: Collection[str]) -> str:
    """`given`, if it is one of the names `known`."""
    if not isinstance(given, str) or given not in known:
        shown = repr(given)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        raise argument_error(name, f"{name}={shown}: must be one of {', '.join(known)}")
    return given


def a_manager(given: Any) -> Any:
    """`given`, if it is a manager, or something that embeds in its place."""
    if not hasattr(given, "embed"):
        is_source = isinstance(given, str | os.PathLike)
        remedy = "; a model has a name in one: manager.register(name, source), then give manager and name"
        raise type_error("manager", "a ModelManager", given, remedy if is_source else "")
    return given


def unexpected(call: str, name: str, known: Collection[str]) -> TypeError:
    """The error for a keyword that a call does not have, with the one that was meant."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return TypeError(f"{call} got an unexpected keyword argument {name!r}; {remedy}")


def check_names(call: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse a keyword that `call` does not have. pydantic would drop it."""
    for name in given:
        if name not in known:
            raise unexpected(call, name, sorted(known))
