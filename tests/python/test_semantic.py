"""`model_manager.semantic`: exact search against a sort of scores, groups against sentence-transformers, intents."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import ENGLISH_MODEL, FIXTURES, TURKISH_MODEL, tiny
from hypothesis import given, settings, strategies as st
from model_manager import errors
from model_manager.semantic import (
    IntentClassifier,
    duplicates,
    near_duplicates,
    pairwise_similarity,
    search,
    semantic_search,
)
from model_manager.semantic.rows import prepare

QUESTION = "Çalışma saatleri nedir?"


# --- Search ----------------------------------------------------------------------------------------------------------


def naive(queries, corpus, k, measure):
    """All scores, sorted; equal scores in the order of the corpus."""
    q, c = np.asarray(queries, np.float64), np.asarray(corpus, np.float64)
    if measure == "cosine":
        q, c = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30) for rows in (q, c))
    scores = q @ c.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("measure", ["cosine", "dot"])
@pytest.mark.parametrize("k", [1, 7, 500, 2000])
def test_search_is_exact_over_blocks(monkeypatch, measure, k):
    monkeypatch.setattr(search, "_CORPUS_ROWS", 100)
    monkeypatch.setattr(search, "_QUERY_ROWS", 16)
    rng = np.random.default_rng(3)
    corpus, queries = rng.normal(size=(1234, 24)).astype(np.float32), rng.normal(size=(50, 24)).astype(np.float32)
    found = semantic_search(queries, corpus, k, measure=measure)
    indices, scores = naive(queries, corpus, k, measure)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    assert all(len(set(row)) == len(row) for row in found.indices.tolist())
    # Two scores closer than rounding may change places; no others do.
    moved = found.indices != indices
    every = naive(queries, corpus, len(corpus), measure)
    by_row = np.take_along_axis(every[1], np.argsort(every[0], axis=1), axis=1)
    np.testing.assert_allclose(np.take_along_axis(by_row, found.indices, axis=1), scores, atol=1e-5)
    assert moved.mean() < 0.05
    assert (found.indices.dtype, found.scores.dtype) == (np.int64, np.float32)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), st.randoms(use_true_random=False))
def test_equal_scores_keep_the_order_of_the_corpus(rows, k, block, spread, random):
    # Small whole numbers: products are exact, and most scores are equal to others.
    corpus = np.array([[random.randint(-spread, spread) for _ in range(2)] for _ in range(rows)], np.float32)
    queries = np.array([[random.randint(-2, 2) for _ in range(2)] for _ in range(3)], np.float32)
    before, search._CORPUS_ROWS = search._CORPUS_ROWS, block
    try:
        found = semantic_search(queries, corpus, k, measure="dot")
    finally:
        search._CORPUS_ROWS = before
    indices, scores = naive(queries, corpus, k, "dot")
    assert found.indices.tolist() == indices.tolist()
    assert found.scores.tolist() == scores.tolist()


def test_search_reads_a_mapped_file_of_half_precision(tmp_path):
    corpus = np.random.default_rng(5).normal(size=(300, 16)).astype(np.float16)
    np.save(tmp_path / "corpus.npy", corpus)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    found = semantic_search(corpus[:4], mapped, 3)
    assert found.indices[:, 0].tolist() == [0, 1, 2, 3]
    assert found.pairs(2)[0] == (2, pytest.approx(1.0, abs=1e-6))


def test_search_of_one_vector_of_nothing_and_of_zeros():
    corpus = np.eye(3, dtype=np.float32)
    assert semantic_search(corpus[1], corpus, 1).pairs() == [(1, 1.0)]
    assert semantic_search(np.empty((0, 3)), corpus).indices.shape == (0, 3)
    assert semantic_search(corpus, []).indices.shape == (3, 0)
    assert semantic_search(np.zeros(3), corpus, 2).pairs() == [(0, 0.0), (1, 0.0)]
    # Lengths whose squares leave float32.
    assert semantic_search(np.full(3, 1e30), np.full((1, 3), 1e-30), 1).pairs() == [(0, pytest.approx(1.0))]


@pytest.mark.parametrize(
    ("arguments", "options", "param", "words"),
    [
        ((np.ones((1, 3)), np.ones((2, 4))), {}, "queries", "3 dimensions, the corpus has 4"),
        ((np.ones((1, 3)), np.ones((2, 3)), 0), {}, "k", "at least 1"),
        ((np.ones((1, 3)), np.ones((2, 3))), {"measure": "euclid"}, "measure", "cosine, dot"),
        ((np.ones((1, 3)), [[1, 2, 3], [1, np.nan, 3]]), {}, "corpus", r"corpus\[1\] holds NaN"),
        (([[np.inf, 1]], np.ones((2, 2))), {}, "queries", r"queries\[0\] holds NaN or infinity"),
        ((np.ones((1, 1, 3)), np.ones((2, 3))), {}, "queries", "shape"),
        ((["text"], np.ones((2, 3))), {}, "queries", "not texts: embed them"),
        (([[1, 2], [3]], np.ones((2, 3))), {}, "queries", "same length"),
    ],
)
def test_search_names_what_is_wrong(arguments, options, param, words):
    with pytest.raises(errors.ArgumentError, match=words) as caught:
        semantic_search(*arguments, **options)
    assert caught.value.param == param


def test_pairs_are_compared_row_by_row():
    a, b = np.array([[3.0, 4], [1, 0], [0, 0]]), np.array([[4.0, 3], [-2, 0], [1, 1]])
    np.testing.assert_allclose(pairwise_similarity(a, b), [0.96, -1, 0], atol=1e-6)
    np.testing.assert_allclose(pairwise_similarity(a, b, measure="dot"), [24, -2, 0])
    with pytest.raises(errors.ArgumentError, match="one row for each pair"):
        pairwise_similarity(a, b[:2])
    with pytest.raises(errors.ArgumentError, match="cosine, dot") as caught:
        pairwise_similarity(a, b, measure="euclid")
    assert caught.value.param == "measure"


def test_ten_matches_without_a_number():
    assert semantic_search(np.eye(12), np.eye(12)).indices.shape == (12, 10)


# --- Near duplicates -------------------------------------------------------------------------------------------------


def test_groups_are_those_of_sentence_transformers():
    cases = json.loads((FIXTURES / "semantic" / "reference.json").read_text())["communities"]
    assert len(cases) == 4
    for case in cases:
        rng = np.random.default_rng(case["seed"])
        centers = rng.normal(size=(case["clusters"], 16))
        rows = centers[rng.integers(0, case["clusters"], case["rows"])] + case["noise"] * rng.normal(
            size=(case["rows"], 16)
        )
        groups = near_duplicates(rows.astype(np.float32), case["threshold"], case["min_size"])
        assert sorted(sorted(group.tolist()) for group in groups) == sorted(sorted(group) for group in case["groups"])
        assert [len(group) for group in groups] == sorted((len(group) for group in groups), reverse=True)


def test_exact_copies_are_one_group_at_a_threshold_of_one():
    rows = np.random.default_rng(1).normal(size=(6, 40)).astype(np.float32)
    rows[[2, 5]] = rows[0]
    groups = near_duplicates(rows, 1.0)
    assert [sorted(group.tolist()) for group in groups] == [[0, 2, 5]]
    assert near_duplicates(np.empty((0, 4))) == []
    assert [group.tolist() for group in near_duplicates(np.eye(2), 0.5, 1)] == [[0], [1]]


def test_copies_in_other_blocks_belong_to_their_center(monkeypatch):
    """A center comes before its exact copies wherever they stand. Their products differ by rounding alone."""
    monkeypatch.setattr(search, "_CORPUS_ROWS", 100)
    rows = np.random.default_rng(3).normal(size=(600, 64)).astype(np.float32)
    for copies in (range(10, 600, 37), (255, 256, 511, 512)):
        rows[list(copies)] = rows[copies[0]]
    groups = [group.tolist() for group in near_duplicates(rows, 0.999, 2)]
    expected = [(10, list(range(10, 600, 37))), (255, [255, 256, 511, 512])]
    assert [(group[0], sorted(group)) for group in groups] == expected
    for first in (0, 256, 512):
        queries = prepare(rows[first : first + 256], "vectors", "cosine", first)
        centers = [group[0] for group in duplicates._neighborhoods(queries, rows, first, 0.999)]
        assert centers == list(range(first, first + len(queries)))


@pytest.mark.parametrize(
    ("threshold", "size", "param"), [(0, 2, "threshold"), (1.1, 2, "threshold"), (0.5, 0, "min_size")]
)
def test_groups_name_what_is_wrong(threshold, size, param):
    with pytest.raises(errors.ArgumentError) as caught:
        near_duplicates(np.eye(2), threshold, size)
    assert caught.value.param == param


def test_texts_are_no_vectors():
    for texts in ("a text", ["a", "b"], np.array(["a", "b"], dtype=object)):
        with pytest.raises(errors.ArgumentError, match="must be vectors, not texts: embed them first"):
            near_duplicates(texts)


# --- Intents ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def manager():
    with tiny() as made:
        yield made


def test_an_intent_is_that_of_the_slots_present_model():
    examples = {
        "hours": ["When are you open?", "Çalışma saatleriniz nedir?"],
        "invoice": ["Send the invoice", "Fatura gönderin"],
    }
    with tiny() as manager:
        manager.register("m", TURKISH_MODEL)
        intents = IntentClassifier(examples, manager, "m")
        intents.predict("Send the invoice again")
        for model in (ENGLISH_MODEL, str(FIXTURES / "bert_bin"), TURKISH_MODEL):
            manager.register("m", model, replace=True)
            found = intents.predict("Send the invoice again")
            assert found == IntentClassifier(examples, manager, model).predict("Send the invoice again")


@pytest.mark.parametrize("other", ["bert_max", "bert_cls"], ids=["same width", "another width"])
def test_a_slot_with_another_model_embeds_the_examples_again(other):
    examples = {"hours": ["When are you open?"], "invoice": ["Where is my invoice?"]}
    with tiny(cache_size=0) as manager:
        manager.register("s", str(FIXTURES / "bert_plain"))
        intents = IntentClassifier(examples, manager, "s")
        before = intents.predict("Please send the invoice.")
        manager.register("s", str(FIXTURES / other), replace=True)
        after = intents.predict("Please send the invoice.")
        fresh = IntentClassifier(examples, manager, "s").predict("Please send the invoice.")
    assert after.scores == pytest.approx(fresh.scores, abs=1e-6)
    assert after.scores != pytest.approx(before.scores, abs=1e-3)


EXAMPLES = {
    "hours": ["When are you open?", "What are your opening hours?", "Çalışma saatleriniz nedir?"],
    "contact": ["How can I reach you?", "What is your phone number?", "Telefon numaranız nedir?", "E-mail?"],
}


@pytest.mark.parametrize(("options", "count"), [({"neighbors": 2}, 2), ({"neighbors": 1}, 1), ({}, 3)], ids=str)
def test_an_intent_is_the_mean_of_its_nearest_examples(manager, options, count):
    intents = IntentClassifier(EXAMPLES, manager, **options)
    text = "What are the opening hours?"
    vectors = manager.embed([text, *EXAMPLES["hours"], *EXAMPLES["contact"]], "turkish_sentence")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit[1:] @ unit[0]
    expected = {"hours": np.sort(cosines[:3])[-count:].mean(), "contact": np.sort(cosines[3:])[-count:].mean()}
    found = intents.predict(text)
    assert found.scores == {label: pytest.approx(score, abs=1e-6) for label, score in expected.items()}
    best = max(expected, key=expected.get)
    assert (found.label, found.score) == (best, found.scores[best])
    own = cosines[:3] if best == "hours" else cosines[3:]
    assert found.example == EXAMPLES[best][int(np.argmax(own))]
    assert intents.predict_many([text, EXAMPLES["contact"][1]])[1].label == "contact"
    assert intents.predict_many([]) == []
    assert "2 intents, 7 examples" in repr(intents)


def test_below_the_threshold_there_is_no_intent(manager):
    intents = IntentClassifier(EXAMPLES, manager, threshold=0.999)
    found = intents.predict("Bambaşka bir cümle, hiçbir şeyle ilgisi yok")
    assert found.label is None
    assert found.score == max(found.scores.values()) < 0.999
    assert IntentClassifier({"tek": ["bir"]}, manager).predict("bir").score == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("examples", "options", "words"),
    [
        ({}, {}, "at least one intent"),
        ({"a": []}, {}, "'a' has no examples"),
        ({"a": [" "]}, {}, "blank"),
        ({"a": ["x"], "b": ["x"]}, {}, "'a' and of 'b'"),
        ({"a": ["x"]}, {"neighbors": 0}, "neighbors=0"),
        ({"a": ["x"]}, {"threshold": 3}, "threshold=3"),
    ],
)
def test_wrong_examples_are_named(manager, examples, options, words):
    with pytest.raises(errors.ArgumentError, match=words):
        IntentClassifier(examples, manager, **options)


def test_examples_of_a_wrong_type(manager):
    with pytest.raises(TypeError, match=r"examples\['a'\] must be a list of texts, not str"):
        IntentClassifier({"a": "x"}, manager)
    with pytest.raises(TypeError, match=r"examples\['a'\]\[0\] must be a str, not int"):
        IntentClassifier({"a": [3]}, manager)
    with pytest.raises(TypeError, match="examples must be a mapping of intents"):
        IntentClassifier(["x"], manager)
    for wrong in ({"x": "y"}, b"x"):
        with pytest.raises(TypeError, match=r"examples\['a'\] must be a list of texts, not"):
            IntentClassifier({"a": wrong}, manager)
    with pytest.raises(errors.ArgumentError, match="'a' has no examples"):
        IntentClassifier({"a": iter([])}, manager)
    intents = IntentClassifier({"a": ["x"]}, manager)
    with pytest.raises(TypeError, match="text must be a str, not list"):
        intents.predict(["x"])
    with pytest.raises(errors.ArgumentError, match=r"texts\[1\] is blank"):
        intents.predict_many(["x", " "])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantized_rows_are_no_vectors(dtype):
    exact, quantized = np.eye(3, dtype=np.float32), np.eye(3, dtype=dtype)
    calls = {
        "queries": lambda: semantic_search(quantized, exact),
        "corpus": lambda: semantic_search(exact, quantized),
        "vectors": lambda: near_duplicates(quantized),
    }
    for name, call in calls.items():
        with pytest.raises(
            errors.ArgumentError, match=f"{name} holds {np.dtype(dtype)}, as encode gives it with precision="
        ):
            call()
    assert semantic_search(np.eye(3, dtype=np.int64), exact).indices[:, 0].tolist() == [0, 1, 2]
