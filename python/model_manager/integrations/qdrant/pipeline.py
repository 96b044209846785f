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
from .documents import Document, id_text, prepare
from .report import Failure, IndexingError, IndexReport
from .store import CollectionError, Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ...chunks import TextChunk
    from .documents import Stored
    from .encoders import Columns, Encoders

logger = logging.getLogger(__name__)

OnError: TypeAlias = Literal["report", "raise"]

_AHEAD = 2
"""Batches that wait for their vectors."""

_WRITES = 3
"""Times that a document in chunks is written while other runs write it too."""

T = TypeVar("T")


class _Batch:
    """Documents whose vectors are being computed."""

    def __init__(self, documents: list[Document], encoders: Encoders) -> None:
        self.documents = documents
        self._encoders = encoders
        self._dense: Future[NDArray[np.float32] | None] = Future()
        self._ticket: Any = None
        if documents:
            try:
                self._ticket = encoders.submit(texts_of(documents), self._settle)
            except ModelManagerError as error:
                self._dense.set_exception(error)

    def _settle(self, vectors: NDArray[np.float32] | None, error: BaseException | None) -> None:
        if error is not None:
            self._dense.set_exception(error)
        else:
            self._dense.set_result(vectors)

    def vectors(self) -> Columns:
        # The dense vectors of the next batch are computed meanwhile.
        return self._encoders.complete(texts_of(self.documents), self._dense.result())

    def cancel(self) -> None:
        if self._ticket is not None:
            self._ticket.cancel()


def texts_of(documents: Iterable[Document]) -> list[str]:
    """The texts of all points of the documents."""
    return [point.text for one in documents for point in one.points]


def pause_if_transient(error: Exception, planned: float) -> float | None:
    """The pause before texts are embedded again; None for an error that would come again. See `Backoff.run`."""
    if not isinstance(error, ModelManagerError) or not error.transient:
        return None
    logger.warning("The model could not embed texts: %s; trying again in %.2g s", error, planned)
    return planned


