"""The indexer: adds documents to a collection and searches them by meaning."""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qdrant_client import QdrantClient
from tqdm.auto import tqdm

from ..._embedder import Embedder
from ...errors import InputError
from .pipeline import OnError, Run
from .report import IndexReport
from .search import SearchHit, make_filter
from .store import Backoff, CollectionError, Store, StoreError

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..._core import Manager
    from ...chunks import TextChunk
    from .documents import Input

logger = logging.getLogger(__name__)

DEFAULT_PATH = "qdrant_data"
"""Folder of the embedded Qdrant, relative to the working directory."""
DEFAULT_SCORE_THRESHOLD = 0.7
DEFAULT_HNSW_EF = 128
_REQUEST_SECONDS = 60  # on a busy server a batch of long texts takes longer than the client's default of 5 s


class QdrantIndexer:
    """Indexes documents in one Qdrant collection and searches them.

    >>> with QdrantIndexer("notes", path="notes.qdrant") as indexer:
    ...     report = indexer.add_documents([{"id": "n1", "text": "Kargom nerede?", "metadata": {"lang": "tr"}}])
    ...     hits = indexer.search("when will my parcel arrive", filters={"lang": ["tr", "en"]})

    Documents are embedded with the model's prompt named ``document`` (``passage``, ``corpus``), queries with the one
    named ``query``. A model without them uses its default prompt, if it has one. Texts longer than the model's maximum
    are cut, unless `chunk` splits them.

    A collection that this class creates keeps the name of its model (Qdrant 1.16 and later); another model is refused.
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
            backoff: How failed requests are retried.

        Raises:
            InputError: Contradictory settings.
            StoreError: The embedded folder is in use by another process, or cannot be opened.
        """
        if not collection:
            raise InputError("the collection needs a name")
        if client is not None and (path, url, api_key) != (None, None, None):
            raise InputError("give either a client, or path, url and api_key for a new one")
        if overlap and not chunk:
            raise InputError("overlap is for chunks: set chunk too")
        if overlap < 0 or (chunk is not True and chunk < 0):
            raise InputError(f"chunk={chunk}, overlap={overlap}: must not be negative")
        self._embedder = Embedder(manager, model, dimensions)
        self._chunk = chunk
        self._overlap = overlap
        made = _connect(path, url, api_key) if client is None else client
        # This also closes it at the end of the interpreter, where an open embedded Qdrant prints an error.
        self._close = weakref.finalize(self, made.close) if client is None else None
        self._store = Store(made, collection, Backoff() if backoff is None else backoff)
        self._known: Mapping[str, Any] | None = None
        """What the collection says of its points, once a search has asked."""
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
        """The slot whose model embeds."""
        return self._embedder.slot

    def create_collection(self, recreate: bool = False) -> bool:
        """Create the collection for this model; return whether it was created. An existing one is kept if it fits.

        Cosine similarity, HNSW with m 32 and ef_construct 256, vectors quantized to INT8 in memory.

        Args:
            recreate: Delete an existing collection first, with all its points.

        Raises:
            CollectionError: The existing one has another dimension or measure.
            StoreError: Qdrant failed.
            ModelManagerError: The errors of loading the model.
        """
        return self._store.prepare(self._embedder.dimension, recreate=recreate, model=self._identity())

    def _identity(self) -> dict[str, Any]:
        identity = {"model": self._embedder.describe()["source"], "fingerprint": self._embedder.fingerprint}
        return {**identity, "chunks": True} if self._chunk else identity

    def _split(self, text: str) -> list[TextChunk]:
        most = None if self._chunk is True else int(self._chunk)
        return self._embedder.chunks(text, max_tokens=most, overlap=self._overlap)

    def _fingerprint(self) -> str:
        if not self._chunk:
            return self._embedder.fingerprint
        return f"{self._embedder.fingerprint} in chunks of {self._chunk} overlapping by {self._overlap}"

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
            progress: Show a bar; None: when standard error is a terminal.

        Raises:
            IndexingError: A document failed and `on_error` is ``"raise"``, or too many failed. Its `report` has the
                figures until then.
            CollectionError, StoreError: The collection does not fit or cannot be reached.
            ModelManagerError: The errors of loading the model.

        Ctrl-C, or an error while reading the input, ends the run between two requests. No point is half written, and
        `report` has the figures.

        The call blocks; from asyncio use `asyncio.to_thread`.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: must be at least 1")
        if on_error not in ("report", "raise"):
            raise InputError(f"on_error={on_error!r}: must be 'report' or 'raise'")
        self.report = report = IndexReport()
        self.create_collection()
        with _progress(progress, len(documents) if isinstance(documents, Sized) else None) as advance:
            run = Run(
                self._store,
                self._embedder,
                report,
                on_error=on_error,
                skip_unchanged=skip_unchanged,
                max_failures=max_failures,
                advance=advance,
                split=self._split if self._chunk else None,
                fingerprint=self._fingerprint(),
            )
            before = self._embedder.truncated
            try:
                run.index(documents, batch_size)
            except BaseException:
                logger.warning("Indexing of %r ended early: %s. The same call resumes it.", self.collection, report)
                raise
            finally:
                report.truncated = self._embedder.truncated - before
        if report.truncated:
            logger.warning("%d texts were cut: the model reads no more of them; chunk= splits them", report.truncated)
        if report.failures:
            logger.warning("%d of %d documents were not indexed", report.failed, report.documents)
        return report

    def search(
        self,
        query: str,
        limit: int = 10,
        *,
        score_threshold: float | None = DEFAULT_SCORE_THRESHOLD,
        filters: Mapping[str, Any] | None = None,
        hnsw_ef: int = DEFAULT_HNSW_EF,
    ) -> list[SearchHit]:
        """The documents nearest to `query` in meaning, best first.

        Args:
            query: A question or any text.
            limit: Maximum number of hits.
            score_threshold: Minimum cosine similarity of a hit; None: any. A useful value depends on the model.
            filters: ``{field: value}`` or ``{field: [values]}`` over metadata: all fields must match, a list means any
                of its values.
            hnsw_ef: Candidates that Qdrant examines; more find more and take longer.

        Raises:
            InputError: An empty query, a limit below 1, a filter of a wrong type.
            CollectionError: The collection does not exist or was made with a model of another dimension.
            StoreError: Qdrant failed.
        """
        arguments = _search_arguments(query, limit, score_threshold, filters, hnsw_ef)
        return self._nearest(self._embedder.query(query), arguments)

    async def asearch(
        self,
        query: str,
        limit: int = 10,
        *,
        score_threshold: float | None = DEFAULT_SCORE_THRESHOLD,
        filters: Mapping[str, Any] | None = None,
        hnsw_ef: int = DEFAULT_HNSW_EF,
    ) -> list[SearchHit]:
        """`search` for asyncio. The query is embedded without a thread; the request to Qdrant runs in one."""
        import asyncio

        arguments = _search_arguments(query, limit, score_threshold, filters, hnsw_ef)
        return await asyncio.to_thread(self._nearest, await self._embedder.aquery(query), arguments)

    def _nearest(self, vector: Any, arguments: dict[str, Any]) -> list[SearchHit]:
        try:
            if self._known is None:
                self._known = self._store.check(self._embedder.dimension, self._identity())
            grouped = bool(self._chunk or self._known.get("chunks"))
            points = self._store.query(vector, grouped=grouped, **arguments)
        except StoreError as error:
            # Only a failed search needs this second request.
            if not error.transient:
                if not self._store.exists():
                    message = f"collection {self.collection!r} does not exist: add_documents makes it"
                    raise CollectionError(message) from error
                self._store.check(len(vector))
            raise
        return [SearchHit.of(point) for point in points]

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


