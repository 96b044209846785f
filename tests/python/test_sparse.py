"""Sparse vectors and vectors of tokens: the numbers of sentence-transformers, forms, and what is refused."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from conftest import FIXTURES, reference
from model_manager import SparseVector, maxsim
from model_manager.errors import TaskError, UnsupportedModelError

NAMES = ("splade_bert", "splade_xlmr", "splade_distilbert")
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def dense(vector, width):
    full = np.zeros(width, np.float32)
    full[vector.indices] = vector.values
    return full


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [None, "sparse"])
def test_weights_are_those_of_sentence_transformers(make_manager, name, kind):
    manager, expected = make_manager(), reference(name)
    manager.register("sparse", str(FIXTURES / name), dtype="float32", kind=kind)
    cases, width = expected["texts"], expected["vocabulary"]
    together = manager.embed_sparse([case["text"] for case in cases], "sparse")
    for case, vector in zip(cases, together, strict=True):
        want = np.zeros(width, np.float32)
        want[case["indices"]] = case["values"]
        assert vector.indices.dtype == np.uint32
        assert vector.values.dtype == np.float32
        assert (np.diff(vector.indices.astype(int)) > 0).all()
        assert (vector.values > 0).all()
        np.testing.assert_allclose(dense(vector, width), want, **TOLERANCE)
        alone = manager.embed_sparse(case["text"], "sparse")
        np.testing.assert_array_equal(dense(alone, width), dense(vector, width))
    described = manager.describe("sparse")
    assert (described["sparse_dimension"], described["dimension"]) == (width, 0)
    assert described["tasks"] == ["embed_sparse"]
    assert manager.stats()["slots"]["sparse"]["kind"] == "sparse"


def test_bfloat16_stays_near(make_manager):
    manager, expected = make_manager(), reference("splade_bert")
    manager.register("sparse", str(FIXTURES / "splade_bert"), dtype="bfloat16")
    for case in expected["texts"]:
        want = np.zeros(expected["vocabulary"], np.float32)
        want[case["indices"]] = case["values"]
        found = dense(manager.embed_sparse(case["text"], "sparse"), expected["vocabulary"])
        np.testing.assert_allclose(found, want, rtol=0, atol=0.15)


def test_forms(make_manager):
    scipy = pytest.importorskip("scipy.sparse")
    manager = make_manager()
    manager.register("sparse", str(FIXTURES / "splade_bert"), dtype="float32")
    texts = ["Kargom nerede?", "Where is my parcel?", ""]
    vectors = manager.embed_sparse(texts, "sparse")
    matrix = manager.embed_sparse(texts, "sparse", form="scipy")
    assert isinstance(matrix, scipy.csr_array)
    width = manager.describe("sparse")["sparse_dimension"]
    np.testing.assert_array_equal(matrix.toarray(), [dense(vector, width) for vector in vectors])
    assert manager.embed_sparse([], "sparse") == []
    assert manager.embed_sparse([], "sparse", form="scipy").shape == (0, width)
    with pytest.raises(ValueError, match="form"):
        manager.embed_sparse("a", "sparse", form="torch")


def test_similarity_and_asyncio(make_manager):
    manager = make_manager(cache_size=10)
    manager.register("sparse", str(FIXTURES / "splade_bert"), dtype="float32")
    one, other = manager.embed_sparse(["Kargom nerede?", "Where is my parcel?"], "sparse")
    width = manager.describe("sparse")["sparse_dimension"]
    assert one.dot(other) == pytest.approx(float(dense(one, width) @ dense(other, width)), rel=1e-5)
    assert SparseVector(np.empty(0, np.uint32), np.empty(0, np.float32)).dot(one) == 0
    found = asyncio.run(manager.aembed_sparse("Kargom nerede?", "sparse"))
    np.testing.assert_array_equal(found.values, one.values)
    assert manager.stats()["queue"]["texts"] == 2


def test_tokens_have_their_states(make_manager):
    manager, expected = make_manager(), reference("bert_plain")
    manager.register("plain", str(FIXTURES / "bert_plain"), dtype="float32")
    cases = expected["pooled"]
    found = manager.embed_multi([case["text"] for case in cases], "plain")
    for case, rows in zip(cases, found, strict=True):
        np.testing.assert_allclose(rows, case["states"], **TOLERANCE)
        alone = manager.get("plain").encode(case["text"], output_value="token_embeddings")
        np.testing.assert_array_equal(alone, rows)
        mean = manager.embed(case["text"], "plain", normalize=False)
        np.testing.assert_allclose(rows.mean(axis=0), mean, **TOLERANCE)
    np.testing.assert_array_equal(asyncio.run(manager.aembed_multi(cases[0]["text"], "plain")), found[0])


def test_maxsim():
    generator = np.random.default_rng(5)
    query = generator.standard_normal((4, 8)).astype(np.float32)
    documents = [generator.standard_normal((count, 8)).astype(np.float32) for count in (3, 0, 1, 7)]
    want = [(query @ document.T).max(axis=1).sum() if len(document) else -np.inf for document in documents]
    np.testing.assert_allclose(maxsim(query, documents), want, rtol=1e-5)
    assert maxsim(query, []).shape == (0,)
    np.testing.assert_array_equal(maxsim(query[:0], documents), np.zeros(4))


def test_another_task_is_refused_by_name(make_manager):
    manager = make_manager()
    manager.register("sparse", str(FIXTURES / "splade_bert"))
    with pytest.raises(TaskError, match=r"\"sparse\" gives no vectors .*it gives sparse vectors \(embed_sparse\)"):
        manager.embed("a", "sparse")
    with pytest.raises(TaskError, match="gives no sparse vectors"):
        manager.embed_sparse("a", "english_sentence")
    with pytest.raises(TaskError, match="gives no scores"):
        manager.rerank("a", ["b"], "sparse")


def test_other_modules_are_refused(make_manager, tmp_path):
    for file in (FIXTURES / "splade_bert").rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(FIXTURES / "splade_bert")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    config = tmp_path / "1_SpladePooling" / "config.json"
    config.write_text('{"pooling_strategy": "mean"}')
    manager = make_manager()
    manager.register("sparse", str(tmp_path))
    with pytest.raises(UnsupportedModelError, match=r"pooling_strategy.*max and sum"):
        manager.embed_sparse("a", "sparse")
