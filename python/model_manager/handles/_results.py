"""Results in the forms of sentence-transformers."""

from __future__ import annotations

from .._extras import package

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray


def as_tensor(array: NDArray[Any]) -> Any:
    """A PyTorch tensor over the memory of `array`."""
    with package("torch"):
        import torch

    return torch.from_numpy(array)


def returned(rows: NDArray[Any], single: bool, convert_to_numpy: bool, convert_to_tensor: bool) -> Any:
    """One row for each input, as an array, a tensor or a list; of a single input its row."""
    found = as_tensor(rows) if convert_to_tensor else rows
    if single:
        return found[0]
    return found if convert_to_numpy or convert_to_tensor else list(found)
