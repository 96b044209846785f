"""What one model costs a fresh process: time to the first vector, private memory by part, and memory after unloading.

Every run is a process of its own, one at a time, and packages alternate. The figures are the medians of all runs, but
of what stays the largest. Memory is private to the process: the pages that it has written to, and those of files that
no other process has mapped (code, mostly). What stays after unloading is counted from the moment before the first load,
numpy imported.

sentence-transformers, onnxruntime with the tokenizers package, and fastembed, in the peers' virtual environments, are
measured next to it with --peers; what they leave is counted after the model is deleted. A model without a graph
(model.onnx) is exported first.

    python benchmarks/footprint.py [MODEL] [--runs N] [--peers] [--folder FOLDER]
"""

import argparse
import ctypes
import gc
import importlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import environment
import report

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


def peer_run(name: str, model: str, graph: str) -> dict[str, float]:
    """The same of another package; `graph` is a folder with the model as ONNX and its tokenizer."""
    bare, start = private_mb(), time.perf_counter()
    if name == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        loaded = time.perf_counter()
        before = private_mb()
        encoder = SentenceTransformer(model, device="cpu")
        encoder.encode(TEXT)
    elif name == "fastembed":
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        loaded = time.perf_counter()
        before = private_mb()
        TextEmbedding.add_custom_model(
            model="local/model",
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(hf="local/model"),
            dim=json.loads((Path(graph) / "config.json").read_text(encoding="utf-8"))["hidden_size"],
            model_file="model.onnx",
        )
        encoder = TextEmbedding("local/model", specific_model_path=graph)
        list(encoder.embed([TEXT]))
    else:
        import numpy as np
        import onnxruntime
        from tokenizers import Tokenizer

        loaded = time.perf_counter()
        before = private_mb()
        encoder = onnxruntime.InferenceSession(str(Path(graph) / "model.onnx"), providers=["CPUExecutionProvider"])
        ids = Tokenizer.from_file(str(Path(graph) / "tokenizer.json")).encode(TEXT).ids
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


def summaries(commands: dict[str, list[list[str]]], runs: int) -> dict[str, dict[str, float]]:
    """Package → figures. Each of its commands measures some of them."""
    found: dict[str, list[dict[str, float]]] = {package: [] for package in commands}
    for _ in range(runs):
        for package, parts in commands.items():
            answers = [environment.output_of(command) for command in parts]
            found[package].append({name: figure for one in answers for name, figure in json.loads(one).items()})

    def summary(name: str, figures: list[float]) -> float:
        return max(figures) if name.endswith(LEFT) else statistics.median(figures)

    return {
        package: {name: summary(name, [run[name] for run in all_runs]) for name in all_runs[0]}
        for package, all_runs in found.items()
    }


def with_graph(model: Path, python: str, folder: Path) -> str:
    """A folder with the model as ONNX, made in `folder` unless the model has a graph."""
    if (model / "model.onnx").is_file():
        return str(model)
    if not (folder / "model.onnx").is_file():
        command = [python, str(Path(__file__).with_name("export_onnx.py")), str(model), str(folder)]
        environment.output_of(command)
    for file in model.glob("*.json"):
        shutil.copy(file, folder)
    return str(folder)


def peer_commands(model: str, folder: Path) -> dict[str, list[list[str]]]:
    python = str(environment.peers_python(environment.peers_location()))
    other = str(environment.peers_python(environment.peers_location("-fastembed"), "requirements-fastembed.txt"))
    graph = with_graph(Path(model), python, folder)
    pythons = {"sentence-transformers": python, "onnxruntime": python, "fastembed": other}
    return {peer: [[each, __file__, model, "--graph", graph, "--one", peer]] for peer, each in pythons.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", nargs="?", default=str(MODELS / "multilingual-e5-small"))
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--peers", action="store_true")
    arguments.add_argument("--folder", type=Path, help="where a graph is exported to, and stays")
    arguments.add_argument("--one", help=argparse.SUPPRESS)
    arguments.add_argument("--graph", default="", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        own = {"own": one_run, "left": left_run}
        run = own[given.one](given.model) if given.one in own else peer_run(given.one, given.model, given.graph)
        print(json.dumps(run))
        return
    own_command = [sys.executable, __file__, given.model, "--one"]
    commands = {"model_manager": [[*own_command, "own"], [*own_command, "left"]]}
    with tempfile.TemporaryDirectory() as work:
        if given.peers:
            commands |= peer_commands(given.model, given.folder or Path(work))
        found = summaries(commands, given.runs)
    for name, figure in found["model_manager"].items():
        target = TARGETS.get(name)
        reached = "" if target is None else f"   target ≤ {target:g}: {'yes' if figure <= target else 'no'}"
        print(f"{name:30} {figure:8.3f}{reached}")
    if given.peers:
        names = ["import s", "private MB of the import", "first vector s", "private MB after it", "MB of it written to"]
        rows = [["", *names, f"private MB {LEFT}"]]
        for package, figures in found.items():
            cells = (f"{figures[name]:.{2 if name.endswith(' s') else 1}f}" for name in rows[0][1:])
            rows.append([package, *cells])
        print(f"\n{environment.machine()}\n\n{report.table(rows)}")


if __name__ == "__main__":
    main()
