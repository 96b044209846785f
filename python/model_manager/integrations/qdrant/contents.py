"""What an indexer puts into its collection: vectors of which models, of whole documents or of chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..._arguments import argument_error, rename
from ...errors import ArgumentError, InputError
from .collection import CHUNKS, Wanted
from .pipeline import pause_if_transient
from .requests import TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...chunks import TextChunk
    from .encoders import Encoders
    from .store import Store, T


@dataclass(frozen=True)
class Contents:
    """The contents of a collection, as the arguments of an indexer say."""

    store: Store
    encoders: Encoders
    names: Mapping[str, str]
    """Names of the vectors, by kind."""
    chunk: int | bool
    overlap: int
    reranker: str | None
    """What orders the candidates of a search: `TOKENS` or a slot."""

    def wanted(self) -> Wanted:
        """The vectors that the collection must have."""
        sparse, multi = self.encoders.sparse, self.encoders.multi
        return Wanted(
            self.encoders.dimension,
            None if sparse is None else sparse.modifier,
            None if multi is None else self.retried(lambda: multi.dimension),
            self.names,
        )

    def retried(self, request: Callable[[], T]) -> T:
        """What a model answers; a queue that is full for a while is no error."""
        return self.store.backoff.run(request, pause_if_transient, self.store.sleep)

    def identity(self) -> dict[str, Any]:
        """What the collection keeps of its models and chunks."""
        # It embeds two texts the first time.
        identity = self.retried(self.encoders.identity)
        if self.chunk:
            identity[CHUNKS] = True
        if self.reranker is not None:
            # For the reader: a reranker changes nothing that is stored, so another one may be used.
            identity["rerank"] = self.reranker
        return identity

    def split(self, text: str) -> list[TextChunk]:
        """The chunks of a document."""
        most = None if self.chunk is True else int(self.chunk)
        assert self.encoders.dense is not None
        return self.encoders.dense.chunks(text, max_tokens=most, overlap=self.overlap)

    def check_chunks(self) -> None:
        """Raise `ArgumentError` for a size of chunks that the model cannot read."""
        try:
            self.split("a text")
        except ArgumentError as error:
            rename(error, "max_tokens", "chunk", lambda place: place)
            raise

    def fingerprint(self) -> str:
        """A name for all that the points of a text depend on."""
        made = self.encoders.fingerprint
        return f"{made} in chunks of {self.chunk} overlapping by {self.overlap}" if self.chunk else made


def check_terms(
    *, chunk: int | bool, overlap: int, dense: bool, uses_model: bool, sparse: Any, multi: Any, rerank: str | None
) -> None:
    """Raise `InputError` for arguments that contradict each other. `uses_model`: some are for dense vectors alone."""
    if overlap and not chunk:
        raise argument_error("overlap", "overlap is for chunks: set chunk too")
    if chunk is not True and chunk and overlap >= chunk:
        raise argument_error("overlap", f"overlap={overlap} must be smaller than chunk={chunk}")
    if not dense and uses_model:
        raise InputError("model, dimensions and chunk belong to dense vectors, and dense is False")
    if not dense and sparse is None:
        raise argument_error("sparse", "without dense vectors the indexer needs sparse ones: give sparse")
    if rerank == TOKENS and not multi:
        raise argument_error("rerank", f"rerank={TOKENS!r} compares vectors of tokens: set multi too")
    if multi == "":
        raise argument_error("multi", "multi is empty: give True, a slot or a source")
    if rerank == "":
        raise argument_error("rerank", "rerank is empty: give 'multi', a slot or a source")
