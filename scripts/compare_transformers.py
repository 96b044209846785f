"""Tiny random models with random options, computed here and by transformers: the largest difference of each family.

    python scripts/compare_transformers.py [KIND ...] [--family NAME] [--cases N] [--seed N]

Needs this package, torch, transformers and sentence-transformers; it contacts no hub. A kind is generator, embedding,
reranker or sparse. Options are drawn from the tables below, and keys of config.json are dropped now and then. A case
that transformers does not load is unfit. Prints a line for each family, each case that differs, and at the end each
refusal once. Ends with exit code 1 if a case differs. `--family NAME --seed N --cases 1 --keep DIR` leaves its files.
"""

import argparse
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch
import transformers
from fixture_makers import causal, encoder_files
from fixture_makers.encoder_files import Encoder
from fixture_makers.weights import random_weights
from model_manager import ModelManager
from model_manager.errors import ModelManagerError
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    T5EncoderModel,
)
from transformers_options import (
    BOTH,
    CONVOLUTIONS,
    DECODERS,
    DELTA_RULES,
    ENCODERS,
    FULL_LAYERS,
    LAYER_ROPES,
    MIXTURES,
    ROPE,
    SCORED,
    SPARSE,
    TYPES,
    Options,
)

Case = tuple[str, float | str]  # ok, differs or refused, and what there is to say
CONTEXT = 64
TOLERANCE = 1e-4  # of vectors, relative to the largest number, and of logits
NEW_TOKENS = 16
FULL, SLIDING = "full_attention", "sliding_attention"
REFERENCE = {"dtype": torch.float32, "attn_implementation": "eager"}
EXPERTS = {"experts_implementation": "eager"}
TEXTS = [
    "a",
    "The weather is very nice today.",
    "x [SEP] </s> <pad> [PAD] y",
    "Soru: çğıöşü 123 😀\nYanıt:",
    "kedi " * 40,
]
PAIRS = [(TEXTS[1], TEXTS[3]), (TEXTS[0], TEXTS[4]), (TEXTS[4], TEXTS[1]), (TEXTS[2], TEXTS[1])]

# Names of the sizes, where they are not those of BERT and Llama.
SIZES = {
    "gpt2": ["n_embd", "n_layer", "n_head", "", "n_positions"],
    "gptj": ["n_embd", "n_layer", "n_head", "", "n_positions"],
    "falcon": ["hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_hidden_size", "max_position_embeddings"],
    "distilbert": ["dim", "n_layers", "n_heads", "hidden_dim", "max_position_embeddings"],
    "t5": ["d_model", "num_layers", "num_heads", "d_ff", ""],
    "mt5": ["d_model", "num_layers", "num_heads", "d_ff", ""],
}
COMMON = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings"]


class UnfitError(Exception):
    """transformers does not make or load this model."""


def rope(draw: random.Random) -> Options:
    kind = draw.choice(["default", "linear", "dynamic", "yarn", "llama3"])
    found: Options = {"rope_type": kind, "rope_theta": draw.choice([100.0, 10000.0])}
    if kind != "default":
        found["factor"] = draw.choice([1.5, 4.0])
    if kind in ("yarn", "llama3"):
        found["original_max_position_embeddings"] = draw.choice([8, 16])
    if kind == "llama3":
        found |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return found


def config(draw: random.Random, family: str, options: Options, tokens: Options) -> Any:
    """A configuration of transformers with drawn sizes and options."""
    heads, layers = draw.choice([1, 2, 3, 4]), draw.choice([1, 2, 4])
    # Of some, a quarter or half of each head is rotated, in pairs.
    widths = [8, 16] if family in ("gpt_neox", "phi", "stablelm", "glm4", "glm", "nemotron") else [4, 6, 12]
    values = [heads * draw.choice(widths), layers, heads, draw.choice([5, 16, 33]), CONTEXT]
    found: Options = {name: value for name, value in zip(SIZES.get(family, COMMON), values, strict=True) if name}
    if family in DECODERS and family not in ("gpt2", "gptj", "gpt_neox", "phi", "falcon"):
        found["num_key_value_heads"] = draw.choice([kv for kv in (1, 2, 4) if heads % kv == 0])
    for key, choices in options.items():
        value = draw.choice(choices)
        value = rope(draw) if value is ROPE else value
        value = {kind: rope(draw) for kind in (FULL, SLIDING)} if value is LAYER_ROPES else value
        value = [draw.choice([FULL, SLIDING]) for _ in range(layers)] if value is TYPES else value
        value = [draw.choice([FULL, "conv"]) for _ in range(layers)] if value is CONVOLUTIONS else value
        value = [FULL] * layers if value is FULL_LAYERS else value
        value = [draw.choice([FULL, "linear_attention"]) for _ in range(layers)] if value is DELTA_RULES else value
        found |= {} if value is None else {key: value}
    if family in DECODERS and draw.random() < 0.5:
        found["tie_word_embeddings"] = draw.choice(BOTH)
    return CONFIG_MAPPING[family](**{**tokens, **found})


