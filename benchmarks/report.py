"""From the measurements of every round to one table with ratios."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

# Column → (heading, decimals, whether more is better; None: no ratio).
COLUMNS: dict[str, tuple[str, int, bool | None]] = {
    "short": ("short/s", 0, True),
    "passage": ("passage/s", 0, True),
    "long": ("long/s", 1, True),
    "one_p50": ("one p50 ms", 2, False),
    "one_p95": ("one p95 ms", 2, False),
    "threads": ("16 threads ms", 1, False),
    "import": ("import s", 2, False),
    "cold": ("first vector s", 2, False),
    "peak": ("peak MB", 0, False),
    "after": ("RSS after MB", 0, False),
    "min_cosine": ("min cosine", 6, None),
    "max_difference": ("max abs diff", 7, None),
}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(found[key] for found in rounds) for key in COLUMNS if key in rounds[0]}


def ratio(value: float, base: float, more_is_better: bool) -> float:
    """How many times better than the baseline, whichever way better lies."""
    if min(value, base) <= 0:
        return float("nan")
    return value / base if more_is_better else base / value


def left_out(wanted: Iterable[str], found: Iterable[str]) -> str:
    """What a run must fail with: the contenders of this project that are not in its results; empty without any."""
    missing = sorted({name for name in wanted if name.startswith("model_manager")} - set(found))
    return f"left out of the results: {', '.join(missing)}; the reason stands above" if missing else ""


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for index, row in enumerate(rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
        if index == 0:
            lines.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def render(results: Mapping[str, Mapping[str, float]], baseline: str) -> str:
    """The medians, and how many times better each is than the baseline (above 1: better)."""
    headings = [heading for heading, _, _ in COLUMNS.values()]
    figures = [["median", *headings]]
    for name, found in results.items():
        cells = (f"{found[key]:.{decimals}f}" if key in found else "" for key, (_, decimals, _) in COLUMNS.items())
        figures.append([name, *cells])
    text = table(figures)
    if baseline in results:
        compared = {key: better for key, (_, _, better) in COLUMNS.items() if better is not None}
        ratios = [[f"times better than {baseline}", *(COLUMNS[key][0].rsplit(" ", 1)[0] for key in compared)]]
        for name, found in results.items():
            base = results[baseline]
            cells = (
                f"{ratio(found[key], base[key], better):.2f}" if key in found and key in base else ""
                for key, better in compared.items()
            )
            ratios.append([name, *cells])
        text += "\n\n" + table(ratios)
    return text


def describe(machine: Mapping[str, Any], versions: Mapping[str, str], tokens: Mapping[str, float]) -> str:
    lengths = ", ".join(f"{workload} {mean:.1f}" for workload, mean in tokens.items())
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {' '.join(machine['isa'])}; {machine['system']}, "
        f"Python {machine['python']}, load average {machine['load_average']} at the start\n"
        f"tokens a text: {lengths}; {packages}"
    )
