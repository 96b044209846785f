"""What each tier of the cache costs and saves. Each figure is of one run on one machine.

    python benchmarks/cache_tiers.py [--model FOLDER] [--texts N]

Redis is measured where redis-server is installed: one of its own, on a free port of 127.0.0.1. Acceptance: a hit in
memory at most 2 µs, with tiers too; a read from disk at most 5 µs a text; a new process answers a known text within
50 ms without a model; 64 texts from Redis at least 15 times as fast as computing them.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from model_manager import Config, ModelManager

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / ".models" / "all-MiniLM-L6-v2"
TINY = ROOT / "tests" / "fixtures" / "bert_plain"
SLOT = "english_sentence"


def manager(args: argparse.Namespace, **settings) -> ModelManager:
    """A manager on the model that is measured."""
    return ModelManager(Config(english_model=str(args.model), **settings))


def median(work, rounds: int = 7) -> float:
    """The median time of some rounds, seconds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def store(found: ModelManager, texts: list[str]) -> None:
    """Compute texts and wait until they are stored."""
    found.embed(texts, SLOT)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found.cache_flush(60)
        if all(tier["writes"] >= len(texts) for tier in found.cache_info()["tiers"].values()):
            return
        time.sleep(0.05)


def memory(args: argparse.Namespace, folder: str) -> None:
    """A hit in memory, without tiers and with them."""
    for name, settings in (("no tiers", {}), ("a disk tier", {"cache_disk": folder})):
        with manager(args, **settings) as found:
            found.embed("one text", SLOT)
            hits = 100_000
            took = median(lambda found=found, hits=hits: [found.embed("one text", SLOT) for _ in range(hits)], 5)
            print(f"memory, {name}: {took / hits * 1e6:.2f} µs a hit")


def disk(args: argparse.Namespace, texts: list[str], folder: str) -> None:
    """Reads from disk by a new process's manager."""
    with manager(args, cache_disk=folder) as found:
        store(found, texts)
    with manager(args, cache_disk=folder) as found:
        started = time.perf_counter()
        found.embed(texts[0], SLOT)
        first = time.perf_counter() - started
    with manager(args, cache_disk=folder, cache_size=0) as found:
        found.embed(texts, SLOT)
        took = median(lambda: found.embed(texts, SLOT))
        loaded = found.is_loaded(SLOT)
    with manager(args, cache_size=0) as found:
        found.embed(texts[:64], SLOT)
        computed = median(lambda: found.embed(texts[:64], SLOT), 3) / 64
    print(f"disk: first answer after {first * 1e3:.1f} ms, model loaded: {loaded}")
    print(f"disk: {took / len(texts) * 1e6:.1f} µs a text; computing takes {computed * 1e6:.0f} µs")


def redis(args: argparse.Namespace, texts: list[str]) -> None:
    """64 texts from a Redis of our own."""
    program = shutil.which("redis-server")
    if program is None:
        print("redis: redis-server is not installed")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        url, part = f"redis://127.0.0.1:{port}", texts[:64]
        time.sleep(0.5)
        with manager(args, cache_url=url) as found:
            store(found, part)
        with manager(args, cache_url=url, cache_size=0) as found:
            found.load(SLOT)
            time.sleep(2)
            took = median(lambda: found.embed(part, SLOT), 21)
            hits = found.cache_info()["tiers"]["redis"]["hits"]
        with manager(args, cache_size=0) as found:
            found.load(SLOT)
            computed = median(lambda: found.embed(part, SLOT), 5)
        print(f"redis: 64 texts in {took * 1e3:.2f} ms ({hits} hits); computing: {computed * 1e3:.1f} ms, ", end="")
        print(f"{computed / took:.0f} times as long")
    finally:
        server.kill()
        server.wait()


def main() -> None:
    """Measure all tiers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL if MODEL.is_dir() else TINY)
    parser.add_argument("--texts", type=int, default=5000)
    args = parser.parse_args()
    texts = [
        f"text number {number} about the weather in the city, the river and the old town"
        for number in range(args.texts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        memory(args, folder)
        disk(args, texts, folder)
    redis(args, texts)


if __name__ == "__main__":
    main()
