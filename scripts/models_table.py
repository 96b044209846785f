"""Writes the table of well-known models into docs/models.md, from known_models.tsv and the registry of families.

python scripts/models_table.py [--check]
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from model_manager import _core

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "scripts" / "known_models.tsv"
PAGE = ROOT / "docs" / "models.md"
COLUMNS = (
    *("model", "for", "architecture", "dimensions", "tokens"),
    *("parameters (M)", "memory (GB)", "license", "prompts", "runs"),
)
BEGIN = "<!-- made by scripts/models_table.py; do not edit -->"
END = "<!-- end of what scripts/models_table.py makes -->"
# A table and a mean: the registry has families of transformers.
STATIC = ("model2vec",)
# Models that read images too; the registry has their text models.
WHOLE = ("gemma3", "mistral3", "gemma4", "gemma4_unified", "embedding_gemma2", "qwen3_5", "qwen3_5_moe")
CLASSES = {"embedding": "AutoModel", "generator": "AutoModelForCausalLM"}


def entries() -> list[dict[str, str]]:
    """The rows of the data file."""
    with DATA.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def refusal(entry: dict[str, str]) -> str | None:
    """Why the registry refuses a model; None if it runs."""
    if entry["model_type"] in STATIC:
        return None
    config: dict[str, Any] = {"model_type": entry["model_type"]}
    if entry["class"]:
        task = CLASSES.get(entry["kind"], "AutoModelForSequenceClassification")
        config["auto_map"] = {task: f"modeling.{entry['class']}"}
    if entry["model_type"] in WHOLE:
        config["text_config"] = {}
    # Keys that ask for more than the family does by itself; their values do not matter.
    config |= dict.fromkeys(entry["flags"].split(), 1)
    return _core._refusal(json.dumps(config), entry["kind"])


def memory(millions: str) -> str:
    """The bytes of the weights in float32 and in bfloat16."""
    if not millions:
        return ""
    count = float(millions) * 1e6
    return " / ".join(f"{count * width / 1e9:.2f}" for width in (4, 2))


def table() -> str:
    """Everything between the marks."""
    rows = entries()
    runs = sum(refusal(entry) is None for entry in rows)
    lines = [BEGIN, "", f"Of these {len(rows)} models {runs} run."]
    for group in dict.fromkeys(entry["group"] for entry in rows):
        lines += [
            "",
            f"### {group}",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---|---|---|---:|---:|---:|---|---|---|---|",
        ]
        for entry in (entry for entry in rows if entry["group"] == group):
            architecture = entry["model_type"] + (f" ({entry['class']})" if entry["class"] else "")
            prompts = entry["prompts"].replace("|", "\\|")
            cells = (
                *(entry["model"], entry["kind"], architecture, entry["dimensions"], entry["tokens"]),
                *(entry["millions"], memory(entry["millions"]), entry["license"], f"`{prompts}`" if prompts else ""),
                "yes" if refusal(entry) is None else "no",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", END])


def page() -> str:
    """The page with the table of now."""
    text = PAGE.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"{PAGE} lacks the marks between which the table goes")
    return before + table() + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where the page has another table")
    given = parser.parse_args()
    made = page()
    if not given.check:
        PAGE.write_text(made, encoding="utf-8")
    elif made != PAGE.read_text(encoding="utf-8"):
        raise SystemExit("the table in docs/models.md is not that of the registry; run make models-table")


if __name__ == "__main__":
    main()
