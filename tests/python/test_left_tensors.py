"""A tensor that belongs to a network but is not part of it, as its configuration describes it, is refused by name."""

from __future__ import annotations

import json
import shutil
import struct
from typing import TYPE_CHECKING

import gguf_files
import numpy as np
import pytest
from conftest import FIXTURES
from model_manager.errors import InvalidFileError
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

ZEROS = np.zeros(64, np.float32)
NAMES = ["blk.0.ffn_up_exps.weight", "blk.9.attn_q.weight", "per_layer_token_embd.weight", "token_types.weight"]


def with_tensor(fixture: str, folder: Path, name: str) -> str:
    """A copy of a tiny model with one tensor more."""
    shutil.copytree(FIXTURES / fixture, folder)
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    assert name not in header
    header[name] = {"dtype": "F32", "shape": [64], "data_offsets": [len(data), len(data) + ZEROS.nbytes]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data + ZEROS.tobytes())
    return str(folder)


@pytest.mark.parametrize(
    ("fixture", "name"),
    [
        ("bert_plain", "encoder.layer.0.attention.self.adapter.weight"),
        ("bert_plain", "encoder.layer.7.attention.self.query.weight"),
        ("bert_plain", "embeddings.LayerNorm.weight_scale"),
        ("qwen3_embedding", "layers.0.self_attn.q_proj.bias"),
        ("llama", "model.layers.0.self_attn.q_proj.bias"),
        ("llama", "model.norm.bias"),
        ("lfm2", "model.layers.0.conv.in_proj.lora_A.weight"),
    ],
)
def test_a_tensor_without_a_place_is_refused(make_manager, tmp_path, fixture, name):
    source = with_tensor(fixture, tmp_path / "m", name)
    manager = make_manager()
    manager.register("m", source)
    kind = manager.stats()["slots"]["m"]["kind"]
    use = manager.generate if kind == "generator" else manager.embed
    with pytest.raises(InvalidFileError, match=f'the tensor "{name}" is part of no network that config.json describes'):
        use("a", "m")
    with pytest.raises(InvalidFileError, match=name):
        manager._inspect(source, None)


@pytest.mark.parametrize(
    ("fixture", "name"),
    [
        ("bert_plain", "pooler.dense.weight"),
        ("bert_plain", "cls.predictions.bias"),
        ("bert_plain", "embeddings.position_ids"),
        ("qwen3_embedding", "lm_head.weight"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("gptj", "transformer.h.0.attn.masked_bias"),
        ("gptj", "transformer.h.1.attn.bias"),
    ],
)
def test_parts_that_a_use_does_without_may_be_there(make_manager, tmp_path, fixture, name):
    source = with_tensor(fixture, tmp_path / "m", name)
    manager = make_manager(dtype="float32")
    manager.register("m", source)
    manager.register("plain", str(FIXTURES / fixture))
    if manager.stats()["slots"]["m"]["kind"] == "generator":
        options = {"do_sample": False, "max_new_tokens": 6}
        assert manager.generate("a", "m", **options) == manager.generate("a", "plain", **options)
    else:
        np.testing.assert_array_equal(manager.embed("a", "m"), manager.embed("a", "plain"))
    assert manager._inspect(source, None)["local"]


@pytest.mark.parametrize("name", NAMES)
def test_a_gguf_file_has_no_tensor_without_a_place(make_manager, tmp_path, name):
    manager = make_manager()
    manager.register("m", gguf_files.write(tmp_path / "m.gguf", {name: ZEROS}))
    with pytest.raises(
        InvalidFileError, match=f'the tensor "{name}" is part of no network that its metadata describes'
    ):
        manager.embed("a", "m")


def test_a_gguf_file_that_embeds_may_have_the_head_that_writes(make_manager, tmp_path):
    manager = make_manager()
    manager.register("plain", gguf_files.write(tmp_path / "plain.gguf"))
    words = gguf_files.tensors()["embed_tokens.weight"]
    manager.register("m", gguf_files.write(tmp_path / "m.gguf", {"output.weight": words}))
    np.testing.assert_array_equal(manager.embed("a", "m"), manager.embed("a", "plain"))


def test_shapes_are_compared_before_a_model_is_loaded(make_manager, tmp_path):
    shutil.copytree(FIXTURES / "bert_plain", tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.layer.1.output.dense.weight"
    save_file({**tensors, name: tensors[name][:-1]}, path)
    with pytest.raises(InvalidFileError, match=name):
        make_manager()._inspect(str(tmp_path / "m"), None)
