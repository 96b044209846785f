"""How often the detectors `compatible` and `improved` are right about the texts of tests/languages.tsv, and their time.

python benchmarks/language_detectors.py [--errors]
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import Counter
from pathlib import Path

from model_manager import ModelManager

TEXTS = Path(__file__).resolve().parents[1] / "tests" / "languages.tsv"
DETECTORS = ("compatible", "improved")


def labelled() -> list[tuple[str, bool, str]]:
    """Kind, whether it is Turkish, and text."""
    with TEXTS.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["kind"], row["language"] == "turkish", row["text"]) for row in rows]


def decisions(detector: str, texts: list[str]) -> tuple[list[bool], float]:
    """Whether each text goes to the Turkish slot, and the microseconds that one decision takes."""
    with ModelManager(language_detector=detector) as manager:
        for text in texts:  # not timed
            manager.route(text)
        started = time.perf_counter()
        found = [manager.route(text) == "turkish_sentence" for text in texts]
        return found, (time.perf_counter() - started) / len(texts) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", action="store_true", help="list the texts that a detector is wrong about")
    errors = parser.parse_args().errors
    rows = labelled()
    texts = [text for _, _, text in rows]
    number = Counter(kind for kind, _, _ in rows)
    right: dict[str, Counter[str]] = {}
    microseconds = {}
    for detector in DETECTORS:
        found, microseconds[detector] = decisions(detector, texts)
        right[detector] = Counter(row[0] for row, turkish in zip(rows, found, strict=True) if row[1] == turkish)
        for (kind, expected, text), turkish in zip(rows, found, strict=True):
            if errors and expected != turkish:
                print(f"{detector}, {kind}: {text}")
    print(f"{'':16} texts  {DETECTORS[0]:>10}  {DETECTORS[1]:>8}")
    for kind, count in number.items():
        shares = [right[detector][kind] / count for detector in DETECTORS]
        print(f"{kind:16} {count:5}  {shares[0]:10.1%}  {shares[1]:8.1%}")
    totals = [right[detector].total() / len(rows) for detector in DETECTORS]
    print(f"{'all':16} {len(rows):5}  {totals[0]:10.1%}  {totals[1]:8.1%}")
    print(f"{'microseconds':16}        {microseconds[DETECTORS[0]]:10.1f}  {microseconds[DETECTORS[1]]:8.1f}")


if __name__ == "__main__":
    main()
