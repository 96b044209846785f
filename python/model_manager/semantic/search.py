"""Exact nearest neighbors by blocks of one matrix product each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._arguments import an_int, argument_error
from .copies import in_order
from .rows import as_rows, check_measure, prepare, prepare_with_lengths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .rows import Measure, Vectors

_QUERY_ROWS = 256
_CORPUS_ROWS = 16_384
"""A block of scores has at most 256 x 16,384 float32 values: 16 MB."""


class Matches(NamedTuple):
    """The best rows of a corpus for each query, best first."""

    indices: NDArray[np.int64]
    """Rows of the corpus, shape (queries, k)."""
    scores: NDArray[np.float32]
    """Their similarity to the query, shape (queries, k); cosines are between -1 and 1."""

    def pairs(self, query: int = 0) -> list[tuple[int, float]]:
        """The matches of one query as (index, score)."""
        query = an_int("query", query)
        if not -len(self.indices) <= query < len(self.indices):
            raise IndexError(f"query={query}: there are {len(self.indices)} queries")
        return list(zip(self.indices[query].tolist(), self.scores[query].tolist(), strict=True))

    def _repr_html_(self) -> str:
        from .._html import matches_html

        count, size = self.indices.shape
        return matches_html([self.pairs(query)[:10] for query in range(min(count, 5))], count, size)


def semantic_search(queries: ArrayLike, corpus: ArrayLike, k: int = 10, *, measure: Measure = "cosine") -> Matches:
    """The `k` rows of `corpus` that are most similar to each query. The result is exact. Equal rows have equal scores,
    and equal scores are in the order of the corpus.

    The corpus is read in blocks. A memory-mapped float16 or float32 file (``numpy.load(..., mmap_mode="r")``) is never
    in memory as a whole. The products run in numpy's BLAS on all cores, without the GIL.

    Args:
        queries: Vectors of shape (n, dim), or one of shape (dim,).
        corpus: Vectors of shape (m, dim).
        k: How many matches a query gets. A smaller corpus gives as many as it has.
        measure: ``cosine``, or ``dot`` for vectors whose length matters or is 1 already.

    Returns:
        `Matches` with arrays of shape (n, min(k, m)).

    Raises:
        ArgumentError: Shapes that do not fit, a vector with NaN or infinity, quantized rows, an unknown `measure`,
            `k` below 1.
    """
    check_measure(measure)
    k = an_int("k", k, 1)
    asked, rows = as_rows(queries, "queries"), as_rows(corpus, "corpus")
    if len(rows) and len(asked) and asked.shape[1] != rows.shape[1]:
        raise argument_error(
            "queries",
            f"queries have {asked.shape[1]} dimensions, the corpus has {rows.shape[1]}; embed both with one model",
        )
    k = min(k, len(rows))
    if k == 0 or len(asked) == 0:
        return Matches(np.empty((len(asked), k), np.int64), np.empty((len(asked), k), np.float32))
    best = [_Best(prepare(asked[start : start + _QUERY_ROWS], "queries", measure, start), k, measure)
            for start in range(0, len(asked), _QUERY_ROWS)]  # fmt: skip
    lengths = np.empty(len(rows))
    for first in range(0, len(rows), _CORPUS_ROWS):
        end = first + _CORPUS_ROWS
        block, lengths[first:end] = prepare_with_lengths(rows[first:end], "corpus", measure, first)
        for part in best:
            part.add(first, block)
    indices, scores = (
        np.concatenate(parts) for parts in zip(*((one.indices, one.scores) for one in best), strict=True)
    )
    return Matches(*in_order(indices, scores, rows, lengths))


def _scores(queries: Vectors, block: Vectors) -> Vectors:
    return queries @ block.T


class _Best:
    """The best matches so far of a block of queries."""

    def __init__(self, queries: Vectors, k: int, measure: Measure) -> None:
        self.queries = queries
        self.k = k
        self.measure = measure
        self.indices = np.full((len(queries), 0), 0, np.int64)
        self.scores = np.full((len(queries), 0), 0, np.float32)

    def add(self, first: int, block: Vectors) -> None:
        """Merge the scores of `block`, which begins at row `first`. Blocks come in the order of the corpus."""
        scores = _scores(self.queries, block)
        if self.measure == "cosine":
            np.clip(scores, -1, 1, out=scores)  # copies may be a little above, by rounding
        chosen = self._candidates(scores)
        query, column = np.nonzero(chosen)
        kept = self.scores.shape[1]
        owner = np.concatenate([np.repeat(np.arange(len(self.queries)), kept), query])
        index = np.concatenate([self.indices.ravel(), column + first])
        score = np.concatenate([self.scores.ravel(), scores[query, column]])
        order = np.lexsort((index, -score, owner))
        owner, index, score = owner[order], index[order], score[order]
        counts = np.bincount(owner, minlength=len(self.queries))
        # Every query has the same number of matches: min(k, rows seen).
        size = min(self.k, int(counts.min()))
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        taken = rank < size
        self.indices = index[taken].reshape(len(self.queries), size)
        self.scores = score[taken].reshape(len(self.queries), size)

    def _candidates(self, scores: Vectors) -> NDArray[np.bool_]:
        """Which scores may be among the best: all that matter, few others."""
        columns = scores.shape[1]
        full = self.scores.shape[1] == self.k
        # Rows seen earlier win a tie.
        chosen = scores > self.scores[:, -1:] if full else np.ones(scores.shape, bool)
        if columns > self.k and np.count_nonzero(chosen) > 4 * self.k * len(scores):
            floor = np.partition(scores, columns - self.k, axis=1)[:, columns - self.k]
            chosen &= scores >= floor[:, None]
        return chosen


def pairwise_similarity(first: ArrayLike, second: ArrayLike, *, measure: Measure = "cosine") -> Vectors:
    """The similarity of row i of `first` to row i of `second`, shape (n,).

    Raises:
        ArgumentError: The shapes differ, a vector with NaN or infinity, quantized rows, an unknown `measure`.
    """
    check_measure(measure)
    a, b = as_rows(first, "first"), as_rows(second, "second")
    if a.shape != b.shape:
        raise argument_error(
            "first", f"first has shape {a.shape} and second {b.shape}; both need one row for each pair"
        )
    a, b = prepare(a, "first", measure), prepare(b, "second", measure)
    found = np.asarray(np.einsum("ij,ij->i", a, b), dtype=np.float32)
    return found if measure == "dot" else np.clip(found, -1, 1)
