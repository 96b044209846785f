#!/usr/bin/env python3
"""Checks model_manager on a card: parity of every fixture, lifecycle, a full card, speed next to sentence-transformers.

`scripts/gpu_check.sh` builds the extension and calls this. The device is `cuda`, or that of
GPU_CHECK_DEVICE; on `candle-cpu`, what needs a card is left out. Exits with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import gpu_shapes
from model_manager import ModelManager
from model_manager.errors import ModelManagerError

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "fixtures"
DEVICE = os.environ.get("GPU_CHECK_DEVICE", "cuda")
CARD = DEVICE != "candle-cpu"
FLOAT32 = 2e-5
"""Of vectors and scores, elementwise. Logits that are larger than 1 are compared relative to their size."""
ROUNDS = 20
GROWTH = 32 << 20
"""Bytes by which a card may be fuller after 20 rounds than after the first two, which load kernels."""
LEFT_OUT = "left out: no card"


class Report:
    """Lines of a table, and whether all checks passed."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.failed = False

    def add(self, check: str, found: str, passed: bool | None = None) -> None:
        """`passed` None: a figure without a target here."""
        verdict = "" if passed is None else "ok" if passed else "FAILED"
        self.failed |= passed is False
        self.rows.append((check, found, verdict))
        print(f"{check:44} {found:58} {verdict}", flush=True)


def new_manager(**settings: Any) -> ModelManager:
    return ModelManager(device=DEVICE, auto_cleanup=False, cache_size=0, adaptive_state=False, **settings)


def error_of(found: Any, want: Any) -> float:
    """The largest difference, of numbers above 1 relative to them."""
    found, want = np.asarray(found, np.float64).ravel(), np.asarray(want, np.float64).ravel()
    if found.shape != want.shape:
        return float("inf")
    return float(np.max(np.abs(found - want) / np.maximum(1, np.abs(want)), initial=0))


def fixture_error(folder: Path, dtype: str) -> float | None:
    """How far the results of a fixture are from PyTorch's; None for one of another kind."""
    expected = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    with new_manager() as manager:
        if "dimensions" in expected:
            manager.register("model", str(folder), dtype=dtype)
            cases = expected["cases"]
            found = manager.embed([case["text"] for case in cases], "model", normalize=expected["normalize"])
            return error_of(found, [case["embedding"] for case in cases])
        if "vocabulary" in expected:
            manager.register("model", str(folder), dtype=dtype, kind="sparse")
            errors = []
            for case in expected["texts"]:
                vector = manager.embed_sparse(case["text"], "model")
                found, want = (np.zeros(expected["vocabulary"]) for _ in range(2))
                found[vector.indices], want[case["indices"]] = vector.values, case["values"]
                errors.append(error_of(found, want))
            return max(errors)
        if "labels" in expected and "pairs" in expected:
            manager.register("model", str(folder), dtype=dtype)
            pairs = expected["pairs"]
            found = manager.get("model").predict([case["pair"] for case in pairs], activation_fn="identity")
            return error_of(found, [case["logits"] for case in pairs])
    return None


def continuations(folder: Path) -> tuple[int, int] | None:
    """Greedy tokens equal to those of transformers up to the first that differs, and all; None for another kind."""
    expected = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    cases = [case for case in expected.get("cases", []) if "greedy" in case]
    if not cases:
        return None
    same = total = 0
    with new_manager(generator_model=str(folder), generator_dtype="float32") as manager:
        for case in cases:
            options = {"do_sample": False, "max_new_tokens": len(case["greedy"])}
            tokens = manager.complete(case["prompt"], **options)["tokens"]
            differs = (at for at, (a, b) in enumerate(zip(tokens, case["greedy"], strict=False)) if a != b)
            same += next(differs, min(len(tokens), len(case["greedy"])))
            total += len(case["greedy"])
    return same, total


def parity(report: Report, names: list[str]) -> None:
    for dtype, bound in (("float32", FLOAT32), ("bfloat16", None)):
        errors = {
            name: error_of_name
            for name in names
            if (error_of_name := fixture_error(FIXTURES / name, dtype)) is not None
        }
        if not errors:
            continue
        worst = max(errors, key=errors.__getitem__)
        found = f"{len(errors)} models, largest error {errors[worst]:.1e} ({worst})"
        report.add(f"parity, {dtype}", found, None if bound is None else errors[worst] <= bound)
    written = {name: counts for name in names if (counts := continuations(FIXTURES / name))}
    if written:
        same, total = (sum(counts[at] for counts in written.values()) for at in (0, 1))
        report.add("parity, greedy tokens, float32", f"{len(written)} models, {same} of {total}", same == total)


