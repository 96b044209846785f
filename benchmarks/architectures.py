"""Texts a second of ModernBERT-base and GTE-base, with random weights of the real size, here and in their peers.

    python benchmarks/architectures.py DIR [MODEL ...]

Needs torch, transformers, sentence-transformers, onnx, onnxruntime and this package. Each engine runs in a process of
its own, one after the other, on all cores: this package and sentence-transformers in bfloat16 and float32, onnxruntime
in float32. The vocabulary is cut to 1,000 words, for a table costs no time; each word is one token. Prints one line of
JSON for each model, engine and length: the best of three rounds.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "modernbert": {"num_hidden_layers": 22, "intermediate_size": 1152, "max_position_embeddings": 8192},
    "gte": {"num_hidden_layers": 12, "intermediate_size": 3072, "max_position_embeddings": 8192},
}
LENGTHS = {18: 128, 77: 48, 256: 16, 1024: 4}  # words of a text, and texts of a round
ENGINES = ("here bfloat16", "here float32", "torch bfloat16", "torch float32", "onnxruntime float32")
WORDS = 995


def make(model: str, directory: Path) -> None:
    """Weights of the variance of trained ones, and the files of sentence-transformers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    settings = {"vocab_size": WORDS + 5, "hidden_size": 768, "num_attention_heads": 12, "pad_token_id": 0}
    config = AutoConfig.for_model(model, **settings, **SHAPES[model])
    network = AutoModel.from_config(config)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            weights.copy_(torch.ones_like(weights) if "norm" in name.lower() else torch.randn_like(weights) * 0.02)
    network.save_pretrained(directory)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = [*specials, *(f"w{number}" for number in range(WORDS))]
    bare = Tokenizer(models.WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bare.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=bare, model_max_length=8192, **special).save_pretrained(directory)
    kinds = ("Transformer", "Pooling")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": 768, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8192}))


def texts(words: int, count: int) -> list[str]:
    """The same for every engine; each text has its own length near `words`."""
    chosen = random.Random(words)
    sizes = [chosen.randint(words * 3 // 4, words * 5 // 4) for _ in range(count)]
    return [" ".join(f"w{chosen.randrange(WORDS)}" for _ in range(size)) for size in sizes]


def here(directory: Path, dtype: str) -> Callable[[list[str]], Any]:
    from model_manager import ModelManager

    manager = ModelManager(
        english_model=str(directory), dtype=dtype, cache_size=0, auto_cleanup=False, language_detection=False
    )
    return lambda batch: manager.embed(batch, "english_sentence")


def torch_(directory: Path, dtype: str) -> Callable[[list[str]], Any]:
    import torch
    from sentence_transformers import SentenceTransformer

    options = {"dtype": getattr(torch, dtype)}
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True, model_kwargs=options)
    return lambda batch: model.encode(batch, batch_size=32, show_progress_bar=False)


def onnxruntime(directory: Path, _dtype: str) -> Callable[[list[str]], Any]:
    """Batches of 32 of about the same length, as sentence-transformers makes them, and the mean of the states."""
    import numpy as np
    import onnxruntime as ort
    import torch
    from transformers import AutoModel, AutoTokenizer

    class States(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            return states

    path, names = directory / "model.onnx", ["ids", "mask"]
    ids, mask = torch.randint(5, 900, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    axes = {name: {0: "batch", 1: "tokens"} for name in [*names, "states"]}
    if not path.exists():
        export: Any = {"input_names": names, "output_names": ["states"], "dynamic_axes": axes, "dynamo": False}
        torch.onnx.export(States().eval(), (ids, mask), str(path), opset_version=17, **export)
    session, tokenizer = ort.InferenceSession(str(path)), AutoTokenizer.from_pretrained(directory)

    def encode(batch: list[str]) -> Any:
        ordered = sorted(batch, key=len)
        vectors = []
        for first in range(0, len(ordered), 32):
            inputs = tokenizer(ordered[first : first + 32], padding=True, return_tensors="np")
            shown = inputs["attention_mask"].astype(np.int64)
            states = session.run(None, {"ids": inputs["input_ids"].astype(np.int64), "mask": shown})[0]
            vectors.append((states * shown[..., None]).sum(1) / shown.sum(1)[..., None])
        return np.concatenate(vectors)

    return encode


def measure(model: str, engine: str, directory: Path) -> None:
    name, dtype = engine.split()
    encode = {"here": here, "torch": torch_, "onnxruntime": onnxruntime}[name](directory, dtype)
    for words, count in LENGTHS.items():
        batch = texts(words, count)
        encode(batch[:4])
        rounds = []
        for _ in range(3):
            start = time.perf_counter()
            encode(batch)
            rounds.append(time.perf_counter() - start)
        found = {"model": model, "engine": engine, "words": words, "texts_per_second": round(count / min(rounds), 1)}
        print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Texts a second of whole models, here and in their peers.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("models", nargs="*", default=list(SHAPES))
    parser.add_argument("--engine", choices=ENGINES, help="measure this one alone, in this process")
    args = parser.parse_args()
    for model in args.models:
        directory = args.directory / model
        if args.engine:
            measure(model, args.engine, directory)
            continue
        if not (directory / "modules.json").exists():
            directory.mkdir(parents=True, exist_ok=True)
            make(model, directory)
        for engine in ENGINES:
            command = [sys.executable, __file__, str(args.directory), model, "--engine", engine]
            if subprocess.run(command, check=False).returncode:
                print(json.dumps({"model": model, "engine": engine, "failed": True}), flush=True)


if __name__ == "__main__":
    main()
