"""A tiny ColBERT model in the forms of sentence-transformers, PyLate and Stanford, and two with layers of other kinds,
with the vectors of sentence-transformers' `MultiVectorEncoder`."""

import json
import shutil
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from . import encoder_files, files
from .encoder_files import Encoder
from .texts import LONG
from .versions import VERSIONS
from .weights import random_weights

SPEC = Encoder("colbert", 71, hidden=24, positions=40, layout="plain", max_length=None)
# Local windows, which most of the tokens that fill a query are outside of, and convolutions.
OTHERS = [
    Encoder(f"colbert_{kind}", seed, 24, 4, 4, 48, kind, "bytes", positions=48, layout="plain", max_length=None)
    for kind, seed in (("modernbert", 72), ("lfm2", 73))
]
WIDTH = 8
QUERIES = ["What is the capital of Turkey?", "Siparişim ne zaman kargoya verilecek?", "", "[Q] a, b [unused0]", LONG]
DOCUMENTS = ["The fox, it jumps!", "", "?!", "[D] Üniversite: sınav (2)", LONG[:150]]
OPTIONS = {"dtype": torch.float32, "attn_implementation": "eager"}
# With "eager", a query that sees no key has the mean of all values; with this, the default, zeros.
FUSED = {**OPTIONS, "attn_implementation": "sdpa"}
MODULE = "sentence_transformers.base.modules."


def variants(root: Path) -> dict[str, dict[str, Any]]:
    """What replaces files of the native form: JSON by name; null for a file that is not there."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    dense = {"in_features": SPEC.hidden, "out_features": WIDTH, "bias": False}
    dense |= {"activation_function": "torch.nn.modules.linear.Identity"}
    pylate = {
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[unused0] ",
        "document_prefix": "[unused1] ",
        "query_length": 14,
        "document_length": 18,
        "attend_to_expansion_tokens": True,
        "skiplist_words": [",", "!", "fox", "no such word"],
    }
    config = json.loads((root / "config.json").read_text("utf-8"))
    metadata = {"query_maxlen": 11, "doc_maxlen": 17, "attend_to_mask_tokens": False, "mask_punctuation": True}
    metadata |= {"dim": WIDTH, "similarity": "cosine", "query_token_id": "[unused0]", "doc_token_id": "[unused1]"}
    minimum = {"strategy": "min", "attend": False, "token": "[SEP]", "length": 9}
    sentence = json.loads((root / "sentence_bert_config.json").read_text("utf-8"))
    return {
        "native": {},
        "min": {
            "sentence_bert_config.json": {**sentence, "query_expansion": minimum, "query_length": 13},
            "2_MultiVectorMask/config.json": {"skiplist_words": ["a", "?"], "skiplist_tasks": ["query", "document"]},
        },
        "pylate": {
            "modules.json": modules,
            "1_Dense/config.json": dense,
            "config_sentence_transformers.json": pylate,
            "sentence_bert_config.json": {"max_seq_length": 31, "do_lower_case": False},
        },
        "stanford": {
            "modules.json": None,
            "config_sentence_transformers.json": None,
            "sentence_bert_config.json": None,
            "config.json": {**config, "architectures": ["HF_ColBERT"]},
            "artifact.metadata": metadata,
        },
    }


def write_plain(directory: Path, spec: Encoder) -> None:
    size = encoder_files.write_tokenizer(spec, directory).get_vocab_size()
    if spec is SPEC:
        path = directory / "tokenizer.json"
        tokenizer = json.loads(path.read_text("utf-8"))
        for token in ("[unused0]", "[unused1]"):
            tokenizer["model"]["vocab"][token] = size
            size += 1
        path.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    files.write_json(directory / "config.json", encoder_files.config(spec, size))
    encoder_files.write_weights(spec, directory)


def make(root: Path, spec: Encoder) -> None:
    directory = root / spec.name
    options, length = (OPTIONS, 12) if spec is SPEC else (FUSED, 40)
    plain = directory.with_name(f"{spec.name}.plain")
    for folder in (directory, plain):
        shutil.rmtree(folder, ignore_errors=True)
    plain.mkdir(parents=True)
    try:
        write_plain(plain, spec)
        transformer = Transformer(
            str(plain),
            model_kwargs=options,
            document_length=20,
            query_expansion={"strategy": "fixed", "attend": False, "length": length},
        )
        dense = Dense(spec.hidden, WIDTH, False, torch.nn.Identity(), module_input_name="token_embeddings")
        shapes = {"weight": dense.linear.weight.shape}
        dense.linear.load_state_dict(random_weights(shapes, spec.seed))
        mask = MultiVectorMask(skiplist_words=list(string.punctuation))
        normalize = Normalize(module_input_name="token_embeddings")
        prompts = {"query": "[Q] ", "document": "[D] "}
        model = MultiVectorEncoder(modules=[transformer, dense, mask, normalize], device="cpu", prompts=prompts)
        model.save(str(directory), create_model_card=False)
    finally:
        shutil.rmtree(plain, ignore_errors=True)
    found: dict[str, Any] = {"made_with": VERSIONS}
    for name, replaced in variants(directory).items() if spec is SPEC else [("native", {})]:
        found[f"{name}_files"] = replaced
        found |= {f"{name}_{side}": cases for side, cases in encoded(directory, name, replaced, options).items()}
    files.write_json(directory / "reference.json", found)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"{spec.name}: {size / 1000:.0f} kB", flush=True)


def encoded(
    directory: Path, name: str, replaced: dict[str, Any], options: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The vectors of one form."""
    folder = directory.with_name(f"{directory.name}.{name}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(directory, folder)
        for file, value in replaced.items():
            (folder / file).unlink(missing_ok=True)
            if value is not None:
                files.write_json(folder / file, value)
        if name == "stanford":
            tensors = {f"bert.{key}": value for key, value in load_file(folder / "model.safetensors").items()}
            tensors |= load_file(folder / "1_Dense" / "model.safetensors")
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            shutil.rmtree(folder / "1_Dense")
        model = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
        # One at a time: padding changes what is attended to, but by rounding.
        shown = {"convert_to_numpy": True, "show_progress_bar": False}
        sides = {"queries": (model.encode_query, QUERIES), "documents": (model.encode_document, DOCUMENTS)}
        return {
            side: [
                {"text": text, "vectors": [files.floats(row) for row in encode([text], **shown)[0]]} for text in texts
            ]
            for side, (encode, texts) in sides.items()
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
