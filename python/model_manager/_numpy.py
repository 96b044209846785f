"""The thread that imports numpy for the core. Signal handlers, which may raise, do not run there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


def run(importing: Any) -> None:
    """Import numpy and the module of its C API, and report that or the exception."""
    try:
        from importlib import import_module

        core = "_core" if hasattr(import_module("numpy"), "_core") else "core"
        import_module(f"numpy.{core}.multiarray")
        importing.settle()
    except BaseException as error:  # noqa: BLE001  it is raised for the call that waits for numpy
        importing.raised(error)
