"""bge-m3: dense vectors, sparse vectors and vectors of tokens of one pass."""

from __future__ import annotations

import asyncio
import shutil

import numpy as np
import pytest
from conftest import FIXTURES, reference
from model_manager import EmbedOutputs
from model_manager.errors import ArgumentError, InvalidFileError, TaskError

TOLERANCE = {"rtol": 0, "atol": 2e-5}
ALL = ("dense", "sparse", "multi")


@pytest.fixture
def manager(make_manager):
    manager = make_manager(cache_size=0)
    manager.register("bge", str(FIXTURES / "bge_m3"), dtype="float32")
    manager.register("plain", str(FIXTURES / "bert_plain"), dtype="float32")
    return manager


def check(found, cases):
    assert isinstance(found, EmbedOutputs)
    for case, dense, sparse, multi in zip(cases, found.dense, found.sparse, found.multi, strict=True):
        np.testing.assert_allclose(dense, case["dense"], **TOLERANCE)
        assert sparse.indices.tolist() == case["indices"]
        np.testing.assert_allclose(sparse.values, case["values"], **TOLERANCE)
        np.testing.assert_allclose(multi, np.array(case["multi"], np.float32).reshape(-1, 12), **TOLERANCE)


def test_one_pass_gives_what_flag_embedding_computes(manager):
    cases = reference("bge_m3")["texts"]
    texts = [case["text"] for case in cases]
    found = manager.embed(texts, "bge", outputs=ALL)
    assert found.dense.shape == (len(texts), 24)
    check(found, cases)
    assert manager.stats()["queue"]["texts"] == len(set(texts))
    check(asyncio.run(manager.aembed(texts, "bge", outputs=ALL)), cases)
    assert manager.describe("bge")["tasks"] == ["embed", "embed_sparse", "embed_multi"]


IDS = [5, 6, 7]


@pytest.mark.parametrize("make", [list, tuple, set, np.array, iter, lambda ids: [np.int64(one) for one in ids]])
def test_ids_of_one_text_are_one(manager, make):
    found = manager.embed(make(IDS), "bge", outputs=ALL)
    np.testing.assert_array_equal(found.dense, manager.embed(IDS, "bge"))
    assert (found.dense.shape, found.multi.shape) == ((24,), (2, 12))
    assert found.sparse == manager.embed_sparse(IDS, "bge") == asyncio.run(manager.aembed_sparse(IDS, "bge"))
    again = asyncio.run(manager.aembed(IDS, "bge", outputs=("dense", "multi")))
    np.testing.assert_array_equal(again.dense, found.dense)
    for multi in (again.multi, manager.embed_multi(IDS, "bge"), asyncio.run(manager.aembed_multi(IDS, "bge"))):
        np.testing.assert_array_equal(multi, found.multi)


@pytest.mark.parametrize("make", [list, np.array, iter])
def test_ids_in_a_list_are_several(manager, make):
    found = manager.embed(make([IDS]), "bge", outputs=ALL)
    assert (found.dense.shape, len(found.sparse), [one.shape for one in found.multi]) == ((1, 24), 1, [(2, 12)])


def test_ids_of_a_model_that_gives_one_kind(manager):
    found = manager.embed(IDS, "plain", outputs=("dense", "multi"))
    assert (found.dense.ndim, found.multi.ndim) == (1, 2)
    assert manager.embed(IDS, "plain", outputs="dense").dense.shape == found.dense.shape


def test_each_alone_is_the_same(manager):
    cases = reference("bge_m3")["texts"][1:4]
    texts = [case["text"] for case in cases]
    each = (manager.embed(texts, "bge"), manager.embed_sparse(texts, "bge"), manager.embed_multi(texts, "bge"))
    check(EmbedOutputs(*each), cases)
    one = manager.embed(texts[0], "bge", outputs=["multi", "dense"])
    assert one.sparse is None
    assert one.dense.shape == (24,)
    np.testing.assert_array_equal(one.multi, manager.embed_multi(texts[0], "bge"))
    only = manager.embed(texts[0], "bge", outputs="sparse")
    assert only.sparse.indices.tolist() == cases[0]["indices"]
    assert (only.dense, only.multi) == (None, None)
    nothing = manager.embed([], "bge", outputs=ALL)
    assert (len(nothing.dense), nothing.sparse, nothing.multi) == (0, [], [])


def test_other_models_give_what_they_have(manager):
    found = manager.embed(["a text"], "plain", outputs=("dense", "multi"))
    np.testing.assert_array_equal(found.dense, manager.embed(["a text"], "plain"))
    np.testing.assert_array_equal(found.multi[0], manager.embed_multi("a text", "plain"))
    with pytest.raises(TaskError, match="no sparse vectors"):
        manager.embed("a text", "plain", outputs=ALL)


class Once:
    """Texts that can be read once and have a length, like a progress bar around a generator."""

    def __init__(self, texts):
        self.texts = iter(texts)

    def __iter__(self):
        return self.texts

    def __len__(self):
        return 3


@pytest.mark.parametrize("model", ["bge", "plain"])
@pytest.mark.parametrize("once", [iter, Once])
def test_texts_that_can_be_read_once_are_read_for_every_kind(manager, model, once):
    texts = ["one", "two", "three"]
    for found in (
        manager.embed(once(texts), model, outputs=("dense", "multi")),
        asyncio.run(manager.aembed(once(texts), model, outputs=("dense", "multi"))),
    ):
        np.testing.assert_array_equal(found.dense, manager.embed(texts, model))
        assert [rows.shape for rows in found.multi] == [rows.shape for rows in manager.embed_multi(texts, model)]


def test_no_texts_have_no_vectors_of_the_models_length(manager):
    assert manager.embed([], "bge", outputs=ALL).dense.shape == manager.embed([], "bge").shape == (0, 24)
    with pytest.raises(TypeError, match="not dict"):
        manager.embed({"one": 1}, "plain", outputs=("dense", "multi"))


@pytest.mark.parametrize("model", ["bge", "plain"])
def test_user_and_copy_are_keywords_with_outputs_too(manager, model):
    options = {"outputs": ("dense", "multi"), "user": "ayşe", "copy": True}
    for found in (
        manager.embed(["a text"], model, **options),
        asyncio.run(manager.aembed(["a text"], model, **options)),
    ):
        assert found.dense.flags.writeable
        np.testing.assert_array_equal(found.dense, manager.embed(["a text"], model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ()}, "must be some of"),
        ({"outputs": (["dense"], "sparse")}, "must be some of"),
        ({"outputs": ("dense", "tokens")}, "must be some of dense, sparse, multi"),
        ({"outputs": ALL, "truncate_dim": 3}, "truncate_dim"),
        ({"outputs": ALL, "model": None}, "name it"),
    ],
)
def test_wrong_arguments(manager, options, message):
    with pytest.raises(ArgumentError, match=message):
        manager.embed("a", **{"model": "bge", **options})


def test_a_damaged_layer_is_named(make_manager, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "bge_m3", folder)
    shutil.copy(folder / "colbert_linear.pt", folder / "sparse_linear.pt")
    manager = make_manager()
    manager.register("bge", str(folder))
    with pytest.raises(InvalidFileError, match=r"sparse_linear\.pt"):
        manager.embed("a", "bge")
