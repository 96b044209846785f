"""Texts a second of ModernBERT-base, GTE-base, DeBERTa-v3-base and ConvBERT-base, random weights, here and in peers.

    python benchmarks/architectures.py DIR [MODEL ...] [--rounds N] [--quick]

Needs torch, transformers, sentence-transformers, onnx, onnxruntime and this package. Each engine runs in a process of
its own once a round, alone, on all cores; the order turns by one each round. Each peer gets the batch size that is best
for it. The vocabulary is cut to 1,000 words, for a table costs no time; each word is one token. Prints one line of JSON
for each process, and at the end the medians of the rounds: texts a second for each length, tokens a second over equal
numbers of tokens of each length, and the distance from PyTorch in float32.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "modernbert": {"num_hidden_layers": 22, "intermediate_size": 1152, "max_position_embeddings": 8192},
    "gte": {"num_hidden_layers": 12, "intermediate_size": 3072, "max_position_embeddings": 8192},
    "deberta-v2": {
        "num_hidden_layers": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "convbert": {"num_hidden_layers": 12, "intermediate_size": 3072, "max_position_embeddings": 512},
}
ALL_LENGTHS = {18: 128, 77: 48, 256: 16, 1024: 4}  # words of a text, and texts of a round
QUICK_LENGTHS = {18: 4}
REFERENCE = "torch float32"
ENGINES = (
    "here bfloat16",
    "here int8",
    "here float32",
    "torch bfloat16",
    "onnxruntime float32",
)
BATCHES = (4, 8, 16, 32, 64)  # texts of a batch that a peer may choose
COMPARED = 4  # texts of each length
WORDS = 995
Encode = Callable[[list[str], int], Any]


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
    longest = SHAPES[model]["max_position_embeddings"]
    PreTrainedTokenizerFast(tokenizer_object=bare, model_max_length=longest, **special).save_pretrained(directory)
    kinds = ("Transformer", "Pooling")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": 768, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))


def lengths(model: str, quick: bool) -> dict[int, int]:
    """Those whose longest texts the model reads whole."""
    longest = SHAPES[model]["max_position_embeddings"]
    return {
        words: count
        for words, count in (QUICK_LENGTHS if quick else ALL_LENGTHS).items()
        if words * 5 // 4 + 2 <= longest
    }


def texts(words: int, count: int) -> list[str]:
    """The same for every engine; each text has its own length near `words`."""
    chosen = random.Random(words)
    sizes = [chosen.randint(words * 3 // 4, words * 5 // 4) for _ in range(count)]
    return [" ".join(f"w{chosen.randrange(WORDS)}" for _ in range(size)) for size in sizes]


def here(directory: Path, dtype: str) -> Encode:
    from model_manager import ModelManager

    manager = ModelManager(
        english_model=str(directory), dtype=dtype, cache_size=0, auto_cleanup=False, language_detection=False
    )
    return lambda batch, _size: manager.embed(batch, "english_sentence")


def torch_(directory: Path, dtype: str) -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer

    options = {"dtype": getattr(torch, dtype)}
    model = SentenceTransformer(str(directory), device="cpu", local_files_only=True, model_kwargs=options)
    return lambda batch, size: model.encode(batch, batch_size=size, show_progress_bar=False)


def onnxruntime(directory: Path, _dtype: str) -> Encode:
    """Batches of about the same length, as sentence-transformers makes them, and the mean of the states."""
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

    def encode(batch: list[str], size: int) -> Any:
        order = sorted(range(len(batch)), key=lambda index: len(batch[index]))
        vectors: Any = np.empty((len(batch), 768), np.float32)
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            inputs = tokenizer([batch[index] for index in chosen], padding=True, return_tensors="np")
            shown = inputs["attention_mask"].astype(np.int64)
            states = session.run(None, {"ids": inputs["input_ids"].astype(np.int64), "mask": shown})[0]
            vectors[chosen] = (states * shown[..., None]).sum(1) / shown.sum(1)[..., None]
        return vectors

    return encode


def timed(encode: Encode, batch: list[str], size: int) -> float:
    start = time.perf_counter()
    encode(batch, size)
    return time.perf_counter() - start


def measure(engine: str, model: str, directory: Path, quick: bool) -> None:
    """In this process: seconds of each length (best of three), and the vectors that are compared."""
    import numpy as np

    name, dtype = engine.split()
    encode = {"here": here, "torch": torch_, "onnxruntime": onnxruntime}[name](directory, dtype)
    vectors = [encode(texts(words, COMPARED), COMPARED) for words in lengths(model, quick)]
    np.save(directory / f"{engine}.npy", np.concatenate([np.asarray(some, dtype=np.float64) for some in vectors]))
    found = {}
    for words, count in lengths(model, quick).items():
        if engine == REFERENCE:
            break
        batch = texts(words, count)
        sizes = [size for size in BATCHES if size <= count] if name != "here" else [count]
        tried = {size: timed(encode, batch, size) for size in sizes}
        best = min(tried, key=lambda size: tried[size])
        found[words] = min([tried[best], *(timed(encode, batch, best) for _ in range(3))])
    print(json.dumps({"engine": engine, "seconds": found}), flush=True)


def distances(engine: str, directory: Path) -> tuple[float, float]:
    """From the reference, of vectors of length 1: the smallest cosine, and the largest error of an element in units of
    the largest element of its vector."""
    import numpy as np

    def unit(name: str) -> Any:
        vectors = np.load(directory / f"{name}.npy")
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    ours, theirs = unit(engine), unit(REFERENCE)
    errors = np.abs(ours - theirs).max(axis=1) / np.abs(theirs).max(axis=1)
    return float((ours * theirs).sum(axis=1).min()), float(errors.max())


def table(model: str, directory: Path, rounds: dict[str, list[dict[str, float]]], quick: bool) -> str:
    """Markdown: one line an engine."""
    counts = lengths(model, quick)
    tokens = {words: sum(len(text.split()) + 2 for text in texts(words, count)) for words, count in counts.items()}
    lines = [f"| {model}: words of a text | " + " | ".join(map(str, counts)) + " | tokens/s of all | cosine | error |"]
    lines.append("|---" * (len(counts) + 4) + "|")
    for engine, found in rounds.items():
        seconds = {words: statistics.median(one[str(words)] for one in found) for words in counts}
        rates = [f"{count / seconds[words]:.4g}" for words, count in counts.items()]
        # The harmonic mean is the rate over equal numbers of tokens of each length.
        mean = len(counts) / sum(seconds[words] / tokens[words] for words in counts)
        cosine, error = distances(engine, directory)
        lines.append(f"| {engine} | {' | '.join(rates)} | {mean:.0f} | {cosine:.5f} | {error:.1e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Texts a second of whole models, here and in their peers.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("models", nargs="*", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, help="default 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="few texts, one round: does everything run?")
    parser.add_argument("--engine", choices=[*ENGINES, REFERENCE], help="measure this one alone, in this process")
    args = parser.parse_args()
    for model in args.models:
        directory = args.directory / model
        if args.engine:
            measure(args.engine, model, directory, args.quick)
            continue
        if not (directory / "modules.json").exists():
            directory.mkdir(parents=True, exist_ok=True)
            make(model, directory)

        def run(engine: str, model: str = model) -> dict[str, float]:
            command = [
                sys.executable,
                __file__,
                str(args.directory),
                model,
                "--engine",
                engine,
                *(["--quick"] * args.quick),
            ]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            print(line, flush=True)
            seconds: dict[str, float] = json.loads(line)["seconds"]
            return seconds

        run(REFERENCE)
        rounds: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
        for turn in range(args.rounds or (1 if args.quick else 3)):
            first = turn % len(ENGINES)
            for engine in ENGINES[first:] + ENGINES[:first]:
                rounds[engine].append(run(engine))
        print(f"\n{table(model, directory, rounds, args.quick)}\n", flush=True)


if __name__ == "__main__":
    main()
