#!/usr/bin/env python3
"""model_manager against the other ways to embed text on a CPU: same model, same texts, same run.

    python benchmarks/peers.py [--quick] [--rounds N] [--contenders NAME ...] [--qwen3]

Every contender runs alone in a process of its own, once a round; the order turns by one each round, and the
table shows medians. Each gets the batch size that is best for it, found before the rounds. Accuracy is
against sentence-transformers in float32. Peers live in their own virtual environment (.venv-peers, or what
MODEL_MANAGER_PEERS_VENV names), made on first use; model_manager comes from the Python that runs this file.

--qwen3 takes a Qwen3-Embedding of the 0.6B's size with random weights instead, few texts, and PyTorch alone as a peer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import environment
import numpy as np
import report
import targets
from contenders import CONTENDERS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REFERENCE = "sentence-transformers-f32"
WORKLOADS = ("short", "passage", "long")
LIMIT_S = 900  # for one answer of a worker
COMPARED = 64  # texts of each workload
QWEN3 = ["model_manager-auto", "model_manager-int8", "model_manager-f32", "sentence-transformers-bf16", REFERENCE]


class WorkerFailed(RuntimeError):
    """The contender's process ended without an answer; the text is the end of its stderr."""


class Process:
    """A worker, and what it answers. Ends with the `with` block."""

    def __init__(self, command: list[str], extra: Mapping[str, str] | None = None) -> None:
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (closed in __exit__)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        # No package may look for newer models or files: everything is on the disk.
        variables = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "true",
            "PYTHONWARNINGS": "ignore",
            **(extra or {}),
        }
        started = time.perf_counter()
        self.process = subprocess.Popen(command, text=True, encoding="utf-8", env=variables, **pipes)
        self.started = self.answer()
        self.cold_s = time.perf_counter() - started

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        timer = threading.Timer(LIMIT_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:] or ["no message"]
            raise WorkerFailed(f"{last[0]} (exit status {self.process.returncode})")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Bench:
    """What stays the same over all rounds."""

    def __init__(self, peers: Path, model: Path, work: Path, quick: bool) -> None:
        self.peers, self.model, self.work, self.quick = peers, model, work, quick

    def process(self, name: str) -> Process:
        python = Path(sys.executable) if name.startswith("model_manager") else self.peers
        command = [str(python), str(HERE / "worker.py"), name, str(self.model)]
        return Process([*command, str(self.work / "model.onnx"), str(self.work / "texts.json")])

    def tune(self, name: str) -> dict[str, int]:
        """Workload → best batch size; also shows whether the contender runs at all."""
        with self.process(name) as process:
            if self.quick:
                return dict.fromkeys(WORKLOADS, 16)
            return {workload: process.ask("tune", workload=workload)["batch"] for workload in WORKLOADS}

    def measure(self, name: str, batches: dict[str, int]) -> dict[str, float]:
        """One round of one contender: column → figure."""
        with self.process(name) as process:
            found = {"import": process.started["import_s"], "cold": process.cold_s}
            for workload in WORKLOADS:
                run = process.ask("throughput", workload=workload, batch=batches[workload])
                found[workload] = run["texts"] / run["seconds"]
            memory = process.ask("memory")
            found |= {"peak": memory["peak"], "after": memory["rss"]}
            one = process.ask("latency", count=20 if self.quick else 200)
            found |= {"one_p50": one["p50"], "one_p95": one["p95"]}
            found["threads"] = process.ask("threads", threads=16, repeats=2 if self.quick else 15)["p50"]
        return found

    def vectors(self, name: str) -> Any:
        path = self.work / f"{name}.npy"
        with self.process(name) as process:
            process.ask("vectors", path=str(path), count=COMPARED)
        return np.load(path)


