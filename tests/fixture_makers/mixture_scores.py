"""Scores of pairs by the tiny mixtures of experts under a layer over the last token, by sentence-transformers."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder

from . import files
from .scorers import NLI, PAIRS, case
from .versions import VERSIONS

NAME = "mixture_scores"
CLASSES = {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe", "qwen2_moe": "Qwen2Moe"}
# A reranker, and a classifier.
LABELS: dict[str, tuple[str, ...]] = {"one": ("LABEL_0",), "three": NLI}


def scorer(source: Path, labels: tuple[str, ...], folder: Path) -> list[list[float]]:
    """Writes the model into `folder`, and returns its last layer."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {
        "architectures": [f"{CLASSES[source.name]}ForSequenceClassification"],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    files.write_json(folder / "config.json", config)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    # With a template, sentence-transformers makes a conversation of a pair.
    settings.pop("chat_template", None)
    files.write_json(folder / "tokenizer_config.json", settings)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    seed = torch.Generator().manual_seed(len(labels))
    score = torch.randn((len(labels), config["hidden_size"]), generator=seed).mul(64).round().div(64)
    files.save_single(folder, {**tensors, "score.weight": score})
    return [[float(number) for number in row] for row in score.tolist()]


def make(target: Path) -> None:
    found: dict[str, dict[str, object]] = {}
    for family in CLASSES:
        found[family] = {}
        for name, labels in LABELS.items():
            with TemporaryDirectory() as temporary:
                folder = Path(temporary) / "model"
                score = scorer(target / family, labels, folder)
                options = {"dtype": torch.float32, "attn_implementation": "eager"}
                model = CrossEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
                pairs = [case(model, pair) for pair in PAIRS]
            found[family][name] = {"labels": labels, "score": score, "pairs": pairs}
    files.write_json(target / f"{NAME}.json", {"made_with": VERSIONS, "families": found})
