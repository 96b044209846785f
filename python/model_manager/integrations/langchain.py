"""LangChain: a manager's model as `Embeddings`, its reranker as `BaseDocumentCompressor`.

>>> from model_manager.integrations.langchain import ModelManagerEmbeddings, ModelManagerRerank
>>> store = InMemoryVectorStore(ModelManagerEmbeddings("intfloat/multilingual-e5-small"))
>>> retriever = ContextualCompressionRetriever(
...     base_compressor=ModelManagerRerank(top_n=3), base_retriever=store.as_retriever()
... )

Needs ``pip install langchain-core``. Nothing else in the package imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._embedder import Embedder
from .._extras import package

with package("langchain-core"):
    from langchain_core.documents import BaseDocumentCompressor
    from langchain_core.embeddings import Embeddings

from ._rerank import RerankerFields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import Document

    from .._core import Manager

__all__ = ["ModelManagerEmbeddings", "ModelManagerRerank"]


class ModelManagerEmbeddings(Embeddings):
    """Vectors of one model, scaled to length 1. Documents get its prompt named ``document``, queries the one named
    ``query``. A model without them uses its default prompt, if it has one.

    Args:
        model: A slot of the manager, or a source (hub id, folder, …). None: the preferred sentence model.
        manager: None: the process-wide one.
        dimensions: Cut the vectors to this length, and scale them to length 1 again.
    """

    def __init__(
        self, model: str | None = None, *, manager: Manager | None = None, dimensions: int | None = None
    ) -> None:
        self._embedder = Embedder(manager, model, dimensions)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text. The errors are those of `Manager.embed`."""
        vectors: list[list[float]] = self._embedder.documents(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query. The errors are those of `Manager.embed`."""
        vector: list[float] = self._embedder.query(text).tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` without a thread."""
        vectors: list[list[float]] = (await self._embedder.adocuments(texts)).tolist()
        return vectors

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` without a thread."""
        vector: list[float] = (await self._embedder.aquery(text)).tolist()
        return vector

    def __repr__(self) -> str:
        return f"ModelManagerEmbeddings({self._embedder.slot!r})"


class ModelManagerRerank(RerankerFields, BaseDocumentCompressor):
    """The documents that fit a query best, with their ``relevance_score`` in the metadata."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The best documents, best first. The errors are those of `rerank`."""
        documents = list(documents)
        found = self._manager.rerank(query, [one.page_content for one in documents], self.model, top_n=self.top_n)
        return [_scored(documents[one.index], one.score) for one in found]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """`compress_documents` without a thread."""
        documents = list(documents)
        texts = [one.page_content for one in documents]
        found = await self._manager.arerank(query, texts, self.model, top_n=self.top_n)
        return [_scored(documents[one.index], one.score) for one in found]


def _scored(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, "relevance_score": score}})
