"""`keep_alive="auto"` against fixed timers: the policy itself, on a clock that is moved by hand.

    python benchmarks/adaptive.py [--slots N] [--days D] [--seed S] [--picture docs/img/adaptive.svg]

The slots are used at rates of 10^N(1.60, 1.77) a day, which fits the quantiles of the functions of the Azure traces:
20 % by a timer, 10 % at random, 70 % in sessions. Acceptance: over all slots, cold starts at most 0.6 and memory at
most 0.9 of a fixed timer of 600 s; an hourly job warm in 95 % of its uses in ten minutes of memory an hour; a daily job
warm in 90 % after a week; a decision in less than 20 µs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from model_manager import _core

DAY = 86_400.0
LOAD = 2.0
STAY = 600.0
COLORS = ("#9aa5b1", "#3e7cb1", "#d1603d")


def uses_of(random: np.random.Generator, rate: float, days: float) -> list[float]:
    """Times of use of one slot, in seconds."""
    mean, end = DAY / rate, days * DAY
    kind, at, all_uses = random.random(), random.random() * min(mean, end), []
    while at < end and len(all_uses) < 50_000:
        if kind < 0.2:
            all_uses.append(at)
            at += mean
        elif kind < 0.3:
            all_uses.append(at)
            at += random.exponential(mean)
        else:  # sessions of ten uses on average, half a minute apart
            length = int(random.geometric(0.1))
            session = at + np.concatenate([[0.0], np.cumsum(random.exponential(30.0, length - 1))])
            all_uses.extend(session.tolist())
            at = float(session[-1]) + random.exponential(mean * 10)
    return [use for use in all_uses if use < end]


def fixed(uses: list[float], stay: float) -> tuple[int, float]:
    """Cold starts and seconds in memory of a timer."""
    gaps = np.diff(uses)
    return 1 + int((gaps > stay).sum()), float(np.minimum(gaps, stay).sum()) + stay


def population(args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Cold starts and memory over all slots, relative to a fixed timer of 600 s."""
    random = np.random.default_rng(args.seed)
    sums = {name: np.zeros(2) for name in ("600 s", "1200 s", "auto")}
    spent, count = 0.0, 0
    for _ in range(args.slots):
        uses = uses_of(random, float(np.clip(10 ** random.normal(1.60, 1.77), 0.3, 20_000)), args.days)
        if len(uses) < 2:
            continue
        started = time.perf_counter()
        figures, _ = _core._simulate_adaptive(uses, load_seconds=LOAD)
        spent, count = spent + time.perf_counter() - started, count + len(uses)
        own = figures["adaptive"]
        sums["auto"] += (own["cold_starts"], own["resident_seconds"])
        sums["600 s"] += fixed(uses, 600)
        sums["1200 s"] += fixed(uses, 1200)
    print(f"{count} uses of {args.slots} slots; {spent / count * 1e6:.1f} µs a use, its decision included")
    return {name: tuple((value / sums["600 s"]).tolist()) for name, value in sums.items()}


def job(name: str, uses: list[float], learning: int) -> None:
    """How often a regular job is warm after some uses, and its memory."""
    figures, cold = _core._simulate_adaptive(uses, load_seconds=LOAD)
    late = cold[learning:]
    warm = 1 - sum(late) / len(late)
    memory = figures["adaptive"]["resident_seconds"] / len(uses)
    print(f"{name}: {warm:.0%} warm, {memory:.0f} s in memory a use (fixed timer: {STAY:.0f} s, 0 % warm)")


def picture(figures: dict[str, tuple[float, float]], path: Path) -> None:
    """Draw cold starts and memory side by side."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "model_manager"
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(1, 2, figsize=(7.2, 2.4), sharey=True)
    for axis, title, place in zip(axes, ("Cold starts", "Time in memory"), (0, 1), strict=True):
        values = [value[place] for value in figures.values()]
        bars = axis.barh(list(figures), values, color=COLORS)
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.set_title(title, fontsize=10)
        axis.set_xlim(0, max(values) * 1.2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.invert_yaxis()
    axes[0].invert_yaxis()
    drawing.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=317)
    parser.add_argument("--days", type=float, default=14)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    figures = population(args)
    for name, (cold, memory) in figures.items():
        print(f"{name:>7}: cold starts {cold:.2f}, memory {memory:.2f}")
    job("an hourly job", [hour * 3600.0 for hour in range(24 * 14)], 24)
    weekdays = [day for day in range(28) if day % 7 < 5]
    job("a daily job on working days", [day * DAY + 9.05 * 3600 for day in weekdays], 5)
    if args.picture:
        picture(figures, args.picture)


if __name__ == "__main__":
    main()
