"""Search by meaning, by words, and by both, on a small Turkish FAQ of a factory.

    python benchmarks/retrieval.py [--model FOLDER] [--reranker MODEL]

The FAQ (retrieval_faq.jsonl) was written for this benchmark: 124 answers, and questions of two kinds. `exact` ones name
a code, a part or a form; `paraphrase` ones ask in other words than the answer has. Each has one relevant answer. There
are no weights of a Turkish cross-encoder here, so the reranker that is measured is MaxSim over the model's own vectors
of tokens; `--reranker` measures another one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

from model_manager import Config, ModelManager
from model_manager.integrations.qdrant import QdrantIndexer

HERE = Path(__file__).resolve().parent
FAQ = HERE / "retrieval_faq.jsonl"
KINDS = ("exact", "paraphrase", "all")
DEPTH = 10


def load(path: Path = FAQ) -> tuple[list[dict], list[dict]]:
    """The answers and the questions."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "text" in row], [row for row in rows if "query" in row]


def quality(rankings: list[list[str]], questions: list[dict], kind: str) -> dict[str, float]:
    """Recall at 1, 5 and 10, and nDCG at 10."""
    chosen = [(r, q["relevant"]) for r, q in zip(rankings, questions, strict=True) if kind in ("all", q["kind"])]

    def recall(k: int) -> float:
        return statistics.mean(len(set(found[:k]) & set(wanted)) / len(wanted) for found, wanted in chosen)

    def gain(found: list[str], wanted: list[str]) -> float:
        got = sum(1 / math.log2(rank + 2) for rank, one in enumerate(found[:DEPTH]) if one in wanted)
        return got / sum(1 / math.log2(rank + 2) for rank in range(min(len(wanted), DEPTH)))

    ndcg = statistics.mean(gain(found, wanted) for found, wanted in chosen)
    return {"recall@1": recall(1), "recall@5": recall(5), "recall@10": recall(10), "nDCG@10": ndcg}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(HERE.parent / ".models" / "multilingual-e5-small"))
    parser.add_argument("--reranker", help="a cross-encoder, measured in addition")
    options = parser.parse_args()
    answers, questions = load()
    documents = [{"id": row["id"], "text": row["text"]} for row in answers]
    manager = ModelManager(Config(auto_cleanup=False))
    # The folder of the model has no prompts; its card asks for these.
    manager.register("e5", options.model, prompts={"query": "query: ", "passage": "passage: "})

    indexer = QdrantIndexer(
        "faq", path=":memory:", model="e5", manager=manager, sparse="bm25", multi=True, rerank="multi"
    )
    indexer.add_documents(documents, progress=False)
    ways = {
        "dense": (indexer, {"mode": "dense", "rerank": False}),
        "BM25": (indexer, {"mode": "sparse", "rerank": False}),
        "hybrid": (indexer, {"mode": "hybrid", "rerank": False}),
        "dense + MaxSim": (indexer, {"mode": "dense"}),
        "hybrid + MaxSim": (indexer, {"mode": "hybrid"}),
    }
    if options.reranker:
        other = QdrantIndexer("faq", indexer.client, "e5", manager=manager, sparse="bm25", rerank=options.reranker)
        ways["hybrid + reranker"] = (other, {"mode": "hybrid"})
    print(f"{len(answers)} answers, {len(questions)} questions, {Path(options.model).name}")
    print("| | " + " | ".join(f"{kind}: recall@1, @5, @10, nDCG@10" for kind in KINDS) + " | ms |")
    print("|---" * (len(KINDS) + 2) + "|")
    for name, (one, arguments) in ways.items():
        rankings, seconds = [], []
        for question in questions:
            start = time.perf_counter()
            hits = one.search(question["query"], DEPTH, score_threshold=None, **arguments)
            seconds.append(time.perf_counter() - start)
            rankings.append([hit.id for hit in hits])
        cells = [", ".join(f"{value:.3f}" for value in quality(rankings, questions, kind).values()) for kind in KINDS]
        print(f"| {name} | " + " | ".join(cells) + f" | {1000 * statistics.median(seconds):.1f} |")
        sys.stdout.flush()
    manager.close()


if __name__ == "__main__":
    main()
