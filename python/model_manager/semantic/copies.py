"""Equal rows of a corpus, and their order in the results of a search."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TYPE_CHECKING = False
if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .rows import Vectors

    Rows = NDArray[np.int64]

_READ_ROWS = 4096
"""Rows that are read at a time: the corpus may be a file."""


class Groups(NamedTuple):
    """Groups of two or more equal rows."""

    members: Rows
    """Row numbers, group by group; in a group they rise."""
    starts: Rows
    """Where each group begins in `members`."""
    sizes: Rows

    def group(self, number: int) -> Rows:
        """The rows of one group."""
        return self.members[self.starts[number] : self.starts[number] + self.sizes[number]]

    def numbers(self, indices: Rows) -> Rows:
        """The group of each row, -1 for a row without copies."""
        order = np.argsort(self.members)
        sorted_members = self.members[order]
        owners = np.repeat(np.arange(len(self.sizes)), self.sizes)[order]
        place = np.minimum(np.searchsorted(sorted_members, indices), len(order) - 1)
        return np.where(sorted_members[place] == indices, owners[place], -1)


def equal_groups(rows: NDArray[np.floating], among: Rows, lengths: NDArray[np.float64]) -> Groups:
    """Which of the rows `among` are equal, as float32 values.

    Args:
        rows: The corpus, shape (n, dim).
        among: Row numbers that rise.
        lengths: The lengths of these rows. Equal rows have the same one, bit by bit.
    """
    if len(among) < 2:
        return Groups(*(np.zeros(0, np.int64),) * 3)
    order = np.argsort(lengths, kind="stable")
    among, lengths = among[order], lengths[order]
    # Most rows have a length of their own, and are not read.
    same = lengths[1:] == lengths[:-1]
    shared = _either(same)
    among, lengths = among[shared], lengths[shared]
    if not len(among):
        return Groups(among, among, among)  # none
    weights = np.random.default_rng(0).normal(size=rows.shape[1])
    marks = np.concatenate(
        [
            # numpy's own loop, which treats all rows alike; BLAS does not.
            np.einsum("ij,j->i", _read(rows, among[start : start + _READ_ROWS]), weights, dtype=np.float64)
            for start in range(0, len(among), _READ_ROWS)
        ]
    )
    order = np.lexsort((among, marks, lengths))
    among, lengths, marks = among[order], lengths[order], marks[order]
    same = (lengths[1:] == lengths[:-1]) & (marks[1:] == marks[:-1])
    pairs = np.flatnonzero(same)
    for start in range(0, len(pairs), _READ_ROWS):
        part = pairs[start : start + _READ_ROWS]
        same[part] = (_read(rows, among[part]) == _read(rows, among[part + 1])).all(axis=1)
    shared = _either(same)
    begins = np.concatenate([[True], ~same])[shared]
    members = among[shared]
    starts = np.flatnonzero(begins)
    return Groups(members, starts, np.diff(starts, append=len(members)))


def _either(same: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of items in a row, those that are the same as the one before or the one after; `same` compares neighbors."""
    found = np.zeros(len(same) + 1, bool)
    found[1:] |= same
    found[:-1] |= same
    return found


def _read(rows: NDArray[np.floating], numbers: Rows) -> Vectors:
    return np.asarray(rows[numbers], dtype=np.float32)


def in_order(
    indices: Rows, scores: Vectors, rows: NDArray[np.floating], lengths: NDArray[np.float64]
) -> tuple[Rows, Vectors]:
    """The best matches with equal scores for equal rows, and equal scores in the order of the corpus.

    BLAS computes the rows at the edges of its blocks by other loops, so that the scores of equal rows may differ in the
    last bit. The score of equal rows is the highest of theirs.

    Args:
        indices: The best rows of each query, shape (queries, k).
        scores: Their scores. Each row is sorted by falling score, then by rising index.
        rows: The corpus.
        lengths: The length of each of its rows.
    """
    known = np.unique(lengths[np.unique(indices)])
    place = np.minimum(np.searchsorted(known, lengths), len(known) - 1)
    near = np.flatnonzero(known[place] == lengths)
    if len(near) == len(known):  # no two of them have one length
        return indices, scores
    groups = equal_groups(rows, near, lengths[near])
    if not len(groups.members):
        return indices, scores
    numbers = groups.numbers(indices)
    indices, scores = indices.copy(), scores.copy()
    for query in _out_of_order(indices, scores, numbers, groups):
        indices[query], scores[query] = _sorted(indices[query], scores[query], numbers[query], groups)
    return indices, scores


def _out_of_order(indices: Rows, scores: Vectors, numbers: Rows, groups: Groups) -> list[int]:
    """The queries that lack a copy, or have copies with other scores or in another order."""
    query, place = np.nonzero(numbers >= 0)
    number = numbers[query, place]
    # The matches of one query and group follow each other, in their order.
    order = np.lexsort((place, number, query))
    query, place, number = query[order], place[order], number[order]
    begins = np.ones(len(query), bool)
    begins[1:] = (query[1:] != query[:-1]) | (number[1:] != number[:-1])
    first = np.maximum.accumulate(np.where(begins, np.arange(len(query)), 0))
    rank = np.arange(len(query)) - first
    score = scores[query, place]
    wrong = indices[query, place] != groups.members[groups.starts[number] + rank]
    wrong |= score != score[first]
    # The next copy, where there is one, belongs behind the last match.
    ends = np.append(begins[1:], True) & (rank + 1 < groups.sizes[number])
    following = groups.members[np.where(ends, groups.starts[number] + rank + 1, 0)]
    wrong |= ends & ((score > scores[query, -1]) | (following < indices[query, -1]))
    found: list[int] = np.unique(query[wrong]).tolist()
    return found


def _sorted(indices: Rows, scores: Vectors, numbers: Rows, groups: Groups) -> tuple[Rows, Vectors]:
    """The matches of one query with all copies that belong to them."""
    size = len(indices)
    single = numbers < 0
    all_indices, all_scores = [indices[single]], [scores[single]]
    there, floor = 0, np.float32(np.inf)
    # The first match of a group has its highest score.
    for place in np.sort(np.unique(np.where(single, -1, numbers), return_index=True)[1]):
        if single[place]:
            continue
        if there >= size and scores[place] < floor:
            break
        floor = scores[place]
        members = groups.group(int(numbers[place]))[:size]
        there += len(members)
        all_indices.append(members)
        all_scores.append(np.full(len(members), floor, np.float32))
    index, score = np.concatenate(all_indices), np.concatenate(all_scores)
    order = np.lexsort((index, -score))[:size]
    return index[order], score[order]
