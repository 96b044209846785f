"""Optional packages: import errors name the pip extra that is missing; the progress bar."""

from __future__ import annotations

import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


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


def tqdm_class() -> Any:
    """The class `tqdm` for terminals and notebooks. Raises `ImportError` without tqdm.

    A notebook without ipywidgets gets the bar as text. tqdm warns of that, which is of no use to the reader.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    return tqdm
