"""LlamaIndex: a manager's model as `BaseEmbedding`, its reranker as `BaseNodePostprocessor`.

>>> from model_manager.integrations.llamaindex import ModelManagerEmbedding, ModelManagerRerank
>>> index = VectorStoreIndex.from_documents(documents, embed_model=ModelManagerEmbedding())

Needs ``pip install llama-index-core``. Nothing else in the package imports it.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .._arguments import an_int, argument_error, check_names
from .._embedder import Embedder
from .._extras import package

with package("llama-index-core"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from ._rerank import RerankerFields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self

    from .._core import Manager

__all__ = ["ModelManagerEmbedding", "ModelManagerRerank"]

_calling: ContextVar[bool] = ContextVar("model_manager_calling", default=False)


@contextlib.contextmanager
def _call() -> Iterator[None]:
    """A call for vectors. Up to version 0.14.20, LlamaIndex reports each one with the dictionary of the embedding: its
    fingerprint would load the model, in the event loop too, and embed a text.
    """
    token = _calling.set(True)
    try:
        yield
    finally:
        _calling.reset(token)


class ModelManagerEmbedding(BaseEmbedding):
    """Vectors of one model, scaled to length 1. Texts get its prompt named ``document``, queries the one named
    ``query``. A model without them uses its default prompt, if it has one.
    """

    model_name: str = Field(description="The slot.", frozen=True)
    dimensions: int | None = Field(default=None, description="The length of the vectors; None: all.", frozen=True)
    embeddings_cache: Any = Field(default=None, description="Not supported.", frozen=True)
    _embedder: Embedder = PrivateAttr()

    def __init__(
        self,
        model: str | None = None,
        *,
        manager: Manager | None = None,
        dimensions: int | None = None,
        embed_batch_size: int = 100,
        model_name: str | None = None,
        **settings: Any,
    ) -> None:
        """Loads nothing yet.

        Args:
            model: A slot of the manager, or a source (hub id, folder, …). None: the preferred sentence model.
            manager: None: the process-wide one.
            dimensions: Cut the vectors to this length, and scale them to length 1 again.
            embed_batch_size: Texts per call of LlamaIndex; larger calls are batched better.
            model_name: LlamaIndex's name of `model`; give one of the two.
            settings: Further fields of `BaseEmbedding`, such as `callback_manager`. `embeddings_cache` is refused: its
                keys are texts alone, and a query would get the vector of an equal document.

        Raises:
            TypeError: `model` and `model_name` together, or an unknown field.
            ArgumentError: An `embeddings_cache`.
        """
        if model is not None and model_name is not None:
            raise TypeError("model and model_name are the same argument; give one of them")
        if settings.pop("embeddings_cache", None) is not None:
            raise argument_error(
                "embeddings_cache",
                "embeddings_cache finds vectors by the text alone, whatever the prompt and the model; leave it out:"
                " the manager has a cache of its own, see cache_disk",
            )
        check_names(type(self).__name__, settings, type(self).model_fields)
        embedder = Embedder(manager, model if model_name is None else model_name, dimensions)
        super().__init__(
            **{
                "model_name": embedder.slot,
                "dimensions": None if dimensions is None else an_int("dimensions", dimensions, 1),
                "embed_batch_size": embed_batch_size,
                **settings,
            }
        )
        self._embedder = embedder

    def __setstate__(self, state: dict[str, Any]) -> None:
        _restore(self, state)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with the same manager. Fields that decide on the vectors cannot be updated.

        Raises:
            ArgumentError: `update` has another `model_name`, `dimensions` or `embeddings_cache`.
        """
        self._check_update(update)
        return super().model_copy(update=update, deep=deep)

    def copy(self, *, update: dict[str, Any] | None = None, **options: Any) -> Self:
        """`model_copy` under the name that pydantic has deprecated, with its warning."""
        self._check_update(update)
        return super().copy(update=update, **options)

    def _check_update(self, update: Mapping[str, Any] | None) -> None:
        for name, value in (update or {}).items():
            field = type(self).model_fields.get(name)
            if field is not None and field.frozen and value != getattr(self, name):
                raise argument_error(
                    "update",
                    f"update={{{name!r}: {value!r}}}: a copy keeps its {name}; make a new {type(self).__name__}",
                )

    @classmethod
    def class_name(cls) -> str:
        """The name of this class in LlamaIndex's files."""
        return "ModelManagerEmbedding"

    def to_dict(self, **options: Any) -> dict[str, Any]:
        """The fields, and the fingerprint of the vectors with a tag of the checkpoint: LlamaIndex's caches tell models
        apart by this dictionary. Loads the model, and reads its files once; of a server's model, embeds a short text.
        Within a call for vectors, where LlamaIndex reports it, the fields alone.
        """
        if _calling.get():
            fields: dict[str, Any] = super().to_dict(**options)
            return fields
        fingerprint = f"{self._embedder.fingerprint}-{self._embedder.checkpoint}"
        return {**super().to_dict(**options), "fingerprint": fingerprint}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **options: Any) -> Self:
        """The embedding of `to_dict`. `options` go to the constructor: the manager is not in the dictionary."""
        return super().from_dict({name: data[name] for name in data if name != "fingerprint"}, **options)

    def get_query_embedding(self, query: str) -> list[float]:
        """The vector of a query."""
        with _call():
            return super().get_query_embedding(query)

    async def aget_query_embedding(self, query: str) -> list[float]:
        """`get_query_embedding` without a thread."""
        with _call():
            return await super().aget_query_embedding(query)

    def get_text_embedding(self, text: str) -> list[float]:
        """The vector of a text."""
        with _call():
            return super().get_text_embedding(text)

    async def aget_text_embedding(self, text: str) -> list[float]:
        """`get_text_embedding` without a thread."""
        with _call():
            return await super().aget_text_embedding(text)

    def get_text_embedding_batch(self, texts: list[str], *arguments: Any, **options: Any) -> list[list[float]]:
        """The vectors of several texts."""
        with _call():
            return super().get_text_embedding_batch(texts, *arguments, **options)

    async def aget_text_embedding_batch(self, texts: list[str], *arguments: Any, **options: Any) -> list[list[float]]:
        """`get_text_embedding_batch` without a thread."""
        with _call():
            return await super().aget_text_embedding_batch(texts, *arguments, **options)

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


class ModelManagerRerank(RerankerFields, BaseNodePostprocessor):
    """The nodes that fit a query best, with the reranker's scores."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        _restore(self, state)

    @classmethod
    def class_name(cls) -> str:
        """The name of this class in LlamaIndex's files."""
        return "ModelManagerRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise argument_error("query_bundle", "a reranker needs the query: give query_bundle or query_str")
        texts = [one.node.get_content(metadata_mode=MetadataMode.EMBED) for one in nodes]
        found = self._manager.rerank(query_bundle.query_str, texts, self.model, top_n=self.top_n)
        return [NodeWithScore(node=nodes[one.index].node, score=one.score) for one in found]


def _restore(component: BaseModel, state: dict[str, Any]) -> None:
    # LlamaIndex's own method calls __init__ with the fields alone, and so takes the process-wide manager.
    BaseModel.__setstate__(component, state)
