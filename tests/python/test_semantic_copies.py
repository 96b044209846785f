"""Equal rows in `semantic_search` and `near_duplicates`: their order, and what many of them cost."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from model_manager.semantic import copies, duplicates, near_duplicates, pairwise_similarity, search, semantic_search
from model_manager.semantic.rows import prepare


def with_copies(rng, count, width, distinct):
    """Rows of which many are equal, and where the equal ones stand."""
    kind = rng.integers(0, distinct, count)
    rows = rng.normal(size=(distinct, width)).astype(np.float32)[kind]
    return rows, kind


def assert_in_order(found, kind, k):
    """Equal rows have equal scores, equal scores are in the order of the corpus, and no first copy is missing."""
    for indices, scores in zip(found.indices, found.scores, strict=True):
        assert len(set(indices.tolist())) == len(indices) == k
        for one in np.unique(kind[indices]):
            mine = kind[indices] == one
            assert len(set(scores[mine].tolist())) == 1
            # The first copies, and another one only behind the last match.
            copies_of = np.flatnonzero(kind == one)
            assert indices[mine].tolist() == copies_of[: mine.sum()].tolist()
            if mine.sum() < len(copies_of):
                assert (scores[mine][0], indices[-1]) <= (scores[-1], copies_of[mine.sum()])
        order = np.lexsort((indices, -scores))
        assert order.tolist() == list(range(len(indices)))


@pytest.mark.parametrize("width", [3, 64, 384])
@pytest.mark.parametrize("rows", [5, 33, 1000, 20_000])
def test_copies_of_one_row_are_in_the_order_of_the_corpus(rows, width):
    """BLAS computes the columns at the edge of a product in another order, so that their last bit may differ."""
    rng = np.random.default_rng(rows)
    corpus = np.repeat(rng.normal(size=(1, width)), rows, 0).astype(np.float32)
    for queries in (1, 2, 7):
        found = semantic_search(rng.normal(size=(queries, width)), corpus, min(rows, 10))
        assert found.indices.tolist() == [list(range(min(rows, 10)))] * queries
        assert (found.scores == found.scores[:, :1]).all()


def rounded_elsewhere(queries, block):
    """Scores whose last bits depend on the place of a row, more than with any BLAS."""
    noise = np.random.default_rng(block.shape[0]).uniform(-1, 1, (len(queries), len(block)))
    return ((queries @ block.T) * (1 + 3e-7 * noise)).astype(np.float32)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 120),
    st.integers(1, 30),
    st.integers(1, 25),
    st.integers(1, 40),
    st.sampled_from(["cosine", "dot"]),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.integers(0, 2**32),
)
def test_rounding_moves_no_copy(rows, distinct, k, block, measure, dtype, seed):
    rng = np.random.default_rng(seed)
    corpus, kind = with_copies(rng, rows, 8, distinct)
    queries = rng.normal(size=(5, 8))
    before = search._CORPUS_ROWS, search._scores
    search._CORPUS_ROWS, search._scores = block, rounded_elsewhere
    try:
        found = semantic_search(queries, corpus.astype(dtype), k, measure=measure)
    finally:
        search._CORPUS_ROWS, search._scores = before
    k = min(k, rows)
    assert_in_order(found, kind, k)
    q, c = prepare(queries, "q", measure).astype(float), prepare(corpus.astype(dtype), "c", measure).astype(float)
    exact = q @ c.T
    np.testing.assert_allclose(np.take_along_axis(exact, found.indices, 1), -np.sort(-exact, 1)[:, :k], atol=2e-5)
    np.testing.assert_allclose(found.scores, np.take_along_axis(exact, found.indices, 1), atol=2e-5)


def test_copies_of_whole_numbers_are_found_among_rows_of_one_length(monkeypatch):
    """Rows of equal length are no copies yet. Zeros may have a sign."""
    monkeypatch.setattr(search, "_CORPUS_ROWS", 64)
    monkeypatch.setattr(search, "_scores", rounded_elsewhere)
    rng = np.random.default_rng(2)
    signs = rng.integers(0, 2, (500, 6)) * 2.0 - 1
    signs[::7] = 0.0
    signs[::14] = -0.0
    _, kind = np.unique(signs + 0.0, axis=0, return_inverse=True)
    found = semantic_search(rng.normal(size=(20, 6)), signs, 40)
    assert_in_order(found, kind.ravel(), 40)


def test_cosines_are_between_minus_one_and_one():
    """Rounding takes the product of a row with itself a little above 1."""
    rows = np.random.default_rng(4).normal(size=(3000, 33)).astype(np.float32)
    both = np.concatenate([rows, -rows])
    found = semantic_search(rows[:100], both, len(both))
    assert np.abs(found.scores).max() == 1
    assert (np.lexsort((found.indices, -found.scores)) == np.arange(len(both))).all()
    assert np.abs(pairwise_similarity(both, np.concatenate([rows, rows]))).max() == 1
    assert pairwise_similarity(rows, rows, measure="dot").max() > 2


def test_the_length_of_a_row_may_be_next_to_nothing():
    tiny = np.array([[1e-40, 1e-40], [1e-45, 0], [0, 0]], np.float32)
    np.testing.assert_allclose(semantic_search([1.0, 0], tiny, 3).scores, [[1, np.sqrt(0.5), 0]], atol=1e-5)


def test_groups_of_equal_rows():
    rows = np.array([[1, 2], [3, 4], [1, 2], [2, 1], [3, 4], [1, 2], [5, 6], [-0.0, 0.0], [0.0, 0.0]], np.float32)
    lengths = np.sqrt((rows.astype(float) ** 2).sum(1))

    def groups(among):
        found = copies.equal_groups(rows, np.array(among), lengths[among])
        return sorted(found.group(number).tolist() for number in range(len(found.sizes)))

    assert groups(range(9)) == [[0, 2, 5], [1, 4], [7, 8]]
    assert groups([3, 4, 5]) == []
    assert groups([2, 5, 6]) == [[2, 5]]
    assert groups([]) == []


# --- Near duplicates -------------------------------------------------------------------------------------------------


def naive(unit, threshold, min_size):
    """All neighborhoods, the largest first; of equal sizes the first center comes first. Center and members."""
    near = [np.flatnonzero(row) for row in (unit @ unit.T >= threshold - 1e-6) | np.eye(len(unit), dtype=bool)]
    taken, found = np.zeros(len(unit), bool), []
    for center in sorted(range(len(unit)), key=lambda center: -len(near[center])):
        rest = near[center][~taken[near[center]]]
        if not taken[center] and len(rest) >= min_size:
            taken[rest] = True
            found.append((center, rest.tolist()))
    return sorted(found, key=lambda group: -len(group[1]))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(1, 40),
    st.sampled_from([0.05, 0.3]),
    st.sampled_from([0.5, 0.8, 0.95, 1.0]),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(0, 2**32),
)
def test_groups_are_those_of_all_neighborhoods(rows, distinct, noise, threshold, min_size, kept, seed):
    """With copies, with near ones, and with neighborhoods that are computed a second time."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(4, 6))
    points = centers[rng.integers(0, 4, distinct)] + noise * rng.normal(size=(distinct, 6))
    vectors = points[rng.integers(0, distinct, rows)].astype(np.float32)
    before = duplicates._KEPT, duplicates._BLOCK_ROWS, search._CORPUS_ROWS
    duplicates._KEPT, duplicates._BLOCK_ROWS, search._CORPUS_ROWS = kept, 16, 50
    try:
        found = near_duplicates(vectors, threshold, min_size)
    finally:
        duplicates._KEPT, duplicates._BLOCK_ROWS, search._CORPUS_ROWS = before
    unit = prepare(vectors, "vectors", "cosine").astype(np.float64)
    assert [(group[0], sorted(group.tolist())) for group in found] == naive(unit, threshold, min_size)
    for group in found:
        assert group.dtype == np.int64
        # By falling similarity, up to rounding; copies together, in the order of their rows.
        scores = unit[group] @ unit[group[0]]
        assert (np.diff(scores) < 1e-6).all()
        same = (vectors[group[1:]] == vectors[group[:-1]]).all(axis=1)
        assert (np.diff(group)[same] > 0).all()


def with_peak(work):
    """What `work` returns, and the most bytes that it held."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_many_copies_cost_no_more_memory_than_rows():
    """Each of 20,000 equal rows had a list of all of them: 3.2 GB."""
    rows = np.tile(np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32), (10_000, 1))
    groups, peak = with_peak(lambda: near_duplicates(rows, 0.95))
    assert [group.tolist() for group in groups] == [list(range(0, 20_000, 2)), list(range(1, 20_000, 2))]
    assert peak < 20e6


def test_many_near_rows_cost_no_more_memory_than_rows():
    """Rows that say the same in other words are not equal."""
    rng = np.random.default_rng(1)
    rows = (1 + 0.01 * rng.normal(size=(4_000, 8))).astype(np.float32)
    groups, peak = with_peak(lambda: near_duplicates(rows, 0.95))
    assert [sorted(group.tolist()) for group in groups] == [list(range(4_000))]
    assert peak < 60e6
