"""The pictures of docs/adaptive.md and docs/cache.md, drawn from the policy and the cache themselves.

    python scripts/pictures.py [FOLDER]

`make pictures` writes them into docs/img.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import adaptive  # noqa: E402
from model_manager import Config, ModelManager, _core  # noqa: E402

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "model_manager", "svg.fonttype": "none", "font.size": 9})

from matplotlib import pyplot as plt  # noqa: E402

GRAY, BLUE, RED, GREEN = "#7b8794", "#2f6fa7", "#c4512d", "#3f8f5f"
TIMERS = (60, 150, 300, 600, 1200, 2400)
PRICES = (300, 600, 1200, 2400)
CACHE, TEXTS, LOOK_UPS = 1000, 10_000, 30_000


def save(figure: plt.Figure, path: Path) -> None:
    """Without a date: the same figures give the same file."""
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path)


def cold_starts(path: Path) -> None:
    """Cold starts against memory: fixed timers, and the policy at several prices."""
    random = np.random.default_rng(1)
    timers = {stay: np.zeros(2) for stay in TIMERS}
    prices = {price: np.zeros(2) for price in PRICES}
    for _ in range(200):
        uses = adaptive.uses_of(random, float(np.clip(10 ** random.normal(1.60, 1.77), 0.3, 3000)), 14)
        if len(uses) < 2:
            continue
        for stay, sums in timers.items():
            sums += adaptive.fixed(uses, stay)
        for price, sums in prices.items():
            found, _ = _core._simulate_adaptive(uses, load_seconds=adaptive.LOAD, cold_start_price=price)
            sums += (found["adaptive"]["cold_starts"], found["adaptive"]["resident_seconds"])
    figure, axis = plt.subplots(figsize=(6.4, 3.2))
    for found, color, name, label in ((timers, GRAY, "fixed timer", "{} s"), (prices, RED, "auto", "price {} s")):
        points = [(sums / timers[600])[::-1] for sums in found.values()]
        axis.plot(*zip(*points, strict=True), "o-", color=color, label=name, markersize=4)
        for value, point in zip(found, points, strict=True):
            axis.annotate(label.format(value), point, xytext=(5, 4), textcoords="offset points", color=color)
    axis.set(xlabel="time in memory, relative to 600 s", ylabel="cold starts", ylim=(0, 3), xlim=(0.2, 1.8))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    save(figure, path)


def hits(policy: str, asked: np.ndarray) -> float:
    """The share of look-ups that the cache answers, in percent."""
    model = str(ROOT / "tests" / "fixtures" / "bert_plain")
    with ModelManager(Config(english_model=model, auto_cleanup=False)) as manager:
        manager.register("slot", model, cache={"size": CACHE, "policy": policy})
        for number in asked:
            manager.embed(str(number), "slot")
        found = manager.cache_info()["models"]["slot"]
    return 100 * found["hits"] / len(asked)


def hit_ratios(path: Path) -> None:
    """Hit ratios of the policies, for texts whose popularity stays, drifts, and is mixed with lists read once."""
    random = np.random.default_rng(1)
    weights = 1 / np.arange(1, TEXTS + 1) ** 0.9
    popular = random.choice(TEXTS, LOOK_UPS, p=weights / weights.sum())
    scans = popular.copy()
    for start in range(5000, LOOK_UPS - 2000, 6000):
        scans[start : start + 2000] = TEXTS + start + np.arange(2000)
    loads = {
        "popularity stays": popular,
        "popularity drifts": (popular + np.arange(LOOK_UPS) // 10) % TEXTS,
        "with long lists in between": scans,
    }
    figure, axis = plt.subplots(figsize=(6.4, 2.6))
    for place, (policy, color) in enumerate((("lru", GRAY), ("lfu", BLUE), ("arc", GREEN))):
        found = [hits(policy, asked) for asked in loads.values()]
        bars = axis.bar(np.arange(len(loads)) + (place - 1) * 0.27, found, 0.25, color=color, label=policy)
        axis.bar_label(bars, fmt="%.1f", padding=2)
    axis.set_xticks(range(len(loads)), loads)
    axis.set(ylabel="hits, %", ylim=(0, 75))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=3)
    save(figure, path)


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs" / "img")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    cold_starts(folder / "cold-starts.svg")
    hit_ratios(folder / "hit-ratios.svg")


if __name__ == "__main__":
    main()
