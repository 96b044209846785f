"""What embedding returns apart from plain arrays. The core's stub names these types: this module imports nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray


class SparseVector(NamedTuple):
    """Entries of a vocabulary with a weight above zero."""

    indices: NDArray[np.uint32]
    """The entries, ascending."""
    values: NDArray[np.float32]
    """The weight of each."""

    def __eq__(self, other: object) -> bool:
        return _are_equal(self, other)

    def __ne__(self, other: object) -> bool:
        return not _are_equal(self, other)

    def dot(self, other: SparseVector) -> float:
        """The similarity to another vector of the same model."""
        import numpy as np

        _, own, its = np.intersect1d(self.indices, other.indices, assume_unique=True, return_indices=True)
        return float(self.values[own] @ other.values[its])


class EmbedOutputs(NamedTuple):
    """What `embed` returns with ``outputs``: of one text, or of several. None for what was not asked for."""

    dense: NDArray[np.float32] | None = None
    """Shape (dim,), or (n, dim)."""
    sparse: SparseVector | list[SparseVector] | None = None
    multi: NDArray[np.float32] | list[NDArray[np.float32]] | None = None
    """Shape (tokens, dim) for each text."""

    def __eq__(self, other: object) -> bool:
        return _are_equal(self, other)

    def __ne__(self, other: object) -> bool:
        return not _are_equal(self, other)


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two results have equal elements; those of tuples of arrays cannot be compared at once."""
    import numpy as np

    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if not isinstance(one, tuple | list):
        return bool(one == other)
    return type(one) is type(other) and len(one) == len(other) and all(map(_are_equal, one, other))
