"""Qwen3.5 and Qwen3-Next, whose layers are gated delta rules and attention with gates: text, vectors, refusals."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import FIXTURES, changed
from generators import (
    GREEDY,
    SLOT,
    assert_answers_of_transformers,
    assert_narrower,
    assert_second_question_reuses,
    assert_vectors_do_not_depend_on_others,
)
from model_manager import _core
from model_manager.errors import InvalidFileError, ModelManagerError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

FAMILIES = {"qwen3_5_text": "qwen35", "qwen3_5_moe_text": "qwen35moe", "qwen3_next": None}
NAMES = (*FAMILIES, "qwen3_5")


def longer(name: str, folder: Path) -> str:
    """A copy with a longer context."""
    return str(changed(name, folder, max_position_embeddings=2048))


def test_the_families_and_files(command):
    families = {family["model_type"]: family for family in _core._families()}
    for name, gguf in FAMILIES.items():
        assert families[name]["kinds"] == ["embedding", "generator"]
        assert families[name]["gguf"] == ({gguf: ["generator"]} if gguf else {})
    for name in NAMES:
        doctor = command("doctor", str(FIXTURES / name), "--kind", "generator", "--json")
        assert doctor.code == 0, doctor.err
        assert json.loads(doctor.out)["family"] == ("qwen3_5_text" if name == "qwen3_5" else name)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_transformers_alone_and_together(make_writer, name):
    """`qwen3_5` has the tensors of images too, and one of a layer that predicts another token."""
    manager = make_writer(name)
    assert_answers_of_transformers(manager, name)
    described = manager.describe_generator(SLOT)
    assert (described["engine"], described["dtype"]) == ("model_manager", "float32")
    assert described["kv_bytes_per_token"] > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "int4"])
def test_weights_may_be_narrower(make_writer, name, dtype):
    assert_narrower(make_writer(name, generator_dtype=dtype), name, dtype)


def test_devices_of_candle_compute_it_too(make_writer):
    manager = make_writer("qwen3_5_text", device="candle-cpu")
    assert_answers_of_transformers(manager, "qwen3_5_text")


@pytest.mark.parametrize("name", NAMES)
def test_vectors_do_not_depend_on_the_texts_with_them(make_manager, name):
    assert_vectors_do_not_depend_on_others(make_manager(cache_size=0), name)


def test_a_conversation_goes_on(make_writer, tmp_path):
    """What was read and written is not computed again, and what follows is as if it had been."""
    manager = make_writer("gpt2", generator_model=longer("qwen3_5_text", tmp_path / "model"))
    ids = [(7 * index) % 300 for index in range(290)]
    first = manager.complete(ids, max_new_tokens=8, **GREEDY)
    turn = [*ids, *first["tokens"], *range(40)]
    second = manager.complete(turn, max_new_tokens=8, **GREEDY)
    assert second["reused_tokens"] >= len(ids)
    # The next turn without the end of the last prompt, as templates write the thoughts of an answer once alone.
    other = [*turn[:-5], *range(100, 130)]
    third = manager.complete(other, max_new_tokens=8, **GREEDY)
    assert third["reused_tokens"] == len(turn) - 16
    for prompt, found in ((turn, second), (other, third)):
        manager.unload(SLOT)
        fresh = manager.complete(prompt, max_new_tokens=8, **GREEDY)
        assert (fresh["reused_tokens"], fresh["tokens"]) == (0, found["tokens"])


def test_a_common_beginning_is_reused_from_powers_of_two(make_writer, tmp_path):
    manager = make_writer("gpt2", generator_model=longer("qwen3_5_text", tmp_path / "model"))
    system = [(11 * index) % 300 for index in range(600)]
    assert_second_question_reuses(manager, system, 596)
    third = manager.complete([*system[:580], *range(30)], max_new_tokens=5, **GREEDY)
    assert third["reused_tokens"] == 512


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("qwen3_5_text", {"attn_output_gate": False}, "attn_output_gate"),
        ("qwen3_5_text", {"partial_rotary_factor": None, "rope_parameters": None}, "partial_rotary_factor"),
        ("qwen3_5_text", {"output_gate_type": "sigmoid"}, "output_gate_type"),
        ("qwen3_5_text", {"hidden_act": "gelu"}, "hidden_act"),
        ("qwen3_5_text", {"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim"),
        ("qwen3_5_text", {"linear_num_value_heads": 5}, "linear_num_value_heads"),
        ("qwen3_5_text", {"linear_value_head_dim": 4096}, "linear_value_head_dim"),
        ("qwen3_5_text", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen3_5_text", {"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ("qwen3_5_text", {"full_attention_interval": 0}, "full_attention_interval"),
        ("qwen3_5_text", {"full_attention_interval": 2}, "layers.1.self_attn"),
        ("qwen3_5_text", {"linear_key_head_dim": 9}, "linear_attn"),
        ("qwen3_5_text", {"sliding_window": 8}, "sliding_window"),
        ("qwen3_5_text", {"num_experts": 4}, "num_experts"),
        ("qwen3_5_text", {"is_causal": False}, "is_causal"),
        ("qwen3_5_text", {"rope_parameters": {"rope_type": "default", "mrope_other": [1]}}, "mrope_other"),
        ("qwen3_5_moe_text", {"num_experts_per_tok": 9}, "9 of 8"),
        ("qwen3_5_moe_text", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("qwen3_next", {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0]}}, "mrope_section"),
        ("qwen3_5", {"other_config": {"layers": 1}}, "other_config"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_writer, tmp_path, name, config, said):
    manager = make_writer("gpt2", generator_model=str(changed(name, tmp_path / "model", **config)))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load(SLOT)
    assert not manager.is_loaded(SLOT)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            "qwen3_5_text",
            {"mtp_num_hidden_layers": 3, "mtp_use_dedicated_embeddings": True, "mamba_ssm_dtype": "bfloat16"},
        ),
        ("qwen3_5_text", {"full_attention_interval": None}),
        ("qwen3_5_moe_text", {"router_aux_loss_coef": 0.5, "output_router_logits": True, "intermediate_size": 7}),
        ("qwen3_5", {"image_token_id": 9, "language_model_only": False}),
    ],
)
def test_what_transformers_does_not_read_changes_nothing(make_writer, tmp_path, name, config):
    manager = make_writer(name, generator_model=str(changed(name, tmp_path / "model", **config)))
    assert_answers_of_transformers(manager, name)


def with_tensors(name: str, folder: Path, tensors: dict[str, Any]) -> str:
    """A copy of the model with more tensors, or others."""
    shutil.copytree(FIXTURES / name, folder)
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    for tensor, values in tensors.items():
        start = len(data)
        data += values.astype("<f4").tobytes()
        header[tensor] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [start, len(data)]}
    # The numbers of a tensor that was replaced stay where no tensor is.
    ends = sorted(entry["data_offsets"] for key, entry in header.items() if key != "__metadata__")
    packed, moved = b"", {}
    for start, end in ends:
        moved[start] = len(packed)
        packed += data[start:end]
    for key, entry in header.items():
        if key != "__metadata__":
            start, end = entry["data_offsets"]
            entry["data_offsets"] = [moved[start], moved[start] + end - start]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + packed)
    return str(folder)


def test_tensors_of_other_parts_are_never_read_and_unknown_ones_are_refused(make_writer, tmp_path):
    ones = np.ones((4, 4), np.float32)
    parts = {"mtp.layers.0.self_attn.q_proj.weight": ones, "model.visual.blocks.0.attn.qkv.weight": ones}
    manager = make_writer(generator_model=with_tensors("qwen3_5_text", tmp_path / "parts", parts))
    assert_answers_of_transformers(manager, "qwen3_5_text")
    for name in ("model.layers.0.linear_attn.in_proj_qkv.bias", "model.layers.3.self_attn.sinks"):
        folder = with_tensors("qwen3_5_text", tmp_path / name, {name: np.ones(4, np.float32)})
        manager = make_writer(generator_model=folder)
        with pytest.raises(InvalidFileError, match=name):
            manager.load(SLOT)


def test_rates_that_let_a_state_grow_are_refused(make_writer, tmp_path):
    name = "model.layers.0.linear_attn.A_log"
    folder = with_tensors("qwen3_5_text", tmp_path / "model", {name: np.full(6, np.nan, np.float32)})
    manager = make_writer(generator_model=folder)
    with pytest.raises(ModelManagerError, match="A_log"):
        manager.load(SLOT)
