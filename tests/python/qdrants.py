"""Shared by the tests of the indexer: an embedded Qdrant, and one that fails on request.

Every test session imports this file; qdrant-client is imported by the tests that use it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import DIMENSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from model_manager import ModelManager
    from model_manager.integrations.qdrant import QdrantIndexer
    from qdrant_client import QdrantClient, models

SLOT = "turkish_sentence"
"""The tiny model of this slot has no prompts."""


def documents(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Different texts with ids and metadata."""
    return [
        {"id": f"d{n}", "text": f"document number {n}", "metadata": {"n": n, "even": n % 2 == 0}}
        for n in range(start, start + count)
    ]


class FakeClient:
    """The calls of the indexer on a dictionary. The next writes raise `faults`, one each."""

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self.points: dict[str, dict[str, Any]] = {}
        self.settings: dict[str, Any] | None = None
        self.writes: list[list[str]] = []
        self.faults: list[BaseException | None] = []
        self.refuses: Callable[[dict[str, Any]], bool] = lambda _payload: False

    def collection_exists(self, _name: str) -> bool:
        return self.settings is not None

    def create_collection(self, _name: str, **settings: Any) -> None:
        self.settings = settings

    def get_collection(self, _name: str) -> Any:
        from qdrant_client import models

        params = SimpleNamespace(vectors=models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE))
        return SimpleNamespace(config=SimpleNamespace(params=params))

    def retrieve(self, _name: str, ids: list[str], with_payload: list[str], with_vectors: bool) -> list[Any]:
        assert with_payload == ["content_hash", "original_doc_id", "chunks"]
        assert not with_vectors
        return [SimpleNamespace(id=one, payload=self.points[one]) for one in ids if one in self.points]

    def upsert(self, _name: str, points: models.Batch, wait: bool) -> None:
        assert wait
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        if any(self.refuses(payload) for payload in points.payloads):
            raise ValueError("a point of this request is refused")
        self.writes.append([payload["original_doc_id"] for payload in points.payloads])
        if self.keep:
            self.points |= dict(zip(points.ids, points.payloads, strict=True))


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient()


@pytest.fixture
def embedded(tmp_path: Any) -> Iterator[QdrantClient]:
    """A real Qdrant in a folder."""
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(tmp_path / "qdrant"))
    yield client
    client.close()


@pytest.fixture
def make_indexer(shared: ModelManager) -> Callable[..., QdrantIndexer]:
    """An indexer on the tiny model, without pauses between retries."""
    from model_manager.integrations.qdrant import Backoff, QdrantIndexer

    no_pause = Backoff(attempts=4, first=0, longest=0)

    def make(client: Any, collection: str = "notes", **settings: Any) -> QdrantIndexer:
        return QdrantIndexer(collection, client, **{"model": SLOT, "manager": shared, "backoff": no_pause, **settings})

    return make