def _connect(path: str | os.PathLike[str] | None, url: str | None, api_key: str | None) -> QdrantClient:
    """A client for the configured server, else for an embedded Qdrant."""
    if path is not None and url is not None:
        raise InputError("give either the path of an embedded Qdrant or the url of a server")
    url = url or (os.environ.get("QDRANT_URL") if path is None else None)
    if url:
        parts = urlsplit(url if "//" in url else f"//{url}")
        if not parts.hostname:
            raise InputError(f"QDRANT_URL={url!r}: must look like http://localhost:6333")
        # The first request shows whether the versions fit; the check would connect now.
        key = api_key or os.environ.get("QDRANT_API_KEY") or None
        return QdrantClient(url=url, api_key=key, timeout=_REQUEST_SECONDS, check_compatibility=False)
    folder = os.fspath(path) if path is not None else DEFAULT_PATH
    try:
        if folder == ":memory:":
            return QdrantClient(location=folder, force_disable_check_same_thread=True)
        # `Store` serializes its use, which is what SQLite needs.
        return QdrantClient(path=folder, force_disable_check_same_thread=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise StoreError(f"the embedded Qdrant in {folder!r} cannot be opened: {error}") from error


def _search_arguments(
    query: str, limit: int, score_threshold: float | None, filters: Mapping[str, Any] | None, hnsw_ef: int
) -> dict[str, Any]:
    if not query.strip():
        raise InputError("the query is empty")
    if limit < 1 or hnsw_ef < 1:
        raise InputError(f"limit={limit}, hnsw_ef={hnsw_ef}: must be at least 1")
    return {
        "limit": limit,
        "score_threshold": score_threshold,
        "query_filter": make_filter(filters),
        "hnsw_ef": hnsw_ef,
    }


@contextmanager
def _progress(wanted: bool | None, total: int | None) -> Iterator[Callable[[int], object]]:
    """A function that advances the progress bar, if there is one."""
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda _count: None
        return
    with tqdm(total=total, desc="Indexing", unit="document", smoothing=0.1) as bar:
        yield bar.update
