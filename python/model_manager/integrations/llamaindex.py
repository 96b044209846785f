"""LlamaIndex: a manager's model as `BaseEmbedding`, its reranker as `BaseNodePostprocessor`.

>>> from model_manager.integrations.llamaindex import ModelManagerEmbedding, ModelManagerRerank
>>> index = VectorStoreIndex.from_documents(documents, embed_model=ModelManagerEmbedding())

Needs ``pip install llama-index-core``. Nothing else in the package imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from .._embedder import Embedder, reranker_for

if TYPE_CHECKING:
    from .._core import Manager
    from .._scoring import ScoringManager

__all__ = ["ModelManagerEmbedding", "ModelManagerRerank"]


class ModelManagerEmbedding(BaseEmbedding):
    """Vectors of one model, scaled to length 1. Texts get its prompt named ``document``, queries the one named
    ``query``. A model without them uses its default prompt, if it has one.
    """

    _embedder: Embedder = PrivateAttr()

    def __init__(
        self,
        model: str | None = None,
        *,
        manager: Manager | None = None,
        dimensions: int | None = None,
        embed_batch_size: int = 100,
        **settings: Any,
    ) -> None:
        """Loads nothing yet.

        Args:
            model: A slot of the manager, or a source (hub id, folder, …). None: the preferred sentence model.
            manager: None: the process-wide one.
            dimensions: Cut the vectors to this length, and scale them to length 1 again.
            embed_batch_size: Texts per call of LlamaIndex; larger calls are batched better.
            settings: Further fields of `BaseEmbedding`, such as `callback_manager`.
        """
        embedder = Embedder(manager, model, dimensions)
        super().__init__(model_name=embedder.slot, embed_batch_size=embed_batch_size, **settings)
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """The name of this class in LlamaIndex's files."""
        return "ModelManagerEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._embedder.query(query).tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.documents(texts).tolist()
        return vectors

    async def _aget_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = (await self._embedder.aquery(query)).tolist()
        return vector

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = (await self._embedder.adocuments(texts)).tolist()
        return vectors


class ModelManagerRerank(BaseNodePostprocessor):
    """The nodes that fit a query best, with the reranker's scores."""

    top_n: int | None = 3
    """Nodes that stay; None: all."""
    model: str
    """The slot."""
    _manager: Any = PrivateAttr()

    def __init__(
        self, model: str | None = None, *, manager: ScoringManager | None = None, top_n: int | None = 3, **fields: Any
    ) -> None:
        """Loads nothing yet.

        Args:
            model: A slot of the manager, or a source (hub id, folder, …). None: ``reranker``.
            manager: None: the process-wide one.
            top_n: Nodes that stay; None: all.
            fields: Further fields of `BaseNodePostprocessor`, such as `callback_manager`.
        """
        found, slot = reranker_for(manager, model)
        super().__init__(**{"model": slot, "top_n": top_n, **fields})
        self._manager = found

    @classmethod
    def class_name(cls) -> str:
        """The name of this class in LlamaIndex's files."""
        return "ModelManagerRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("a reranker needs the query: give query_bundle or query_str")
        texts = [one.node.get_content(metadata_mode=MetadataMode.EMBED) for one in nodes]
        found = self._manager.rerank(query_bundle.query_str, texts, self.model, top_n=self.top_n)
        return [NodeWithScore(node=nodes[one.index].node, score=one.score) for one in found]
