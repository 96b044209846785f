"""ConvBERT: attention next to convolutions along the text, alone and together, and heads that score."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import FIXTURES, reference
from model_manager import _core
from model_manager.errors import InvalidFileError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

ENCODERS = ("convbert", "convbert_grouped")
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def unit(vectors: Any) -> np.ndarray:
    vectors = np.array(vectors)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_alone_and_together_are_the_same_to_the_bit(make_manager, name):
    """transformers' convolutions see the padding of a batch; the references are those of each text alone."""
    manager = make_manager(cache_size=0)
    manager.register("model", str(FIXTURES / name), dtype="float32")
    cases = reference(name)["cases"]
    texts = [case["text"] for case in cases]
    together = manager.embed(texts, model="model")
    np.testing.assert_allclose(together, unit([case["embedding"] for case in cases]), **TOLERANCE)
    for text, vector in zip(texts, together, strict=True):
        assert np.array_equal(manager.embed(text, model="model"), vector), text
    states = manager.embed_multi(texts[:2], model="model")
    assert [state.shape[1] for state in states] == [together.shape[1]] * 2


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.998), ("int8", 0.99), ("int4", 0.85)])
def test_formats_of_weights(make_manager, name, dtype, least):
    manager = make_manager(cache_size=0)
    manager.register("model", str(FIXTURES / name), dtype=dtype)
    cases = reference(name)["cases"]
    vectors = manager.embed([case["text"] for case in cases], model="model")
    assert manager.describe("model")["dtype"] == dtype
    cosines = (vectors * unit([case["embedding"] for case in cases])).sum(axis=1)
    assert cosines.min() > least


def test_what_it_is(make_manager):
    family = next(family for family in _core._families() if family["model_type"] == "convbert")
    assert (family["kinds"], family["gguf"]) == (["embedding", "reranker"], {})
    manager = make_manager(device="cpu")
    manager.register("model", str(FIXTURES / "convbert"), dtype="float32")
    manager.embed("Merhaba", model="model")
    found = manager.describe("model")
    assert (found["engine"], found["architecture"]) == ("model_manager", "convbert")
    inspected = manager._inspect(str(FIXTURES / "convbert"), None)
    assert (inspected["family"], inspected["kind"], inspected["hidden"]) == ("convbert", "embedding", 40)


@pytest.mark.parametrize("name", [*ENCODERS, "rerank_convbert"])
def test_candles_operations_agree(make_manager, name):
    """What computes it on cards, for which there are no kernels of its convolutions."""
    expected = reference(name)
    manager = make_manager(device="candle-cpu", cache_size=0)
    manager.register("model", str(FIXTURES / name), dtype="float32")
    if name in ENCODERS:
        found = manager.embed([case["text"] for case in expected["cases"]], model="model")
        np.testing.assert_allclose(found, unit([case["embedding"] for case in expected["cases"]]), **TOLERANCE)
    else:
        pairs = expected["pairs"]
        found = manager.get("model").predict([case["pair"] for case in pairs], activation_fn="identity")
        want = [case["logits"] for case in pairs]
        np.testing.assert_allclose(found.reshape(len(want), -1), want, **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("convbert", {"conv_kernel_size": 8}, "conv_kernel_size is 8"),
        ("convbert", {"conv_kernel_size": 7}, "key_conv_attn_layer.depthwise.weight|conv_kernel_layer.weight"),
        ("convbert", {"head_ratio": 4}, "attention.self.conv_kernel_layer"),
        ("convbert", {"num_groups": 2}, "intermediate.dense.weight"),
        ("convbert", {"num_groups": 3}, "num_groups is 3"),
        ("convbert", {"linear_groups": 2}, "linear_groups is 2"),
        ("convbert", {"conv_type": "dconv"}, "conv_type"),
        ("convbert", {"embedding_size": 20}, "embeddings"),
        ("convbert", {"is_decoder": True}, "is_decoder"),
        ("convbert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("convbert", {"hidden_act": "mish"}, "hidden_act"),
        ("convbert", {"num_hidden_layers": 1}, "encoder.layer.1"),
        ("convbert_grouped", {"num_groups": 1}, "intermediate.dense.weight"),
        ("rerank_convbert", {"hidden_act": "gelu_new"}, "hidden_act"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_manager, tmp_path: Path, name, config, said):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / name, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | config), "utf-8")
    manager = make_manager()
    manager.register("model", str(folder))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load("model")
    assert not manager.is_loaded("model")


def test_keys_of_the_code_that_trained_the_published_models(make_manager, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "convbert", folder)
    path = folder / "config.json"
    published = {"conv_type": "sdconv", "linear_groups": 1, "directionality": "bidi", "classifier_dropout": 0.1}
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | published), "utf-8")
    manager = make_manager()
    manager.register("model", str(folder), dtype="float32")
    manager.register("plain", str(FIXTURES / "convbert"), dtype="float32")
    assert np.array_equal(manager.embed("Merhaba", "model"), manager.embed("Merhaba", "plain"))
