"""Groups of near duplicates, by the method of sentence-transformers' `community_detection`."""

from __future__ import annotations

import numpy as np

from .._arguments import a_number, an_int, argument_error
from . import search
from .copies import equal_groups
from .rows import ROUNDING, as_rows, prepare_with_lengths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from .rows import Vectors

    Rows = NDArray[np.int64]

_BLOCK_ROWS = 256
_KEPT = 64
"""A neighborhood of at most so many rows is kept. A larger one is computed again when its center's turn comes."""
_AT_A_TIME = 1 << 20
"""Rows of all neighborhoods that are computed again at a time."""


def near_duplicates(vectors: ArrayLike, threshold: float = 0.9, min_size: int = 2) -> list[NDArray[np.int64]]:
    """Groups of rows that are close to one row, their center: at cosine `threshold` or above. A row is in one group at
    most.

    Every row is a candidate for a center. Candidates are taken from the largest neighborhood to the smallest; a row of
    a larger group is neither the center nor a member of a later one (as in
    `sentence_transformers.util.community_detection`).

    The time grows with the square of the number of distinct rows; equal rows count as one. The memory grows with the
    number of rows: float32 copies of them, and less than 1 kB for each.

    Args:
        vectors: Shape (n, dim).
        threshold: Between 0 (exclusive) and 1. 0.9 and above finds texts that say the same.
        min_size: Groups below this size are left out.

    Returns:
        Groups as row numbers, the largest first; within a group the center first, then by falling similarity to it.

    Raises:
        ArgumentError: A `threshold` or `min_size` out of range, a vector with NaN or infinity, quantized rows.
    """
    min_size = an_int("min_size", min_size, 1)
    threshold = a_number("threshold", threshold)
    if not 0 < threshold <= 1:
        raise argument_error("threshold", f"threshold={threshold} must be above 0 and at most 1")
    rows = as_rows(vectors, "vectors")
    unit, lengths = _prepared(rows)
    copies = _Copies(rows, lengths)
    if len(copies.first) < len(rows):
        unit = unit[copies.first]
    taken = np.zeros(len(unit), bool)
    found = []
    for group in _Neighborhoods(unit, copies.counts, threshold, min_size).in_turn(taken):
        rest = group[~taken[group]]
        if copies.counts[rest].sum() >= min_size:
            taken[rest] = True
            found.append(rest)
    return sorted(map(copies.expanded, found), key=len, reverse=True)


def _prepared(rows: NDArray[np.floating]) -> tuple[Vectors, NDArray[np.float64]]:
    """All rows with length 1, and the lengths that they had."""
    unit, lengths = np.empty(rows.shape, np.float32), np.empty(len(rows))
    for first in range(0, len(rows), search._CORPUS_ROWS):
        end = first + search._CORPUS_ROWS
        unit[first:end], lengths[first:end] = prepare_with_lengths(rows[first:end], "vectors", "cosine", first)
    return unit, lengths


class _Copies:
    """Which rows are equal. Equal rows have one neighborhood, so they count as one row from here on."""

    def __init__(self, rows: NDArray[np.floating], lengths: NDArray[np.float64]) -> None:
        everyone = np.arange(len(rows))
        groups = equal_groups(rows, everyone, lengths)
        leader = everyone.copy()
        leader[groups.members] = np.repeat(groups.members[groups.starts], groups.sizes)
        self.first, owner, self.counts = np.unique(leader, return_inverse=True, return_counts=True)
        """The first of each kind, and how many there are of it."""
        self._rows = np.argsort(owner, kind="stable")
        self._starts = np.cumsum(self.counts) - self.counts

    def expanded(self, group: Rows) -> Rows:
        """The rows of a group of kinds: all copies, in place of each kind."""
        counts = self.counts[group]
        begins = np.repeat(self._starts[group] - np.cumsum(counts) + counts, counts)
        return self._rows[begins + np.arange(len(begins))]


