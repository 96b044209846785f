"""Searches of one collection: candidates from Qdrant, and their order by a reranker."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import TaskError
from .collection import CHUNKS, CollectionError, Layout
from .requests import TOKENS, Plan, SearchOptions, plan
from .search import SearchHit, SearchHits
from .store import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .contents import Contents
    from .encoders import Query


class _Form(NamedTuple):
    """What a search needs to know of the collection."""

    layout: Layout
    grouped: bool
    """Whether a search returns the best chunk of each document."""
    divided: bool
    """Whether the points may be chunks."""


class Finder:
    """Searches a collection with the given contents."""

    def __init__(self, contents: Contents, manager: Any) -> None:
        self._contents = contents
        self._manager = manager
        self._checked_reranker = False
        self._form: _Form | None = None
        """That of the collection at the latest search."""

    def search(self, query: str, limit: int, options: SearchOptions) -> list[SearchHit]:
        """The documents nearest to `query`, best first."""
        made = self._plan(query, limit, options)
        self._check_reranker(made)
        hits = self._nearest(self._contents.encoders.query(query, made.kinds), made)
        if made.rerank in (None, TOKENS) or not hits:
            return hits
        return _reranked(hits, self._manager.rerank(query, self._texts(hits), made.rerank, top_n=limit))

    async def asearch(self, query: str, limit: int, options: SearchOptions) -> list[SearchHit]:
        """`search` for asyncio. Models compute without a thread; the request to Qdrant runs in one."""
        made = self._plan(query, limit, options)
        await asyncio.to_thread(self._check_reranker, made)
        hits = await asyncio.to_thread(self._nearest, await self._contents.encoders.aquery(query, made.kinds), made)
        if made.rerank in (None, TOKENS) or not hits:
            return hits
        return _reranked(hits, await self._manager.arerank(query, self._texts(hits), made.rerank, top_n=limit))

    def _plan(self, query: str, limit: int, options: SearchOptions) -> Plan:
        has = {"dense": self._contents.encoders.dense is not None, "sparse": self._contents.encoders.sparse is not None}
        return plan(query, limit, options, has=has, reranker=self._contents.reranker)

    def _check_reranker(self, made: Plan) -> None:
        """Refuse a model that is no reranker before anything is searched."""
        if made.rerank in (None, TOKENS) or self._checked_reranker:
            return
        tasks = self._manager.describe(made.rerank)["tasks"]
        if "rerank" not in tasks:
            can = ", ".join(tasks) or "do nothing"
            raise TaskError(f"rerank={made.rerank!r} is no reranker: its model can {can}")
        self._checked_reranker = True

    def _nearest(self, query: Query, made: Plan) -> list[SearchHit]:
        store = self._contents.store
        while True:
            form = self._form
            try:
                if form is None:
                    form = self._look()
                request = made.request(form.layout, query, embedded=store.embedded)
                points = [] if request is None else store.query(request, grouped=form.grouped)
            except StoreError as error:
                if error.transient:
                    raise
                # Only a failed search needs this second request.
                if not store.exists():
                    raise CollectionError(
                        f"collection {store.collection!r} does not exist: add_documents makes it, or"
                        " `model-manager index`"
                    ) from error
                self._form = self._look()
                if self._form == form:
                    raise
                continue
            # After the points have come: another model may have filled the collection since the latest search, or an
            # alias may mean another collection.
            self._form = self._look()
            if self._form == form:
                return SearchHits(SearchHit.of(point, form.divided) for point in points)

    def _look(self) -> _Form:
        """The collection's present form. Raises `CollectionError` where another model filled it."""
        known = self._contents.store.check(self._contents.wanted(), self._contents.identity())
        if self._form is None:
            self._contents.encoders.remember_checked()
        else:
            self._contents.encoders.check_unchanged()
        grouped = bool(known.get(CHUNKS) if known else self._contents.chunk)
        if grouped and not known and self._form is None:
            self._contents.store.check_chunks()
        return _Form(self._contents.store.layout, grouped, self._contents.store.divided is not False)

    def _texts(self, hits: list[SearchHit]) -> list[str]:
        """The texts of candidates for the reranker."""
        for hit in hits:
            if not isinstance(hit.payload.get("text"), str):
                raise CollectionError(
                    f"the point of {hit.id!r} in collection {self._contents.store.collection!r} has no text that could"
                    " be reranked: search with rerank=False"
                )
        return [hit.text for hit in hits]


def _reranked(hits: list[SearchHit], results: Sequence[Any]) -> list[SearchHit]:
    return SearchHits(replace(hits[one.index], score=float(one.score)) for one in results)
