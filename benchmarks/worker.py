"""One contender in one process. Commands come as JSON lines on stdin, one JSON answer each goes to stdout.

    python benchmarks/worker.py CONTENDER MODEL ONNX TEXTS

It imports, loads and embeds one text at once, and reports that before it reads the first command, so that a
cold start can be timed from outside: what only the commands need is imported and read by them.
Commands: {"do": NAME, ...} with the methods of Worker below.
"""

import json
import os
import sys
import threading
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import contenders

SHORT = "Siparişim ne zaman kargoya verilecek, where is my order?"


def memory() -> dict[str, float]:
    """Resident MB of this process, now and at its highest."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return {name: int(fields[key].split()[0]) / 1024 for name, key in (("rss", "VmRSS"), ("peak", "VmHWM"))}
    except OSError:
        import psutil

        info = psutil.Process().memory_info()
        return {"rss": info.rss / 2**20, "peak": getattr(info, "peak_wset", info.rss) / 2**20}


def timed(call: Any, *arguments: Any) -> float:
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


class Worker:
    def __init__(self, name: str, model: Path, onnx: Path, texts: Path) -> None:
        self.texts_file = texts
        self.contender = contenders.create(name)
        self.import_s = timed(self.contender.import_package)
        self.load_s = timed(self.contender.load, model, onnx)
        self.first_s = timed(self.contender.embed, [SHORT], 1)

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """Workload → texts."""
        texts: dict[str, list[str]] = json.loads(self.texts_file.read_text("utf-8"))["texts"]
        return texts

    def start(self) -> dict[str, Any]:
        """Seconds of import, load and first vector, and what is resident now."""
        return {"import_s": self.import_s, "load_s": self.load_s, "first_s": self.first_s, **memory()}

    def tune(self, workload: str) -> dict[str, Any]:
        """The best batch size, by the faster of two runs over a part of the workload."""
        texts = self.texts[workload][: max(64, len(self.texts[workload]) // 4)]
        seconds = {
            batch: min(timed(self.contender.embed, texts, batch) for _ in range(2)) for batch in self.contender.batches
        }
        return {"batch": min(seconds, key=lambda batch: seconds[batch], default=0), "seconds": seconds}

    def throughput(self, workload: str, batch: int) -> dict[str, Any]:
        """Seconds for all texts of a workload in one call, after one small call."""
        texts = self.texts[workload]
        self.contender.embed(texts[: max(8, len(texts) // 16)], batch)
        return {"seconds": timed(self.contender.embed, texts, batch), "texts": len(texts)}

    def latency(self, count: int) -> dict[str, Any]:
        """Milliseconds of one short text at a time; each text once, so that nothing can be remembered."""
        import statistics

        texts = self.texts["short"]
        for text in texts[:10]:
            self.contender.embed_one(text)
        taken = [timed(self.contender.embed_one, texts[index % len(texts)]) * 1e3 for index in range(count)]
        return {"p50": statistics.median(taken), "p95": sorted(taken)[int(len(taken) * 0.95)]}

    def threads(self, threads: int, repeats: int) -> dict[str, Any]:
        """Milliseconds until `threads` threads, each with one short text, all have their vector."""
        import statistics

        texts = self.texts["short"]
        taken = []
        for repeat in range(repeats + 1):
            gate = threading.Barrier(threads + 1, timeout=120)  # a thread that failed breaks it

            def work(text: str, gate: threading.Barrier = gate) -> None:
                gate.wait()
                self.contender.embed([text], 1)
                gate.wait()

            for index in range(threads):
                text = texts[(repeat * threads + index) % len(texts)]
                threading.Thread(target=work, args=(text,), daemon=True).start()
            gate.wait()
            taken.append(timed(gate.wait) * 1e3)
        return {"p50": statistics.median(taken[1:])}  # the first warms up

    def memory(self) -> dict[str, Any]:
        return memory()

    def vectors(self, path: str, count: int) -> dict[str, Any]:
        """Writes the vectors of the first texts of every workload, for the comparison with the reference."""
        import numpy as np

        parts = [self.contender.embed(texts[:count], 16) for texts in self.texts.values()]
        np.save(path, np.concatenate(parts))
        return {}


def main() -> None:
    name, model, onnx, texts = sys.argv[1:]
    # Packages print on stdout: the answers get a channel of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    worker = Worker(name, Path(model), Path(onnx), Path(texts))
    answer(worker.start())
    for line in sys.stdin:
        command = json.loads(line)
        answer(getattr(worker, command.pop("do"))(**command))


if __name__ == "__main__":
    main()
