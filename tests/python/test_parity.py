"""The vectors equal those of sentence-transformers, alone and in a batch: every number within 1e-5, and a large one
within as small a part of it.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, real_model, reference

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
NAMES = sorted(
    path.parent.name
    for path in FIXTURES.glob("*/reference.json")
    if "dimensions" in json.loads(path.read_text(encoding="utf-8"))
)
REAL = sorted(path.stem for path in (FIXTURES / "real").glob("*.json"))


def test_there_are_references():
    assert {"bert_wordpiece", "bert_unigram", "xlmr", "bert_bin", "bert_sharded", "qwen3_embedding"} <= set(NAMES)
    assert REAL == ["all-MiniLM-L6-v2", "multilingual-e5-small"]


def check(manager, slot, expected):
    texts = [case["text"] for case in expected["cases"]]
    want = np.array([case["embedding"] for case in expected["cases"]], dtype=np.float32)
    options = {"normalize": expected["normalize"]}
    np.testing.assert_allclose(manager.embed(texts, slot, **options), want, **TOLERANCE)
    for text, row in zip(texts, want, strict=True):
        np.testing.assert_allclose(manager.embed(text, slot, **options), row, **TOLERANCE)
    for case in expected.get("prompted", []):
        prompt = {key: case[key] for key in ("prompt", "prompt_name") if key in case}
        np.testing.assert_allclose(
            manager.embed(case["text"], slot, **options, **prompt), case["embedding"], **TOLERANCE
        )


@pytest.mark.parametrize("name", NAMES)
def test_tiny_models(make_manager, name):
    manager, expected = make_manager(cache_size=0), reference(name)
    manager.register("model", str(FIXTURES / name), dtype="float32")
    check(manager, "model", expected)
    description = manager.describe("model")
    assert description["dimension"] == expected["dimensions"]
    assert description["max_length"] == expected["max_length"]
    assert description["normalizes"] == expected["normalize"]
    assert description["default_prompt_name"] == expected["default_prompt_name"]
    short = [case for case in expected["cases"] if len(case["ids"]) < expected["max_length"]]
    if expected["default_prompt_name"] is None:
        assert manager.count_tokens([case["text"] for case in short], "model") == [len(case["ids"]) for case in short]


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_models(make_manager, name):
    expected = json.loads((FIXTURES / "real" / f"{name}.json").read_text(encoding="utf-8"))
    manager = make_manager(cache_size=0)
    manager.register("model", real_model(name), dtype="float32")
    check(manager, "model", expected)


@pytest.mark.real
@pytest.mark.parametrize(("dtype", "cosine", "difference"), [("auto", 0.9998, 4e-3), ("int8", 0.997, 2e-2)])
def test_real_model_in_fewer_bits(make_manager, minilm, dtype, cosine, difference):
    expected = json.loads((FIXTURES / "real" / "all-MiniLM-L6-v2.json").read_text(encoding="utf-8"))
    manager = make_manager(cache_size=0)
    manager.register("model", minilm, dtype=dtype)
    want = np.array([case["embedding"] for case in expected["cases"]], dtype=np.float32)
    got = manager.embed([case["text"] for case in expected["cases"]], "model")
    assert np.sum(got * want, axis=1).min() >= cosine
    np.testing.assert_allclose(got, want, rtol=0, atol=difference)


@pytest.mark.real
def test_the_folder_may_be_relative_or_start_with_a_tilde(make_manager, minilm, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(ROOT))
    manager = make_manager()
    manager.register("relative", "./.models/all-MiniLM-L6-v2")
    manager.register("home", "~/.models/all-MiniLM-L6-v2")
    assert manager.embed("a text", "relative").tolist() == manager.embed("a text", "home").tolist()
