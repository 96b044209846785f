"""Families with other forms of norms, perceptrons or blocks than Llama: text, vectors, and what is refused."""

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

FORMS = {
    "cohere": "command-r",
    "cohere2": "cohere2",
    "olmo3": None,
    "granitemoehybrid": None,
    "hunyuan_v1_dense": "hunyuan-dense",
    "ernie4_5": "ernie4_5",
    "seed_oss": "seed_oss",
    "apertus": "apertus",
    "glm": None,
    "arcee": "arcee",
    "nemotron": "nemotron",
}
FULL = ["full_attention", "full_attention"]
LAYERED = {
    "full_attention": {"rope_type": "default", "rope_theta": 100.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
UNBASED = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
PUBLISHED_HUNYUAN = {
    "add_classification_head": False,
    "attention_head_dim": 128,
    "cla_share_factor": 2,
    "class_num": 0,
    "dense_list": [1024, 0],
    "eod_token_id": 3,
    "im_end_id": 5,
    "im_newline_id": 11,
    "im_start_id": 4,
    "mask_init_id": 12,
    "norm_type": "rms",
    "org_vocab_size": 319,
    "pad_id": 316,
    "pool_type": "last",
    "sep_token_id": 2,
    "text_end_id": 7,
    "text_start_id": 6,
    "use_cla": False,
    "use_rotary_pos_emb": True,
}


def test_the_families_and_files(command):
    families = {family["model_type"]: family for family in _core._families()}
    for name, gguf in FORMS.items():
        assert families[name]["kinds"] == ["embedding", "generator"]
        assert families[name]["gguf"] == ({gguf: ["generator"]} if gguf else {})
        doctor = command("doctor", str(FIXTURES / name), "--kind", "generator", "--json")
        assert doctor.code == 0, doctor.err
        assert json.loads(doctor.out)["family"] == name


@pytest.mark.parametrize("name", FORMS)
def test_answers_are_those_of_transformers_alone_and_together(make_writer, name):
    manager = make_writer(name)
    assert_answers_of_transformers(manager, name)
    described = manager.describe_generator(SLOT)
    assert (described["engine"], described["dtype"]) == ("model_manager", "float32")


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "int4"])
def test_weights_may_be_narrower(make_writer, name, dtype):
    assert_narrower(make_writer(name, generator_dtype=dtype), name, dtype)


@pytest.mark.parametrize("name", FORMS)
def test_vectors_do_not_depend_on_the_texts_with_them(make_manager, name):
    assert_vectors_do_not_depend_on_others(make_manager(cache_size=0), name)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        *((name, {"use_bidirectional_attention": True}, "use_bidirectional_attention") for name in FORMS),
        *((name, {"hidden_act": "mish"}, "hidden_act") for name in FORMS),
        *((name, {"a_new_key": 1}, "a_new_key") for name in FORMS),
        ("cohere", {"rms_norm_eps": 1e-6}, "rms_norm_eps"),
        ("cohere", {"use_qk_norm": False, "sliding_window": 8}, "sliding_window"),
        ("cohere2", {"use_qk_norm": True}, "use_qk_norm"),
        ("cohere2", {"position_embedding_type": "alibi"}, "position_embedding_type"),
        ("cohere2", {"rotary_pct": 0.5}, "rotary_pct"),
        ("cohere2", {"use_parallel_block": False}, "use_parallel_block"),
        ("cohere2", {"use_gated_activation": False}, "use_gated_activation"),
        ("cohere2", {"order_of_interleaved_layers": "global_attn_first"}, "order_of_interleaved_layers"),
        ("cohere2", {"head_dim": 4}, "head_dim is 4"),
        ("cohere2", {"sliding_window": None}, "sliding_window"),
        ("olmo3", {"layer_types": ["sliding_attention"]}, "1 of 2 layers"),
        ("olmo3", {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}}, "full_attention"),
        ("granitemoehybrid", {"layer_types": ["attention", "mamba"]}, "mamba"),
        ("granitemoehybrid", {"layer_types": ["linear_attention", "attention"]}, "linear_attention"),
        ("granitemoehybrid", {"layer_types": None}, "layer_types"),
        ("granitemoehybrid", {"num_local_experts": 8}, "num_local_experts is 8"),
        ("granitemoehybrid", {"num_local_experts": None}, "num_local_experts"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "alibi"),
        ("granitemoehybrid", {"normalization_function": "layernorm"}, "normalization_function"),
        ("granitemoehybrid", {"shared_intermediate_size": 40}, "shared_mlp.input_linear"),
        ("hunyuan_v1_dense", {"use_qk_norm": False}, "use_qk_norm"),
        ("hunyuan_v1_dense", {"use_cla": True}, "use_cla"),
        ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "alpha": -1.0, "factor": 1.0}}, "alpha of -1"),
        ("hunyuan_v1_dense", {"rope_scaling": {"type": "linear", "alpha": 2.0, "factor": 1.0}}, "alpha"),
        ("ernie4_5", {"head_dim": None}, "self_attn.q_proj"),
        ("apertus", {"qk_norm": False}, "qk_norm"),
        ("apertus", {"rope_parameters": None}, "rope_parameters"),
        ("olmo3", {"rope_parameters": LAYERED}, "rope_scaling and rope_parameters"),
        ("olmo3", {"rope_scaling": None, "rope_parameters": UNBASED}, "its rope_theta is 1000"),
        ("glm", {"partial_rotary_factor": None}, "partial_rotary_factor"),
        ("hunyuan_v1_dense", {"add_classification_head": True}, "add_classification_head"),
        ("arcee", {"hidden_act": "xielu"}, "xielu"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_writer, tmp_path, name, change, word):
    manager = make_writer(name, generator_model=str(changed(name, tmp_path / "model", **change)))
    with pytest.raises(ModelManagerError, match=word):
        manager.complete([1, 2], max_new_tokens=1, **GREEDY)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("granitemoehybrid", {"layer_types": FULL, "mamba_expand": 2, "mamba_proj_bias": True, "init_method": "mup"}),
        ("hunyuan_v1_dense", {"eod_token_id": 3, "norm_type": "rms", "use_rotary_pos_emb": True, "use_cla": False}),
        ("hunyuan_v1_dense", PUBLISHED_HUNYUAN),
        ("cohere2", {"use_parallel_embedding": True, "head_dim": 8}),
        ("cohere2", {"_sliding_window_pattern": 4}),
        # The default is that of transformers.
        ("glm", {"num_key_value_heads": None}),
        ("ernie4_5", {"num_key_value_heads": None}),
    ],
)
def test_what_transformers_does_not_read_changes_nothing(make_writer, tmp_path, name, change):
    manager = make_writer(name, generator_model=str(changed(name, tmp_path / "model", **change)))
    assert_answers_of_transformers(manager, name)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cohere2", {"sliding_window_pattern": 3}),
        ("granitemoehybrid", {"position_embedding_type": None}),
        ("hunyuan_v1_dense", {"rope_scaling": None}),
        ("olmo3", {"rope_scaling": None}),
    ],
)
def test_what_is_computed_changes_vectors(make_manager, tmp_path, name, change):
    text = reference(name)["cases"][1]["prompt"]
    manager = make_manager(cache_size=0)
    manager.register("own", str(FIXTURES / name), kind="embedding", pooling="mean")
    manager.register("other", str(changed(name, tmp_path / "model", **change)), kind="embedding", pooling="mean")
    assert np.abs(manager.embed(text, "own") - manager.embed(text, "other")).max() > 1e-3