class _Neighborhoods:
    """The rows at `threshold` or above of each row, itself among them."""

    def __init__(self, rows: Vectors, counts: Rows, threshold: float, min_size: int) -> None:
        self._rows, self._threshold = rows, threshold
        self._several = np.flatnonzero(counts > 1)
        self._more = (counts[self._several] - 1).astype(np.float64)
        self._entries = np.zeros(len(rows), np.int64)
        """How many rows each neighborhood has; a row with copies counts once."""
        self._kept: dict[int, Rows] = {}
        sizes = np.zeros(len(rows), np.int64)
        for first in range(0, len(rows), _BLOCK_ROWS):
            self._measure(first, sizes, min_size)
        # Stable: of equal sizes the first center comes first.
        order = np.argsort(-sizes, kind="stable")
        self._order = order[sizes[order] >= min_size]

    def _measure(self, first: int, sizes: Rows, min_size: int) -> None:
        """Count the neighborhoods of a block of rows, and keep the small ones."""
        end = min(first + _BLOCK_ROWS, len(self._rows))
        entries, size = self._entries[first:end], sizes[first:end]
        parts = []
        for start, similar, near in _near(self._rows[first:end], self._rows, np.arange(first, end), self._threshold):
            entries += np.count_nonzero(near, axis=1)
            several = self._several[(self._several >= start) & (self._several < start + near.shape[1])]
            if len(several):
                more = self._more[np.searchsorted(self._several, several)]
                size += (near[:, several - start].astype(np.float64) @ more).astype(np.int64)
            near[entries > _KEPT] = False
            parts.append(_entries(start, similar, near))
        size += entries
        for group in _sorted_groups(parts):
            center = int(group[0])
            if self._entries[center] <= _KEPT and sizes[center] >= min_size:
                self._kept[center] = group

    def in_turn(self, taken: NDArray[np.bool_]) -> Iterator[Rows]:
        """The neighborhoods of rows that are not `taken` when their turn comes, the largest first. The center comes
        first in each, then the others by falling similarity to it.
        """
        large = self._order[self._entries[self._order] > _KEPT]
        ready: dict[int, Rows] = {}
        most, used, seen = 1, 0, 0
        for center in self._order.tolist():
            if self._entries[center] > _KEPT:
                seen += 1
            if taken[center]:
                self._kept.pop(center, None)
                continue
            if self._entries[center] > _KEPT and center not in ready:
                # Whoever is taken meanwhile was computed in vain, so their number follows what was of use.
                most = min(2 * most, _BLOCK_ROWS) if 2 * used >= len(ready) else max(1, most // 2)
                ready = self._computed(large[seen - 1 :], taken, most)
                used = 0
            used += center in ready
            yield ready[center] if center in ready else self._kept.pop(center)

    def _computed(self, centers: Rows, taken: NDArray[np.bool_], most: int) -> dict[int, Rows]:
        """The neighborhoods of the first of `centers` that are not taken."""
        chosen = centers[~taken[centers]][:most]
        fit = np.cumsum(self._entries[chosen]) <= _AT_A_TIME
        fit[0] = True
        chosen = chosen[fit]
        groups = _neighborhoods(self._rows[chosen], self._rows, chosen, self._threshold)
        return {int(group[0]): group for group in groups}


def _neighborhoods(queries: Vectors, rows: Vectors, first: int | Rows, threshold: float) -> list[Rows]:
    """The rows at `threshold` or above for each of `queries`, itself first. They are the rows `first`: all of their
    numbers, or the first one of a block.
    """
    centers = first + np.arange(len(queries)) if isinstance(first, int) else first
    return _sorted_groups([_entries(*part) for part in _near(queries, rows, centers, threshold)])


def _near(
    queries: Vectors, rows: Vectors, centers: Rows, threshold: float
) -> Iterator[tuple[int, Vectors, NDArray[np.bool_]]]:
    """Blocks of the similarities of `queries` to `rows`: the first row of the block, the similarities, and which of
    them are at `threshold` or above.
    """
    for start in range(0, len(rows), search._CORPUS_ROWS):
        similar = queries @ rows[start : start + search._CORPUS_ROWS].T
        # The center comes first, even before its exact copies.
        own = centers - start
        inside = (own >= 0) & (own < similar.shape[1])
        similar[np.flatnonzero(inside), own[inside]] = np.inf
        yield start, similar, similar >= threshold - ROUNDING


def _entries(start: int, similar: Vectors, near: NDArray[np.bool_]) -> tuple[Rows, Rows, Vectors]:
    owner, column = np.nonzero(near)
    return owner, column + start, similar[owner, column]


def _sorted_groups(parts: list[tuple[Rows, Rows, Vectors]]) -> list[Rows]:
    """Rows by their owner, in the order of owners; those of one owner by falling similarity."""
    owner, column, score = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((column, -score, owner))
    if not len(order):
        return []
    return np.split(column[order], np.flatnonzero(np.diff(owner[order])) + 1)
