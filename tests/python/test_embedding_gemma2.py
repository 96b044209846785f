"""EmbeddingGemma 2: wider heads in some layers, inputs that layers have of their own, vectors wider than states."""

from __future__ import annotations

import json
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
from model_manager.errors import UnsupportedModelError
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

ENCODERS = ("embedding_gemma2", "embedding_gemma2_text")


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_alone_and_together_are_the_same_to_the_bit(make_manager, name):
    assert_the_same_alone_and_together(make_manager, name)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.995), ("float16", 0.9999), ("int8", 0.98), ("int4", 0.7)])
def test_formats_of_weights(make_manager, name, dtype, least):
    assert_close_in(dtype, least, make_manager, name)


@pytest.mark.parametrize("name", ENCODERS)
def test_candles_operations_agree(make_manager, name):
    """What computes it on cards, for which there are no kernels of it."""
    assert_candle_agrees(make_manager, name)


def test_what_it_is(make_manager, command):
    family = next(family for family in _core._families() if family["model_type"] == "embedding_gemma2_text")
    assert (family["kinds"], family["gguf"]) == (["embedding"], {})
    manager = make_manager(device="cpu")
    manager.register("model", str(FIXTURES / "embedding_gemma2"), dtype="float32")
    assert manager.embed("Merhaba", model="model").shape == (32,)
    found = manager.describe("model")
    assert (found["engine"], found["architecture"]) == ("model_manager", "embedding_gemma2_text")
    assert found["prompts"]["document"] == "title: none | text: "
    doctor = command("doctor", str(FIXTURES / "embedding_gemma2"), "--json")
    assert doctor.code == 0, doctor.err
    report = json.loads(doctor.out)
    assert (report["family"], report["kind"]) == ("embedding_gemma2_text", "embedding")
    assert (report["hidden"], report["tasks"]) == (24, ["embed", "embed_multi"])


def test_a_token_that_stands_for_an_image_has_the_embedding_of_padding(make_manager, tmp_path: Path):
    """As in transformers, whose model replaces it before the table of words is read."""
    manager = make_manager(cache_size=0)
    manager.register("model", str(FIXTURES / "embedding_gemma2"), dtype="float32")
    images = manager.embed("bir [UNK] iki", model="model")
    whole = json.loads((FIXTURES / "embedding_gemma2" / "config.json").read_text("utf-8"))
    other = changed("embedding_gemma2", tmp_path / "other", image_token_id=258880)
    manager.register("other", str(other), dtype="float32")
    assert not np.array_equal(manager.embed("bir [UNK] iki", model="other"), images)
    # The table's row of the token is that of padding.
    path = other / "model.safetensors"
    tensors = load_file(path)
    words = tensors["language_model.embed_tokens.weight"]
    words[whole["image_token_id"]] = words[whole["text_config"]["pad_token_id"]]
    path.unlink()
    save_file(tensors, path)
    manager.register("padded", str(other), dtype="float32")
    assert np.array_equal(manager.embed("bir [UNK] iki", model="padded"), images)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("embedding_gemma2_text", {"layer_types": ["full_attention"]}, "layer_types"),
        ("embedding_gemma2_text", {"layer_types": ["full_attention"] * 2 + ["conv"]}, "layer_types"),
        ("embedding_gemma2_text", {"head_dim": 12}, "self_attn.q_proj.weight"),
        ("embedding_gemma2_text", {"global_head_dim": 40}, "self_attn.q_proj.weight"),
        ("embedding_gemma2_text", {"global_head_dim": 520}, "520 wide"),
        ("embedding_gemma2_text", {"per_layer_config": {"0": {"intermediate_size": 5}}}, "intermediate_size"),
        ("embedding_gemma2_text", {"hidden_size_per_layer_input": 6}, "ple.per_layer_model_projection"),
        ("embedding_gemma2_text", {"embedding_dim": 20}, "embedding_projection.weight"),
        ("embedding_gemma2_text", {"attention_bias": False}, "self_attn.*bias"),
        ("embedding_gemma2_text", {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}, "per_layer_model"),
        ("embedding_gemma2_text", {"rope_parameters": {"rope_theta": 10.0}}, "rope_parameters"),
        ("embedding_gemma2_text", {"rope_theta": 10.0}, "rope_theta"),
        ("embedding_gemma2_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("embedding_gemma2_text", {"num_kv_shared_layers": 1}, "num_kv_shared_layers"),
        ("embedding_gemma2", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_manager, tmp_path: Path, name, config, said):
    assert_refused(make_manager, tmp_path / "model", name, config, said)


def test_it_writes_no_text(make_writer):
    manager = make_writer("gpt2", generator_model=str(FIXTURES / "embedding_gemma2"))
    with pytest.raises(UnsupportedModelError, match="embedding_gemma2_text"):
        manager.complete("Merhaba")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("language_model.layers.3.input_layernorm.weight", "layers.3"),
        ("language_model.layers.0.self_attn.q_proj.bias", "q_proj.bias"),
        ("language_model.layers.0.per_layer_input_gate.weight", "per_layer_input_gate"),
    ],
)
def test_tensors_that_are_not_understood_are_refused(make_manager, tmp_path: Path, name, said):
    folder = changed("embedding_gemma2", tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    save_file({**tensors, name: np.ones(4, dtype=np.float32)}, path)
    manager = make_manager()
    manager.register("model", str(folder))
    with pytest.raises(Exception, match=said):
        manager.load("model")


def test_a_missing_tensor_is_named(make_manager, tmp_path: Path):
    folder = changed("embedding_gemma2", tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    del tensors["language_model.layers.1.layer_scalar"]
    save_file(tensors, path)
    manager = make_manager()
    manager.register("model", str(folder))
    with pytest.raises(Exception, match="layer_scalar"):
        manager.load("model")
