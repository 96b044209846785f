"""What each tier of the cache costs and saves, next to its targets.

    python benchmarks/cache_tiers.py [--model FOLDER] [--texts N] [--rows N] [--kills N] [--only NAME]

Redis is measured where redis-server is installed: one of its own, on a free port of 127.0.0.1. `--kills` has a process
that writes killed so often (0: leaves it out); `--only` measures one of memory, disk, restart, rows, sharing, redis,
dead, preload, workers and kills. Each figure is of one run on one machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import report
from model_manager import Config, ModelManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / ".models" / "all-MiniLM-L6-v2"
TINY = ROOT / "tests" / "fixtures" / "bert_plain"
SLOT = "english_sentence"

Row = tuple[str, float, float | None, bool]
"""What, its figure, its target, whether that is the most (or the least)."""


def manager(args: argparse.Namespace, **settings) -> ModelManager:
    """A manager on the model that is measured."""
    return ModelManager(Config(**{"english_model": str(args.model), "auto_cleanup": False, **settings}))


def times(work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round, sorted."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return sorted(found)


def quantile(sorted_times: list[float], share: float) -> float:
    return sorted_times[min(len(sorted_times) - 1, int(len(sorted_times) * share))]


def both(
    what: str, unit: str, scale: float, found: list[float], limits: tuple[float | None, float | None]
) -> list[Row]:
    """p50 and p99, with their targets."""
    quantiles = zip((0.5, 0.99), limits, strict=True)
    return [
        (f"{what}, p{share * 100:.0f} {unit}", quantile(found, share) * scale, limit, True)
        for share, limit in quantiles
    ]


def store(found: ModelManager, texts: list[str]) -> None:
    """Compute texts and wait until they are stored."""
    found.embed(texts, SLOT)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found.cache_flush(60)
        if all(tier["writes"] >= len(texts) for tier in found.cache_info()["tiers"].values()):
            return
        time.sleep(0.02)
    raise RuntimeError("the results were not stored")


def script(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})


@contextlib.contextmanager
def redis_server() -> Iterator[tuple[str, subprocess.Popen[bytes]] | None]:
    """The address of a Redis of our own, and its process; None where it is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        print("redis-server is not installed: left out")
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}", server
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(signal.SIGCONT)
        server.kill()
        server.wait()


def memory(args: argparse.Namespace, texts: list[str]) -> list[Row]:
    """A hit in memory, without tiers and with them."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in (("no tiers", {}), ("a disk tier", {"cache_disk": folder})):
            with manager(args, **settings) as found:
                found.embed(texts[0], SLOT)
                embed, text, hits = found.embed, texts[0], 1000
                chunks = times(lambda: [embed(text, SLOT) for _ in range(hits)], 200)  # noqa: B023  called at once
                rows += both(f"memory hit, {name}", "µs", 1e6 / hits, chunks, (2.0, None))
    return rows


def disk(args: argparse.Namespace, texts: list[str]) -> list[Row]:
    """Reads from disk, below the memory; and from a list of texts."""
    with tempfile.TemporaryDirectory() as folder:
        with manager(args, cache_disk=folder) as found:
            store(found, texts)
        with manager(args, cache_disk=folder, cache_size=0) as found:
            found.embed(texts, SLOT)
            many = times(lambda: found.embed(texts, SLOT), 15)
            single = sorted(times(lambda text=text: found.embed(text, SLOT), 1)[0] for text in texts)
            assert not found.is_loaded(SLOT)
        with manager(args, cache_size=0) as found:
            found.embed(texts[:64], SLOT)
            computed = times(lambda: found.embed(texts[:64], SLOT), 5)
    return [
        *both(f"disk, each of {len(texts)} texts", "µs", 1e6 / len(texts), many, (5.0, None)),
        *both("disk, one text by itself", "µs", 1e6, single, (None, None)),
        ("computing, each of 64 texts, p50 µs", quantile(computed, 0.5) * 1e6 / 64, None, True),
    ]


RESTART = """
import sys, time
import numpy
from model_manager import Config, ModelManager
model, folder, text = sys.argv[1:]
started = time.perf_counter()
manager = ModelManager(Config(english_model=model, cache_disk=folder))
manager.embed(text, "english_sentence")
print(time.perf_counter() - started, manager.is_loaded("english_sentence"))
"""


def restart(args: argparse.Namespace, texts: list[str]) -> list[Row]:
    """From the making of a new process's manager to the answer to a known text; imports are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        with manager(args, cache_disk=folder) as found:
            store(found, texts)
        seconds = []
        for _ in range(11):
            process = script(RESTART, args.model, folder, texts[0])
            took, loaded = process.communicate(timeout=60)[0].split()
            assert loaded == "False"
            seconds.append(float(took))
    return both("restart to the first cached answer", "ms", 1e3, sorted(seconds), (50.0, None))


