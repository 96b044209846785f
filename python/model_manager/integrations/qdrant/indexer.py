"""The indexer: adds documents to a collection and searches them by meaning."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any, Literal

from ..._arguments import a_flag, a_text, an_int, an_iterable, argument_error, one_of
from ..._embedder import Embedder, reranker_for
from ...compat.chatbot import model_manager
from .collection import check_names
from .connect import DEFAULT_PATH, check_client, connect, progress_bar
from .contents import Contents, check_terms
from .encoders import Encoders, sparse_encoder, token_encoder
from .finder import Finder
from .pipeline import OnError, Run
from .reembed import Reembedding, reembed
from .report import IndexReport
from .requests import DEFAULT_HNSW_EF, DEFAULT_SCORE_THRESHOLD, TOKENS, Mode, SearchOptions
from .store import Backoff, Store

if TYPE_CHECKING:
    import os

    from qdrant_client import QdrantClient
    from typing_extensions import Self

    from ..._core import Manager
    from ...semantic import BM25
    from .documents import Input
    from .search import SearchHit

__all__ = ["DEFAULT_HNSW_EF", "DEFAULT_PATH", "DEFAULT_SCORE_THRESHOLD", "QdrantIndexer"]

logger = logging.getLogger(__name__)


class QdrantIndexer:
    """Indexes documents in one Qdrant collection and searches them.

    >>> with QdrantIndexer("notes", path="notes.qdrant") as indexer:
    ...     report = indexer.add_documents([{"id": "n1", "text": "Kargom nerede?", "metadata": {"lang": "tr"}}])
    ...     hits = indexer.search("when will my parcel arrive", filters={"lang": ["tr", "en"]})

    Documents are embedded with the model's prompt named ``document`` (``passage``, ``corpus``), queries with the one
    named ``query``. A model without them uses its default prompt, if it has one. Texts longer than the model's maximum
    are cut, unless `chunk` splits them.

    With `sparse` a point has a sparse vector too, and a search fuses the ranks of both. A collection that this class
    creates keeps the names of its models (Qdrant 1.16 and later); vectors of another model are refused.
    """

    def __init__(
        self,
        collection: str,
        client: QdrantClient | None = None,
        model: str | None = None,
        *,
        manager: Manager | None = None,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        api_key: str | None = None,
        dimensions: int | None = None,
        chunk: int | bool = False,
        overlap: int = 0,
        sparse: str | BM25 | None = None,
        language: Literal["turkish", "english", "auto"] | None = None,
        multi: str | bool = False,
        rerank: str | None = None,
        dense: bool = True,
        vectors: Mapping[str, str] | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """Opens the folder of an embedded Qdrant; connects to no server and loads no model yet.

        Args:
            collection: The name of the collection.
            client: A client to use instead of `path`, `url` and `api_key`; `close` leaves it open.
            model: A slot of the manager, or a source (hub id, folder, …), for which a slot is created. None: the
                preferred sentence model. A collection needs one model, so texts are not routed by language.
            manager: None: the process-wide one.
            path: Folder of an embedded Qdrant, or ``":memory:"``. Without this, `url` and ``QDRANT_URL``:
                ``qdrant_data`` in the current folder.
            url: A server's address; None: ``QDRANT_URL``.
            api_key: Its key; None: ``QDRANT_API_KEY``.
            dimensions: Cut the vectors to this length, and scale them to length 1 again. None: the model's own length.
            chunk: Split documents into chunks of at most so many tokens, each a point of its own; True: as many as the
                model reads. `search` then returns the best chunk of each document, with its place.
            overlap: Tokens at the end of a chunk that the next one begins with.
            sparse: Makes sparse vectors: ``"bm25"`` (or a `BM25` with settings of its own) counts words, without a
                model; anything else is the slot or the source of a model such as SPLADE.
            language: Of ``"bm25"``: ``turkish``, ``english`` or ``auto``. None: the manager's preferred one.
            multi: Makes vectors of all tokens, for ``rerank="multi"``: True for those of `model`, or the slot or the
                source of a model. They take as many times the space of a dense vector as a text has tokens.
            rerank: What orders the candidates of a search: the slot or the source of a reranker, or ``"multi"``, by
                which Qdrant compares vectors of tokens (MaxSim).
            dense: False: no dense vectors and no `model`; `sparse` alone finds documents.
            vectors: Names of the vectors in the collection, by the kinds ``dense``, ``sparse`` and ``multi``. None: an
                existing collection's, where only one fits; in a new one the kinds themselves. A dense vector alone has
                no name.
            backoff: How failed requests are retried.

        Raises:
            InputError: Contradictory settings.
            StoreError: The embedded folder is in use by another process, or cannot be opened.
        """
        if not a_text("collection", collection):
            raise argument_error("collection", "the collection needs a name")
        check_client(client, path, url, api_key)
        overlap = an_int("overlap", overlap, 0)
        chunk = chunk if isinstance(chunk, bool) else an_int("chunk", chunk, 0)
        if rerank is not None:
            a_text("rerank", rerank)
        uses_model = bool(chunk) or model is not None or dimensions is not None
        check_terms(
            chunk=chunk, overlap=overlap, dense=dense, uses_model=uses_model, sparse=sparse, multi=multi, rerank=rerank
        )
        scoring: Any = model_manager if manager is None else manager
        names = check_names(vectors)
        embedder = Embedder(scoring, model, dimensions) if dense else None
        self._encoders = Encoders(
            embedder,
            sparse_encoder(scoring, sparse, language),
            token_encoder(scoring, embedder, multi),
        )
        if rerank not in (None, TOKENS):
            rerank = reranker_for(scoring, rerank)[1]
        made = connect(path, url, api_key) if client is None else client
        # This also closes it at the end of the interpreter, where an open embedded Qdrant prints an error.
        self._close = weakref.finalize(self, made.close) if client is None else None
        self._store = Store(made, collection, Backoff() if backoff is None else backoff)
        self._contents = Contents(self._store, self._encoders, names, chunk, overlap, rerank)
        self._finder = Finder(self._contents, scoring)
        self.report = IndexReport()
        """The report of the latest `add_documents`, even if it is running or was interrupted."""

    @property
    def collection(self) -> str:
        """The collection's name."""
        return self._store.collection

    @property
    def client(self) -> QdrantClient:
        """The Qdrant client in use."""
        return self._store.client

    @property
    def model(self) -> str:
        """The slot whose model embeds; of an indexer without dense vectors, what makes the sparse ones."""
        return self._encoders.name

    def create_collection(self, recreate: bool = False) -> bool:
        """Create the collection for this model; return whether it was created. An existing one is kept if it fits.

        Cosine similarity, HNSW with m 32 and ef_construct 256, vectors quantized to INT8 in memory. Sparse vectors of
        BM25 get the modifier ``idf``.

        Args:
            recreate: Delete an existing collection first, with all its points.

        Raises:
            CollectionError: The existing one has another dimension or measure, or lacks vectors that this indexer has,
                or has several that fit and no name is given; or it holds whole documents and this indexer makes chunks,
                or the reverse.
            StoreError: Qdrant failed.
            TaskError: A model does not make the vectors that it is given for.
            ModelManagerError: The errors of loading the model.
        """
        # A collection need not say whose vectors it holds: Qdrant keeps metadata from version 1.16 on.
        if not a_flag("recreate", recreate) and self._store.exists():
            self._encoders.check_unchanged()
        made = self._store.prepare(self._contents.wanted(), recreate=recreate, identity=self._contents.identity())
        self._encoders.remember_checked()
        return made

    def add_documents(
        self,
        documents: Iterable[Input],
        batch_size: int = 100,
        *,
        on_error: OnError = "report",
        skip_unchanged: bool = True,
        max_failures: int | None = 1000,
        progress: bool | None = None,
    ) -> IndexReport:
        """Index documents. The collection is created if it does not exist.

        The input is read as needed and never held as a whole. The same call resumes a run that ended early: documents
        that the collection has with the same id and content (text, metadata, model) are skipped. Documents without an
        id get a random one, so every run adds them again.

        Args:
            documents: ``{"text": str, "id"?: str | int, "metadata"?: {str: JSON}}``, or bare texts. A ValueError
                in place of a document is recorded as its failure. Of several documents with one id the last counts.
            batch_size: Documents embedded in one call and written in one request.
            on_error: What happens when a document cannot be indexed: the report records it and the run goes on, or it
                raises.
            skip_unchanged: False: embed and write everything again.
            max_failures: Stop when more documents have failed; None: never.
            progress: Show a bar; None: in a terminal and in a notebook.

        Raises:
            IndexingError: A document failed and `on_error` is ``"raise"``, or too many failed. Its `report` has the
                figures until then.
            CollectionError, StoreError: The collection does not fit or cannot be reached.
            ArgumentError: A `chunk` that the model cannot read, or that has no place for text and `overlap`.
            ModelManagerError: The errors of loading the model.
            TypeError: `documents` is one document, or a frame.

        Ctrl-C, or an error while reading the input, ends the run between two requests. No point is half written, and
        `report` has the figures.

        The call blocks; from asyncio use `asyncio.to_thread`.
        """
        batch_size = an_int("batch_size", batch_size, 1)
        one_of("on_error", on_error, ("report", "raise"))
        a_flag("skip_unchanged", skip_unchanged)
        if max_failures is not None:
            max_failures = an_int("max_failures", max_failures, 0)
        an_iterable("documents", documents, "an iterable of documents")
        self.report = report = IndexReport()
        if self._contents.chunk:
            self._contents.check_chunks()  # before each document would fail for it
        fresh = self.create_collection()
        if self._contents.chunk:
            self._store.index_parents()
        with progress_bar(progress, len(documents) if isinstance(documents, Sized) else None) as advance:
            run = Run(
                self._store,
                self._encoders,
                report,
                on_error=on_error,
                skip_unchanged=skip_unchanged,
                max_failures=max_failures,
                advance=advance,
                split=self._contents.split if self._contents.chunk else None,
                fingerprint=self._contents.fingerprint(),
                fresh=fresh,
            )
            before = self._encoders.truncated
            try:
                run.index(documents, batch_size)
            except BaseException:
                logger.warning("Indexing of %r ended early: %s. The same call resumes it.", self.collection, report)
                raise
            finally:
                report.truncated = self._encoders.truncated - before
        if report.truncated:
            logger.warning("%d texts were cut: the model reads no more of them; chunk= splits them", report.truncated)
        if report.failures:
            logger.warning("%d of %d documents were not indexed", report.failed, report.documents)
        return report

    def reembed(
        self,
        alias: str | None = None,
        *,
        target: str | None = None,
        text_field: str = "text",
        batch_size: int = 100,
        drop_old: bool = False,
        progress: bool | None = None,
    ) -> Reembedding:
        """Fill a new collection with this indexer's vectors of the texts that the collection stores, and switch an
        alias to it. The old collection stays as it is, and answers searches meanwhile.

        The same call resumes a run that ended early. The alias is switched, in one step, only when the new collection
        has every point of the old one. If the collection already has vectors of these models, nothing is done. Writers
        must pause, or write again after it.

        Args:
            alias: The name that searches use from then on. None: `collection`, which must be an alias itself. Qdrant
                allows no alias with the name of a collection.
            target: Name of the new collection. None: the alias and a hash of the models.
            text_field: The payload's field with the text. Other programs may have chosen another one.
            batch_size: Points embedded in one call and written in one request.
            drop_old: Delete the old collection after the switch.
            progress: As for `add_documents`.

        Raises:
            CollectionError: The collection does not exist, points have no text, the alias or the target belongs to
                something else, or the numbers of points differ at the end.
            IndexingError: A text could not be embedded or written. Nothing is switched.
            StoreError: Qdrant failed.
            ModelManagerError: The errors of loading the models.
        """
        batch_size = an_int("batch_size", batch_size, 1)
        a_flag("drop_old", drop_old)
        for name, value in (("alias", alias), ("target", target), ("text_field", text_field)):
            if value is not None and not a_text(name, value):
                raise argument_error(name, f"{name} is empty")
        return reembed(
            self._store,
            self._encoders,
            self._contents.wanted(),
            self._contents.identity(),
            alias=alias,
            target=target,
            text_field=text_field,
            batch_size=batch_size,
            drop_old=drop_old,
            progress=functools.partial(progress_bar, progress),
        )

    def search(
        self,
        query: str,
        limit: int = 10,
        *,
        mode: Mode | None = None,
        score_threshold: float | Literal["default"] | None = "default",
        filters: Mapping[str, Any] | None = None,
        hnsw_ef: int = DEFAULT_HNSW_EF,
        candidates: int | None = None,
        rerank: bool | None = None,
    ) -> list[SearchHit]:
        """The documents nearest to `query`, best first.

        Args:
            query: A question or any text.
            limit: Maximum number of hits.
            mode: What finds documents: ``dense`` (by meaning), ``sparse`` (by words) or ``hybrid`` (both, whose ranks
                Qdrant fuses: reciprocal rank fusion). None: ``hybrid`` if the indexer has both.
            score_threshold: Minimum cosine similarity of what dense vectors find, with ``sparse`` the minimum score.
                None: any; ``"default"``: 0.7 with ``dense``, else any. A useful value depends on the model.
            filters: ``{field: value}`` or ``{field: [values]}`` over metadata: all fields must match, a list means any
                of its values.
            hnsw_ef: Candidates that Qdrant examines; more find more and take longer.
            candidates: How many the dense and the sparse vectors find each before their ranks are fused, and how many
                are reranked. None: 50, and at least 4 for each hit.
            rerank: False: leave the order to Qdrant. None: rerank if the indexer has a reranker.

        Raises:
            InputError: An empty query, an unknown mode or one whose vectors the indexer lacks, a limit below 1, fewer
                candidates than hits, a filter of a wrong type.
            TaskError: The reranker is no reranker.
            CollectionError: The collection does not exist or was made with another model. Each search asks for that
                again, since another model may fill the collection and an alias may mean another one.
            StoreError: Qdrant failed.
        """
        options = SearchOptions(
            mode=mode,
            score_threshold=score_threshold,
            filters=filters,
            hnsw_ef=hnsw_ef,
            candidates=candidates,
            rerank=rerank,
        )
        return self._finder.search(query, limit, options)

    async def asearch(
        self,
        query: str,
        limit: int = 10,
        *,
        mode: Mode | None = None,
        score_threshold: float | Literal["default"] | None = "default",
        filters: Mapping[str, Any] | None = None,
        hnsw_ef: int = DEFAULT_HNSW_EF,
        candidates: int | None = None,
        rerank: bool | None = None,
    ) -> list[SearchHit]:
        """`search` for asyncio. Models compute without a thread; the request to Qdrant runs in one."""
        options = SearchOptions(
            mode=mode,
            score_threshold=score_threshold,
            filters=filters,
            hnsw_ef=hnsw_ef,
            candidates=candidates,
            rerank=rerank,
        )
        return await self._finder.asearch(query, limit, options)

    def close(self) -> None:
        """Close the client that this indexer created, and an embedded Qdrant's folder. The model stays in memory."""
        if self._close is not None:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<QdrantIndexer {self.collection!r}, model {self.model!r}>"
