"""One writer in one process, spoken to as worker.py is.

    python benchmarks/generation_worker.py WRITER MODEL

Rates come from differences: what a call with more tokens takes longer is the time of those tokens.
"""

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from contenders import writers
from worker import memory, timed

START = "Once upon a time"
SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank. "


class Worker:
    def __init__(self, name: str, model: Path) -> None:
        self.writer = writers.create(name)
        self.before = memory()["rss"]
        self.load_s = timed(self.writer.load, model)
        self.writer.write(START, 4)
        self.calls = 0

    def start(self) -> dict[str, Any]:
        return {"load_s": self.load_s, **memory()}

    def prompt(self, tokens: int) -> str:
        """About so many tokens, beginning as no prompt before it did: nothing of it can be known."""
        self.calls += 1
        words = f"Number {self.calls * 7919}: {SENTENCE * (tokens // 8)}".split()
        while self.writer.count(" ".join(words)) > tokens:
            words = words[: -max(1, len(words) // 50)]
        return " ".join(words)

    def prefill(self, tokens: int, repeats: int) -> dict[str, Any]:
        """Tokens a second of reading a prompt."""
        rates = []
        for _ in range(repeats):
            text = self.prompt(tokens)
            rates.append(self.writer.count(text) / timed(self.writer.write, text, 1))
        return {"rate": statistics.median(rates)}

    def decode(self, tokens: int, repeats: int) -> dict[str, Any]:
        """Tokens a second of writing one answer."""
        rates = []
        for _ in range(repeats):
            text = self.prompt(16)
            first = timed(self.writer.write, text, 1)
            rates.append((tokens - 1) / max(1e-9, timed(self.writer.write, text, tokens) - first))
        return {"rate": statistics.median(rates)}

    def together(self, requests: int, tokens: int, repeats: int) -> dict[str, Any]:
        """Tokens per second of several concurrent answers in total, and of a single one, prompts included in both."""
        if not isinstance(self.writer, writers.Ours):
            return {"rate": None, "alone": None}
        rates, alone = [], []
        for _ in range(repeats):
            texts = [self.prompt(16) for _ in range(requests)]
            rates.append(requests * tokens / timed(self.writer.write_together, texts, tokens))
            alone.append(tokens / timed(self.writer.write, self.prompt(16), tokens))
        return {"rate": statistics.median(rates), "alone": statistics.median(alone)}

    def turn(self, prompt: int, answer: int, question: int, repeats: int) -> dict[str, Any]:
        """Seconds until the first token of a second turn, whose prompt is the first one, its answer, and a question."""
        if not isinstance(self.writer, writers.Ours):
            return {"seconds": None}
        seconds = []
        for _ in range(repeats):
            text = self.prompt(prompt)
            text += self.writer.answer(text, answer)
            seconds.append(timed(self.writer.write, f"{text} {SENTENCE * (question // 14 + 1)}", 1))
        return {"seconds": statistics.median(seconds)}

    def memory(self) -> dict[str, Any]:
        return {"before": self.before, **memory()}


def main() -> None:
    name, model = sys.argv[1:]
    # Packages print on stdout: the answers get a channel of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    worker = Worker(name, Path(model))
    answer(worker.start())
    for line in sys.stdin:
        command = json.loads(line)
        answer(getattr(worker, command.pop("do"))(**command))


if __name__ == "__main__":
    main()