def accuracy(vectors: Any, reference: Any) -> dict[str, float]:
    cosines = (vectors.astype(np.float64) * reference).sum(axis=1) / (
        np.linalg.norm(vectors.astype(np.float64), axis=1) * np.linalg.norm(reference, axis=1)
    )
    return {"min_cosine": float(cosines.min()), "max_difference": float(np.abs(vectors - reference).max())}


def run(bench: Bench, names: list[str], rounds: int) -> tuple[dict[str, list[dict[str, float]]], dict[str, Any]]:
    """Measurements of each round, and batch sizes and accuracy of each contender that runs here."""
    facts: dict[str, Any] = {}
    try:
        reference = bench.vectors(REFERENCE).astype(np.float64)
    except WorkerFailed as error:
        sys.exit(f"{REFERENCE}, which accuracy is measured against, does not run: {error}")
    for name in names:
        try:
            batches = bench.tune(name)
            facts[name] = {"batches": batches, **accuracy(bench.vectors(name), reference)}
            print(f"{name}: batch sizes {batches}", flush=True)
        except WorkerFailed as error:
            print(f"{name}: left out: {error}", flush=True)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in facts}
    for turn in range(rounds):
        order = list(found)  # without those that failed in a round before
        start = turn % max(1, len(order))
        for name in order[start:] + order[:start]:
            try:
                found[name].append(bench.measure(name, facts[name]["batches"]))
                print(f"round {turn + 1} of {rounds}: {name}", flush=True)
            except WorkerFailed as error:
                print(f"{name}: left out after {turn} rounds: {error}", flush=True)
                del found[name]
    return found, facts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare model_manager with its peers on this machine.")
    parser.add_argument("--quick", action="store_true", help="few texts, one round: does everything run?")
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 1")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--qwen3", action="store_true", help="a Qwen3-Embedding 0.6B of random weights")
    parser.add_argument("--baseline", default=REFERENCE, choices=list(CONTENDERS), help="ratios are to this one")
    parser.add_argument("--model", type=Path, default=ROOT / ".models" / "all-MiniLM-L6-v2")
    parser.add_argument("--venv", type=Path, default=environment.peers_location())
    return parser.parse_args()


def main() -> None:
    args = arguments()
    results = HERE / "results"
    work = results / "work"
    machine = environment.machine()
    peers = environment.peers_python(args.venv)
    if args.qwen3:
        work = work / "qwen3"
        args.model, args.quick = work / "model", True
        args.contenders = [name for name in args.contenders if name in QWEN3]
    work.mkdir(parents=True, exist_ok=True)
    if args.qwen3 and not (args.model / "modules.json").is_file():
        print(f"{args.model}: making random weights ...", flush=True)
        subprocess.run([str(peers), str(HERE / "make_qwen3.py"), str(args.model)], check=True)
    if not (args.model / "config.json").is_file():
        sys.exit(f"{args.model} is no model directory: run `make models` first")
    environment.prepare(peers, args.model, work, args.quick, onnx=not args.qwen3)
    found, facts = run(
        Bench(peers, args.model, work, args.quick),
        args.contenders,
        args.rounds or (1 if args.quick and not args.qwen3 else 5),
    )
    failed = report.left_out(args.contenders, found)
    if not found:
        sys.exit(failed or "no contender ran")

    summary = {
        name: report.medians(rounds) | {key: facts[name][key] for key in ("min_cosine", "max_difference")}
        for name, rounds in found.items()
    }
    tokens = json.loads((work / "texts.json").read_text("utf-8"))["tokens"]
    versions = environment.versions(peers)
    print(f"\n{report.describe(machine, versions, tokens)}\n\n{report.render(summary, args.baseline)}")
    if not args.qwen3:
        print(f"\n{targets.render(summary)}")
    record = {"machine": machine, "versions": versions, "tokens": tokens, "quick": args.quick}
    record |= {"medians": summary, "facts": facts, "rounds": found}
    path = results / time.strftime("peers-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(f"\n{path}")
    if failed:
        sys.exit(failed)


if __name__ == "__main__":
    main()
