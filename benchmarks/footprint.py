"""What one model costs a fresh process: time to the first vector, private memory by part, and memory after unloading.

Every run is a process of its own; the figures are the smallest of all runs.

    python benchmarks/footprint.py [MODEL] [--runs N]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

MODELS = Path(__file__).parents[1] / ".models"
TEXT = "Bugün hava çok güzel, sahilde yürüyelim mi?"
# Of multilingual-e5-small, the drop-in's Turkish model.
TARGETS = {"first vector s": 0.25, "private MB after it": 110.0}


def private_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024


def one_run(model: str) -> dict[str, float]:
    bare, start = private_mb(), time.perf_counter()
    from model_manager import ModelManager

    imported = time.perf_counter()
    figures = {"import s": imported - start, "private MB of the import": private_mb() - bare}
    manager = ModelManager()
    manager.register("model", model)
    before = private_mb()
    manager.embed(TEXT, model="model")
    figures["first vector s"] = time.perf_counter() - imported
    figures["private MB after it"] = private_mb()
    texts = [f"{TEXT} {number}" for number in range(10_000)]
    start = time.process_time()
    manager.count_tokens(texts, model="model")
    figures["µs to tokenize a text"] = (time.process_time() - start) / len(texts) * 1e6
    del texts
    manager.unload_all_models()
    figures["private MB left by unloading"] = private_mb() - before
    return figures


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model", nargs="?", default=str(MODELS / "multilingual-e5-small"))
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(one_run(given.model)))
        return
    command = [sys.executable, __file__, given.model, "--one"]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(given.runs)]
    for name in runs[0]:
        smallest = min(run[name] for run in runs)
        target = TARGETS.get(name)
        reached = "" if target is None else f"   target ≤ {target:g}: {'yes' if smallest <= target else 'no'}"
        print(f"{name:30} {smallest:8.3f}{reached}")


if __name__ == "__main__":
    main()
