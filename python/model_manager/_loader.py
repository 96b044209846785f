"""The thread that runs a loader given to `register`."""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def run(loader: Callable[[], Any], loading: Any) -> None:
    """Call `loader` and report its result or its exception."""
    loading.begin()
    try:
        found = loader()
    except BaseException as error:  # noqa: BLE001  it is raised for the callers that wait for the model
        loading.raised(error)
        return
    if isinstance(found, CoroutineType):
        found.close()
        loading.raised(TypeError("a loader must return the model, not a coroutine, which could be used once only"))
    else:
        loading.returned(found)
