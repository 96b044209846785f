"""The indexer: how much of the pure embedding throughput is left when documents are written too, and its memory.

    python benchmarks/indexing.py                       10,000 passages into an embedded Qdrant, and without one
    python benchmarks/indexing.py --memory 1000000      a Qdrant that forgets: resident memory along the way

Indexing and pure embedding take turns in one run, on the same number of passages that neither has seen before.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import corpus
from environment import machine
from model_manager import ModelManager, resident_bytes
from model_manager.integrations.qdrant import QdrantIndexer

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".models" / "all-MiniLM-L6-v2"
TINY_MODEL = ROOT / "tests" / "fixtures" / "bert_wordpiece"
SLOT = "english_sentence"
REPORTS = 10


def passages(model: Path, count: int) -> list[str]:
    counts = dict.fromkeys(corpus.WORKLOADS, 0) | {"passage": count}
    return corpus.make(corpus.load_tokenizer(model), counts)["passage"]


def compare(model: Path, documents: int, rounds: int) -> None:
    size = documents // rounds
    texts = passages(model, 2 * size * rounds)
    ratios = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ModelManager(english_model=str(model), cache_size=0) as manager,
        QdrantIndexer("bench", model=SLOT, manager=manager, path=folder) as indexer,
    ):
        indexer.create_collection()
        for index in range(rounds):
            pure, indexed = (texts[(2 * index + turn) * size :][:size] for turn in range(2))
            started = time.perf_counter()
            manager.embed(pure, SLOT)
            pure_rate = size / (time.perf_counter() - started)
            source = ({"id": f"{index}-{n}", "text": text} for n, text in enumerate(indexed))
            report = indexer.add_documents(source, progress=False)
            if not report.ok:
                raise SystemExit(str(report))
            ratios.append(report.documents_per_second / pure_rate)
            print(
                f"round {index + 1}: embedded alone {pure_rate:.0f}/s, indexed {report.documents_per_second:.0f}/s,"
                f" {ratios[-1]:.1%}",
                flush=True,
            )
    print(
        f"indexing keeps {statistics.median(ratios):.1%} of the throughput (median of {rounds}, {size} passages each)"
    )


class ForgetfulClient:
    """A Qdrant that takes everything and keeps nothing."""

    def __init__(self) -> None:
        self.points = 0

    def collection_exists(self, _name: str) -> bool:
        return False

    def create_collection(self, _name: str, **_settings: Any) -> None:
        pass

    def retrieve(self, _name: str, **_request: Any) -> list[SimpleNamespace]:
        return []

    def upsert(self, _name: str, points: Any, wait: bool) -> None:
        self.points += len(points.ids)


def watch_memory(documents: int) -> None:
    client: Any = ForgetfulClient()

    def source() -> Iterator[dict[str, Any]]:
        for n in range(documents):
            if n % (documents // REPORTS) == 0:
                print(f"{n:>10,} documents: resident {resident_bytes() / 2**20:.1f} MB", flush=True)
            yield {"id": n, "text": f"document {n}", "metadata": {"n": n, "filler": "x" * 500}}

    with ModelManager(english_model=str(TINY_MODEL)) as manager:
        report = QdrantIndexer("bench", client, SLOT, manager=manager).add_documents(source(), progress=False)
        print(f"{client.points:>10,} documents: resident {resident_bytes() / 2**20:.1f} MB\n{report}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the model")
    parser.add_argument("--documents", type=int, default=10_000, help="passages to index")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, metavar="DOCUMENTS", help="index so many into a Qdrant that forgets")
    arguments = parser.parse_args()
    if arguments.memory:
        watch_memory(arguments.memory)
    else:
        print(machine())
        compare(arguments.model, arguments.documents, arguments.rounds)


if __name__ == "__main__":
    main()
