"""LlamaIndex: a manager's model as `BaseEmbedding`.

>>> from model_manager.integrations.llamaindex import ModelManagerEmbedding
>>> index = VectorStoreIndex.from_documents(documents, embed_model=ModelManagerEmbedding())

Needs ``pip install llama-index-core``. Nothing else in the package imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from .._embedder import Embedder

if TYPE_CHECKING:
    from .._core import Manager

__all__ = ["ModelManagerEmbedding"]


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
