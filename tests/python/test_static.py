"""Static models: the numbers of model2vec and of sentence-transformers, what describes them, what is refused."""

from __future__ import annotations

import json
import shutil
import struct

import numpy as np
import pytest
from conftest import FIXTURES, reference
from model_manager.errors import ModelManagerError, TaskError

NAMES = ("model2vec", "model2vec_words", "model2vec_modules", "static_embedding")
TOLERANCE = {"rtol": 0, "atol": 3e-6}


def open_model(make_manager, name, **options):
    manager = make_manager(cache_size=0)
    manager.register("static", str(FIXTURES / name), **options)
    return manager


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["auto", "float32", "int8"])
def test_vectors_are_those_of_the_references(make_manager, name, dtype):
    manager, expected = open_model(make_manager, name, dtype=dtype), reference(name)["cases"]
    plain = [case for case in expected if "prompt_name" not in case]
    described = manager.describe("static")
    own = {"normalize": described["normalizes"]}
    want = np.array([case["embedding"] for case in plain], np.float32)
    together = manager.embed([case["text"] for case in plain], "static", **own)
    np.testing.assert_allclose(together, want, **TOLERANCE)
    for case, row in zip(plain, together, strict=True):
        np.testing.assert_array_equal(manager.embed(case["text"], "static", **own), row)
    for case in expected:
        if "prompt_name" in case:
            found = manager.embed(case["text"], "static", prompt_name=case["prompt_name"], **own)
            np.testing.assert_allclose(found, case["embedding"], **TOLERANCE)


def test_a_text_without_known_tokens_is_zeros(make_manager):
    manager = open_model(make_manager, "model2vec_words")
    for text in ("", "   ", "qqqqq zzzzz"):
        np.testing.assert_array_equal(manager.embed(text, "static"), np.zeros(12))
        np.testing.assert_array_equal(manager.embed(text, "static", normalize=True), np.zeros(12))


def test_what_describes_it(make_manager):
    manager = open_model(make_manager, "model2vec")
    described = manager.describe("static")
    assert (described["architecture"], described["dtype"], described["pooling"]) == ("model2vec", "int8", "mean")
    assert (described["dimension"], described["max_length"], described["normalizes"]) == (12, 512, True)
    assert described["tasks"] == ["embed"]
    assert 0 < described["bytes"] < 20_000
    assert manager.stats()["slots"]["static"]["kind"] == "embedding"
    described = open_model(make_manager, "static_embedding").describe("static")
    assert (described["architecture"], described["max_length"]) == ("StaticEmbedding", None)
    assert set(described["prompts"]) == {"query", "passage", "document"}


def test_lengths_and_chunks(make_manager):
    manager = open_model(make_manager, "static_embedding")
    text = "The order will be shipped. " * 500
    assert manager.count_tokens(text, "static") > 2500
    whole = manager.embed(text, "static", truncate=False)
    np.testing.assert_allclose(np.linalg.norm(whole), 1, atol=1e-6)
    assert len(manager.chunk(text, "static")) == 1
    assert len(manager.chunk(text, "static", max_tokens=100)) > 20
    manager.register("short", str(FIXTURES / "static_embedding"), max_length=5)
    np.testing.assert_array_equal(
        manager.embed("The order will be shipped now or later.", "short"),
        manager.embed("The order will be shipped.", "short", truncate=True),
    )


def test_fewer_dimensions(make_manager):
    manager = open_model(make_manager, "static_embedding")
    whole = manager.embed("The order will be shipped.", "static")
    short = manager.embed("The order will be shipped.", "static", truncate_dim=4)
    np.testing.assert_allclose(short, whole[:4] / np.linalg.norm(whole[:4]), atol=1e-6)


def test_tasks_of_transformers_are_refused(make_manager):
    manager = open_model(make_manager, "static_embedding")
    with pytest.raises(TaskError):
        manager.embed_multi("text", "static")
    with pytest.raises(TaskError):
        manager.embed_sparse("text", "static")


def test_rows_that_are_not_numbers(make_manager, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "static_embedding", folder)
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    raw[start:] = b"\xff" * (len(raw) - start)
    path.write_bytes(raw)
    manager = make_manager(cache_size=0)
    manager.register("static", str(folder))
    with pytest.raises(ModelManagerError, match=r"finite|NaN|not a number"):
        manager.embed("The order will be shipped.", "static")


def test_a_package_without_modules(make_manager, tmp_path, monkeypatch):
    package = tmp_path / "static_package"
    shutil.copytree(FIXTURES / "model2vec", package / "model")
    (package / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    manager = make_manager()
    manager.register("static", "pkg:static_package/model")
    case = reference("model2vec")["cases"][0]
    np.testing.assert_allclose(manager.embed(case["text"], "static"), case["embedding"], **TOLERANCE)


def test_a_classifier_on_a_table_is_refused(make_manager, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "model2vec", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "head_config": {"labels": ["a"]}}), encoding="utf-8")
    manager = make_manager()
    manager.register("static", str(folder))
    with pytest.raises(ModelManagerError, match="head_config"):
        manager.embed("text", "static")
