#!/usr/bin/env python3
"""Text generation against llama.cpp and transformers: same file, same prompts, same run.

    python benchmarks/generation.py [--quick] [--rounds N] [--with-llama-cpp]
    python benchmarks/generation.py --isas amx,avx512bf16 [--model FILE]

Every writer runs alone in a process of its own, once a round; the order turns by one each round, and the tables
show medians. llama-cpp-python takes part when the peers' environment has it; --with-llama-cpp installs it there,
which compiles it for this machine's instruction sets (many minutes). Writers of random weights (GPT-2) differ in
what they write, not in the work.

With --isas, model_manager alone runs on each of these instruction sets (MODEL_MANAGER_ISA), and the ratios are to the
last one. No peer is needed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import environment
import numpy as np
import report
import targets
from peers import Process, WorkerFailed

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LLAMA_CPP = "llama-cpp-python==0.3.36"
SMOLLM2 = ROOT / ".models" / "SmolLM2-135M-Instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
REQUESTS = 4
# Heading, decimals, whether more is better (None: no ratio).
COLUMNS: dict[str, tuple[str, int, bool | None]] = {
    "decode": ("decode tokens/s", 1, True),
    "prefill": ("prefill tokens/s", 0, True),
    "together": (f"{REQUESTS} at once tokens/s", 1, None),
    "gain": ("times one alone", 2, None),
    "turn": ("next turn s", 3, False),
    "load": ("load s", 2, False),
    "resident": ("RSS MB", 0, False),
    "model": ("of the model MB", 0, None),
}


def measure(python: Path, name: str, model: Path, quick: bool) -> dict[str, float]:
    """One round of one writer. A name may end with `@` and an instruction set."""
    written, repeats = (16, 1) if quick else (128, 3)
    writer, _, isa = name.partition("@")
    variables = {"MODEL_MANAGER_ISA": isa} if isa else {}
    with Process([str(python), str(HERE / "generation_worker.py"), writer, str(model)], variables) as process:
        found = {"load": process.started["load_s"]}
        found["prefill"] = process.ask("prefill", tokens=500, repeats=repeats)["rate"]
        found["decode"] = process.ask("decode", tokens=written, repeats=repeats)["rate"]
        many = process.ask("together", requests=REQUESTS, tokens=written, repeats=repeats)
        if many["rate"] is not None:
            found |= {"together": many["rate"], "gain": many["rate"] / many["alone"]}
        turn = process.ask("turn", prompt=100, answer=written, question=28, repeats=repeats)
        if turn["seconds"] is not None:
            found["turn"] = turn["seconds"]
        memory = process.ask("memory")
        found |= {"resident": memory["rss"], "model": memory["rss"] - memory["before"]}
    return found


def compare(pythons: dict[str, Path], model: Path, rounds: int, quick: bool) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    for turn in range(rounds):
        order = list(found)  # without those that failed in a round before
        start = turn % max(1, len(order))
        for name in order[start:] + order[:start]:
            try:
                found[name].append(measure(pythons[name], name, model, quick))
                print(f"{model.name}, round {turn + 1} of {rounds}: {name}", flush=True)
            except WorkerFailed as error:
                print(f"{name}: left out: {error}", flush=True)
                del found[name]
    return found


def medians_of(rounds: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: statistics.median(found[key] for found in all_of) for key in COLUMNS if key in all_of[0]}
        for name, all_of in rounds.items()
    }


def read_rate(threads: int) -> float:
    """GB a second that all threads together read from memory: the best of five passes over a GiB."""
    values = np.ones(1 << 28, np.float32)  # zeros would share one page
    parts = np.array_split(values, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - start)
    return values.nbytes / best / 1e9


def render(medians: dict[str, dict[str, float]], baseline: str) -> str:
    """The medians, and how many times better than the baseline."""
    rows = [["median", *(heading for heading, _, _ in COLUMNS.values())]]
    rows += [
        [name, *(f"{found[key]:.{digits}f}" if key in found else "" for key, (_, digits, _) in COLUMNS.items())]
        for name, found in medians.items()
    ]
    text = report.table(rows)
    if baseline in medians:
        compared = {key: better for key, (_, _, better) in COLUMNS.items() if better is not None}
        rows = [[f"times better than {baseline}", *(COLUMNS[key][0] for key in compared)]]
        base = medians[baseline]
        for name, found in medians.items():
            cells = (
                f"{report.ratio(found[key], base[key], better):.2f}" if key in found and key in base else ""
                for key, better in compared.items()
            )
            rows.append([name, *cells])
        text += "\n\n" + report.table(rows)
    return text


def has_llama_cpp(python: Path) -> bool:
    return subprocess.run([str(python), "-c", "import llama_cpp"], capture_output=True, check=False).returncode == 0


def gpt2(python: Path, work: Path) -> Path:
    """The folder of the GPT-2 with random weights, made when it is not there."""
    folder = work / "gpt2-124m-random-words"
    if not (folder / "model.safetensors").is_file():
        print(f"{folder}: making random weights ...", flush=True)
        subprocess.run([str(python), str(HERE / "make_gpt2.py"), str(folder)], check=True)
    return folder


def compare_isas(args: argparse.Namespace, results: Path) -> None:
    """model_manager with itself: one table, and the figures in a file."""
    names = [f"model_manager@{isa.strip()}" for isa in args.isas.split(",")]
    rounds = args.rounds or (1 if args.quick else 5)
    machine = environment.machine()
    print(f"{machine['cpu']}, {machine['threads']} threads, {' '.join(machine['isa'])}")
    found = compare({name: Path(sys.executable) for name in names}, args.model, rounds, args.quick)
    if not found:
        sys.exit("no instruction set of these runs here")
    print(f"\n{args.model.name}\n\n{render(medians_of(found), names[-1])}\n", flush=True)
    results.mkdir(parents=True, exist_ok=True)
    path = results / time.strftime("generation-isas-%Y%m%d-%H%M%S.json")
    path.write_text(
        json.dumps({"machine": machine, "quick": args.quick, args.model.name: found}, indent=2) + "\n", "utf-8"
    )
    print(path)
    if failed := report.left_out(names, found):
        sys.exit(failed)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare text generation with its peers on this machine.")
    parser.add_argument("--quick", action="store_true", help="few tokens, one round: does everything run?")
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 1")
    parser.add_argument("--with-llama-cpp", action="store_true", help=f"install {LLAMA_CPP} for the comparison")
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="a .gguf file")
    parser.add_argument(
        "--isas", metavar="ISA,...", help="compare these instruction sets of this machine, without peers"
    )
    parser.add_argument("--venv", type=Path, default=environment.peers_location())
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if not args.model.is_file():
        sys.exit(f"{args.model} is missing: run `make models` first")
    results = HERE / "results"
    if args.isas:
        compare_isas(args, results)
        return
    work = results / "work"
    work.mkdir(parents=True, exist_ok=True)
    peers, ours = environment.peers_python(args.venv), Path(sys.executable)
    if args.with_llama_cpp and not has_llama_cpp(peers):
        print(f"compiling {LLAMA_CPP} ...", flush=True)
        command = [str(peers), "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python", LLAMA_CPP]
        subprocess.run(command, check=True, env=os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON"})
    rounds = args.rounds or (1 if args.quick else 5)
    machine = environment.machine()
    quantized = {"model_manager": ours}
    if has_llama_cpp(peers):
        quantized["llama-cpp-python"] = peers
    else:
        print("llama-cpp-python is not installed: see --with-llama-cpp", flush=True)
    plain = {"model_manager-f32": ours, "model_manager": ours, "model_manager-int8": ours, "transformers-f32": peers}
    record: dict[str, Any] = {"machine": machine, "versions": environment.versions(peers), "quick": args.quick}
    print(f"{machine['cpu']}, {machine['threads']} threads, {' '.join(machine['isa'])}")
    file_mb = args.model.stat().st_size / 1e6
    wanted = targets.quantized(file_mb, read_rate(machine["threads"]))
    failed = []
    path = results / time.strftime("generation-%Y%m%d-%H%M%S.json")
    for title, pythons, model, baseline, limits in (
        (f"{args.model.name} ({file_mb:.0f} MB)", quantized, args.model, targets.LLAMA_CPP, wanted),
        ("GPT-2, 124 million random weights", plain, gpt2(peers, work), targets.TRANSFORMERS, targets.PLAIN),
    ):
        found = compare(pythons, model, rounds, args.quick)
        if found:
            medians = medians_of(found)
            print(f"\n{title}\n\n{render(medians, baseline)}\n\n{targets.render(medians, limits)}\n", flush=True)
        record[title] = found
        failed += [f"{title}: {names}" for names in [report.left_out(pythons, found)] if names]
        # After each table: what was measured is kept when the next one fails.
        path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(path)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
