"""Tiny cross-encoders and classifiers, with the answers of sentence-transformers' `CrossEncoder`."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from transformers import AutoConfig, AutoModelForSequenceClassification

from . import encoder_configs, encoder_files, files
from .encoder_files import Encoder
from .texts import LONG
from .versions import VERSIONS
from .weights import random_weights

QUERY = "Türkiye'nin başkenti neresidir?"
PAIRS = [
    (QUERY, "Türkiye'nin başkenti Ankara, en kalabalık şehri İstanbul'dur."),
    (QUERY, "Bu ürünün iadesi kaç gün içinde yapılabilir?"),
    (QUERY, "The quick brown fox jumps over the lazy dog."),
    (QUERY, LONG),
    ("What is the capital of Turkey?", "Hello world, the weather is very nice today."),
    (LONG, "a"),
    (LONG, LONG),
    (LONG + "a", LONG),
    ("a [SEP] b", "c </s> d"),
    ("😀 çğıöşü", "ΟΔΟΣ"),
    ("", "a"),
    ("a", ""),
    (" ", " "),
]
TEXTS = ["The weather is very nice today.", "Siparişim ne zaman kargoya verilecek?", "", LONG]


@dataclass(frozen=True)
class Scorer:
    """One fixture: a model of sequence classification on an encoder's shape."""

    encoder: Encoder
    labels: tuple[str, ...] = ("LABEL_0",)
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return self.encoder.name


