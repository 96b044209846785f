"""Vectors of the tiny mixtures of experts: the mean of the last states, as transformers computes them."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from transformers import AutoModel

from . import files

NAME = "mixture_vectors"
FAMILIES = ("qwen3_moe", "mixtral", "olmoe", "lfm2_moe", "qwen2_moe", "granitemoe")
# What each vector's configuration has in addition.
CHANGES: dict[str, dict[str, object]] = {"causal": {}, "both": {"is_causal": False}}


def vectors(source: Path, change: dict[str, object]) -> list[list[float]]:
    with TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(source, Path(temporary) / "model"))
        config = folder / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), **change}), "utf-8")
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    cases = json.loads((source / "reference.json").read_text("utf-8"))["cases"]
    with torch.no_grad():
        states = [model(torch.tensor([case["ids"]])).last_hidden_state[0] for case in cases]
    return [[round(number, 7) for number in state.mean(0).tolist()] for state in states]


def make(target: Path) -> None:
    made = {name: {kind: vectors(target / name, change) for kind, change in CHANGES.items()} for name in FAMILIES}
    files.write_json(target / f"{NAME}.json", {"transformers": transformers.__version__, "vectors": made})
