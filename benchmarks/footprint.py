"""What one model costs a fresh process: time to the first vector, private memory, and memory after unloading.

Every run is a process of its own. The figures are the smallest of all runs, but of what stays the largest. Memory is
private to the process: the pages that it has written to, and those of files that no other process has mapped (code,
mostly). What stays after unloading is counted from the moment before the first load, numpy imported.

sentence-transformers and onnxruntime with tokenizers, in the peers' virtual environment, are measured next to it with
--peers: import, first vector, memory after it, and what is left when the model is deleted.

    python benchmarks/footprint.py [MODEL] [--runs N] [--peers]
"""

import argparse
import ctypes
import gc
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import environment

MODELS = Path(__file__).parents[1] / ".models"
TEXT = "Bugün hava çok güzel, sahilde yürüyelim mi?"
# Of multilingual-e5-small, the drop-in's Turkish model.
LEFT = "left by unloading"
TARGETS = {"first vector s": 0.25, "private MB after it": 110.0, f"private MB {LEFT}": 10.0}


def private_mb(*kinds: str) -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kinds = kinds or ("Private_Clean", "Private_Dirty")
    return sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) / 1024


def trim() -> None:
    """Gives unused memory back to the system."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def one_run(model: str) -> dict[str, float]:
    bare, start = private_mb(), time.perf_counter()
    from model_manager import ModelManager

    imported = time.perf_counter()
    figures = {"import s": imported - start, "private MB of the import": private_mb() - bare}
    manager = ModelManager()
    manager.register("model", model)
    manager.embed(TEXT, model="model")
    figures["first vector s"] = time.perf_counter() - imported
    figures["private MB after it"] = private_mb()
    figures["MB of it written to"] = private_mb("Private_Dirty")
    texts = [f"{TEXT} {number}" for number in range(10_000)]
    start = time.process_time()
    manager.count_tokens(texts, model="model")
    figures["µs to tokenize a text"] = (time.process_time() - start) / len(texts) * 1e6
    return figures


def left_run(model: str) -> dict[str, float]:
    """What unloading leaves."""
    importlib.import_module("numpy")
    from model_manager import ModelManager

    manager = ModelManager()
    manager.register("model", model)
    before = private_mb()
    for _ in range(3):
        manager.embed(TEXT, model="model")
        manager.unload_all_models()
    return {f"private MB {LEFT}": private_mb() - before}


def peer_run(name: str, model: str) -> dict[str, float]:
    """The same of another package."""
    bare, start = private_mb(), time.perf_counter()
    if name == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        loaded = time.perf_counter()
        before = private_mb()
        encoder = SentenceTransformer(model, device="cpu")
        encoder.encode(TEXT)
    else:
        import numpy as np
        import onnxruntime
        from tokenizers import Tokenizer

        loaded = time.perf_counter()
        before = private_mb()
        encoder = onnxruntime.InferenceSession(str(Path(model) / "model.onnx"), providers=["CPUExecutionProvider"])
        ids = Tokenizer.from_file(str(Path(model) / "tokenizer.json")).encode(TEXT).ids
        inputs = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
        wanted = {one.name for one in encoder.get_inputs()}
        encoder.run(None, {key: np.array([value]) for key, value in inputs.items() if key in wanted})
    figures = {"import s": loaded - start, "private MB of the import": before - bare}
    figures["first vector s"] = time.perf_counter() - loaded
    figures["private MB after it"] = private_mb()
    figures["MB of it written to"] = private_mb("Private_Dirty")
    del encoder
    gc.collect()
    trim()
    return figures | {f"private MB {LEFT}": private_mb() - before}


def summary(command: list[str], runs: int) -> dict[str, float]:
    found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(runs)]
    return {name: (max if name.endswith(LEFT) else min)(run[name] for run in found) for name in found[0]}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", nargs="?", default=str(MODELS / "multilingual-e5-small"))
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--peers", action="store_true")
    arguments.add_argument("--one", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        own = {"own": one_run, "left": left_run}
        run = own[given.one](given.model) if given.one in own else peer_run(given.one, given.model)
        print(json.dumps(run))
        return
    command = [sys.executable, __file__, given.model, "--one"]
    figures = summary([*command, "own"], given.runs) | summary([*command, "left"], given.runs)
    for name, figure in figures.items():
        target = TARGETS.get(name)
        reached = "" if target is None else f"   target ≤ {target:g}: {'yes' if figure <= target else 'no'}"
        print(f"{name:30} {figure:8.3f}{reached}")
    if given.peers:
        python = str(environment.peers_python(environment.peers_location()))
        peers = ["sentence-transformers", *(["onnxruntime"] if (Path(given.model) / "model.onnx").exists() else [])]
        for peer in peers:
            print(f"\n{peer}")
            for name, figure in summary([python, __file__, given.model, "--one", peer], given.runs).items():
                print(f"{name:30} {figure:8.3f}")


if __name__ == "__main__":
    main()
