"""Groups of near duplicates, by the method of sentence-transformers' `community_detection`."""

from __future__ import annotations

import numpy as np

from .._arguments import a_number, an_int, argument_error
from .rows import ROUNDING, as_rows, prepare
from .search import blocks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_BLOCK_ROWS = 256


def near_duplicates(vectors: ArrayLike, threshold: float = 0.9, min_size: int = 2) -> list[NDArray[np.int64]]:
    """Groups of rows that are close to one row, their center: at cosine `threshold` or above. A row is in one group at
    most.

    Every row is a candidate for a center. Candidates are taken from the largest neighborhood to the smallest; a row of
    a larger group is neither the center nor a member of a later one (as in
    `sentence_transformers.util.community_detection`).

    Args:
        vectors: Shape (n, dim).
        threshold: Between 0 (exclusive) and 1. 0.9 and above finds texts that say the same.
        min_size: Groups below this size are left out.

    Returns:
        Groups as row numbers, the largest first; within a group the center first, then by falling similarity to it.

    Raises:
        ArgumentError: A `threshold` or `min_size` out of range, a vector with NaN or infinity.
    """
    min_size = an_int("min_size", min_size, 1)
    threshold = a_number("threshold", threshold)
    if not 0 < threshold <= 1:
        raise argument_error("threshold", f"threshold={threshold} must be above 0 and at most 1")
    rows = as_rows(vectors, "vectors")
    groups = []
    for first in range(0, len(rows), _BLOCK_ROWS):
        queries = prepare(rows[first : first + _BLOCK_ROWS], "vectors", "cosine", first)
        groups += _neighborhoods(queries, rows, first, threshold, min_size)
    groups.sort(key=len, reverse=True)  # stable: of equal sizes the first center comes first
    taken = np.zeros(len(rows), bool)
    unique = []
    for group in groups:
        if taken[group[0]]:  # its center is in a larger group
            continue
        rest = group[~taken[group]]
        if len(rest) >= min_size:
            taken[rest] = True
            unique.append(rest)
    return sorted(unique, key=len, reverse=True)


def _neighborhoods(
    queries: NDArray[np.float32], rows: NDArray[np.floating], first: int, threshold: float, min_size: int
) -> list[NDArray[np.int64]]:
    """The rows at `threshold` or above for each of `queries`, which are rows `first` and following: itself first."""
    owners, columns, scores = [], [], []
    for start, block in blocks(rows, "cosine"):
        similar = queries @ block.T
        # The center comes first, even before its exact copies.
        own = np.arange(len(queries)) + first - start
        inside = (own >= 0) & (own < len(block))
        similar[np.flatnonzero(inside), own[inside]] = np.inf
        owner, column = np.nonzero(similar >= threshold - ROUNDING)
        owners.append(owner)
        columns.append(column + start)
        scores.append(similar[owner, column])
    owner, column, score = (np.concatenate(parts) for parts in (owners, columns, scores))
    order = np.lexsort((column, -score, owner))
    groups = np.split(column[order], np.flatnonzero(np.diff(owner[order])) + 1)
    return [group for group in groups if len(group) >= min_size]
