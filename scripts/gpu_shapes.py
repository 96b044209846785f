"""Models of the shapes that people use, with random weights, and their speed next to sentence-transformers on one card.

Each contender runs in a process of its own, one after the other, on the same texts. This process reads the card's
memory when a contender says so: when it has its model, and at the end (ours when all is embedded, theirs after batches
of 64). A third process has nothing but the driver's context. No weights matter here, so no model is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "fixtures"
SHAPES: dict[str, dict[str, Any]] = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "e5-small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
    },
    "smollm2": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "tie_word_embeddings": True,
    },
}
"""all-MiniLM-L6-v2, multilingual-e5-small, a BERT base, Qwen3-Embedding-0.6B, SmolLM2-135M."""
VOCABULARY = {"e5-small": 250_037, "qwen3-0.6b": 151_669, "smollm2": 49_152}
WORDS = {"short": 6, "passage": 30, "long": 110}
"""Words of the texts: about 18, 77 and 256 tokens of these tokenizers."""
SENTENCE = "the weather is lovely today and every customer in the queue needs a new password"
COUNT = {"short": 4096, "passage": 2048, "long": 512}
TARGETS = {"short": 1.5, "passage": 1.5, "long": 0.9}
MEMORY = 0.5


def can_make() -> bool:
    """Whether the packages that write models are there."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def make(name: str, folder: Path) -> Path:
    """Writes a model of that shape, with the tokenizer of a fixture, into `folder`."""
    import torch
    from transformers import (
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3Model,
    )

    torch.manual_seed(1)
    kinds = {
        "qwen3-0.6b": ("qwen3_embedding", Qwen3Config, Qwen3Model),
        "smollm2": ("llama", LlamaConfig, LlamaForCausalLM),
    }
    fixture, config, model = kinds.get(name, ("bert_wordpiece", BertConfig, BertModel))
    shutil.copytree(FIXTURES / fixture, folder, ignore=shutil.ignore_patterns("*.safetensors", "reference*.json"))
    known = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: known[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if known.get(key) is not None}
    shape = config(**SHAPES[name], **kept, vocab_size=VOCABULARY.get(name, 30_522), max_position_embeddings=512)
    model(shape).eval().save_pretrained(folder)
    for settings in ("sentence_bert_config.json", "tokenizer_config.json"):
        path = folder / settings
        if path.exists():
            lengths = {"max_seq_length": 512} if settings.startswith("sentence") else {"model_max_length": 512}
            path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **lengths}), encoding="utf-8")
    return folder


