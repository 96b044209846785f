"""LFM3: short convolutions, attention in windows and to all tokens with gates, norms of what blocks give."""

from __future__ import annotations

import json

import pytest
from conftest import FIXTURES, changed, reference
from generators import (
    GREEDY,
    SLOT,
    assert_answers_of_transformers,
    assert_narrower,
    assert_pieces_make_answers,
    assert_second_question_reuses,
    assert_vectors_do_not_depend_on_others,
)
from model_manager import _core
from model_manager.errors import InvalidFileError, UnsupportedModelError

NAMES = ("lfm3", "lfm3_biased")
FULL, SLIDING = "full_attention", "sliding_attention"
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def test_its_family_and_files(command):
    families = {family["model_type"]: family for family in _core._families()}
    assert families["lfm3"]["kinds"] == ["embedding", "generator"]
    assert families["lfm3"]["gguf"] == {}
    doctor = command("doctor", str(FIXTURES / "lfm3"), "--kind", "generator", "--json")
    assert doctor.code == 0, doctor.err
    assert json.loads(doctor.out)["family"] == "lfm3"


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_transformers_alone_and_together(make_writer, name):
    manager = make_writer(name)
    assert_answers_of_transformers(manager, name)
    assert_pieces_make_answers(manager, name)
    described = manager.describe_generator(SLOT)
    assert (described["engine"], described["dtype"]) == ("model_manager", "float32")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_weights_may_be_narrower(make_writer, name, dtype):
    assert_narrower(make_writer(name, generator_dtype=dtype), name, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_do_not_depend_on_the_texts_with_them(make_manager, name):
    assert_vectors_do_not_depend_on_others(make_manager(cache_size=0), name)


def test_a_conversation_goes_on(make_writer):
    manager = make_writer("lfm3")
    prompt = reference("lfm3")["cases"][0]
    ids, rest = prompt["ids"], prompt["greedy"]
    first = manager.complete(ids, max_new_tokens=6, **GREEDY)
    again = manager.complete([*ids, *rest[:6]], max_new_tokens=len(rest) - 6, **GREEDY)
    assert [*first["tokens"], *again["tokens"]] == rest
    assert again["reused_tokens"] >= len(ids)


def test_a_common_beginning_is_reused_in_steps_of_64_tokens(make_writer, tmp_path):
    manager = make_writer("gpt2", generator_model=str(changed("lfm3", tmp_path / "model", max_position_embeddings=512)))
    system = [(7 * index) % 300 for index in range(150)]
    assert_second_question_reuses(manager, system, 128)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"conv_L_cache": 1}, "conv_L_cache"),
        ({"layer_types": ["conv"]}, "layer_types"),
        ({"layer_types": ["conv", "conv", FULL, "conv", "linear_attention"]}, "layer_types"),
        ({"head_dim": 7}, "head_dim"),
        ({"head_dim": None}, "null"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"sliding_window": None}, "sliding_window"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"rope_parameters": ROPE}, "rope_parameters"),
        ({"rope_parameters": {FULL: ROPE}}, "rope_parameters give no rope_theta of layers with sliding_attention"),
        ({"rope_parameters": {FULL: ROPE, SLIDING: {"rope_type": "default"}}}, "rope_theta"),
        ({"rope_parameters": {FULL: {**ROPE, "rope_type": "axial"}, SLIDING: ROPE}}, "axial"),
        ({"rope_theta": 500.0}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"is_causal": False}, "is_causal"),
        ({"full_attn_idxs": [1]}, "full_attn_idxs"),
        ({"block_ff_dim": 200}, "block_ff_dim"),
        ({"num_experts": 4}, "num_experts"),
        ({"intermediate_size": 48}, "feed_forward.w1"),
        ({"use_attention_gate": True, "attention_bias": True}, "self_attn.q_proj.bias"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_writer, tmp_path, config, said):
    manager = make_writer("gpt2", generator_model=str(changed("lfm3", tmp_path / "model", **config)))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load(SLOT)
    assert not manager.is_loaded(SLOT)


@pytest.mark.parametrize("key", ["use_attention_gate", "use_sandwich_norm"])
def test_tensors_that_the_configuration_leaves_out_are_noticed(make_writer, tmp_path, key):
    manager = make_writer("gpt2", generator_model=str(changed("lfm3", tmp_path / "model", **{key: False})))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=r"gate_proj|post_\w+_norm"):
        manager.load(SLOT)