def add_rows(folder: Path, count: int) -> None:
    """A segment of so many results, each of eight values, as `src/cache/tiers/disk/format.rs` describes it."""
    header = b"MM-cache" + struct.pack("<II", 1, 0)
    record = struct.pack("<BBBBII8f", 1, 1, 0, 0, 7, 8, *range(8))
    entries, now = bytearray(header), int(time.time())
    for number in range(count):
        key = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest()
        offset = len(header) + number * len(record)
        entry = key + struct.pack("<QIII", offset, len(record), now, zlib.crc32(record, zlib.crc32(key)))
        entries += entry + struct.pack("<I", zlib.crc32(entry))
    (folder / "00000000000000000001-1-0.vec").write_bytes(header + record * count)
    (folder / "00000000000000000001-1-0.key").write_bytes(entries)


def rows(args: argparse.Namespace, texts: list[str]) -> list[Row]:
    """A new process opens a folder of many results, and answers a text."""
    with tempfile.TemporaryDirectory() as folder:
        with manager(args, cache_disk=folder) as found:
            store(found, texts[:100])
        add_rows(Path(folder) / "segments", args.rows)
        seconds = []
        for _ in range(5):
            process = script(RESTART, args.model, folder, texts[0])
            took, loaded = process.communicate(timeout=60)[0].split()
            assert loaded == "False"
            seconds.append(float(took))
        with manager(args, cache_disk=folder) as found:
            found.embed(texts[0], SLOT)
            held = found.cache_info()["tiers"]["disk"]["entries"]
    assert held == args.rows + 100, held
    return [
        (f"opening {args.rows:,} rows and answering from them, p50 ms", statistics.median(seconds) * 1e3, 150.0, True)
    ]


SHARING = """
import sys
from model_manager import Config, ModelManager
model, setting, value, count = sys.argv[1:]
texts = [f"shared text number {number}" for number in range(int(count))]
with ModelManager(Config(english_model=model, cache_size=0, **{setting: value})) as manager:
    manager.embed(["another text"], "english_sentence")
    import time; time.sleep(1)
    computed = manager.stats()["queue"]["texts"]
    manager.embed(texts, "english_sentence")
    print(len(texts) - (manager.stats()["queue"]["texts"] - computed))
"""


def sharing(args: argparse.Namespace, texts: list[str]) -> list[Row]:
    """A second process has what the first has computed."""
    found, known = [], [f"shared text number {number}" for number in range(500)]
    with tempfile.TemporaryDirectory() as folder, redis_server() as server:
        for setting, value in [("cache_disk", folder)] + ([("cache_url", server[0])] if server else []):
            with manager(args, **{setting: value}) as first:
                store(first, known)
                process = script(SHARING, args.model, setting, value, len(known))
                hits = int(process.communicate(timeout=120)[0])
            found.append((f"second process, {setting}: share that hits", hits / len(known), 1.0, False))
    return found


