"""What reranking, classification and sparse embedding return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ._extras import package
from ._outputs import EmbedOutputs, SparseVector

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Classification", "EmbedOutputs", "RerankResult", "SparseVector", "maxsim"]


class RerankResult(NamedTuple):
    """One document of a reranking, best first in its list."""

    index: int  # type: ignore[assignment]  # tuples have a method of this name
    """The document's position in the request."""
    score: float
    """Higher is better; between 0 and 1 for most models."""
    document: str | None = None
    """The text, unless the call left it out."""


class Ranking(list[RerankResult]):
    """The results of a reranking: a list that notebooks show as a table."""

    def _repr_html_(self) -> str | None:
        from ._html import results_html

        return results_html(self, lambda one: {"document": str(one.index), "score": one.score, "text": one.document})


class Classification(NamedTuple):
    """The labels of one text or pair."""

    label: str
    """The likeliest label."""
    score: float
    """Its probability; the logit with ``activation="identity"``."""
    scores: dict[str, float]
    """The same of each label, in the model's order."""


class Classifications(list[Classification]):
    """The labels of several texts: a list that notebooks show as a table."""

    def _repr_html_(self) -> str | None:
        from ._html import results_html

        return results_html(self, lambda one: {"label": one.label, "score": one.score})


def to_scipy(vectors: Sequence[SparseVector], width: int) -> Any:
    """The vectors as the rows of a `scipy.sparse.csr_array`; needs scipy."""
    import numpy as np

    with package("scipy"):
        from scipy.sparse import csr_array

    ends = np.cumsum([0, *(len(vector.indices) for vector in vectors)])
    indices = np.concatenate([vector.indices for vector in vectors]) if vectors else np.empty(0, np.uint32)
    values = np.concatenate([vector.values for vector in vectors]) if vectors else np.empty(0, np.float32)
    return csr_array((values, indices.astype(np.int64), ends), shape=(len(vectors), width))


def maxsim(query: NDArray[np.floating], documents: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    """The late interaction of ColBERT, for each document: for each token of the query its greatest dot product with a
    token of the document, summed. A document without tokens has the score -inf, so that it comes last.

    Arrays of other types than float32 are converted; products and sums are in float32. The products run on all cores,
    without the GIL.

    Args:
        query: Vectors of the query's tokens, shape (tokens, dim).
        documents: The same for each document; they may have different numbers of tokens.

    Returns:
        float32, one score for each document.

    Raises:
        ArgumentError: No numbers, arrays that have not two dimensions, vectors of different lengths, or a score that is
            no number or infinite.
    """
    import numpy as np

    from ._arguments import argument_error
    from ._core import _maxsim

    def rows(vectors: Any, param: str, what: str) -> NDArray[np.float32]:
        try:
            array = np.ascontiguousarray(vectors, np.float32)
        except (TypeError, ValueError) as error:
            raise argument_error(param, f"{what} must be vectors of tokens, of shape (tokens, dim): {error}") from error
        if array.ndim != 2:
            raise argument_error(param, f"{what} must have the shape (tokens, dim), not {array.shape}")
        return array

    asked = rows(query, "query", "query")
    found = [rows(document, "documents", f"documents[{number}]") for number, document in enumerate(documents)]
    scores = _maxsim(asked, found)
    finite = np.isfinite(scores)
    if not finite.all():
        bad = int(np.argmin(finite))
        if not np.isfinite(asked).all():
            raise argument_error("query", "query holds NaN or infinity; embed its text again")
        what = "holds NaN or infinity; leave it out or embed its text again"
        if np.isfinite(found[bad]).all():
            what = "has a score beyond float32; scale its vectors or those of the query down"
        raise argument_error("documents", f"documents[{bad}] {what}")
    if len(asked):
        scores[[len(document) == 0 for document in found]] = -np.inf
    return scores
