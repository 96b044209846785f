"""From the arguments of a search to one request of Qdrant's query API."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from qdrant_client import models

from ..._arguments import a_flag, a_number, a_text, an_int, argument_error, one_of
from .encoders import sparse_vector
from .search import make_filter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .collection import Layout
    from .encoders import Query

Mode: TypeAlias = Literal["dense", "sparse", "hybrid"]
"""The vectors that find candidates."""

MODES = ("dense", "sparse", "hybrid")
DEFAULT_SCORE_THRESHOLD = 0.7
"""Minimum cosine similarity of a dense search."""
DEFAULT_HNSW_EF = 128
CANDIDATES = 50
"""Least number of candidates, of each kind of vectors and for a reranker."""
CANDIDATES_PER_HIT = 4
TOKENS = "multi"
"""`rerank` of this name orders candidates by their vectors of tokens."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The keywords of `QdrantIndexer.search`, as given."""

    mode: Mode | None
    score_threshold: float | Literal["default"] | None
    filters: Mapping[str, Any] | None
    hnsw_ef: int
    candidates: int | None
    rerank: bool | None


@dataclass(frozen=True)
class Plan:
    """What a search does, checked."""

    text: str
    mode: Mode
    limit: int
    candidates: int
    score_threshold: float | None
    query_filter: models.Filter | None
    hnsw_ef: int
    rerank: str | None
    """`TOKENS`, the slot of a reranker, or None."""

    @property
    def kinds(self) -> list[str]:
        """The vectors of the question that are needed."""
        found = ["dense", "sparse"] if self.mode == "hybrid" else [str(self.mode)]
        return [*found, "multi"] if self.rerank == TOKENS else found

    @property
    def wanted(self) -> int:
        """Points that Qdrant returns."""
        return self.limit if self.rerank in (None, TOKENS) else self.candidates

    def request(self, layout: Layout, query: Query, *, embedded: bool) -> dict[str, Any] | None:
        """The arguments of `QdrantClient.query_points`; None when no vector of the question has an entry."""
        # The embedded Qdrant compares with every point and warns about search parameters.
        params = None if embedded else models.SearchParams(hnsw_ef=self.hnsw_ef)
        branches: list[dict[str, Any]] = []
        if query.dense is not None:
            branches.append({"query": query.dense.tolist(), **_using(layout.dense), "params": params})
        if query.sparse is not None and len(query.sparse.indices):
            branches.append({"query": sparse_vector(query.sparse), **_using(layout.sparse)})
        if not branches:
            return None
        for branch in branches:
            branch["filter"] = self.query_filter
            # A cosine says nothing of the weights of sparse vectors.
            is_threshold = self.mode == "sparse" or "params" in branch
            branch["score_threshold"] = self.score_threshold if is_threshold else None
        if self.mode == "hybrid":
            prefetch = [models.Prefetch(**branch, limit=self.candidates) for branch in branches]
            if query.multi is None:
                return self._fused(prefetch, self.wanted)
            stage = models.Prefetch(prefetch=prefetch, **_fusion(), limit=self.candidates)
        elif query.multi is None:
            return self._single(branches[0])
        else:
            stage = models.Prefetch(**branches[0], limit=self.candidates)
        tokens: list[list[float]] = query.multi.tolist()
        return {
            "prefetch": [stage],
            "query": tokens,
            **_using(layout.multi),
            "limit": self.wanted,
            "with_payload": True,
        }

    def _fused(self, prefetch: list[models.Prefetch], limit: int) -> dict[str, Any]:
        return {"prefetch": prefetch, **_fusion(), "limit": limit, "with_payload": True}

    def _single(self, branch: dict[str, Any]) -> dict[str, Any]:
        made = {key: value for key, value in branch.items() if key not in ("filter", "params")}
        made |= {"query_filter": branch["filter"], "search_params": branch.get("params")}
        return {**made, "limit": self.wanted, "with_payload": True}


def _fusion() -> dict[str, Any]:
    return {"query": models.FusionQuery(fusion=models.Fusion.RRF)}


def _using(name: str | None) -> dict[str, Any]:
    return {"using": name} if name else {}


def plan(
    query: str,
    limit: int,
    options: SearchOptions,
    *,
    has: Mapping[str, bool],
    reranker: str | None,
) -> Plan:
    """Check the arguments of a search. `has` says which vectors the indexer has.

    Raises:
        TypeError, ArgumentError: See `QdrantIndexer.search`.
    """
    if not a_text("query", query).strip():
        raise argument_error("query", "the query is empty")
    limit, hnsw_ef = an_int("limit", limit, 1), an_int("hnsw_ef", options.hnsw_ef, 1)
    mode, candidates, rerank = options.mode, options.candidates, options.rerank
    if mode is None:
        mode = "hybrid" if has["dense"] and has["sparse"] else "dense" if has["dense"] else "sparse"
    one_of("mode", mode, MODES)
    for kind in ("dense", "sparse"):
        if mode in (kind, "hybrid") and not has[kind]:
            remedy = 'give the indexer sparse="bm25", a slot or a source' if kind == "sparse" else "dense=False"
            why = "it has no sparse vectors" if kind == "sparse" else "it was made without dense vectors"
            raise argument_error("mode", f"mode={mode!r}: {why} ({remedy})")
    if rerank is not None:
        a_flag("rerank", rerank)
    if rerank and reranker is None:
        raise argument_error("rerank", "rerank=True: the indexer has no reranker; give it rerank= a slot or a source")
    number = max(CANDIDATES, CANDIDATES_PER_HIT * limit) if candidates is None else an_int("candidates", candidates)
    if number < limit:
        raise argument_error("candidates", f"candidates={number}: must be at least limit={limit}")
    return Plan(
        query,
        mode,
        limit,
        number,
        _threshold(options.score_threshold, mode),
        make_filter(options.filters),
        hnsw_ef,
        None if rerank is False else reranker,
    )


def _threshold(given: float | str | None, mode: Mode) -> float | None:
    if given is None:
        return None
    if given == "default":
        return DEFAULT_SCORE_THRESHOLD if mode == "dense" else None
    number = math.nan if isinstance(given, str) else a_number("score_threshold", given)
    if not math.isfinite(number):  # JSON has no infinity: the server would see no threshold
        raise argument_error(
            "score_threshold", f"score_threshold={given!r}: must be a finite number, None or 'default'"
        )
    return number