def card(manager: ModelManager) -> dict[str, Any]:
    device = manager.stats()["memory"]["device"]
    assert device is not None, f"device={manager.device!r}"
    return device


def lifecycle(report: Report, folder: Path) -> None:
    """Loads and unloads; of a card, free memory is what the driver reports."""
    with new_manager() as manager:
        manager.register("model", str(folder), dtype="float32")
        held, free = [], []
        for _ in range(ROUNDS):
            manager.embed(["a text", "another text"], "model")
            held.append(card(manager)["models"])
            manager.unload("model")
            free.append(card(manager)["free"])
            if card(manager)["models"] != 0:
                report.add("lifecycle", "bytes on the device after unloading", False)
                return
        passed = len(set(held)) == 1 and held[0] > 0
        found = f"{ROUNDS} rounds, {held[0] / 1e6:.1f} MB of weights each"
        if None not in free:
            growth = max(free[1], free[2]) - free[-1]
            passed &= growth <= GROWTH
            found += f", driver: {max(growth, 0) / 1e6:.1f} MB more than at first"
        report.add("lifecycle", found, passed)


def concurrent(report: Report, folder: Path) -> None:
    """Texts that are written at the same time are those that are written alone."""
    prompts = [f"{number} Bugün hava" for number in range(8)]
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24}
    with new_manager(generator_model=str(folder), generator_dtype="float32") as manager:
        alone = [manager.complete(prompt, **options)["tokens"] for prompt in prompts]
        with ThreadPoolExecutor(len(prompts)) as threads:
            together = list(threads.map(lambda prompt: manager.complete(prompt, **options)["tokens"], prompts))
    same = sum(a == b for a, b in zip(alone, together, strict=True))
    report.add("texts written at the same time", f"{same} of {len(prompts)} as alone", same == len(prompts))


