"""Indexing documents in a Qdrant collection, with embedding and writing at the same time, and searching them.

Needs ``pip install 'model-manager-rs[qdrant]'``. Nothing else in the package imports it.
"""

from __future__ import annotations

from ..._extras import extra

with extra("qdrant"):
    from .documents import point_id
    from .indexer import QdrantIndexer
    from .reembed import Reembedding
    from .report import Failure, IndexingError, IndexReport
    from .search import SearchHit
    from .store import Backoff, CollectionError, StoreError

__all__ = [
    "Backoff",
    "CollectionError",
    "Failure",
    "IndexReport",
    "IndexingError",
    "QdrantIndexer",
    "Reembedding",
    "SearchHit",
    "StoreError",
    "point_id",
]