def redis(args: argparse.Namespace, texts: list[str]) -> list[Row]:
    """64 texts from a Redis of our own, compared with computing them."""
    part = texts[:64]
    with redis_server() as server:
        if server is None:
            return []
        with manager(args, cache_url=server[0]) as found:
            store(found, part)
        with manager(args, cache_url=server[0], cache_size=0) as found:
            found.load(SLOT)
            time.sleep(2)
            found.embed(part, SLOT)
            cached = times(lambda: found.embed(part, SLOT), 201)
            assert found.cache_info()["tiers"]["redis"]["hits"] >= 200 * 64
            single = sorted(times(lambda text=text: found.embed(text, SLOT), 1)[0] for text in part * 4)
        with manager(args, cache_size=0) as found:
            found.load(SLOT)
            found.embed(part, SLOT)
            computed = times(lambda: found.embed(part, SLOT), 15)
    return [
        *both("redis, 64 texts", "ms", 1e3, cached, (None, None)),
        *both("redis, one text", "ms", 1e3, single, (None, None)),
        *both("computing 64 texts", "ms", 1e3, computed, (None, None)),
        ("redis, 64 texts: times as fast as computing", quantile(computed, 0.5) / quantile(cached, 0.5), 15.0, False),
    ]


def latencies(found: ModelManager, seconds: float, tag: str) -> tuple[list[float], int]:
    """Times of calls with one new text each, from two threads; and how many failed."""
    took: list[float] = []
    errors: list[Exception] = []
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        count = 0
        while time.monotonic() < until:
            count += 1
            started = time.perf_counter()
            try:
                found.embed(f"{tag} text {count} of client {number}", SLOT)
            except Exception as error:  # noqa: BLE001  counted
                errors.append(error)
            took.append(time.perf_counter() - started)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(took), len(errors)


def dead(args: argparse.Namespace, texts: list[str]) -> list[Row]:
    """A server that does not answer, and one that is gone: every call is answered."""
    found: list[Row] = []
    with manager(args, cache_size=0) as plain:
        plain.load(SLOT)
        without = quantile(latencies(plain, 5, "plain")[0], 0.99)
    for name, end in (("paused", signal.SIGSTOP), ("killed", signal.SIGKILL)):
        with redis_server() as server:
            if server is None:
                return []
            with manager(args, cache_url=server[0], cache_size=0) as cached:
                cached.load(SLOT)
                time.sleep(1)
                latencies(cached, 1, "before")
                server[1].send_signal(end)
                took, errors = latencies(cached, 5, "after")
        found += [
            (f"redis {name}: errors", errors, 0, True),
            (f"redis {name}: p99 ms more than without", (quantile(took, 0.99) - without) * 1e3, 50.0, True),
        ]
    return found


PRELOAD_TURNS = 8


def preload(args: argparse.Namespace, texts: list[str]) -> list[Row]:
    """Known texts are embedded while 16 clients work; then all of them hit, after a restart without a model."""
    known = [f"known question number {number} about the opening hours of the library" for number in range(1000)]
    took: dict[bool, list[float]] = {False: [], True: []}
    stop = threading.Event()

    def client(found: ModelManager, number: int, into: list[float]) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            started = time.perf_counter()
            found.embed(f"client {number} asks for text {count} and waits", SLOT)
            into.append(time.perf_counter() - started)
            time.sleep(0.05)

    with tempfile.TemporaryDirectory() as folder:
        # In turn, so that both see the same machine.
        for turn in range(PRELOAD_TURNS):
            preloading, last = turn % 2 == 1, turn == PRELOAD_TURNS - 1
            with manager(args, cache_size=10_000, cache_disk=folder if last else False) as found:
                found.load(SLOT)
                stop.clear()
                clients = [threading.Thread(target=client, args=(found, n, took[preloading])) for n in range(16)]
                for thread in clients:
                    thread.start()
                ticket = found.preload(known, SLOT) if preloading else None
                time.sleep(5)
                stop.set()
                for thread in clients:
                    thread.join()
                if ticket is not None:
                    print(f"preload: {ticket.done} of {ticket.total} while 16 clients worked")
                    ticket.wait(120)
                    computed = found.stats()["queue"]["texts"]
                    found.embed(known, SLOT)
                    hits = len(known) - (found.stats()["queue"]["texts"] - computed)
                    if last:
                        found.cache_flush(60)
        with manager(args, cache_size=10_000, cache_disk=folder) as found:
            found.embed(known, SLOT)
            after = 0.0 if found.is_loaded(SLOT) else 1.0
    without, with_preload = (quantile(sorted(took[preloading]), 0.99) for preloading in (False, True))
    return [
        ("16 clients, p99 ms", without * 1e3, None, True),
        ("16 clients while 1,000 texts preload, times that", with_preload / without, 1.1, True),
        ("known texts, share that hits", hits / len(known), 1.0, False),
        ("after a restart without a model, share that hits", after, 1.0, False),
    ]


