"""DeBERTa-v2 and -v3: attention with relative positions, a convolution, and heads that score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import FIXTURES, reference
from encoder_checks import (
    TOLERANCE,
    assert_candle_agrees,
    assert_close_in,
    assert_refused,
    assert_the_same_alone_and_together,
)
from model_manager.errors import TaskError

if TYPE_CHECKING:
    from pathlib import Path

ENCODERS = ("deberta_v3", "deberta_v2", "deberta_c2p")


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_alone_and_together_are_the_same_to_the_bit(make_manager, name):
    assert_the_same_alone_and_together(make_manager, name)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.999), ("float16", 0.9999), ("int8", 0.995), ("int4", 0.9)])
def test_formats_of_weights(make_manager, name, dtype, least):
    assert_close_in(dtype, least, make_manager, name)


def test_what_it_is(make_manager):
    manager = make_manager(device="cpu")
    manager.register("model", str(FIXTURES / "deberta_v3"), dtype="float32")
    manager.embed("Merhaba", model="model")
    found = manager.describe("model")
    assert (found["engine"], found["architecture"]) == ("model_manager", "deberta-v2")
    # Words, and in each layer the keys and queries of sixteen relative positions.
    assert found["bytes"] > 4 * 24 * (275 + 2 * 2 * 16)


@pytest.mark.parametrize("name", [*ENCODERS, "rerank_deberta", "nli_deberta"])
def test_candles_operations_agree(make_manager, name):
    """What computes it on cards for which there are no kernels of its attention."""
    assert_candle_agrees(make_manager, name)


@pytest.mark.parametrize("name", ["rerank_deberta", "nli_deberta"])
def test_scores_are_those_of_sentence_transformers(make_manager, name):
    manager = make_manager()
    manager.register("model", str(FIXTURES / name), dtype="float32")
    expected = reference(name)["pairs"]
    for key, activation in (("logits", "identity"), ("scores", None)):
        found = manager.get("model").predict([case["pair"] for case in expected], activation_fn=activation)
        want = [case[key] for case in expected]
        np.testing.assert_allclose(found.reshape(len(want), -1), want, **TOLERANCE)
    labels = reference(name)["labels"]
    assert manager.describe("model")["labels"] == labels
    assert sorted(manager.classify("Merhaba", model="model").scores) == sorted(labels)
    if len(labels) == 1:
        ranked = manager.rerank("başkent?", ["Ankara", "köpek", "Ankara"], model="model")
        assert sorted(one.index for one in ranked) == [0, 1, 2]
    with pytest.raises(TaskError, match="scores"):
        manager.embed("a", model="model")


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("deberta_v3", {"pos_att_type": "p2p"}, "pos_att_type"),
        ("deberta_v3", {"norm_rel_ebd": "rms"}, "norm_rel_ebd"),
        ("deberta_v3", {"position_buckets": 3}, "position_buckets"),
        ("deberta_v3", {"attention_head_size": 5}, "attention_head_size"),
        ("deberta_v3", {"z_steps": 2}, "z_steps"),
        ("deberta_v3", {"max_position_embeddings": 1 << 20, "max_relative_positions": 32}, "max_position_embeddings"),
        ("deberta_v2", {"conv_kernel_size": 4}, "conv_kernel_size"),
        ("deberta_v2", {"conv_act": "mish"}, "conv_act"),
        ("deberta_v2", {"conv_groups": 5}, "conv_groups"),
        ("deberta_v2", {"conv_kernel_size": 5}, "encoder.conv.conv.weight"),
        ("deberta_v3", {"share_att_key": False}, "pos_key_proj"),
        ("deberta_v3", {"type_vocab_size": 2}, "token_type_embeddings"),
        ("rerank_deberta", {"pooler_hidden_act": "mish"}, "pooler_hidden_act"),
        ("rerank_deberta", {"pooler_hidden_size": 48}, "pooler_hidden_size"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_manager, tmp_path: Path, name, config, said):
    assert_refused(make_manager, tmp_path / "model", name, config, said)
