"""The vectors of documents and questions: dense ones of one model, and where asked sparse ones and those of tokens."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from qdrant_client import models

from ..._arguments import argument_error, type_error
from ..._embedder import Embedder, fingerprint_of, model_of, slot_for
from ...errors import TaskError
from ...handles.sentence_model import DOCUMENT_PROMPTS, QUERY_PROMPTS, find_prompt
from ...semantic.bm25 import BM25
from .collection import CollectionError
from .probe import PROBE, TEXTS, probe_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from ..._types import Description
    from ...results import SparseVector
    from .collection import Layout

BM25_NAME = "bm25"
"""`sparse` of this name needs no model."""


def sparse_vector(vector: SparseVector) -> models.SparseVector:
    """The form of Qdrant's client."""
    return models.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())


@dataclass(frozen=True)
class Columns:
    """The vectors of several texts, a row for each; None for a kind that is not used."""

    dense: NDArray[np.float32] | None
    sparse: Sequence[SparseVector] | None = None
    multi: Sequence[NDArray[np.float32]] | None = None

    def named(self, row: int, layout: Layout) -> dict[str, Any]:
        """The vectors of one text by their names. A text without terms has no sparse vector."""
        found: dict[str, Any] = {}
        if self.dense is not None and layout.dense is not None:
            found[layout.dense] = self.dense[row].tolist()
        if self.sparse is not None and layout.sparse is not None and len(self.sparse[row].indices):
            found[layout.sparse] = sparse_vector(self.sparse[row])
        if self.multi is not None and layout.multi is not None:
            found[layout.multi] = self.multi[row].tolist()
        return found

    def take(self, rows: Sequence[int]) -> Columns:
        """These rows."""
        chosen = list(rows)
        return Columns(
            None if self.dense is None else self.dense[chosen],
            None if self.sparse is None else [self.sparse[row] for row in chosen],
            None if self.multi is None else [self.multi[row] for row in chosen],
        )


@dataclass(frozen=True)
class Query:
    """The vectors of a question; None for a kind that the search does not use."""

    dense: NDArray[np.float32] | None = None
    sparse: SparseVector | None = None
    multi: NDArray[np.float32] | None = None


class _Encoder(Protocol):
    """Further vectors of texts, besides the dense ones."""

    @property
    def fingerprint(self) -> str: ...
    def identity(self) -> dict[str, Any]: ...
    def documents(self, texts: Sequence[str]) -> Sequence[Any]: ...
    def query(self, text: str) -> Any: ...
    async def aquery(self, text: str) -> Any: ...


class Bm25Encoder:
    """Sparse vectors without a model."""

    modifier = models.Modifier.IDF

    def __init__(self, bm25: BM25) -> None:
        self.bm25 = bm25

    @property
    def fingerprint(self) -> str:
        """A hash of all settings."""
        return self.bm25.fingerprint

    def identity(self) -> dict[str, Any]:
        """What the collection keeps."""
        return {"model": self.bm25.name, "fingerprint": self.fingerprint}

    def documents(self, texts: Sequence[str]) -> list[SparseVector]:
        """A vector for each text."""
        return [self.bm25.document(text) for text in texts]

    def query(self, text: str) -> SparseVector:
        """The vector of a question."""
        return self.bm25.query(text)

    async def aquery(self, text: str) -> SparseVector:
        """`query`; it takes microseconds."""
        return self.bm25.query(text)