def texts(kind: str) -> list[str]:
    """Sentences of about that many words. No two are equal: equal ones are computed once."""
    words = SENTENCE.split()
    digits = sorted(set(words))
    found = []
    for number in range(COUNT[kind]):
        own = [words[(number * 7 + at) % len(words)] for at in range(WORDS[kind] - 6 + number % 5)]
        # The number of the text, in words.
        own += [digits[number // len(digits) ** place % len(digits)] for place in range(4)]
        found.append(" ".join(own))
    return found


WORKER = r"""
import json, sys, time
contender, device, folder, dtype, seconds = sys.argv[1:6]
every = json.load(open(f"{folder}/texts.json"))
if contender == "ours":
    from model_manager import ModelManager
    manager = ModelManager(device=device, cache_size=0, auto_cleanup=False, adaptive_state=False)
    manager.register("model", folder, dtype=dtype)
    manager.load("model")
    embed = lambda texts: manager.embed(texts, "model")
else:
    import torch
    from sentence_transformers import SentenceTransformer
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    model = SentenceTransformer(folder, device=device, model_kwargs={"torch_dtype": kind})
    size = 64
    embed = lambda texts: model.encode(texts, batch_size=size, show_progress_bar=False)
print("memory with the model", flush=True)
sys.stdin.readline()
found = {}
for kind, texts in every.items():
    ones = []
    for text in texts[:40]:
        began = time.perf_counter()
        embed([text])
        ones.append(time.perf_counter() - began)
    ones = sorted(ones[10:])
    embed(texts)
    if contender != "ours":
        if kind == list(every)[-1]:
            # With batches of 64; larger ones take more.
            torch.cuda.empty_cache()
            size = 64
            embed(texts)
            print("memory", flush=True)
            sys.stdin.readline()
        # The batch size that is fastest for these texts.
        took = {}
        for size in (64, 256, 1024):
            embed(texts[:size])
            began = time.perf_counter()
            embed(texts)
            took[size] = time.perf_counter() - began
        size = min(took, key=took.get)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < float(seconds):
        embed(texts)
        done += len(texts)
    rate = done / (time.perf_counter() - began)
    found[kind] = [rate, ones[len(ones) // 2] * 1e3]
if contender == "ours":
    print("memory", flush=True)
    sys.stdin.readline()
some = [text for texts in every.values() for text in texts[:32]]
vectors = {"found": embed(some)}
if contender != "ours":
    exact = SentenceTransformer(folder, device=device, model_kwargs={"torch_dtype": torch.float32})
    vectors["exact"] = exact.encode(some, show_progress_bar=False)
import numpy as np
np.savez(sys.argv[6], **vectors)
print(json.dumps(found))
"""
WRITER = r"""
import json, sys, time
contender, device, folder, dtype, seconds = sys.argv[1:6]
prompt, count = "Bugün hava çok güzel", 64
if contender == "ours":
    from model_manager import ModelManager
    manager = ModelManager(device=device, generator_model=folder, generator_dtype=dtype, auto_cleanup=False)
    options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count}
    write = lambda: manager.generate(prompt, **options)
else:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=kind).to(device).eval()
    ids = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt").to(device)
    ids.pop("token_type_ids", None)
    write = lambda: model.generate(**ids, do_sample=False, max_new_tokens=count, min_new_tokens=count)
write()
done, began = 0, time.perf_counter()
while time.perf_counter() - began < float(seconds):
    write()
    done += count
rate = done / (time.perf_counter() - began)
print("memory", flush=True)
sys.stdin.readline()
print(json.dumps({"decoding": [rate, 0]}))
"""


CONTEXT = r"""
import ctypes, sys
driver, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), int(sys.argv[1]))
failed = failed or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
print("memory", flush=True)
sys.stdin.readline()
print("{}")
sys.exit(failed)
"""


def used(card: str) -> float:
    """MB of this card that are in use; 0 where the driver has no program that says so."""
    if shutil.which("nvidia-smi") is None:
        return 0.0
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", card]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    # "[N/A]" where the card shares the system's memory.
    found = "".join(done.stdout.split()[:1])
    return float(found) if done.returncode == 0 and found.isdigit() else 0.0


def run(card: str, program: str, arguments: list[str]) -> tuple[dict[str, list[float]] | None, dict[str, float]]:
    """What a contender printed last, and the MB of the card that it used each time that it asked to be measured.

    Nothing reads the card while a contender is timed.
    """
    before = used(card)
    worker = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    memory: dict[str, float] = {}
    last = ""
    for line in worker.stdout:
        last = line.strip()
        if last.startswith("memory"):
            memory[last] = used(card) - before
            worker.stdin.write("\n")
            worker.stdin.flush()
    return (json.loads(last), memory) if worker.wait() == 0 else (None, memory)


def errors(folder: Path) -> tuple[float, float] | None:
    """How far vectors of both contenders are from theirs in float32: of unit length, elementwise."""
    import numpy as np

    if not (folder / "ours.npz").exists():
        return None
    ours, theirs = np.load(folder / "ours.npz"), np.load(folder / "theirs.npz")

    def unit(vectors: Any) -> Any:
        vectors = np.asarray(vectors, np.float64)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    exact = unit(theirs["exact"])
    return tuple(float(np.abs(unit(found["found"]) - exact).max()) for found in (ours, theirs))


def compare(add: Callable[..., None], device: str, names: list[str], seconds: float) -> None:
    """Adds a line for each shape and length of text."""
    missing = [
        name for name in ("torch", "transformers", "sentence_transformers") if not importlib.util.find_spec(name)
    ]
    if missing:
        add("speed next to sentence-transformers", f"left out: {', '.join(missing)} missing")
        return
    given = json.dumps({kind: texts(kind) for kind in WORDS})
    card = device.partition(":")[2] or "0"
    bare = run(card, CONTEXT, [card])[1].get("memory", 0.0) if device.startswith("cuda") else 0.0
    if bare:
        add("memory of the driver's context alone", f"{bare:.0f} MB")
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            folder = Path(scratch, name)
            make(name, folder)
            (folder / "texts.json").write_text(given, encoding="utf-8")
            program = WRITER if name == "smollm2" else WORKER
            results = {}
            for contender in ("ours", "theirs"):
                began = time.monotonic()
                arguments = [contender, device, str(folder), "bfloat16", str(seconds), f"{folder}/{contender}.npz"]
                results[contender] = run(card, program, arguments)
                print(f"  {name}, {contender}: {time.monotonic() - began:.0f} s", flush=True)
            differ = errors(folder)
            shutil.rmtree(folder)
            (ours, our_memory), (theirs, their_memory) = results["ours"], results["theirs"]
            if ours is None or theirs is None:
                add(f"{name}, bfloat16", "a contender failed; its error is above", False)
                continue
            for kind, (rate, latency) in ours.items():
                ratio, unit = rate / theirs[kind][0], "tokens/s" if kind == "decoding" else "texts/s"
                found = f"{rate:.0f} {unit}, {ratio:.2f} x theirs"
                if latency:
                    found += f"; one text {latency:.2f} ms, theirs {theirs[kind][1]:.2f} ms"
                add(f"{name}, {kind}, bfloat16", found, ratio >= TARGETS.get(kind, 0))
            if differ is not None:
                add(f"{name}, error, bfloat16", f"{differ[0]:.1e}, theirs {differ[1]:.1e}", differ[0] <= 2 * differ[1])
            for when, taken in our_memory.items():
                of_theirs = their_memory.get(when, 0.0)
                if of_theirs <= 0:
                    continue
                share, found = taken / of_theirs, f"{taken:.0f} MB, {taken / of_theirs:.2f} x theirs"
                if of_theirs > bare > 0:
                    found += f"; without the context {(taken - bare) / (of_theirs - bare):.2f} x"
                add(f"{name}, {when}", found, share <= MEMORY if when == "memory" else None)
