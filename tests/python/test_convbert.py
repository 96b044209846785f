"""ConvBERT: attention next to convolutions along the text, alone and together, and heads that score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import FIXTURES, changed
from encoder_checks import (
    assert_candle_agrees,
    assert_close_in,
    assert_refused,
    assert_the_same_alone_and_together,
)
from model_manager import _core

if TYPE_CHECKING:
    from pathlib import Path

ENCODERS = ("convbert", "convbert_grouped")


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_alone_and_together_are_the_same_to_the_bit(make_manager, name):
    """transformers' convolutions see the padding of a batch; the references are those of each text alone."""
    assert_the_same_alone_and_together(make_manager, name)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.998), ("float16", 0.9995), ("int8", 0.99), ("int4", 0.85)])
def test_formats_of_weights(make_manager, name, dtype, least):
    assert_close_in(dtype, least, make_manager, name)


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
    assert_candle_agrees(make_manager, name)


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
    assert_refused(make_manager, tmp_path / "model", name, config, said)


def test_keys_of_the_code_that_trained_the_published_models(make_manager, tmp_path: Path):
    published = {"conv_type": "sdconv", "linear_groups": 1, "directionality": "bidi", "classifier_dropout": 0.1}
    manager = make_manager()
    manager.register("model", str(changed("convbert", tmp_path / "model", **published)), dtype="float32")
    manager.register("plain", str(FIXTURES / "convbert"), dtype="float32")
    assert np.array_equal(manager.embed("Merhaba", "model"), manager.embed("Merhaba", "plain"))
