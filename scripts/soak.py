#!/usr/bin/env python3
"""Mixed requests for minutes: every answer is checked, and memory, threads and descriptors must not grow.

    python scripts/soak.py [--seconds 600] [--threads 8] [--seed 1]

Threads and an event loop embed, count, write, stream, cancel, load, unload, register and ask for figures, on the tiny
models of this checkout. The exit status is 1 for a wrong answer, an unexpected error, or growth.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from model_manager import ModelManager, errors, resident_bytes

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "fixtures"
SLOTS = ("turkish_sentence", "english_sentence")
TEXTS = [f"metin {number}: {'hava çok güzel, ' * (number % 9)}the weather is lovely" for number in range(400)]
PROMPTS = ["Bir varmış", "Once upon a time", "The capital"]
TOKENS = 6
MEMORY_GROWTH = 16 << 20
"""Between the end of the first quarter and the end: caches are full by then."""


def new_manager() -> ModelManager:
    return ModelManager(
        turkish_model=str(FIXTURES / "xlmr"),
        english_model=str(FIXTURES / "bert_wordpiece"),
        generator_model=str(FIXTURES / "llama"),
        dtype="float32",
        generator_dtype="float32",
        cache_size=100,
        max_idle_time=1.0,
        cleanup_interval=0.5,
        max_queue=100_000,
    )


class Soak:
    """The clients, their expectations, and what they saw."""

    def __init__(self, seed: int) -> None:
        self.manager = new_manager()
        self.seed = seed
        self.vectors = {slot: self.manager.embed(TEXTS, slot) for slot in SLOTS}
        self.answers = [self.manager.generate(prompt, do_sample=False, max_new_tokens=TOKENS) for prompt in PROMPTS]
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.stop = threading.Event()

    def check(self, ok: bool, what: str) -> None:
        if not ok:
            self.failures.append(what)
            self.stop.set()

    def equal(self, found: np.ndarray, slot: str, chosen: list[int]) -> None:
        # A text's vector does not depend on its batch, to the last bit.
        self.check(np.array_equal(found, self.vectors[slot][chosen]), f"wrong vectors of {slot} for {chosen}")

    def client(self, number: int) -> None:
        """One thread's requests until the end."""
        chance = random.Random(f"{self.seed} {number}")
        while not self.stop.is_set():
            action = chance.choices(list(ACTIONS), [weight for _, weight in ACTIONS.values()])[0]
            try:
                ACTIONS[action][0](self, chance)
            except errors.ModelManagerError as error:
                # Another thread unregistered the slot, or the queue was full: what the interface says may happen.
                self.check(action == "register" or error.transient, f"{action}: {error!r}")
            except Exception as error:  # noqa: BLE001  anything else is a finding
                self.check(False, f"{action}: {error!r}")
            self.counts[action] += 1

    async def loop_client(self) -> None:
        """The same from an event loop, with cancellations."""
        chance = random.Random(f"{self.seed} loop")
        while not self.stop.is_set():
            slot, chosen = chance.choice(SLOTS), chance.sample(range(len(TEXTS)), chance.randint(1, 40))
            task = asyncio.ensure_future(self.manager.aembed([TEXTS[index] for index in chosen], slot))
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.003)
                task.cancel()
            try:
                self.equal(await task, slot, chosen)
                self.counts["aembed"] += 1
            except asyncio.CancelledError:
                self.counts["aembed cancelled"] += 1

    # --- Actions -----------------------------------------------------------------------------------------------------

    def embed_one(self, chance: random.Random) -> None:
        slot, index = chance.choice(SLOTS), chance.randrange(len(TEXTS))
        self.equal(self.manager.embed(TEXTS[index], slot), slot, index)

    def embed_many(self, chance: random.Random) -> None:
        slot, chosen = chance.choice(SLOTS), chance.sample(range(len(TEXTS)), chance.randint(1, 64))
        self.equal(self.manager.embed([TEXTS[index] for index in chosen], slot), slot, chosen)

    def count(self, chance: random.Random) -> None:
        self.check(self.manager.count_tokens(chance.choice(TEXTS), SLOTS[0]) > 0, "no tokens")

    def generate(self, chance: random.Random) -> None:
        index = chance.randrange(len(PROMPTS))
        text = self.manager.generate(PROMPTS[index], do_sample=False, max_new_tokens=TOKENS)
        self.check(text == self.answers[index], f"wrong answer to {PROMPTS[index]!r}: {text!r}")

    def stream(self, chance: random.Random) -> None:
        stream = self.manager.stream(chance.choice(PROMPTS), max_new_tokens=50, temperature=1.0)
        for number, _ in enumerate(stream):
            if number == chance.randint(0, 4):
                stream.cancel()
                break

    def unload(self, chance: random.Random) -> None:
        self.manager.unload(chance.choice((*SLOTS, "text_generator")))

    def load(self, chance: random.Random) -> None:
        self.manager.load(chance.choice(SLOTS))

    def register(self, chance: random.Random) -> None:
        name = f"extra{chance.randrange(3)}"
        self.manager.register(name, str(FIXTURES / "bert_cls"), replace=True)
        self.check(self.manager.embed("bir", name).shape == (36,), "wrong shape")
        self.manager.unregister(name)

    def figures(self, _chance: random.Random) -> None:
        self.manager.stats()
        self.manager.cache_info()
        repr(self.manager)

    def wrong(self, chance: random.Random) -> None:
        wrong = chance.choice(["\ud800", 3.5, None])
        try:
            self.manager.embed([TEXTS[0], wrong], SLOTS[0])  # type: ignore[list-item]
        except (TypeError, errors.InputError):
            return
        self.check(False, f"{wrong!r} was embedded")


