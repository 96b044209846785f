"""Import errors of optional parts name the pip extra that is missing."""

from __future__ import annotations

import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """A context for the imports of an optional part. The ImportError of a missing package names the pip extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "model_manager":
            raise
        message = f"this part of model_manager needs {error.name}: pip install 'model-manager-rs[{name}]'"
        raise ModuleNotFoundError(message, name=error.name) from error