def plain(family: str) -> Options:
    """How transformers computes it: in its plainest form."""
    return {**REFERENCE, **(EXPERTS if family in {*MIXTURES, "gemma4_text"} else {})}


def save(draw: random.Random, kind: Any, settings: Any, folder: Path) -> None:
    """Random weights in one of the forms that hubs hold, and a config.json with fewer keys."""
    try:
        model = kind._from_config(settings) if kind is T5EncoderModel else kind.from_config(settings)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, KeyError) as error:
        raise UnfitError from error
    # Constants of an activation stay as they are.
    constants = ("act_fn.beta", "act_fn.eps")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.endswith(constants)}
    model.load_state_dict(random_weights(shapes, draw.randrange(10**6), gain=2.0, embedding=0.3), strict=False)
    model.to(draw.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    shards = draw.choice(["1GB", "1GB", "20KB"])
    # Experts as published files have them, or as modules hold them.
    published = settings.model_type not in MIXTURES or draw.choice(BOTH)
    model.save_pretrained(folder, max_shard_size=shards, save_original_format=published)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    saved = json.loads(path.read_text("utf-8"))
    # transformers compares the number of its heads of Mamba with other keys.
    needed = {"model_type", "architectures", "vocab_size", "mamba_n_heads"}
    needed |= {*SIZES.get(settings.model_type, COMMON)}
    path.write_text(json.dumps({key: saved[key] for key in saved if key in needed or draw.random() > 0.03}), "utf-8")
    _, loaded = kind.from_pretrained(folder, output_loading_info=True)
    if loaded["missing_keys"] or loaded["mismatched_keys"] or loaded["unexpected_keys"]:
        raise UnfitError


def generator(draw: random.Random, family: str, folder: Path, manager: ModelManager) -> Case:
    """Greedy answers: at each step, how far the chosen token's logit is below the best."""
    vocabulary = causal.write_tokenizer(folder, "llama", CONTEXT).get_vocab_size()
    end = vocabulary - 3
    tokens = {"vocab_size": vocabulary, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    save(draw, AutoModelForCausalLM, config(draw, family, DECODERS[family], tokens), folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, **plain(family)).eval()
    manager.register("model", folder, kind="generator", dtype="float32")
    worst = 0.0
    for length in (1, 5, 20, 45):
        ids = [draw.randrange(end) for _ in range(length)]
        limits = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
        answer = manager.complete(ids, "model", do_sample=False, **limits)["tokens"]
        with torch.no_grad():
            logits = reference(torch.tensor([ids + answer])).logits[0, length - 1 : -1]
        logits[:, end] = -torch.inf
        chosen = logits[torch.arange(len(answer)), torch.tensor(answer)]
        worst = max(worst, float((logits.max(dim=1).values - chosen).max()))
    return ("ok" if worst < TOLERANCE else "differs"), worst


def compare(found: Any, expected: Any) -> Case:
    worst = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
    return ("ok" if worst < TOLERANCE else "differs"), worst


def tokenizer(draw: random.Random, family: str, folder: Path, layout: str) -> Options:
    """Writes the tokenizer, and for sentence models the files around it. Its tokens, for the configuration."""
    name, _ = ENCODERS[family]
    pooling = draw.choice(["mean", "cls", "max", "lasttoken"])
    spec = Encoder("", 1, tokenizer=name, positions=CONTEXT - 8, max_length=32, pooling=pooling, layout=layout)  # type: ignore[arg-type]
    vocabulary = encoder_files.write_tokenizer(spec, folder).get_vocab_size()
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings.pop("chat_template", None)
    path.write_text(json.dumps({**settings, "truncation_side": draw.choice(["left", "right"])}), "utf-8")
    if layout != "plain":
        encoder_files.write_sentence_files(spec, folder)
    end = vocabulary - 3 if name == "qwen" else 0
    padding = end if name == "qwen" else int(name in ("unigram", "mpnet"))
    return {"vocab_size": vocabulary, "bos_token_id": end, "eos_token_id": end, "pad_token_id": padding}


def embedding(draw: random.Random, family: str, folder: Path, manager: ModelManager) -> Case:
    tokens = tokenizer(draw, family, folder, "classic")
    kind = T5EncoderModel if family in ("t5", "mt5") else AutoModel
    save(draw, kind, config(draw, family, ENCODERS[family][1], tokens), folder)
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs=plain(family))
    expected = np.stack([model.encode([text], show_progress_bar=False)[0] for text in TEXTS])
    manager.register("model", folder, kind="embedding", dtype="float32")
    return compare(manager.embed(TEXTS, "model", normalize=False), expected)


def reranker(draw: random.Random, family: str, folder: Path, manager: ModelManager) -> Case:
    tokens = {**tokenizer(draw, family, folder, "plain"), "num_labels": draw.choice([1, 2, 3])}
    save(draw, AutoModelForSequenceClassification, config(draw, family, ENCODERS[family][1], tokens), folder)
    model = CrossEncoder(str(folder), device="cpu", model_kwargs=dict(REFERENCE))
    expected = np.stack([model.predict([pair], activation_fn=torch.nn.Identity())[0] for pair in PAIRS])
    manager.register("model", folder, kind="reranker", dtype="float32")
    return compare(manager.get("model").predict(PAIRS, activation_fn="identity"), expected)


def sparse(draw: random.Random, family: str, folder: Path, manager: ModelManager) -> Case:
    tokens = {**tokenizer(draw, family, folder, "plain"), "tie_word_embeddings": draw.choice(BOTH)}
    save(draw, AutoModelForMaskedLM, config(draw, family, ENCODERS[family][1], tokens), folder)
    model = SparseEncoder(str(folder), device="cpu", model_kwargs=dict(REFERENCE))
    expected = np.stack([model.encode([text], convert_to_sparse_tensor=False)[0].numpy() for text in TEXTS])
    manager.register("model", folder, kind="sparse", dtype="float32")
    found = np.zeros_like(expected)
    for row, vector in zip(found, manager.embed_sparse(TEXTS, "model"), strict=True):
        row[vector.indices] = vector.values
    return compare(found, expected)


KINDS: dict[str, tuple[Callable[..., Case], list[str]]] = {
    "generator": (generator, list(DECODERS)),
    "embedding": (embedding, list(ENCODERS)),
    "reranker": (reranker, SCORED),
    "sparse": (sparse, SPARSE),
}


def run(kind: str, family: str, seed: int, folder: Path) -> Case:
    torch.manual_seed(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ModelManager(generator_dtype="float32", offline=True, cache_size=0, device="cpu") as manager:
        try:
            return KINDS[kind][0](random.Random(f"{kind} {family} {seed}"), family, folder, manager)
        except UnfitError:
            return "unfit", ""
        except ModelManagerError as error:
            return "refused", re.sub(r"\S*/", "", str(error))
        except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError, AttributeError) as error:
            return "unfit", repr(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], default=[])
    parser.add_argument("--family", action="append")
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--keep", type=Path, help="folder of the files, which stay there")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    folder = given.keep or Path(tempfile.mkdtemp()) / "model"
    refusals: Counter[str] = Counter()
    differing = 0
    for kind in given.kinds or KINDS:
        for family in given.family or KINDS[kind][1]:
            if family not in KINDS[kind][1]:
                continue
            results = {seed: run(kind, family, seed, folder) for seed in range(given.seed, given.seed + given.cases)}
            counts = Counter(outcome for outcome, _ in results.values())
            worst = max((value for outcome, value in results.values() if outcome == "ok"), default=0.0)
            print(f"{kind:10} {family:20} {dict(counts)}, largest difference {worst:.1e}", flush=True)
            for seed, (outcome, value) in results.items():
                differing += outcome == "differs"
                if outcome == "differs":
                    print(f"  seed {seed} differs by {value:.1e}", flush=True)
                refusals.update([f"{family}: {value}"] if outcome == "refused" else [])
    for reason, count in sorted(refusals.items()):
        print(f"refused {count} times: {reason}")
    if not given.keep:
        shutil.rmtree(folder.parent, ignore_errors=True)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
