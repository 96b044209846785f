"""MaxSim: the definition, input of other types, and what is refused."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from model_manager import maxsim
from model_manager.errors import ArgumentError


def naive(query, document):
    if len(query) == 0:
        return 0.0
    if len(document) == 0:
        return -np.inf
    return float((query.astype(np.float64) @ document.astype(np.float64).T).max(axis=1).sum())


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_those_of_the_definition(seed):
    generator = np.random.default_rng(seed)
    width = int(generator.integers(1, 200))
    query = generator.standard_normal((int(generator.integers(1, 50)), width)).astype(np.float32)
    lengths = [0, 1, *generator.integers(0, 700, 8).tolist()]
    documents = [generator.standard_normal((length, width)).astype(np.float32) for length in lengths]
    scores = maxsim(query, documents)
    assert scores.dtype == np.float32
    want = [naive(query, document) for document in documents]
    np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-4)
    # A document's score does not depend on the others.
    np.testing.assert_array_equal(scores, [maxsim(query, [document])[0] for document in documents])


def test_other_types_and_orders_are_converted():
    generator = np.random.default_rng(5)
    query = generator.standard_normal((6, 16)).astype(np.float32)
    document = generator.standard_normal((9, 16)).astype(np.float32)
    want = maxsim(query, [document])
    for given in (document.tolist(), np.asfortranarray(document), document.astype(np.float64), document[::-1]):
        np.testing.assert_allclose(maxsim(query, [given]), want, rtol=1e-6)
    half = document.astype(np.float16)
    np.testing.assert_array_equal(maxsim(query, [half]), maxsim(query, [half.astype(np.float32)]))
    frozen = document.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(maxsim(query, [frozen, document]), [want[0], want[0]])


def test_nothing():
    query = np.ones((2, 4), np.float32)
    empty = query[:0]
    assert maxsim(query, []).shape == (0,)
    assert maxsim(empty, [query, empty]).tolist() == [0, 0]
    # No token of the document: any other document comes before it.
    assert maxsim(query, [empty, -query]).tolist() == [-np.inf, -8]


def test_numbers_that_are_none_are_refused():
    query, document = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)
    for wrong in (np.nan, np.inf):
        document[1, 2] = wrong
        with pytest.raises(ArgumentError, match=r"^documents\[1\] holds NaN or infinity") as error:
            maxsim(query, [query, document])
        assert error.value.param == "documents"
        with pytest.raises(ArgumentError, match=r"^query holds NaN or infinity") as error:
            maxsim(document, [query])
        assert error.value.param == "query"
    with pytest.raises(ArgumentError, match=r"^documents\[1\] has a score beyond float32"):
        maxsim(query * 1e20, [query, query * 1e20])
    # A token that is no token's greatest product changes nothing.
    document[1, 2] = -np.inf
    assert maxsim(query, [document]).tolist() == [8]


@pytest.mark.parametrize(
    ("query", "documents", "message"),
    [
        (np.ones(4), [np.ones((2, 4))], r"query must have the shape .*\(4,\)"),
        (np.ones((2, 4)), [np.ones((2, 4)), np.ones(3)], r"documents\[1\] must have the shape"),
        (np.ones((2, 4)), [np.ones((2, 5))], "4 dimensions.*5"),
        ("a question", [np.ones((2, 4))], "query must be vectors of tokens, .*'a question'"),
        (np.ones((2, 4)), {"first": np.ones((2, 4))}, r"documents\[0\] must be vectors of tokens, .*'first'"),
        (np.ones((2, 4)), [[[1, 2], [3]]], r"documents\[0\] must be vectors of tokens, "),
    ],
)
def test_wrong_shapes(query, documents, message):
    with pytest.raises(ArgumentError, match=message):
        maxsim(query, documents)


def test_several_threads_at_once():
    generator = np.random.default_rng(7)
    query = generator.standard_normal((32, 64)).astype(np.float32)
    documents = [generator.standard_normal((100, 64)).astype(np.float32) for _ in range(50)]
    want, found = maxsim(query, documents), []
    threads = [threading.Thread(target=lambda: found.append(maxsim(query, documents))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores in found:
        np.testing.assert_array_equal(scores, want)
    assert len(found) == 4