class _Model:
    """A slot whose model gives vectors of another kind than `embed`."""

    task: str

    def __init__(self, manager: Any, slot: str) -> None:
        self.manager = manager
        self.slot = slot
        self._model = Embedder(manager, slot)
        self._probe: tuple[str, dict[str, Any], tuple[int, ...]] | None = None

    def describe(self) -> Description:
        """The description of the slot's present model, see `Embedder.describe`. Raises `TaskError` for one that lacks
        the task.
        """
        known: Description = self._model.describe()
        if self.task not in known["tasks"]:
            raise TaskError(
                f"the model of {self.slot!r} cannot {self.task}; it can {', '.join(known['tasks']) or 'do nothing'}"
            )
        return known

    def identity(self) -> dict[str, Any]:
        """What the collection keeps."""
        known, fingerprint = self.describe(), self.fingerprint
        return {"model": model_of(known), "fingerprint": fingerprint, PROBE: self._probed(known)[0]}

    def _probed(self, known: Description) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The probe of the present model, and the length of its dense vectors."""
        model = f"{model_of(known)} {self.fingerprint}"  # two folders of one name have one fingerprint
        if self._probe is None or self._probe[0] != model:
            vectors = self.documents(TEXTS)
            self._probe = model, probe_of(known, vectors), np.shape(vectors[0])[-1:]
        return self._probe[1:]

    @property
    def fingerprint(self) -> str:
        """A hash of everything but the text that the vectors depend on."""
        known = self.describe()
        return fingerprint_of(known, self.width(known))

    def documents(self, texts: Sequence[str]) -> Sequence[Any]:
        """The vectors of texts."""
        raise NotImplementedError

    def width(self, known: Description) -> int:
        return known["dimension"]

    def options(self, names: Sequence[str]) -> dict[str, Any]:
        """The prompt of documents or of questions."""
        return {"prompt_name": find_prompt(self.describe()["prompts"], names)}


class SparseModel(_Model):
    """Sparse vectors of a model."""

    task = "embed_sparse"
    modifier = models.Modifier.NONE

    def width(self, known: Description) -> int:
        """Entries of the vocabulary."""
        return known["sparse_dimension"]

    def documents(self, texts: Sequence[str]) -> list[SparseVector]:
        """A vector for each text."""
        found: list[SparseVector] = self.manager.embed_sparse(list(texts), self.slot, **self.options(DOCUMENT_PROMPTS))
        return found

    def query(self, text: str) -> SparseVector:
        """The vector of a question."""
        (found,) = self.manager.embed_sparse([text], self.slot, **self.options(QUERY_PROMPTS))
        return found  # type: ignore[no-any-return]

    async def aquery(self, text: str) -> SparseVector:
        """`query` for asyncio."""
        options = await asyncio.to_thread(self.options, QUERY_PROMPTS)
        (found,) = await self.manager.aembed_sparse([text], self.slot, **options)
        return found  # type: ignore[no-any-return]


class TokenModel(_Model):
    """Vectors of all tokens. ColBERT models read a question in another form than a document."""

    task = "embed_multi"

    @property
    def dimension(self) -> int:
        """Length of a token's vector. Dense vectors of bge-m3 have another one, and ColBERT has no dense vectors."""
        (length,) = self._probed(self.describe())[1]
        return length

    def documents(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """A matrix for each text."""
        found: list[NDArray[np.float32]] = self.manager.embed_multi(
            list(texts), self.slot, kind="document", **self.options(DOCUMENT_PROMPTS)
        )
        return found

    def query(self, text: str) -> NDArray[np.float32]:
        """The matrix of a question."""
        (found,) = self.manager.embed_multi([text], self.slot, kind="query", **self.options(QUERY_PROMPTS))
        return found  # type: ignore[no-any-return]

    async def aquery(self, text: str) -> NDArray[np.float32]:
        """`query` for asyncio."""
        options = await asyncio.to_thread(self.options, QUERY_PROMPTS)
        (found,) = await self.manager.aembed_multi([text], self.slot, kind="query", **options)
        return found  # type: ignore[no-any-return]


class Encoders:
    """All vectors of an index."""

    def __init__(
        self,
        dense: Embedder | None,
        sparse: Bm25Encoder | SparseModel | None = None,
        multi: TokenModel | None = None,
    ) -> None:
        self.dense = dense
        self.sparse = sparse
        self.multi = multi
        self._probe: tuple[str, dict[str, Any]] | None = None
        self._checked: str | None = None
        """The models that the collection was compared with."""

    @property
    def name(self) -> str:
        """The slot of the dense vectors, else what makes the sparse ones."""
        if self.dense is not None:
            return self.dense.slot
        return self.sparse.slot if isinstance(self.sparse, SparseModel) else BM25_NAME

    @property
    def dimension(self) -> int | None:
        """Length of a dense vector; None: there are none."""
        return None if self.dense is None else self.dense.dimension

    @property
    def truncated(self) -> int:
        """Texts of the dense model's slot that were cut so far."""
        return 0 if self.dense is None else self.dense.truncated

    def identity(self) -> dict[str, Any]:
        """Whose vectors these are, as a collection keeps it. Loads the models."""
        made: dict[str, Any] = {}
        if self.dense is not None:
            known, fingerprint = self.dense.describe(), self.dense.fingerprint
            model = f"{model_of(known)} {fingerprint}"
            if self._probe is None or self._probe[0] != model:
                self._probe = model, probe_of(known, self.dense.documents(TEXTS))
            made = {"model": model_of(known), "fingerprint": fingerprint, PROBE: self._probe[1]}
        if self.sparse is not None:
            made["sparse"] = self.sparse.identity()
        if self.multi is not None:
            made["multi"] = self.multi.identity()
        return made

    @property
    def fingerprint(self) -> str:
        """A hash of everything but the text that all vectors of documents depend on."""
        others: list[_Encoder] = [one for one in (self.sparse, self.multi) if one is not None]
        parts = [] if self.dense is None else [self.dense.fingerprint]
        return " and ".join([*parts, *(one.fingerprint for one in others)])

    def remember_checked(self) -> None:
        """The collection was compared with the present models."""
        self._checked = self._present()

    def _present(self) -> str:
        """The slots' present models. Two folders of one name have one fingerprint, but not one source."""
        slots = [one for one in (self.dense, self.sparse, self.multi) if isinstance(one, Embedder | _Model)]
        return " ".join([self.fingerprint, *(model_of(one.describe()) for one in slots)])

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within the block `check_unchanged` compares with the models at its beginning, which fill another
        collection.
        """
        checked = self._checked
        self.remember_checked()
        try:
            yield
        finally:
            self._checked = checked

    def check_unchanged(self) -> None:
        """Raise `CollectionError` where a slot has another model than the one that the collection was compared with."""
        if self._checked is not None and self._checked != self._present():
            raise CollectionError(
                f"the model of {self.name!r} was replaced since the collection was compared with it (vectors of"
                " different models cannot be compared): make a new indexer"
            )

    def submit(self, texts: Sequence[str], on_done: Callable[[Any, BaseException | None], object]) -> Any:
        """Begin the dense vectors of documents. Returns the ticket, None where there is nothing to wait for."""
        if self.dense is not None:
            return self.dense.submit_documents(texts, on_done)
        on_done(None, None)
        return None

    def documents(self, texts: Sequence[str]) -> Columns:
        """All vectors of documents."""
        return self.complete(texts, None if self.dense is None else self.dense.documents(texts))

    def complete(self, texts: Sequence[str], dense: NDArray[np.float32] | None) -> Columns:
        """Add the other vectors to the dense ones."""
        return Columns(
            dense,
            None if self.sparse is None else self.sparse.documents(texts),
            None if self.multi is None else self.multi.documents(texts),
        )

    def query(self, text: str, kinds: Sequence[str]) -> Query:
        """The vectors of a question, of these kinds."""
        found = {kind: self._of(kind).query(text) for kind in kinds}
        self.check_unchanged()
        return Query(**found)

    async def aquery(self, text: str, kinds: Sequence[str]) -> Query:
        """`query` for asyncio. The models compute at the same time."""
        found = await asyncio.gather(*(self._of(kind).aquery(text) for kind in kinds))
        await asyncio.to_thread(self.check_unchanged)
        return Query(**dict(zip(kinds, found, strict=True)))

    def _of(self, kind: str) -> Any:
        return {"dense": self.dense, "sparse": self.sparse, "multi": self.multi}[kind]


def sparse_encoder(manager: Any, sparse: str | BM25 | None, language: str | None) -> Bm25Encoder | SparseModel | None:
    """The maker of sparse vectors for the argument `sparse` of an indexer. Raises `TypeError` or `ArgumentError`."""
    if language is not None and sparse != BM25_NAME:
        raise argument_error("language", 'language is for sparse="bm25"')
    if sparse is None:
        return None
    if isinstance(sparse, BM25):
        return Bm25Encoder(sparse)
    if not isinstance(sparse, str):
        raise type_error("sparse", "'bm25', a BM25, a slot or a source", sparse)
    if not sparse:
        raise argument_error("sparse", "sparse is empty: give 'bm25', a slot or a source")
    if sparse == BM25_NAME:
        preferred = "turkish" if manager.config.prefer_turkish else "english"
        return Bm25Encoder(BM25(language or preferred))  # type: ignore[arg-type]  # BM25 checks it
    return SparseModel(manager, slot_for(manager, sparse, "sparse"))


def token_encoder(manager: Any, dense: Embedder | None, multi: str | bool) -> TokenModel | None:
    """The maker of vectors of tokens for the argument `multi` of an indexer."""
    if not multi:
        return None
    if multi is True:
        if dense is None:
            raise argument_error("multi", "multi=True takes the dense model, and there is none: name a model")
        return TokenModel(manager, dense.slot)
    return TokenModel(manager, slot_for(manager, multi, None))
