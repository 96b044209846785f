"""Tiny SPLADE models, with the answers of sentence-transformers' `SparseEncoder`."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
from transformers import AutoConfig, AutoModelForMaskedLM

from . import encoder_files, files
from .encoder_files import Encoder
from .texts import REFERENCE
from .versions import VERSIONS
from .weights import random_weights


@dataclass(frozen=True)
class Splade:
    """One fixture: a masked language model on an encoder's shape."""

    encoder: Encoder
    pooling: str = "max"
    activation: str = "relu"

    @property
    def name(self) -> str:
        return self.encoder.name


SPLADES = (
    Splade(Encoder("splade_bert", 41, hidden=24, layout="plain", max_length=None)),
    Splade(
        Encoder("splade_xlmr", 42, architecture="xlm-roberta", tokenizer="unigram", hidden=24, layout="plain"),
        pooling="sum",
        activation="log1p_relu",
    ),
    Splade(
        Encoder("splade_distilbert", 43, architecture="distilbert", tokenizer="cased", layout="plain", positions=31)
    ),
)


def make(spec: Splade, root: Path) -> None:
    directory = root / spec.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    plain = directory.with_name(f"{spec.name}.plain")
    shutil.rmtree(plain, ignore_errors=True)
    plain.mkdir()
    try:
        tokenizer = encoder_files.write_tokenizer(spec.encoder, plain)
        settings = encoder_files.config(spec.encoder, tokenizer.get_vocab_size())
        name = settings["architectures"][0].removesuffix("Model") + "ForMaskedLM"
        files.write_json(plain / "config.json", {**settings, "architectures": [name], "tie_word_embeddings": True})
        empty = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(plain))
        shapes = {key: tensor.shape for key, tensor in empty.state_dict().items()}
        # The matrix of the vocabulary is that of the embeddings.
        tied = ("decoder.weight", "decoder.bias", "vocab_projector.weight")
        weights = random_weights(shapes, spec.encoder.seed, gain=1.5, embedding=0.3)
        files.save_single(plain, {key: value for key, value in weights.items() if not key.endswith(tied)})
        transformer = MLMTransformer(str(plain), model_kwargs={"dtype": torch.float32, "attn_implementation": "eager"})
        pooling = SpladePooling(pooling_strategy=spec.pooling, activation_function=spec.activation)
        model = SparseEncoder(modules=[transformer, pooling], device="cpu")
        model.save(str(directory), create_model_card=False)
    finally:
        shutil.rmtree(plain, ignore_errors=True)
    found = {
        "made_with": VERSIONS,
        "vocabulary": tokenizer.get_vocab_size(),
        "max_length": model.max_seq_length,
        "texts": [case(model, text) for text in REFERENCE[::3]],
    }
    files.write_json(directory / "reference.json", found)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"{spec.name}: {size / 1000:.0f} kB", flush=True)


def case(model: SparseEncoder, text: str) -> dict[str, Any]:
    """A text alone: its entries and their weights."""
    vector = model.encode([text], convert_to_sparse_tensor=False, show_progress_bar=False)[0]
    indices = vector.nonzero().reshape(-1)
    return {"text": text, "indices": indices.tolist(), "values": files.floats(vector[indices].cpu())}
