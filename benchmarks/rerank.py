#!/usr/bin/env python3
"""Reranking 100 passages for one query: model_manager, sentence-transformers' CrossEncoder, onnxruntime.

    python benchmarks/rerank.py [--rounds N] [--passages N] [--layers N]

The model has the shape of BAAI/bge-reranker-base (XLM-RoBERTa base: 12 layers of 768, a head of one label) and random
weights, made at run time; its words are those of the passages, since a table of words costs no time. Every contender
runs in a process of its own, once a round, in turning order; the table shows medians. Peers live in the environment of
peers.py (MODEL_MANAGER_PEERS_VENV).
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONTENDERS = (
    "model_manager-auto",
    "model_manager-f32",
    "model_manager-int8",
    "torch-bf16",
    "torch-f32",
    "onnxruntime-f32",
)
WORDS, QUERY_WORDS, PASSAGE_WORDS = 1000, 10, 77
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def sentence(words: int, seed: int) -> str:
    """`words` words, each one token of the model."""
    return " ".join(f"w{random.Random(seed * 1000 + at).randrange(WORDS)}" for at in range(words))


def make_model(folder: Path, layers: int, onnx: Path) -> None:
    """Writes the model, its tokenizer and its ONNX graph. Runs in the peers' environment."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForSequenceClassification

    torch.manual_seed(0)
    names = [*SPECIAL, *(f"w{number}" for number in range(WORDS))]
    bare = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, "<unk>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bare.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=512,
    ).save_pretrained(folder)
    config = XLMRobertaConfig(
        vocab_size=len(names),
        num_hidden_layers=layers,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_labels=1,
        attn_implementation="eager",
    )
    model = XLMRobertaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    ids = torch.full((2, 8), 7)
    torch.onnx.export(
        model,
        (ids, torch.ones_like(ids)),
        str(onnx),
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")},
        dynamo=False,
    )


def contender(name: str, folder: Path, onnx: Path, threads: int) -> Any:
    """A function from a list of pairs to their logits."""
    if name.startswith("model_manager"):
        from model_manager import ModelManager

        manager = ModelManager(cache_size=0)
        dtype = {"f32": "float32"}.get(suffix := name.rsplit("-", 1)[1], suffix)
        manager.register("rerank", str(folder), dtype=dtype, kind="reranker")
        return lambda pairs: [
            found.score
            for found in sorted(
                manager.rerank(pairs[0][0], [passage for _, passage in pairs], model="rerank", activation="identity"),
                key=lambda found: found.index,
            )
        ]
    if name.startswith("torch"):
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(threads)
        dtype = torch.float32 if name.endswith("f32") else torch.bfloat16
        model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": dtype, "attn_implementation": "sdpa"})
        plain = torch.nn.Identity()
        return lambda pairs: model.predict(pairs, batch_size=32, activation_fn=plain, show_progress_bar=False).tolist()
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    tokenizer.enable_truncation(512)

    def predict(pairs: list[tuple[str, str]]) -> list[float]:
        logits: list[float] = []
        for start in range(0, len(pairs), 32):
            encoded = tokenizer.encode_batch(pairs[start : start + 32])
            inputs = {
                "input_ids": np.array([one.ids for one in encoded], np.int64),
                "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
            }
            logits += session.run(None, inputs)[0][:, 0].tolist()
        return logits

    return predict


def work(name: str, folder: Path, onnx: Path, passages: int, threads: int) -> dict[str, Any]:
    """The seconds of a run after one of eight pairs to warm up, and the logits."""
    predict = contender(name, folder, onnx, threads)
    query = sentence(QUERY_WORDS, 0)
    pairs = [(query, sentence(PASSAGE_WORDS, 1 + at)) for at in range(passages)]
    predict(pairs[:8])
    started = time.perf_counter()
    logits = predict(pairs)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "logits": logits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--work", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if given.work:
        name, folder = given.work[0], Path(given.work[1])
        if name == "make":
            make_model(folder / "model", given.layers, folder / "model.onnx")
        else:
            print(json.dumps(work(name, folder / "model", folder / "model.onnx", given.passages, threads)))
        return
    import environment

    peers = environment.peers_python(environment.peers_location())
    with tempfile.TemporaryDirectory() as folder:

        def run(name: str) -> str:
            python = sys.executable if name.startswith("model_manager") else str(peers)
            sizes = ["--passages", str(given.passages), "--layers", str(given.layers)]
            command = [python, __file__, "--work", name, folder, *sizes]
            return environment.output_of(command, HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore")

        run("make")
        seconds: dict[str, list[float]] = {name: [] for name in given.contenders}
        logits: dict[str, list[float]] = {}
        for turn in range(given.rounds):
            at = turn % len(given.contenders)
            for name in [*given.contenders[at:], *given.contenders[:at]]:
                found = json.loads(run(name).splitlines()[-1])
                seconds[name].append(found["seconds"])
                logits[name] = found["logits"]
                print(f"round {turn + 1}: {name} {found['seconds']:.2f} s", flush=True)
    exact = logits.get("torch-f32") or next(iter(logits.values()))
    print(f"\n| | pairs/s | seconds for {given.passages} | range | max error of a logit |\n|---|---|---|---|---|")
    for name, runs in seconds.items():
        middle = statistics.median(runs)
        error = max(abs(a - b) for a, b in zip(logits[name], exact, strict=True))
        spread = f"{min(runs):.2f} to {max(runs):.2f}"
        print(f"| {name} | {given.passages / middle:.1f} | {middle:.2f} | {spread} | {error:.1e} |")


if __name__ == "__main__":
    main()
