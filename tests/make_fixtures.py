#!/usr/bin/env python3
"""Make the committed fixtures: tiny seeded models, and what PyTorch says of them.

    python tests/make_fixtures.py [NAME ...]        all of them without a name; --list shows the names

Needs torch, transformers, peft, sentence-transformers, model2vec, numpy, safetensors and tokenizers. The references of
the real models (`all-MiniLM-L6-v2`, `multilingual-e5-small`) are made when those lie in --models, where
scripts/fetch_models.py puts them. Run twice, it writes the same bytes (the versions are recorded in each
file). The tests only read what it wrote, so they need none of these packages.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from a hub
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402  (after the environment above)
from fixture_makers import (  # noqa: E402  (after the environment above)
    adapters,
    added_tokens,
    bge_m3,
    blocks,
    causal,
    chat_vectors,
    detector,
    encoders,
    families,
    gguf_form_headers,
    gguf_gemma4_expert_headers,
    gguf_gemma4_headers,
    gguf_headers,
    gpt_oss,
    jina_tasks,
    judges,
    late,
    mixture_scores,
    mixture_vectors,
    real,
    regexes,
    rope,
    scorers,
    semantic,
    sparse,
    static_models,
    tokenizer_kinds,
)
from transformers.utils import logging  # noqa: E402

FIXTURES = ROOT / "tests" / "fixtures"


def makers(models: Path) -> dict[str, Callable[[], None]]:
    """Fixture name → what makes it."""
    table: dict[str, Callable[[], None]] = {"text": partial(detector.make, FIXTURES)}
    table["semantic"] = partial(semantic.make, FIXTURES)
    table["added_tokens"] = partial(added_tokens.make, FIXTURES)
    table["gguf_blocks"] = partial(blocks.make, FIXTURES)
    table["gguf_grids"] = partial(blocks.make_grids, ROOT / "src" / "compute" / "linear" / "grids.bin")
    table["tokenizers"] = partial(tokenizer_kinds.make, FIXTURES)
    table["regexes"] = partial(regexes.make, FIXTURES)
    table["rope"] = partial(rope.make, FIXTURES)
    table |= {spec.name: partial(encoders.make, spec, FIXTURES) for spec in encoders.ENCODERS}
    table |= {spec.name: partial(causal.make, spec, FIXTURES) for spec in causal.GENERATORS}
    table |= {spec.name: partial(scorers.make, spec, FIXTURES) for spec in scorers.SCORERS}
    table |= {spec.name: partial(late.make, FIXTURES, spec) for spec in (late.SPEC, *late.OTHERS)}
    table[bge_m3.SPEC.name] = partial(bge_m3.make, FIXTURES)
    table[jina_tasks.NAME] = partial(jina_tasks.make, FIXTURES)
    table[judges.NAME] = partial(judges.make, FIXTURES)
    table |= {spec.name: partial(sparse.make, spec, FIXTURES) for spec in sparse.SPLADES}
    table |= {name: partial(static_models.make, name, FIXTURES) for name in static_models.STATIC}
    generators = (*families.FAMILIES, *families.WHOLE, *families.OTHERS)
    table |= {name: partial(families.make, name, FIXTURES) for name in generators}
    table |= {f"{adapters.FOLDER}/{spec.name}": partial(adapters.make, spec, FIXTURES) for spec in adapters.ADAPTERS}
    table[mixture_scores.NAME] = partial(mixture_scores.make, FIXTURES)
    table[mixture_vectors.NAME] = partial(mixture_vectors.make, FIXTURES)
    table[chat_vectors.NAME] = partial(chat_vectors.make, FIXTURES)
    table["gguf_headers"] = partial(gguf_headers.make, FIXTURES)
    table[gpt_oss.NAME] = partial(gpt_oss.make, FIXTURES)
    table["gguf_form_headers"] = partial(gguf_form_headers.make, FIXTURES)
    table[gguf_gemma4_expert_headers.NAME] = partial(gguf_gemma4_expert_headers.make, FIXTURES)
    table[gguf_gemma4_headers.NAME] = partial(gguf_gemma4_headers.make, FIXTURES)
    return table | {name: partial(real.make, name, models, FIXTURES) for name in real.NAMES}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the committed fixtures.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="make these alone")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--models", type=Path, default=ROOT / ".models", help="where the real models lie")
    args = parser.parse_args()
    table = makers(args.models)
    if args.list:
        print(*table, sep="\n")
        return
    if unknown := [name for name in args.names if name not in table]:
        parser.error(f"no fixture named {', '.join(unknown)}; there are {', '.join(table)}")
    torch.set_num_threads(1)  # sums in one order
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in args.names or table:
        table[name]()


if __name__ == "__main__":
    main()