class Run:
    """From an iterable of documents to a finished report."""

    def __init__(
        self,
        store: Store,
        encoders: Encoders,
        report: IndexReport,
        *,
        on_error: OnError,
        skip_unchanged: bool,
        max_failures: int | None,
        advance: Callable[[int], object],
        split: Callable[[str], Sequence[TextChunk]] | None = None,
        fingerprint: str,
        fresh: bool = False,
        prepare: Callable[[Any, int, str], Document] = prepare,
    ) -> None:
        """`split` makes the chunks of a text; None: a document is one point. `fresh`: nothing else has written to the
        collection, so that what it has of a document is known. `fingerprint` stands for everything that
        points depend on in addition to the document. `prepare` makes a document of an item of the input, its place and
        the fingerprint, and raises TypeError or ValueError.
        """
        self._store = store
        self._encoders = encoders
        self._report = report
        self._on_error = on_error
        self._skip_unchanged = skip_unchanged
        self._max_failures = max_failures
        self._advance = advance
        self._fingerprint = fingerprint
        self._split = split
        self._fresh = fresh
        self._prepare = prepare
        self._position = 0
        self._under_way: deque[_Batch] = deque()
        self._pending: dict[str, Document] = {}
        """The latest document under way of each point."""

    def index(self, documents: Iterable[Any], batch_size: int) -> None:
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

    def _start(self, chunk: list[Any]) -> None:
        """Check the documents, skip those that the collection has, and send the others to the model."""
        prepared = []
        for document in chunk:
            position, self._position = self._position, self._position + 1
            try:
                prepared.append(self._prepare(document, position, self._fingerprint))
            except (TypeError, ValueError) as error:
                given = document.get("id") if isinstance(document, Mapping) else None
                self._fail(Failure(position, None if given is None else id_text(given), str(error)), error)
        try:
            self._under_way.append(_Batch(self._changed(prepared), self._encoders))
        except StoreError as error:
            self._fail_all(prepared, error)

    def _changed(self, documents: list[Document]) -> list[Document]:
        """The documents that are new, or differ from the stored or pending ones with the same id."""
        known = self._store.stored([one.point_id for one in documents if one.id is not None])
        changed = []
        for one in documents:
            pending = self._pending.get(one.point_id)
            there = known.get(one.point_id) if pending is None else pending.stored
            if there is not None and there.has_other_type(one.stored):
                error = ValueError(
                    f"its id {one.stored.original_doc_id!r} has the point of {there.original_doc_id!r}, which exists"
                    " and would be replaced; give all ids as str or all as int"
                )
                self._fail(Failure(one.position, one.id, str(error)), error)
                continue
            one.replaces = there is not None and there.content_hash != one.content_hash
            if self._skip_unchanged and there is not None and there.content_hash == one.content_hash:
                if pending is None:
                    self._skip(one)
                else:
                    pending.same.append(one)
            elif self._divide(one, there):
                self._pending[one.point_id] = one
                changed.append(one)
        return changed

    def _divide(self, document: Document, there: Stored | None) -> bool:
        """Make its points, and say whether those of other versions may be there. False if that failed."""
        if self._split is not None:
            try:
                document.split(self._split(document.text))
            except (ModelManagerError, ValueError) as error:
                self._fail(Failure(document.position, document.id, str(error)), error)
                return False
        if document.whole and document.id is not None:
            # In a collection of whole documents it is a name of metadata.
            in_chunks = there is not None and there.chunks is not None and self._store.divided is not False
            # An interrupted run may have left chunks without the first one, by which a document is looked up.
            document.divided = in_chunks or (self._split is not None and not self._fresh)
        return True

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

    def _vectors(self, batch: _Batch) -> Columns:
        """The vectors of `batch`, computed again while the errors of the model are transient."""
        again = functools.partial(self._encoders.documents, texts_of(batch.documents))
        requests: Iterator[Callable[[], Columns]] = itertools.chain([batch.vectors], itertools.repeat(again))
        return self._store.backoff.run(lambda: next(requests)(), pause_if_transient, self._store.sleep)

    def _embed_singly(self, documents: list[Document], error: ModelManagerError) -> None:
        """Find the documents that made a batch fail. Errors that no document causes are not tried for each of them."""
        if len(documents) == 1 or error.transient or isinstance(error, OSError):
            self._fail_all(documents, error)
            return
        for one in documents:
            try:
                vectors = self._encoders.documents(texts_of([one]))
            except ModelManagerError as own:
                self._fail_all([one], own)
            else:
                self._write([one], vectors)

    def _write(self, documents: list[Document], vectors: Columns) -> None:
        # After the vectors were made: by the model that was checked, or by another one, which is still there.
        self._encoders.check_unchanged()
        points = sum(len(one.points) for one in documents)
        if vectors.dense is not None and vectors.dense.shape != (points, self._encoders.dimension):
            raise CollectionError(
                f"{self._encoders.name!r} answered {points} texts with vectors of shape {vectors.dense.shape},"
                f" expected ({points}, {self._encoders.dimension}): its model was replaced during the run"
            )
        rows = itertools.accumulate((len(one.points) for one in documents), initial=0)
        placed = list(zip(documents, rows, strict=False))
        try:
            latest = {one.point_id: (one, row) for one, row in placed}  # of several with one id the last counts
            self._write_points([*latest.values()], vectors)
        except StoreError as error:
            self._fresh = False  # some of the points may be there
            if error.transient or len(documents) == 1:
                self._fail_all(documents, error)
                return
            # Qdrant refuses the whole request when it refuses one point.
            for one, row in placed:
                self._write([one], vectors.take(range(row, row + len(one.points))))
            return
        self._report.indexed += len(documents)
        self._report.updated += sum(one.replaces for one in documents)
        self._report.points += sum(len(one.points) for one, _ in latest.values())
        self._advance(len(documents))
        for one in documents:
            self._settle(one, self._skip)

    def _write_points(self, placed: list[tuple[Document, int]], vectors: Columns) -> None:
        """Write the points of documents whose vectors begin at these rows, and see whether those of another run came
        between them.

        Of several runs that write chunks of one document at once, one is the last to write a first point: it sees
        what all have left.
        """
        for attempt in range(_WRITES):
            self._write_once(placed, vectors, again=attempt > 0)
            placed = self._mixed(placed)
            if not placed:
                return
        self._store.unmark([one.point_id for one, _ in placed])
        raise StoreError("another run writes other chunks of this document at the same time: run this again after it")

    def _mixed(self, placed: list[tuple[Document, int]]) -> list[tuple[Document, int]]:
        """The documents in chunks that have points of another version."""
        checked = [] if self._split is None else [pair for pair in placed if pair[0].id is not None]
        found = self._store.chunk_hashes([one.point_id for one, _ in checked])
        return [(one, row) for one, row in checked if found.get(one.point_id) != [one.content_hash] * len(one.points)]

    def _write_once(self, placed: list[tuple[Document, int]], vectors: Columns, again: bool) -> None:
        """Write the points; `again`: there may be some of another version.

        A document's first point has the hash by which a later run takes the whole document for stored. That of an older
        version loses it before anything else changes, and the new one is written last: a run that ends in between
        leaves no version that counts as stored.
        """
        divided = [one for one, _ in placed if one.divided or again]
        self._store.unmark([one.point_id for one in divided if one.replaces or again])
        later = [(point, row + number) for one, row in placed for number, point in enumerate(one.points) if number]
        first = [(one.points[0], row) for one, row in placed]
        for part in (later, first):
            if part is first:
                kept = [point.id for one in divided for point in one.points]
                self._store.remove_rest([one.point_id for one in divided], kept)
            if part:
                ids, payloads = [point.id for point, _ in part], [point.payload for point, _ in part]
                self._store.write(ids, vectors.take([row for _, row in part]), payloads)

    def _fail_all(self, documents: list[Document], error: Exception) -> None:
        def fail(document: Document) -> None:
            self._fail(Failure(document.position, document.id, str(error)), error)

        for one in documents:
            fail(one)
            self._settle(one, fail)

    def _settle(self, document: Document, report: Callable[[Document], object]) -> None:
        """Report the documents of the same content, which waited for this one."""
        if self._pending.get(document.point_id) is document:
            del self._pending[document.point_id]
        for one in document.same:
            report(one)
        document.same.clear()

    def _skip(self, _document: Document) -> None:
        self._report.skipped += 1
        self._advance(1)

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
