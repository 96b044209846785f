"""Optional packages: import errors name what pip installs; the progress bar."""

from __future__ import annotations

import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


def extra(name: str) -> contextlib.AbstractContextManager[None]:
    """A context for the imports of an optional part. The ImportError of a missing package names the pip extra."""
    return package(f"'model-manager-rs[{name}]'")


@contextlib.contextmanager
def package(requirement: str) -> Iterator[None]:
    """`extra` for packages that no extra has: `requirement` is what pip installs."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "model_manager":
            raise
        message = f"this part of model_manager needs {error.name}: pip install {requirement}"
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
