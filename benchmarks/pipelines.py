"""Beyond one process: Arrow against lists, Parquet files, several processes, Ray. Each figure is a ratio in one run.

    python benchmarks/pipelines.py [--model FOLDER] [--rows N] [--words N] [--only arrow parquet processes ray]

Targets: Arrow input at most 0.5 of the time of lists made from the column; a Parquet file at 0.9 of the speed of
embedding alone, in flat memory; Ray with two actors of one CPU at 0.85 of one process of two threads. One process of as
many threads as cores is compared with as many processes of one thread, in speed and memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
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


def passages(count: int) -> list[str]:
    """Distinct texts of about a hundred tokens."""
    return texts(count, 90)


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
        rows = texts(args.rows, args.words)
        pq.write_table(pa.table({"text": rows}), source, row_group_size=100_000)
        manager = ModelManager(english_model=str(args.model), cache_size=0, auto_cleanup=False)
        manager.embed("first", "english_sentence")
        start, processor = time.perf_counter(), time.process_time()
        measured = min(len(rows), args.alone)
        for first in range(0, measured, 8192):
            manager.embed(rows[first : min(first + 8192, measured)], "english_sentence")
        alone = (time.perf_counter() - start) * len(rows) / measured
        processor = (time.process_time() - processor) * len(rows) / measured
        manager.close()
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
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(command)
        samples: list[int] = []
        while process.poll() is None:
            samples.append(resident(process.pid))
            time.sleep(0.2)
        took = time.perf_counter() - start
        assert process.returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert pq.read_metadata(target).num_rows == len(rows)
        tenths = [samples[len(samples) * tenth // 10] >> 20 for tenth in range(1, 10)]
        print(
            f"parquet: {len(rows):,} texts: embedding alone {alone:.1f} s ({measured:,} of them measured), the command"
            f" {took:.1f} s, start included: {alone / took:.2f} x (target 0.9); processor time, which other work on the"
            f" machine does not change, {processor:.1f} s and {used:.1f} s: {processor / used:.2f} x; memory after each"
            f" tenth, MB: {tenths}, at most {max(samples) >> 20}"
        )


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def private(pid: int | str) -> int:
    """Memory that a process shares with no other one, bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def work(model: str, threads: int, rows: list[str], ready, go, done, memory) -> None:
    """One process: loads, waits for the start, embeds."""
    manager = ModelManager(english_model=model, cache_size=0, threads=threads, auto_cleanup=False)
    manager.embed(rows[:64], "english_sentence")
    ready.release()
    go.wait()
    manager.embed(rows, "english_sentence")
    done.release()
    memory.put(private("self"))


def processes(args: argparse.Namespace) -> None:
    """One process of n threads against n processes of one."""
    cores, rows, context = os.cpu_count() or 1, passages(2000), multiprocessing.get_context("spawn")

    def run(count: int, threads: int) -> tuple[float, int]:
        ready, go, done, memory = context.Semaphore(0), context.Event(), context.Semaphore(0), context.Queue()
        parts = [rows[number::count] for number in range(count)]
        started = [
            context.Process(target=work, args=(str(args.model), threads, part, ready, go, done, memory))
            for part in parts
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
        used = sum(memory.get() for _ in started)
        for process in started:
            process.join()
        return took, used

    pairs = [(run(1, cores), run(cores, 1)) for _ in range(5)]
    one, many = (float(np.median([took for took, _ in side])) for side in zip(*pairs, strict=True))
    ratios = sorted(first[0] / second[0] for first, second in pairs)
    first, second = (max(used for _, used in side) >> 20 for side in zip(*pairs, strict=True))
    print(
        f"processes: {len(rows):,} passages: one of {cores} threads {len(rows) / one:.0f} a second in {first} MB,"
        f" {cores} processes of one {len(rows) / many:.0f} in {second} MB: {np.median(ratios):.2f} x"
        f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def on_ray(args: argparse.Namespace) -> None:
    """Ray with actors of one CPU against one process."""
    import ray
    import ray.data
    from model_manager.ray import embed

    cores, rows = os.cpu_count() or 1, texts(24_000)

    def one_process() -> float:
        with ModelManager(english_model=str(args.model), cache_size=0, auto_cleanup=False) as manager:
            manager.embed(rows[:64], "english_sentence")
            return best(lambda: manager.embed(rows, "english_sentence"), 2)

    before = one_process()
    ray.init(num_cpus=cores, log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    blocks = 12 * cores
    dataset = ray.data.from_items([{"text": text} for text in rows], override_num_blocks=blocks).materialize()
    stamps: list[float] = []
    made = embed(
        dataset, str(args.model), workers=cores, cpus=1, batch_size=len(rows) // blocks, config={"cache_size": 0}
    )
    for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
        stamps += [time.perf_counter()] * len(batch)
    ray.shutdown()
    alone = min(before, one_process())
    # Actors start and load first. The rate is taken after the first eighth, when all of them are at work.
    since = stamps[len(stamps) // 8]
    rate = sum(stamp > since for stamp in stamps) / (stamps[-1] - since)
    print(
        f"ray: {len(rows):,} texts: one process of {cores} threads {len(rows) / alone:.0f} texts/s, {cores} actors"
        f" of one CPU {rate:.0f} after the first eighth: {rate * alone / len(rows):.2f} x (target 0.85)"
    )


PARTS = {"arrow": arrow, "parquet": parquet, "processes": processes, "ray": on_ray}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MINILM if MINILM.is_dir() else TINY)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=12, help="words of a text of the Parquet file")
    parser.add_argument("--alone", type=int, default=1_000_000, help="texts of it that are embedded for comparison")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    assert threading.active_count() == 1
    for name in args.only:
        PARTS[name](args)


if __name__ == "__main__":
    main()