NLI = ("contradiction", "entailment", "neutral")
SCORERS = (
    Scorer(Encoder("rerank_bert", 31, hidden=24, heads=2, layout="plain", max_length=None)),
    Scorer(
        Encoder(
            "rerank_xlmr", 32, architecture="xlm-roberta", tokenizer="unigram", hidden=24, layout="plain", positions=31
        ),
        settings=(("sentence_transformers", {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0"}),),
    ),
    Scorer(Encoder("nli_bert", 33, tokenizer="cased", layout="plain", positions=33, dtype=torch.bfloat16), labels=NLI),
    Scorer(
        Encoder("rerank_qwen3", 34, architecture="qwen3", tokenizer="qwen", hidden=32, layout="plain", positions=64)
    ),
    Scorer(
        Encoder("rerank_distilbert", 51, architecture="distilbert", tokenizer="cased", layout="plain", positions=31)
    ),
    Scorer(Encoder("rerank_electra", 52, architecture="electra", layout="plain", positions=31)),
    # The state of all tokens, and that of the first one through another function.
    Scorer(
        Encoder("rerank_modernbert", 53, architecture="modernbert", tokenizer="bytes", layout="plain", positions=31)
    ),
    Scorer(
        Encoder("nli_modernbert", 54, architecture="modernbert_silu", tokenizer="bytes", layout="plain", positions=31),
        labels=NLI,
        settings=(("classifier_activation", "silu"), ("classifier_bias", True), ("norm_eps", 1e-3)),
    ),
    Scorer(
        Encoder("rerank_gte", 55, architecture="gte", tokenizer="unigram", layout="plain", positions=31, published=True)
    ),
    Scorer(
        Encoder("rerank_albert", 56, architecture="albert", tokenizer="unigram", layers=4, layout="plain", positions=31)
    ),
    Scorer(
        Encoder("rerank_deberta", 58, architecture="deberta_p2c", tokenizer="deberta", layout="plain", positions=31)
    ),
    Scorer(
        Encoder("nli_deberta", 59, architecture="deberta_plain", tokenizer="deberta", layout="plain", positions=31),
        labels=NLI,
    ),
    Scorer(Encoder("rerank_convbert", 60, architecture="convbert", tokenizer="cased", layout="plain", positions=31)),
    Scorer(Encoder("rerank_mpnet", 57, architecture="mpnet", tokenizer="mpnet", layout="plain", positions=31)),
)


def config(spec: Scorer, vocabulary: int) -> dict[str, Any]:
    """config.json."""
    base = encoder_files.config(spec.encoder, vocabulary)
    classes = {
        "bert": "BertForSequenceClassification",
        "xlm-roberta": "XLMRobertaForSequenceClassification",
        "qwen3": "Qwen3ForSequenceClassification",
    }
    own = base["architectures"][0].removesuffix("Model") + "ForSequenceClassification"
    names = {str(number): label for number, label in enumerate(spec.labels)}
    return {
        **base,
        "architectures": [classes.get(spec.encoder.architecture, own)],
        "id2label": names,
        "label2id": {label: number for number, label in enumerate(spec.labels)},
        **dict(spec.settings),
    }


def write_weights(spec: Encoder, directory: Path) -> None:
    empty = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(directory))
    shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
    tensors = {name: tensor.to(spec.dtype) for name, tensor in random_weights(shapes, spec.seed).items()}
    files.save_single(directory, tensors)


def make(spec: Scorer, root: Path) -> None:
    directory = root / spec.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    tokenizer = encoder_files.write_tokenizer(spec.encoder, directory)
    settings = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
    # With a template, sentence-transformers makes a conversation of a pair.
    settings.pop("chat_template", None)
    files.write_json(directory / "tokenizer_config.json", settings)
    files.write_json(directory / "config.json", config(spec, tokenizer.get_vocab_size()))
    write_weights(spec.encoder, directory)
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = CrossEncoder(str(directory), device="cpu", local_files_only=True, model_kwargs=options)
    found = {
        "made_with": VERSIONS,
        "labels": list(spec.labels),
        "max_length": model.max_seq_length,
        "pairs": [case(model, pair) for pair in PAIRS],
        "texts": [case(model, text) for text in TEXTS],
    }
    files.write_json(directory / "reference.json", found)
    if spec.encoder.published:
        publish(directory)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"{spec.name}: {size / 1000:.0f} kB", flush=True)


def publish(directory: Path) -> None:
    """Spells GTE as its first files do, which transformers does not read."""
    tensors = load_file(directory / "model.safetensors")
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith("classifier.")}
    pooler = {name.replace("gte.", "new."): tensors.pop(name) for name in list(tensors) if "pooler" in name}
    encoder_configs.rename(tensors, {"gte.": ""})
    files.save_single(directory, tensors)
    encoder_configs.publish(directory)
    files.save_single(directory, {**load_file(directory / "model.safetensors"), **head, **pooler})
    config = json.loads((directory / "config.json").read_text("utf-8"))
    code = {**config["auto_map"], "AutoModelForSequenceClassification": "modeling.NewForSequenceClassification"}
    classes = ["NewForSequenceClassification"]
    files.write_json(directory / "config.json", {**config, "auto_map": code, "architectures": classes})


def case(model: CrossEncoder, given: Any) -> dict[str, Any]:
    """A pair or a text alone: ids, where type 1 begins, logits, and for a pair what `predict` makes of them."""
    alone = isinstance(given, str)
    # A list of two texts would be a pair.
    cut = {"truncation": True, "max_length": model.max_seq_length, "return_tensors": "pt"}
    features = model.tokenizer(given, **cut) if alone else model.preprocess([given])
    ids = features["input_ids"][0]
    types = features.get("token_type_ids", torch.zeros(1, len(ids)))[0]
    found = {"text": given} if alone else {"pair": list(given)}
    found |= {"ids": ids.tolist(), "second": int((types == 0).sum())}
    if alone:
        with torch.no_grad():
            return found | {"logits": files.floats(model.model(**features).logits[0])}
    logits = model.predict([given], activation_fn=torch.nn.Identity(), show_progress_bar=False)[0]
    scores = model.predict([given], show_progress_bar=False)[0]
    return found | {"logits": files.floats(logits.reshape(-1)), "scores": files.floats(scores.reshape(-1))}