ACTIONS = {
    "embed_one": (Soak.embed_one, 40),
    "embed_many": (Soak.embed_many, 20),
    "count": (Soak.count, 5),
    "generate": (Soak.generate, 4),
    "stream": (Soak.stream, 2),
    "unload": (Soak.unload, 0.3),
    "load": (Soak.load, 1),
    "register": (Soak.register, 0.3),
    "figures": (Soak.figures, 2),
    "wrong": (Soak.wrong, 5),
}


def state() -> tuple[int, int, int]:
    """Resident bytes, threads, open descriptors."""
    gc.collect()
    here = Path("/proc/self")
    if not here.is_dir():
        return resident_bytes(), threading.active_count(), 0
    return resident_bytes(), len(list((here / "task").iterdir())), len(list((here / "fd").iterdir()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    soak = Soak(args.seed)
    threads = [threading.Thread(target=soak.client, args=(number,)) for number in range(args.threads)]
    threads.append(threading.Thread(target=lambda: asyncio.run(soak.loop_client())))
    began = time.monotonic()
    for thread in threads:
        thread.start()
    settled: tuple[int, int, int] | None = None
    while not soak.stop.wait(min(5.0, args.seconds / 20)):
        passed = time.monotonic() - began
        now = state()
        print(f"{passed:6.1f} s  {sum(soak.counts.values()):9,} requests  {now[0] / 1e6:7.1f} MB  {now[1]} threads"
              f"  {now[2]} descriptors", flush=True)  # fmt: skip
        if settled is None and passed >= args.seconds / 4:
            settled = now
        if passed >= args.seconds:
            break
    last = state()
    soak.stop.set()
    for thread in threads:
        thread.join(60)
    soak.check(not any(thread.is_alive() for thread in threads), "a client hangs")
    settled = settled or last
    # Threads and descriptors move by what is loaded at the moment: a model, an event loop, a file.
    soak.check(last[0] - settled[0] < MEMORY_GROWTH, f"memory grew by {(last[0] - settled[0]) / 1e6:.1f} MB")
    soak.check(last[1] <= settled[1] + 8, f"threads grew from {settled[1]} to {last[1]}")
    soak.check(last[2] <= settled[2] + 16, f"descriptors grew from {settled[2]} to {last[2]}")
    print(", ".join(f"{name} {count:,}" for name, count in sorted(soak.counts.items())))
    for failure in soak.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    soak.manager.close()
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
