"""GGUF files for the tests: the tiny Qwen3-Embedding as converters write it, matrices in Q8_0."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from conftest import FIXTURES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FOLDER = FIXTURES / "qwen3_embedding"
F32, Q8_0 = 0, 8
NAMES = {
    "layers.": "blk.",
    "embed_tokens": "token_embd",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "mlp.": "ffn_",
    "_proj": "",
}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, value: Any) -> bytes:
    """One value of the metadata, in the types that converters choose."""
    if isinstance(value, bool):
        return text(key) + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value[0], int):
        kind, items = 5, [struct.pack("<i", item) for item in value]
    else:
        kind, items = 8, [text(item) for item in value]
    return text(key) + struct.pack("<IIQ", 9, kind, len(value)) + b"".join(items)


def tensors() -> dict[str, NDArray[np.float32]]:
    """The fixture's tensors, which are bfloat16."""
    raw = (FOLDER / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    found = {}
    for name, facts in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = (8 + length + at for at in facts["data_offsets"])
            bits = np.frombuffer(raw[start:end], np.uint16).astype(np.uint32) << 16
            found[name] = bits.view(np.float32).reshape(facts["shape"])
    return found


def q8_0(values: NDArray[np.float32]) -> bytes:
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(blocks / np.where(scales > 0, scales, 1).astype(np.float32)).astype(np.int8)
    return np.concatenate([scales.view(np.int8), codes], axis=1).tobytes()


def write(path: Path, more: dict[str, NDArray[np.float32]] | None = None, **changes: Any) -> str:
    """The whole model, and `more` tensors by their names in such files.

    `changes` replace or, with None, remove metadata, dots written as two underscores.
    """
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    words = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in words["added_tokens"]}
    pieces = {**words["model"]["vocab"], **added}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in words["model"]["merges"]]
    metadata = {
        "general.architecture": "qwen3",
        "qwen3.embedding_length": config["hidden_size"],
        "qwen3.feed_forward_length": config["intermediate_size"],
        "qwen3.block_count": config["num_hidden_layers"],
        "qwen3.attention.head_count": config["num_attention_heads"],
        "qwen3.attention.head_count_kv": config["num_key_value_heads"],
        "qwen3.attention.key_length": config["head_dim"],
        "qwen3.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "qwen3.rope.freq_base": config["rope_theta"],
        "qwen3.context_length": config["max_position_embeddings"],
        "qwen3.pooling_type": 3,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": sorted(pieces, key=lambda piece: pieces[piece]),
        "tokenizer.ggml.token_type": [3 if index in added.values() else 1 for index in range(len(pieces))],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.add_eos_token": True,
    }
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    entries = [entry(key, value) for key, value in metadata.items() if value is not None]
    heads, data = [], b""
    renamed = {}
    for name, values in tensors().items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name.replace("norm.", "output_norm.") if name.startswith("norm.") else name] = values
    for name, values in (renamed | (more or {})).items():
        coded = values.ndim == 2 and values.shape[1] % 32 == 0
        shape = values.shape[::-1]
        kind = Q8_0 if coded else F32
        heads.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data)))
        data += q8_0(values) if coded else values.astype("<f4").tobytes()
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(heads), len(entries)) + b"".join(entries) + b"".join(heads)
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return str(path)
