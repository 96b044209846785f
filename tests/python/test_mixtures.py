"""Mixtures of experts: text and vectors of each family, narrower weights, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import FIXTURES, changed, reference
from generators import (
    GREEDY,
    SLOT,
    assert_answers_of_transformers,
    assert_narrower,
    assert_vectors_do_not_depend_on_others,
)
from model_manager import _core
from model_manager.errors import ModelManagerError

FAMILIES = {
    "qwen3_moe": "qwen3moe",
    "mixtral": None,
    "olmoe": "olmoe",
    "lfm2_moe": "lfm2moe",
    "qwen2_moe": "qwen2moe",
    "granitemoe": "granitemoe",
}
SCORING = {"qwen3_moe", "mixtral", "qwen2_moe"}
"""Those that rerank and classify too."""
NAMES = (*FAMILIES, "qwen3_moe_mixed")


def test_the_families_and_files(command):
    families = {family["model_type"]: family for family in _core._families()}
    for name, gguf in FAMILIES.items():
        assert families[name]["kinds"] == ["embedding", "generator", *["reranker"] * (name in SCORING)]
        assert families[name]["gguf"] == ({gguf: ["generator"]} if gguf else {})
        doctor = command("doctor", str(FIXTURES / name), "--kind", "generator", "--json")
        assert doctor.code == 0, doctor.err
        assert json.loads(doctor.out)["family"] == name


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_transformers_alone_and_together(make_writer, name):
    manager = make_writer(name)
    assert_answers_of_transformers(manager, name)
    described = manager.describe_generator(SLOT)
    assert (described["engine"], described["dtype"]) == ("model_manager", "float32")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "int4"])
def test_weights_may_be_narrower(make_writer, name, dtype):
    assert_narrower(make_writer(name, generator_dtype=dtype), name, dtype)


@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_do_not_depend_on_the_texts_with_them(make_manager, name):
    assert_vectors_do_not_depend_on_others(make_manager(cache_size=0), name)


@pytest.mark.parametrize("attention", ["causal", "both"])
@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_are_those_of_transformers(make_manager, tmp_path, name, attention):
    change = {"is_causal": False} if attention == "both" else {}
    manager = make_manager(cache_size=0)
    folder = changed(name, tmp_path / "model", **change)
    options = {"pooling": "mean", "chat_template": False}
    manager.register("model", str(folder), kind="embedding", dtype="float32", **options)
    expected = json.loads((FIXTURES / "mixture_vectors.json").read_text("utf-8"))["vectors"][name][attention]
    texts = [case["prompt"] for case in reference(name)["cases"]]
    found = manager.embed(texts, "model", normalize=False)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_key_for_both_directions_that_transformers_ignores_is_refused(make_manager, tmp_path, name):
    manager = make_manager()
    folder = changed(name, tmp_path / "model", use_bidirectional_attention=True)
    manager.register("model", str(folder), kind="embedding", pooling="mean")
    with pytest.raises(ModelManagerError, match="use_bidirectional_attention"):
        manager.embed("Merhaba", "model")


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("qwen3_moe", {"num_experts": 0}, "num_experts is 0"),
        ("qwen3_moe", {"num_experts": 9}, "mlp.gate.weight"),
        ("qwen3_moe", {"moe_intermediate_size": 13}, "experts.0"),
        ("qwen3_moe", {"num_experts_per_tok": 9}, "9 of 8"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp.gate_proj"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 9}, "shared_expert_intermediate_size"),
        ("mixtral", {"num_local_experts": 5}, "block_sparse_moe.gate"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv"),
        ("olmoe", {"n_group": 2}, "n_group"),
        ("lfm2_moe", {"use_expert_bias": False}, "expert_bias"),
        ("lfm2_moe", {"layer_types": None}, "layer_types"),
        ("lfm2_moe", {"full_attn_idxs": [1]}, "full_attn_idxs"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 21}, "shared_expert"),
        ("granitemoe", {"shared_intermediate_size": 20}, "shared_intermediate_size"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_writer, tmp_path, name, change, word):
    manager = make_writer(name, generator_model=str(changed(name, tmp_path / "model", **change)))
    with pytest.raises(ModelManagerError, match=word):
        manager.complete([1, 2], max_new_tokens=1, **GREEDY)


def test_what_is_for_training_changes_nothing(make_writer, tmp_path):
    change = {"router_aux_loss_coef": 0.5, "output_router_logits": True, "router_jitter_noise": 0.1}
    manager = make_writer("mixtral", generator_model=str(changed("mixtral", tmp_path / "model", **change)))
    assert_answers_of_transformers(manager, "mixtral")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        # What Qwen3-Coder-30B-A3B-Instruct has in addition.
        ("qwen3_moe", {"use_qk_norm": True, "shared_expert_intermediate_size": 0, "qkv_bias": False}),
        # Keys of other families.
        ("mixtral", {"norm_topk_prob": False, "qkv_bias": False, "use_expert_bias": False}),
        ("granitemoe", {"norm_topk_prob": False}),
        ("qwen2", {"qkv_bias": False, "norm_topk_prob": False}),
    ],
)
def test_what_transformers_does_not_read_changes_nothing(make_writer, tmp_path, name, change):
    manager = make_writer(name, generator_model=str(changed(name, tmp_path / "model", **change)))
    assert_answers_of_transformers(manager, name)