FORKED = """
import os
from model_manager import ModelManager
with ModelManager(device="cuda", auto_cleanup=False, adaptive_state=False) as manager:
    child = os.fork()
    if child == 0:
        try:
            ModelManager(device="cuda", auto_cleanup=False, adaptive_state=False)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def choice(report: Report) -> None:
    """What `device` chooses and refuses."""
    if not CARD:
        report.add("choice of a card", LEFT_OUT)
        return
    with ModelManager(device="auto", auto_cleanup=False, adaptive_state=False) as manager:
        report.add("device auto", manager.device, manager.device.startswith("cuda:"))
    try:
        ModelManager(device="cuda:99", auto_cleanup=False, adaptive_state=False)
        report.add("device cuda:99", "no error", False)
    except ModelManagerError as error:
        report.add("device cuda:99", str(error)[-58:], "cuda:0" in str(error))
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=False)
    report.add("a forked process", done.stdout.strip()[:58], "spawn" in done.stdout)


def budget(report: Report, folder: Path) -> None:
    """Two models of which the budget holds one: the idle one is unloaded. A budget for none refuses by name."""
    copy = Path(tempfile.mkdtemp()) / "copy"
    shutil.copytree(folder, copy)
    try:
        with new_manager() as manager:
            manager.register("one", str(folder), dtype="float32")
            manager.warmup(["one"])
            size = manager.describe("one")["device_bytes"]
        with new_manager(memory_budget=f"{int(1.9 * size)}B") as manager:
            for name, source in (("one", folder), ("two", copy)):
                manager.register(name, str(source), dtype="float32", pooling="max" if name == "two" else None)
                manager.embed("a text", name)
            states = {name: slot["state"] for name, slot in manager.stats()["slots"].items() if name in ("one", "two")}
            report.add("budget of the device", str(states), states == {"one": "absent", "two": "ready"})
        with new_manager(memory_budget=f"{max(1, size // 10)}B") as manager:
            manager.register("one", str(folder), dtype="float32")
            try:
                manager.embed("a text", "one")
                report.add("too small a budget", "no error", False)
            except ModelManagerError as error:
                report.add("too small a budget", type(error).__name__, type(error).__name__ == "MemoryBudgetError")
    finally:
        shutil.rmtree(copy.parent)


def relieved(report: Report, folder: Path) -> None:
    """Another program holds the card: an idle model is unloaded, so that another can be loaded."""
    if not CARD or importlib.util.find_spec("torch") is None:
        report.add("relief of a full card", LEFT_OUT if not CARD else "left out: no torch, which fills it")
        return
    import torch

    copy = Path(tempfile.mkdtemp()) / "copy"
    shutil.copytree(folder, copy)
    with new_manager() as manager:
        for name, source in (("one", folder), ("two", copy)):
            manager.register(name, str(source), dtype="float32", pooling="max" if name == "two" else None)
        want = manager.embed("a text", "two")
        size = manager.describe("two")["device_bytes"]
        manager.unload("two")
        manager.embed("a text", "one")
        free, _ = torch.cuda.mem_get_info()
        filler = torch.empty(max(1, free - size // 2), dtype=torch.uint8, device="cuda")
        found = manager.embed("a text", "two")
        states = {name: slot["state"] for name, slot in manager.stats()["slots"].items() if name in ("one", "two")}
        passed = states == {"one": "absent", "two": "ready"} and error_of(found, want) <= FLOAT32
        report.add("relief of a full card", str(states), passed)
        del filler
        torch.cuda.empty_cache()
    shutil.rmtree(copy.parent)


def full_card(report: Report, folder: Path) -> None:
    """Another program holds nearly all of the card: a large batch is halved or refused, and a text still goes."""
    if not CARD or importlib.util.find_spec("torch") is None:
        report.add("a full card", LEFT_OUT if not CARD else "left out: no torch, which fills it")
        return
    import torch

    with new_manager() as manager:
        manager.register("model", str(folder), dtype="float32")
        want = manager.embed("a text", "model")
        free, _ = torch.cuda.mem_get_info()
        filler = [torch.empty(max(1, free - (96 << 20)), dtype=torch.uint8, device="cuda")]
        texts = [f"{'word ' * 200}{number}" for number in range(512)]
        try:
            manager.embed(texts, "model")
            found, passed = "a batch of 512 texts went in parts", True
        except ModelManagerError as error:
            found, passed = f"{type(error).__name__}: {error}"[:58], type(error).__name__ == "DeviceMemoryError"
        del filler
        torch.cuda.empty_cache()
        passed &= error_of(manager.embed("a text", "model"), want) <= FLOAT32
        report.add("a full card", found, passed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of fixtures, separated by commas; by default all")
    parser.add_argument("--no-speed", action="store_true", help="leave the comparison of speed out")
    parser.add_argument("--shapes", default=",".join(gpu_shapes.SHAPES), help="models of that comparison (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="time for each figure (%(default)s)")
    arguments = parser.parse_args()
    began = time.monotonic()
    report = Report()
    with new_manager() as manager:
        device, figures = manager.device, card(manager)
    total = "" if figures["total"] is None else f"{figures['free'] / 1e9:.1f} of {figures['total'] / 1e9:.1f} GB free"
    report.add("device", f"{device} {total}".strip(), device.startswith(DEVICE.split(":")[0]))
    if CARD and shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        report.add("card and driver", subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip())
    every = sorted(path.parent.name for path in FIXTURES.glob("*/reference.json"))
    parity(report, arguments.only.split(",") if arguments.only else every)
    concurrent(report, FIXTURES / "llama")
    choice(report)
    small = FIXTURES / "bert_wordpiece"
    with tempfile.TemporaryDirectory() as scratch:
        # A size at which bytes show.
        folder = gpu_shapes.make("minilm", Path(scratch, "minilm")) if CARD and gpu_shapes.can_make() else small
        lifecycle(report, folder)
        relieved(report, folder)
    budget(report, small)
    full_card(report, small)
    if arguments.no_speed or not CARD:
        report.add("speed next to sentence-transformers", LEFT_OUT if not CARD else "left out")
    else:
        gpu_shapes.compare(report.add, DEVICE, arguments.shapes.split(","), arguments.seconds)
    print(f"\n{'FAILED' if report.failed else 'All checks passed'} on {device} in {time.monotonic() - began:.0f} s")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
