"""Gemma 4 with experts next to the perceptron of each layer."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest
from conftest import FIXTURES, changed, reference
from generators import (
    GREEDY,
    SLOT,
    assert_answers_of_transformers,
    assert_narrower,
    assert_pieces_make_answers,
    assert_vectors_do_not_depend_on_others,
)
from model_manager.errors import InvalidFileError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

NAME = "gemma4_moe"


def test_answers_are_those_of_transformers_alone_and_together(make_writer, command):
    manager = make_writer(NAME)
    assert_answers_of_transformers(manager, NAME)
    assert_pieces_make_answers(manager, NAME)
    doctor = command("doctor", str(FIXTURES / NAME), "--kind", "generator", "--json")
    assert doctor.code == 0, doctor.err
    assert json.loads(doctor.out)["family"] == "gemma4_text"


def test_candles_operations_agree(make_writer):
    """What computes it on cards, for which there are no kernels of it."""
    assert_answers_of_transformers(make_writer(NAME, device="candle-cpu"), NAME)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "int4"])
def test_weights_may_be_narrower(make_writer, dtype):
    assert_narrower(make_writer(NAME, generator_dtype=dtype), NAME, dtype)


def test_vectors_do_not_depend_on_the_texts_with_them(make_manager):
    assert_vectors_do_not_depend_on_others(make_manager(cache_size=0), NAME)


def test_a_conversation_goes_on_from_what_is_known(make_writer):
    manager = make_writer(NAME)
    case = reference(NAME)["cases"][0]
    ids, rest = case["ids"], case["greedy"]
    first = manager.complete(ids, max_new_tokens=6, **GREEDY)
    again = manager.complete([*ids, *rest[:6]], max_new_tokens=len(rest) - 6, **GREEDY)
    assert [*first["tokens"], *again["tokens"]] == rest
    assert again["reused_tokens"] >= len(ids)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_experts": None}, "enable_moe_block needs a num_experts"),
        ({"top_k_experts": None}, "enable_moe_block needs a top_k_experts"),
        ({"moe_intermediate_size": None}, "enable_moe_block needs a moe_intermediate_size"),
        ({"num_experts": 0}, "num_experts is 0"),
        ({"top_k_experts": 0}, "top_k_experts is 0"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
        ({"top_k_experts": 7}, "top_k_experts is 7; supported is at most its num_experts"),
        ({"num_experts": 5}, "experts.gate_up_proj"),
        ({"moe_intermediate_size": 13}, "experts.gate_up_proj"),
        ({"enable_moe_block": False}, "layers.0.experts"),
        ({"model_type": "gemma4_unified_text"}, "enable_moe_block"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_writer, tmp_path: Path, config, said):
    manager = make_writer("gpt2", generator_model=str(changed(NAME, tmp_path / "model", **config)))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load(SLOT)
    assert not manager.is_loaded(SLOT)


def test_a_factor_of_an_expert_that_is_no_number_is_refused(make_writer, tmp_path: Path):
    folder = changed(NAME, tmp_path / "model")
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    (size,) = struct.unpack_from("<Q", raw)
    entry = json.loads(raw[8 : 8 + size])["model.layers.1.router.per_expert_scale"]
    assert entry["dtype"] == "BF16"
    struct.pack_into("<H", raw, 8 + size + entry["data_offsets"][0] + 2, 0x7F80)  # infinity
    path.write_bytes(raw)
    manager = make_writer("gpt2", generator_model=str(folder))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=r"layers\.1\.router\.per_expert_scale"):
        manager.load(SLOT)
