"""Gemma 4: wider heads in some layers, inputs of layers, layers with the keys and values of earlier ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import FIXTURES, changed, reference
from generators import GREEDY, SLOT, assert_answers_of_transformers, assert_pieces_make_answers
from model_manager import _core
from model_manager.errors import InvalidFileError, UnsupportedModelError
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

GENERATORS = ("gemma4_text", "gemma4_dense")


def test_its_families(command):
    families = {family["model_type"]: family for family in _core._families()}
    for name in ("gemma4_text", "gemma4_unified_text"):
        gguf = {"gemma4": ["generator"]} if name == "gemma4_text" else {}
        assert (families[name]["kinds"], families[name]["gguf"]) == (["embedding", "generator"], gguf)
    for name in GENERATORS:
        doctor = command("doctor", str(FIXTURES / name), "--kind", "generator", "--json")
        assert doctor.code == 0, doctor.err
        report = json.loads(doctor.out)
        assert (report["family"], report["kind"]) == ("gemma4_text", "generator")


@pytest.mark.parametrize("name", GENERATORS)
def test_answers_are_those_of_transformers_alone_and_together(make_writer, name):
    manager = make_writer(name)
    assert_answers_of_transformers(manager, name)
    assert_pieces_make_answers(manager, name)
    described = manager.describe_generator(SLOT)
    assert (described["engine"], described["dtype"]) == ("model_manager", "float32")
    assert described["kv_bytes_per_token"] > 0


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_its_weights_may_be_narrower(make_writer, name, dtype):
    manager = make_writer(name, generator_dtype=dtype)
    case = reference(name)["cases"][0]
    first = manager.complete(case["ids"], max_new_tokens=4, **GREEDY)["tokens"]
    assert manager.complete(case["ids"], max_new_tokens=4, **GREEDY)["tokens"] == first
    assert manager.describe_generator(SLOT)["dtype"] == dtype


@pytest.mark.parametrize("name", GENERATORS)
def test_a_conversation_goes_on_from_what_is_known(make_writer, name):
    manager = make_writer(name)
    prompt = reference(name)["cases"][0]
    ids, rest = prompt["ids"], prompt["greedy"]
    first = manager.complete(ids, max_new_tokens=6, **GREEDY)
    again = manager.complete([*ids, *rest[:6]], max_new_tokens=len(rest) - 6, **GREEDY)
    assert [*first["tokens"], *again["tokens"]] == rest
    assert again["reused_tokens"] >= len(ids)
    other = manager.complete([*ids[:-2], *rest[:2]], max_new_tokens=3, **GREEDY)
    assert other["reused_tokens"] > 0
    manager.unload(SLOT)
    assert manager.complete([*ids[:-2], *rest[:2]], max_new_tokens=3, **GREEDY)["tokens"] == other["tokens"]


@pytest.mark.parametrize("name", GENERATORS)
def test_candles_operations_agree(make_writer, name):
    """What computes it on cards, for which there are no kernels of it."""
    assert_answers_of_transformers(make_writer(name, device="candle-cpu"), name)


def whole(folder: Path) -> Path:
    """The same model as part of one that reads images and sound, whose text names its tokens."""
    changed("gemma4_text", folder)
    path = folder / "config.json"
    text = json.loads(path.read_text("utf-8"))
    shared = {key: text[key] for key in ("eos_token_id", "bos_token_id", "pad_token_id")}
    towers = {"vision_config": {"model_type": "gemma4_vision"}, "audio_config": {"model_type": "gemma4_audio"}}
    tokens = {"image_token_id": 20, "video_token_id": 21, "audio_token_id": 22, "vision_soft_tokens_per_image": 280}
    path.write_text(json.dumps({"model_type": "gemma4", "text_config": text, **shared, **towers, **tokens}), "utf-8")
    return folder


def test_the_text_model_of_a_whole_one(make_writer, tmp_path: Path):
    manager = make_writer("gpt2", generator_model=str(whole(tmp_path / "model")))
    case = reference("gemma4_text")["cases"][0]
    ids = [token for token in case["ids"] if token not in (20, 21, 22)][:20]
    plain = make_writer("gemma4_text")
    expected = plain.complete(ids, max_new_tokens=8, **GREEDY)
    assert manager.complete(ids, max_new_tokens=8, **GREEDY)["tokens"] == expected["tokens"]
    padding = json.loads((FIXTURES / "gemma4_text" / "config.json").read_text("utf-8"))["pad_token_id"]
    expected = plain.complete([*ids, padding, *ids[1:]], max_new_tokens=8, **GREEDY)
    assert manager.complete([*ids, 21, *ids[1:]], max_new_tokens=8, **GREEDY)["tokens"] == expected["tokens"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"enable_moe_block": True, "num_experts": 4}, "enable_moe_block"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ({"num_kv_shared_layers": 4}, "sliding_attention"),
        ({"num_kv_shared_layers": 3}, "full_attention"),
        ({"num_kv_shared_layers": 1}, "layers.2.self_attn.k_proj"),
        ({"use_double_wide_mlp": False}, "layers.2.mlp.gate_proj"),
        ({"attention_k_eq_v": True}, "self_attn.v_proj"),
        ({"hidden_size_per_layer_input": 0}, "per_layer"),
        ({"vocab_size_per_layer_input": 7}, "embed_tokens_per_layer"),
        ({"global_head_dim": 8}, "layers.1.self_attn"),
        ({"final_logit_softcapping": -1.0}, "final_logit_softcapping"),
        ({"embedding_dim": 20}, "embedding_dim"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar"),
        ({"layer_types": ["conv"] * 4}, "layer_types"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(make_writer, tmp_path: Path, config, said):
    manager = make_writer("gpt2", generator_model=str(changed("gemma4_text", tmp_path / "model", **config)))
    with pytest.raises((UnsupportedModelError, InvalidFileError), match=said):
        manager.load(SLOT)
    assert not manager.is_loaded(SLOT)


def test_unused_keys_of_layers_may_be_there(make_writer, tmp_path: Path):
    """Published files have those of all layers; transformers does not read them."""
    folder = changed("gemma4_text", tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = _floats(path)
    for index, width in ((2, 8), (3, 16)):
        prefix = f"model.layers.{index}.self_attn"
        for part in ("k_proj", "v_proj"):
            tensors[f"{prefix}.{part}.weight"] = np.ones((2 * width, tensors["model.norm.weight"].size), np.float32)
        tensors[f"{prefix}.k_norm.weight"] = np.ones(width, np.float32)
    path.unlink()
    save_file(tensors, path)
    case = reference("gemma4_text")["cases"][0]
    manager = make_writer("gpt2", generator_model=str(folder))
    found = manager.complete(case["ids"], max_new_tokens=len(case["greedy"]), **GREEDY)["tokens"]
    assert found == case["greedy"]
    tensors["model.layers.2.self_attn.o_norm.weight"] = np.ones(4, np.float32)
    path.unlink()
    save_file(tensors, path)
    manager = make_writer("gpt2", generator_model=str(folder))
    with pytest.raises(InvalidFileError, match="o_norm"):
        manager.load(SLOT)


def _floats(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file in bfloat16, which numpy does not know."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        bits = np.frombuffer(raw[8 + size + start : 8 + size + end], np.uint16).astype(np.uint32) << 16
        found[name] = bits.view(np.float32).reshape(entry["shape"])
    return found
