"""Beyond one process: Arrow against lists, Parquet files, several processes, Ray. Each figure is a ratio in one run.

    python benchmarks/pipelines.py [--model FOLDER] [--rows N] [--only arrow parquet processes ray]

Targets: Arrow input at most 0.5 of the time of lists made from the column; a Parquet file at 0.9 of the speed of
embedding alone, in flat memory; two processes of one thread no faster than one of two; Ray with two actors of one CPU
at 0.85 of one process of two threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from model_manager import ModelManager, errors

ROOT = Path(__file__).resolve().parents[1]
MINILM = ROOT / ".models" / "all-MiniLM-L6-v2"
TINY = ROOT / "tests" / "fixtures" / "bert_plain"
SENTENCE = "the weather is lovely today and we walk along the river to the old town where people sit"
WORDS = SENTENCE.split()


def texts(count: int, words: int = 12) -> list[str]:
    """Distinct short texts."""
    return [
        " ".join([str(number), *(WORDS[(number * 7 + word) % len(WORDS)] for word in range(words))])
        for number in range(count)
    ]


def best(work, rounds: int = 5) -> float:
    """The shortest time of a few rounds, seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def arrow(args: argparse.Namespace) -> None:
    """What a call costs around the computation: the slot does not exist, so that nothing is computed."""
    manager, rows = ModelManager(), texts(args.rows)
    column = pa.array(rows)

    def refused(call):
        def work():
            try:
                call()
            except errors.UnknownModelError:
                return
            raise AssertionError("the slot exists")

        return best(work)

    listed = refused(lambda: manager.embed(column.to_pylist(), "none"))
    made = refused(lambda: manager.embed_arrow(column, "none"))
    ready = refused(lambda: manager.embed(rows, "none"))
    print(
        f"arrow: {args.rows:,} texts: column to list to embed {listed:.2f} s, a list that exists {ready:.2f} s,"
        f" embed_arrow {made:.2f} s: {made / listed:.2f} x (target 0.5)"
    )


def parquet(args: argparse.Namespace) -> None:
    """The command line on a file, against the same texts embedded in one process."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.parquet", Path(folder) / "out.parquet"
        rows = texts(args.rows)
        pq.write_table(pa.table({"text": rows}), source, row_group_size=100_000)
        manager = ModelManager(english_model=str(args.model), cache_size=0, auto_cleanup=False)
        manager.embed("first", "english_sentence")
        start = time.perf_counter()
        for first in range(0, len(rows), 8192):
            manager.embed(rows[first : first + 8192], "english_sentence")
        alone = time.perf_counter() - start
        command = [
            sys.executable,
            "-m",
            "model_manager",
            "embed",
            str(source),
            "-o",
            str(target),
            "-m",
            str(args.model),
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command)
        samples: list[int] = []
        while process.poll() is None:
            samples.append(resident(process.pid))
            time.sleep(0.2)
        took = time.perf_counter() - start
        assert process.returncode == 0
        assert pq.read_metadata(target).num_rows == len(rows)
        half, peak = max(samples[: len(samples) // 2]), max(samples)
        print(
            f"parquet: {len(rows):,} texts: embedding alone {alone:.1f} s, the command {took:.1f} s, start included:"
            f" {alone / took:.2f} x (target 0.9); memory {half >> 20} MB in the first half, at most {peak >> 20} MB"
        )


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def work(model: str, threads: int, rows: list[str], ready, go, done) -> None:
    """One process: loads, waits for the start, embeds."""
    manager = ModelManager(english_model=model, cache_size=0, threads=threads, auto_cleanup=False)
    manager.embed(rows[:64], "english_sentence")
    ready.release()
    go.wait()
    manager.embed(rows, "english_sentence")
    done.release()


def processes(args: argparse.Namespace) -> None:
    """One process of n threads against n processes of one."""
    cores, rows, context = os.cpu_count() or 1, texts(4000), multiprocessing.get_context("spawn")

    def run(count: int, threads: int) -> float:
        ready, go, done = context.Semaphore(0), context.Event(), context.Semaphore(0)
        parts = [rows[number::count] for number in range(count)]
        started = [
            context.Process(target=work, args=(str(args.model), threads, part, ready, go, done)) for part in parts
        ]
        for process in started:
            process.start()
        for _ in started:
            ready.acquire()
        start = time.perf_counter()
        go.set()
        for _ in started:
            done.acquire()
        took = time.perf_counter() - start
        for process in started:
            process.join()
        return took

    pairs = [(run(1, cores), run(cores, 1)) for _ in range(3)]
    one, many = (float(np.median(side)) for side in zip(*pairs, strict=True))
    print(
        f"processes: {len(rows):,} texts: one process of {cores} threads {len(rows) / one:.0f} texts/s,"
        f" {cores} processes of one {len(rows) / many:.0f}: {one / many:.2f} x, with {cores} times the memory"
    )


def on_ray(args: argparse.Namespace) -> None:
    """Ray with actors of one CPU against one process."""
    import ray
    import ray.data
    from model_manager.ray import embed

    cores, rows = os.cpu_count() or 1, texts(8000)
    manager = ModelManager(english_model=str(args.model), cache_size=0, auto_cleanup=False)
    manager.embed(rows[:64], "english_sentence")
    alone = best(lambda: manager.embed(rows, "english_sentence"), 3)
    manager.close()
    ray.init(num_cpus=cores, log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_items([{"text": text} for text in rows], override_num_blocks=4 * cores).materialize()
    stamps: list[float] = []
    made = embed(dataset, str(args.model), workers=cores, cpus=1, batch_size=256, config={"cache_size": 0})
    for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
        stamps += [time.perf_counter()] * len(batch)
    ray.shutdown()
    # Actors start and load first: the rate is taken between the first and the last result.
    first = stamps.count(stamps[0])
    rate = (len(stamps) - first) / (stamps[-1] - stamps[0])
    print(
        f"ray: {len(rows):,} texts: one process of {cores} threads {len(rows) / alone:.0f} texts/s, {cores} actors"
        f" of one CPU {rate:.0f} between first and last result: {rate * alone / len(rows):.2f} x (target 0.85)"
    )


PARTS = {"arrow": arrow, "parquet": parquet, "processes": processes, "ray": on_ray}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MINILM if MINILM.is_dir() else TINY)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    assert threading.active_count() == 1
    for name in args.only:
        PARTS[name](args)


if __name__ == "__main__":
    main()