WORKER = """
import sys
from model_manager import Config, ModelManager
model, setting, value, part = sys.argv[1:]
settings = {setting: value} if setting != "none" else {}
texts = [f"text {number} that every worker is asked for, about the weather and the river" for number in range(400)]
import random; random.Random(int(part)).shuffle(texts)
with ModelManager(Config(english_model=model, cache_size=10_000, **settings)) as manager:
    manager.load("english_sentence")
    print("ready", flush=True); sys.stdin.readline()
    import time
    for text in texts:
        manager.embed(text, "english_sentence")
        time.sleep(0.01)
    print(manager.stats()["queue"]["texts"])
"""


def workers(args: argparse.Namespace, texts: list[str]) -> list[Row]:
    """Four processes behind one port, each asked for the same texts at the same time: how often each is computed."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, redis_server() as server:
        tiers = [("memory only", "none", ""), ("a disk tier", "cache_disk", folder)]
        if server:
            tiers.append(("a Redis tier", "cache_url", server[0]))
        for name, setting, value in tiers:
            command = [sys.executable, "-c", WORKER, str(args.model), setting, value]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            processes = [subprocess.Popen([*command, str(number)], **pipes) for number in range(4)]
            for process in processes:
                process.stdout.readline()
            for process in processes:
                process.stdin.write("go\n")
                process.stdin.flush()
            computed = [int(process.communicate(timeout=120)[0]) for process in processes]
            limit = None if setting == "none" else 2.0
            found.append((f"4 workers, {name}: times each text is computed", sum(computed) / 400, limit, True))
    return found


KILLED = """
import sys
from model_manager import Config, ModelManager
model, folder, first = sys.argv[1:]
with ModelManager(Config(english_model=model, cache_disk=folder, cache_size=0)) as manager:
    for number in range(10**9):
        manager.embed([f"text {first} {number} {part}" for part in range(8)], "english_sentence")
"""


def kills(args: argparse.Namespace, texts: list[str]) -> list[Row]:
    """Processes that are killed while they write: what they leave is whole."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.kills):
            process = script(KILLED, TINY, folder, number)
            known, deadline = set(Path(folder).rglob("*.key")), time.monotonic() + 30
            while time.monotonic() < deadline:
                own = set(Path(folder).rglob("*.key")) - known
                if any(path.stat().st_size > 1000 for path in own):
                    break
                time.sleep(0.01)
            time.sleep(number % 10 * 0.003)
            process.kill()
            process.communicate()
        with manager(args, english_model=str(TINY), cache_disk=folder) as found:
            verified = found.cache_verify()
    print(f"kills: {verified['whole']} whole results")
    return [
        (f"after {args.kills} kills while writing: damaged results", verified["damaged"], 0, True),
        ("results that were kept, of each process on average", verified["whole"] / args.kills, 8, False),
    ]


PARTS = {
    "memory": memory,
    "disk": disk,
    "restart": restart,
    "rows": rows,
    "sharing": sharing,
    "redis": redis,
    "dead": dead,
    "preload": preload,
    "workers": workers,
    "kills": kills,
}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL if MODEL.is_dir() else TINY)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--only", choices=PARTS, action="append")
    args = parser.parse_args()
    if "kills" in (args.only or ()) and not args.kills:
        parser.error("--only kills needs --kills N")
    texts = [
        f"text number {number} about the weather in the city, the river and the old town"
        for number in range(args.texts)
    ]
    print(f"{args.model.name}; load average {os.getloadavg()[0]:.1f}")
    table = [["", "found", "wanted", "reached"]]
    for name, part in PARTS.items():
        if (args.only and name not in args.only) or (name == "kills" and not args.kills):
            continue
        for what, value, limit, most in part(args, texts):
            wanted = "" if limit is None else f"{'≤' if most else '≥'} {limit:g}"
            reached = "" if limit is None else "yes" if (value <= limit if most else value >= limit) else "no"
            table.append([what, f"{value:.3g}", wanted, reached])
    print(report.table(table))


if __name__ == "__main__":
    main()
