"""How the makers write: JSON that diffs well, weights in every layout that hubs hold."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

Tensors = Mapping[str, torch.Tensor]


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Small objects over several lines; in a reference file, each case on its own line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    items = value.items() if isinstance(value, Mapping) else None
    if items is None:
        text = "[\n" + ",\n".join(f"  {dump(item)}" for item in value) + "\n]"
    else:
        lines = []
        for key, item in items:
            if isinstance(item, list) and item and isinstance(item[0], Mapping):
                item_text = "[\n" + ",\n".join(f"    {dump(case)}" for case in item) + "\n  ]"
            else:
                item_text = dump(item)
            lines.append(f"  {dump(key)}: {item_text}")
        text = "{\n" + ",\n".join(lines) + "\n}"
    path.write_text(text + "\n", encoding="utf-8")


def floats(values: Any, decimals: int | None = None) -> list[float]:
    """The shortest decimals that read back as the same float32, or rounded ones."""
    array = np.asarray(values, np.float32)
    if decimals is not None:
        return [round(float(value), decimals) for value in array]
    return [float(str(value)) for value in array]


def save_single(directory: Path, tensors: Tensors) -> None:
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})


def save_sharded(directory: Path, tensors: Tensors, shards: int = 2) -> None:
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": weight_map},
    )


def save_bin(directory: Path, tensors: Tensors) -> None:
    """`pytorch_model.bin` of old checkpoints: a `bert.` prefix, gamma and beta, the position buffer."""
    renamed = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    positions = len(tensors["embeddings.position_embeddings.weight"])
    renamed["bert.embeddings.position_ids"] = torch.arange(positions)[None]
    torch.save(renamed, directory / "pytorch_model.bin")
