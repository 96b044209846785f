"""One run of the indexer. While the model computes a batch, the previous batch is written and the next one is read and
looked up.

The core computes in its own threads (`Manager.submit`), so one thread suffices here. Only this thread uses the client,
as an embedded Qdrant requires. At most `_AHEAD` batches wait for their vectors, so memory does not grow with the input.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from ...errors import ModelManagerError
from .documents import Document, Input, prepare
from .report import Failure, IndexingError, IndexReport
from .store import CollectionError, Store, StoreError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..._embedder import Embedder

logger = logging.getLogger(__name__)

OnError: TypeAlias = Literal["report", "raise"]

_AHEAD = 2
"""Batches that wait for their vectors."""

T = TypeVar("T")


class _Batch:
    """Documents whose vectors are being computed."""

    def __init__(self, documents: list[Document], embedder: Embedder) -> None:
        self.documents = documents
        self._vectors: Future[NDArray[np.float32]] = Future()
        self._ticket: Any = None
        if documents:
            try:
                self._ticket = embedder.submit_documents([one.text for one in documents], self._settle)
            except ModelManagerError as error:
                self._vectors.set_exception(error)

    def _settle(self, vectors: NDArray[np.float32] | None, error: BaseException | None) -> None:
        if error is not None:
            self._vectors.set_exception(error)
        elif vectors is not None:
            self._vectors.set_result(vectors)

    def vectors(self) -> NDArray[np.float32]:
        return self._vectors.result()

    def cancel(self) -> None:
        if self._ticket is not None:
            self._ticket.cancel()


class Run:
    """From an iterable of documents to a finished report."""

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        report: IndexReport,
        *,
        on_error: OnError,
        skip_unchanged: bool,
        max_failures: int | None,
        advance: Callable[[int], object],
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._report = report
        self._on_error = on_error
        self._skip_unchanged = skip_unchanged
        self._max_failures = max_failures
        self._advance = advance
        self._fingerprint = embedder.fingerprint
        self._position = 0
        self._under_way: deque[_Batch] = deque()

    def index(self, documents: Iterable[Input], batch_size: int) -> None:
        """Index everything. After an exception the collection holds whole points only, and the report is correct."""
        started = time.monotonic()
        try:
            for chunk in _chunks(documents, batch_size):
                self._start(chunk)
                if len(self._under_way) >= _AHEAD:
                    self._finish_first()
            while self._under_way:
                self._finish_first()
            self._report.finished = True
        finally:
            for batch in self._under_way:
                batch.cancel()
            self._report.seconds = time.monotonic() - started

    def _start(self, chunk: list[Input]) -> None:
        """Check the documents, skip those that the collection has, and send the others to the model."""
        prepared = []
        for document in chunk:
            position, self._position = self._position, self._position + 1
            try:
                prepared.append(prepare(document, position, self._fingerprint))
            except (TypeError, ValueError) as error:
                given = document.get("id") if isinstance(document, Mapping) else None
                self._fail(Failure(position, None if given is None else str(given), str(error)), error)
        try:
            self._under_way.append(_Batch(self._changed(prepared), self._embedder))
        except StoreError as error:
            self._fail_all(prepared, error)

    def _changed(self, documents: list[Document]) -> list[Document]:
        """The documents that are new, or differ from the stored or pending ones with the same id."""
        known = self._store.stored([one.point_id for one in documents if one.id is not None])
        known |= {one.point_id: one.stored for batch in self._under_way for one in batch.documents}
        changed = []
        for one in documents:
            there = known.get(one.point_id)
            if there is not None and there.has_other_type(one.stored):
                error = ValueError(
                    f"its id {one.stored.original_doc_id!r} has the point of {there.original_doc_id!r}, which exists"
                    " and would be replaced; give all ids as str or all as int"
                )
                self._fail(Failure(one.position, one.id, str(error)), error)
                continue
            one.replaces = there is not None and there.content_hash != one.content_hash
            if self._skip_unchanged and there is not None and there.content_hash == one.content_hash:
                self._report.skipped += 1
                self._advance(1)
            else:
                known[one.point_id] = one.stored
                changed.append(one)
        return changed

    def _finish_first(self) -> None:
        """Wait for the vectors of the oldest batch, and write them."""
        batch = self._under_way[0]  # stays in the queue until it is done: an interruption cancels the whole queue
        if batch.documents:
            self._finish(batch)
        self._under_way.popleft()

    def _finish(self, batch: _Batch) -> None:
        try:
            vectors = self._vectors(batch)
        except ModelManagerError as error:
            self._embed_singly(batch.documents, error)
        else:
            self._write(batch.documents, vectors)

    def _vectors(self, batch: _Batch) -> NDArray[np.float32]:
        """The vectors of `batch`, computed again while the errors of the model are transient."""
        again = functools.partial(self._embedder.documents, [one.text for one in batch.documents])
        requests: Iterator[Callable[[], NDArray[np.float32]]] = itertools.chain(
            [batch.vectors], itertools.repeat(again)
        )

        def pause_after(error: Exception, planned: float) -> float | None:
            if not isinstance(error, ModelManagerError) or not error.transient:
                return None
            logger.warning("The model could not embed a batch: %s; trying again in %.2g s", error, planned)
            return planned

        return self._store.backoff.run(lambda: next(requests)(), pause_after, self._store.sleep)

    def _embed_singly(self, documents: list[Document], error: ModelManagerError) -> None:
        """Find the documents that made a batch fail. Errors that no document causes are not tried for each of them."""
        if len(documents) == 1 or error.transient or isinstance(error, OSError):
            self._fail_all(documents, error)
            return
        for one in documents:
            try:
                vectors = self._embedder.documents([one.text])
            except ModelManagerError as own:
                self._fail_all([one], own)
            else:
                self._write([one], vectors)

    def _write(self, documents: list[Document], vectors: NDArray[np.float32]) -> None:
        if vectors.shape != (len(documents), self._embedder.dimension):
            raise CollectionError(
                f"{self._embedder.slot!r} answered {len(documents)} texts with vectors of shape {vectors.shape},"
                f" expected ({len(documents)}, {self._embedder.dimension}): its model was replaced during the run"
            )
        rows = {one.point_id: row for row, one in enumerate(documents)}  # the last of the same id counts
        kept = [documents[row] for row in rows.values()]
        try:
            self._store.write(list(rows), vectors[list(rows.values())], [one.payload for one in kept])
        except StoreError as error:
            if error.transient or len(documents) == 1:
                self._fail_all(documents, error)
                return
            # Qdrant refuses the whole request when it refuses one point.
            for row, one in enumerate(documents):
                self._write([one], vectors[row : row + 1])
            return
        self._report.indexed += len(documents)
        self._report.updated += sum(one.replaces for one in documents)
        self._advance(len(documents))

    def _fail_all(self, documents: list[Document], error: Exception) -> None:
        for one in documents:
            self._fail(Failure(one.position, one.id, str(error)), error)

    def _fail(self, failure: Failure, error: Exception) -> None:
        self._report.failures.append(failure)
        self._advance(1)
        logger.info("Not indexed: %s", failure)
        if self._on_error == "raise":
            raise _given_up(str(failure), self._report) from error
        if self._max_failures is not None and self._report.failed > self._max_failures:
            message = f"more than {self._max_failures:,} documents failed, the latest: {failure}"
            raise _given_up(message, self._report) from error


def _given_up(message: str, report: IndexReport) -> IndexingError:
    error = IndexingError(f"indexing was given up: {message}")
    error.report = report
    return error


def _chunks(documents: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter. The input is read as needed."""
    source = iter(documents)
    while chunk := list(itertools.islice(source, size)):
        yield chunk
