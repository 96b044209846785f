"""LangChain: a manager's model as `Embeddings`.

>>> from model_manager.integrations.langchain import ModelManagerEmbeddings
>>> store = InMemoryVectorStore(ModelManagerEmbeddings("intfloat/multilingual-e5-small"))

Needs ``pip install langchain-core``. Imported only when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings

from .._embedder import Embedder

if TYPE_CHECKING:
    from .._core import Manager

__all__ = ["ModelManagerEmbeddings"]


class ModelManagerEmbeddings(Embeddings):
    """Vectors of one model, of length 1. Documents get its prompt named ``document``, queries the one named ``query``;
    a model without them its default prompt, if it has one.

    Args:
        model: A slot of the manager, or a source (hub id, folder, …). None: the preferred sentence model.
        manager: None: the process-wide one.
        dimensions: Cut the vectors to so many, and scale them to length 1 again.
    """

    def __init__(
        self, model: str | None = None, *, manager: Manager | None = None, dimensions: int | None = None
    ) -> None:
        self._embedder = Embedder(manager, model, dimensions)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text. Raises what `Manager.embed` raises."""
        vectors: list[list[float]] = self._embedder.documents(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query. Raises what `Manager.embed` raises."""
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
