"""LangChain: a manager's model as `Embeddings`.

>>> from model_manager.integrations.langchain import ModelManagerEmbeddings
>>> store = InMemoryVectorStore(ModelManagerEmbeddings("intfloat/multilingual-e5-small"))

Needs ``pip install langchain-core``. Nothing else in the package imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings

from .._embedder import Embedder

if TYPE_CHECKING:
    from .._core import Manager

__all__ = ["ModelManagerEmbeddings"]


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
